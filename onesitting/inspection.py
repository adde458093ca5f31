"""Look at what a model is trained on: documents as read, token boundaries, packed rows with their loss mask.

Before training it reads the data of the configuration; with a run folder it reads that run's tokenizer and
data, so it shows what the run sees. On a terminal it uses colours; in a pipe, or with NO_COLOR set, marks:
⟦trained⟧, tokens|split|so. The batches come from the training stages themselves, not from a copy of them.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from onesitting.config import RunConfig
from onesitting.errors import UserError
from onesitting.runlog import RunFolder, read_jsonl

if TYPE_CHECKING:
    from onesitting.data.examples import Batch
    from onesitting.data.problems import Problems
    from onesitting.tokenizer.bpe import Tokenizer

SCAN = 2000  # records read to count problems; a few seconds at most
ANY_FRACTION = 1.0  # of bad records: they are shown here, and refused when a run reads them
SHOWN_CHARACTERS = 400  # of a document
TOKEN_STYLES = ("black on bright_cyan", "black on bright_yellow")
TRAINED, CONTEXT, MARK = "bold bright_green", "dim", "yellow"

Token = tuple[int, bool]
"""An id, and whether it is trained."""


def inspect_data(cfg: RunConfig, n: int = 5, console: Console | None = None) -> None:
    """Show the first n documents and conversations as they are read, the guessed fields and the problems."""
    from onesitting.checks import check_specs
    from onesitting.data.sources import Problems, read_conversations, read_documents

    console = console or Console(highlight=False, soft_wrap=True)
    check_specs("data", cfg.data)
    problems = Problems(ANY_FRACTION)
    documents = list(itertools.islice(read_documents(cfg.data, cfg.corpus, problems, cfg.seed), SCAN))
    _heading(console, f"documents: {', '.join(cfg.data)}")
    for document in documents[:n]:
        size = len(document.text.encode())
        console.print(Text(f"— {document.source} · {size:,} bytes", style=MARK))
        console.print(Text(_shortened(document.text)))
    _summary(console, "documents", [len(document.text.encode()) for document in documents], problems)
    if "sft" not in cfg.stages and cfg.pretrain.chat_fraction == 0:
        return
    check_specs("chat", cfg.chat)
    problems = Problems(ANY_FRACTION)
    conversations = list(itertools.islice(read_conversations(cfg.chat, cfg.corpus, problems, cfg.seed), SCAN))
    _heading(console, f"conversations: {', '.join(cfg.chat)}")
    for conversation in conversations[:n]:
        tools = f" · {len(conversation.tools)} tools" if conversation.tools else ""
        console.print(
            Text(f"— {conversation.source} · {len(conversation.messages)} messages{tools}", style=MARK)
        )
        for message in conversation.messages:
            console.print(_message_line(message))
    sizes = [sum(len(str(m.get("content") or "").encode()) for m in c.messages) for c in conversations]
    _summary(console, "conversations", sizes, problems)


def inspect_tokens(cfg: RunConfig, text: str | None = None, console: Console | None = None) -> None:
    """Show where a text is cut into tokens, the ids, and the bytes per token.

    text: empty or None: the beginning of the first document.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    cfg = _with_start_model(cfg)
    tokenizer = _tokenizer(cfg, console)
    text = text or _shortened(next(_texts(cfg)))
    ids = tokenizer.encode(text)
    n_bytes = len(text.encode())
    shown = [_visible(tokenizer, i) for i in ids]
    if _plain(console):
        console.print(Text("|".join(shown)))
    else:
        line = Text()
        for index, piece in enumerate(shown):
            line.append(piece, style=TOKEN_STYLES[index % 2])
        console.print(line)
    console.print()
    width = max(map(len, shown), default=0)
    cells = [f"{i:>6} {piece:<{width}}" for i, piece in zip(ids, shown, strict=True)]
    per_line = max(1, min(8, console.width // (width + 9)))
    for first in range(0, len(cells), per_line):
        console.print(Text("  ".join(cells[first : first + per_line]).rstrip()))
    ratio = n_bytes / max(1, len(ids))
    console.print(f"\n{len(ids):,} tokens, {n_bytes:,} bytes: {ratio:.2f} bytes per token", style="bold")


def inspect_batch(
    cfg: RunConfig, stage: str = "pretrain", step: int = 0, rows: int = 4, console: Console | None = None
) -> None:
    """Show the first packed rows of one optimizer step: documents, what is trained, what is context, padding.

    stage: pretrain or sft. step: 0 is the first. rows: how many are shown; all are counted.
    """
    if stage not in ("pretrain", "sft"):
        raise UserError(f"--stage {stage}: there is none of that name; use pretrain or sft")
    if step < 0:
        raise UserError(f"--step {step}: steps are counted from 0")
    console = console or Console(highlight=False, soft_wrap=True)
    cfg = _with_start_model(cfg)
    tokenizer = _tokenizer(cfg, console)
    batches, isolated = _step_batches(cfg, tokenizer, stage, step, console)
    n_rows = sum(len(batch.tokens) for batch in batches)
    places = sum(batch.tokens.numel() for batch in batches)
    units, real = sum(batch.n_units for batch in batches), sum(batch.n_tokens for batch in batches)
    row_length = batches[0].tokens.shape[1]
    _heading(console, f"{stage}, step {step}: {n_rows} rows of {row_length} tokens")
    shown = itertools.islice(((batch, i) for batch in batches for i in range(len(batch.tokens))), rows)
    for number, (batch, index) in enumerate(shown):
        console.print(Text(f"row {number}", style="bold"))
        _print_row(console, tokenizer, *row_pieces(batch, index))
    if n_rows > rows:
        console.print(Text(f"… {n_rows - rows} more rows", style=CONTEXT))
    sight = "hidden from each other" if isolated else "in one row see each other"
    console.print(
        f"\n{units:,} trained of {real:,} real tokens in {places:,} places: "
        f"{100 * real / places:.1f} % real, {100 * units / max(1, real):.1f} % of them trained; "
        f"documents {sight}",
        style="bold",
    )
    if _plain(console):
        console.print("⟦…⟧ is trained, the rest is context")
    else:
        console.print(
            Text.assemble(("trained", TRAINED), "  ", ("context", CONTEXT), "  ", ("padding", MARK))
        )


def row_pieces(batch: "Batch", row: int) -> tuple[list[list[Token]], int]:
    """The documents of a row, each as (id, trained) in the order they are read, and the places of padding.

    The first token of a piece is no target in it; each later one is trained if it is a target.
    """
    from onesitting.data.examples import IGNORED
    from onesitting.data.tokens import PADDING

    tokens, targets = batch.tokens[row].tolist(), batch.targets[row].tolist()
    numbers = [0] * len(tokens) if batch.doc_ids is None else batch.doc_ids[row].tolist()
    pieces: list[list[Token]] = []
    for number, places in itertools.groupby(range(len(tokens)), key=lambda place: numbers[place]):
        if number == PADDING:
            continue
        at = list(places)
        piece = [(tokens[at[0]], False)]
        for place in at:
            if targets[place] != IGNORED:
                piece.append((targets[place], True))
            elif place != at[-1]:
                piece.append((tokens[place + 1], False))
        pieces.append(piece)
    return pieces, numbers.count(PADDING)


def _print_row(console: Console, tokenizer: "Tokenizer", pieces: list[list[Token]], n_padding: int) -> None:
    for number, piece in enumerate(pieces):
        trained = sum(is_trained for _, is_trained in piece)
        console.print(Text(f"  ┌ document {number}: {len(piece)} tokens, {trained} trained", style=MARK))
        line = Text()
        for is_trained, run in itertools.groupby(piece, key=lambda token: token[1]):
            words = tokenizer.decode([token for token, _ in run], skip_special=False)
            words = words.replace("\n", "⏎\n")
            if is_trained and _plain(console):
                words = f"⟦{words}⟧"
            line.append(words, style=TRAINED if is_trained else CONTEXT)
        console.print(line)
    if n_padding:
        console.print(Text(f"  └ padding: {n_padding} places", style=MARK))


def _step_batches(
    cfg: RunConfig, tokenizer: "Tokenizer", stage: str, step: int, console: Console
) -> tuple[list["Batch"], bool]:
    """The micro-batches that the stage itself makes for a step, and whether it isolates documents.

    Pretraining rows are built isolated even where training does not isolate: the ids are the same, and
    the numbers of the documents show where each begins.
    """
    from onesitting.data.prepare import prepare_conversations, prepare_documents
    from onesitting.data.tokens import ChatFolder, Material, TokenFolder
    from onesitting.stages.make import prepare_general
    from onesitting.stages.pretrain import PretrainStage
    from onesitting.stages.sft import SFTStage
    from onesitting.start import general_data
    from onesitting.train.device import plan_device
    from onesitting.train.distributed import Ranks
    from onesitting.train.hardware import detect

    ranks = Ranks()
    plan = plan_device(cfg.device, detect(), ranks)
    run = _run(cfg)
    with ExitStack() as stack:

        def folder(name: str) -> Path:
            """The run's own data if it is there; else a temporary place, filled from the shared cache."""
            if (run.data / name).exists():
                return run.data / name
            return Path(stack.enter_context(tempfile.TemporaryDirectory())) / name

        def chat_data() -> ChatFolder:
            return prepare_conversations(cfg.chat, tokenizer, cfg.corpus, folder("chat"), cfg.seed)

        def text_data() -> TokenFolder:
            return prepare_documents(cfg.data, tokenizer, cfg.corpus, folder("text"), cfg.seed)

        general = Material()
        if cfg.replay.fraction > 0:
            general = prepare_general(general_data(cfg), tokenizer, folder("general"))
        if stage == "sft":
            batches = SFTStage(cfg, tokenizer, chat_data(), plan, ranks, general.chat).next_batches(
                None, step, cfg.sft.context_length or cfg.model.context_length
            )
            return batches, True
        marked = replace(cfg, pretrain=replace(cfg.pretrain, isolate="on"))
        chat = chat_data() if cfg.pretrain.chat_fraction > 0 else None
        source = PretrainStage(marked, tokenizer, text_data(), chat, plan, ranks, general)
        isolated = PretrainStage(cfg, tokenizer, source.data, chat, plan, ranks).isolate
        return source.next_batches(None, step, _row_length(cfg, run, step, console)), isolated


def _row_length(cfg: RunConfig, run: RunFolder, step: int, console: Console) -> int:
    """Row length of a pretraining step: the recorded one, else what the curriculum begins with."""
    for record in read_jsonl(run.stage("pretrain").metrics_path):
        if record.get("step") == step + 1 and "row_length" in record:  # a line is written after its step
            return int(record["row_length"])
    full = cfg.pretrain.context_length or cfg.model.context_length
    if not cfg.pretrain.short_context or not cfg.pretrain.short_fraction:
        return full
    console.print(
        f"The first {100 * cfg.pretrain.short_fraction:.0f} % of the steps have rows of "
        f"{cfg.pretrain.short_context} tokens, as shown; later ones {full}.",
        style=MARK,
    )
    return cfg.pretrain.short_context


def _with_start_model(cfg: RunConfig) -> RunConfig:
    """The run's own configuration; only a run that starts from another model needs that model (and torch) here."""
    if not cfg.start_from:
        return cfg
    from onesitting.start import with_start_model

    return with_start_model(cfg)


def _run(cfg: RunConfig) -> RunFolder:
    return RunFolder(Path(cfg.out).expanduser() / cfg.name)


def _tokenizer(cfg: RunConfig, console: Console) -> "Tokenizer":
    """The run's tokenizer, or the given one; before a run, the one that it will train."""
    from onesitting.data.text_sample import text_sample
    from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer

    for folder in (
        _run(cfg).tokenizer,
        Path(cfg.tokenizer.path).expanduser() if cfg.tokenizer.path else None,
    ):
        if folder is not None and (folder / "tokenizer.json").is_file():
            return Tokenizer.load(folder)
    if cfg.tokenizer.path:
        return Tokenizer.load(Path(cfg.tokenizer.path).expanduser())
    console.print(
        f"No tokenizer in {_run(cfg).path} yet: training the one that the run will train …", style=CONTEXT
    )
    return train_tokenizer(text_sample(cfg), cfg.tokenizer.vocab_size)


def _texts(cfg: RunConfig) -> Iterator[str]:
    from onesitting.data.sources import Problems, read_documents

    for document in read_documents(cfg.data, cfg.corpus, Problems(ANY_FRACTION), cfg.seed):
        yield document.text


def _visible(tokenizer: "Tokenizer", token: int) -> str:
    """A token as text; bytes that are no whole character as \\xNN, line ends as ⏎."""
    data = tokenizer.token_bytes[token]
    if not data:
        return tokenizer.decode([token], skip_special=False)
    return (
        data.decode("utf-8", errors="backslashreplace")
        .replace("\n", "⏎")
        .replace("\r", "␍")
        .replace("\t", "⇥")
    )


def _message_line(message: dict[str, Any]) -> Text:
    """Role, thought, content and tool calls of a message, in one line each."""
    line = Text(f"  {message.get('role', '?'):<10}", style="bold")
    if message.get("reasoning_content"):
        line.append(f"(thinks: {_shortened(str(message['reasoning_content']))}) ", style=CONTEXT)
    line.append(_shortened(str(message.get("content") or "")), style="not bold")
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        line.append(f" → {function.get('name')}({function.get('arguments')})", style=MARK)
    return line


def _summary(console: Console, kind: str, sizes: Sequence[int], problems: "Problems") -> None:
    more = " (the first ones; there may be more)" if len(sizes) == SCAN else ""
    if sizes:
        middle = sorted(sizes)[len(sizes) // 2]
        line = f"{len(sizes):,} {kind} read{more}: {sum(sizes):,} bytes, {middle:,} in the middle one"
        console.print(line, style="bold")
    else:
        console.print(f"no {kind}", style=MARK)
    for what, n_files in problems.guesses.items():
        files = "" if n_files == 1 else f" (in {n_files} files)"
        console.print(Text(f"guessed: {what}{files}", style=MARK))
    for what, n in problems.skipped.items():
        console.print(Text(f"skipped: {n:,} × {what}", style=MARK))
    for what, n in problems.bad.items():
        console.print(Text(f"bad: {n:,} × {what}", style=MARK))
    for example in problems.examples:
        console.print(Text(f"  {example}", style=CONTEXT))


def _heading(console: Console, words: str) -> None:
    console.print(Text(f"\n{words}", style="bold underline"))


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"


def _plain(console: Console) -> bool:
    """Whether marks stand for colours."""
    return not console.is_terminal or console.no_color
