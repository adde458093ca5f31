"""`onesitting chat` and `onesitting generate`: a trained model in the terminal.

A reply streams as it is written; thoughts, tool calls and tool results are dimmed. Tools are those of the
synthetic world, or of a file (`--tools`), and run in a process of their own. Ctrl-C stops a reply, not the
program; with piped input each line is a message.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onesitting.config import DeviceConfig
from onesitting.data.world.tools import TOOLS, world_tools
from onesitting.errors import UserError
from onesitting.recipe import load_recipe, resolve
from onesitting.runlog import CONFIG_FILE, require_folder
from onesitting.terminal import Ink, split_reply
from onesitting.tools.from_file import read_tools
from onesitting.tools.process import ToolProcess

if TYPE_CHECKING:
    from onesitting.config import RunConfig
    from onesitting.inference.sampling import Sampling
    from onesitting.model.transformer import Transformer
    from onesitting.tokenizer.bpe import Tokenizer

MAX_TOOL_ROUNDS = 4
"""Tool calls answered in one reply; a small model may otherwise call for ever."""

HELP = """\
/reset               forget the conversation
/system TEXT         set the system message and start again; without TEXT: none
/set NAME VALUE      sampling: temperature, top_k, top_p, min_p, repetition_penalty, max_tokens, seed
/tools on|off        offer the model its tools: calculator, calendar and look-up of the synthetic world, or --tools
/think on|off|auto|N open a thought, leave it out, let the model choose, or open one of at most N tokens
/help, /quit         this list; leave (Ctrl-D does as well). Ctrl-C stops a reply."""


@dataclass
class Chat:
    """A conversation with a model."""

    model: "Transformer"
    tokenizer: "Tokenizer"
    sampling: "Sampling"
    system: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Schemas offered to the model; empty: none."""
    toolbox: ToolProcess = field(default_factory=lambda: ToolProcess(world_tools(0)))
    """Runs the calls; holds all tools that can be offered."""
    thinking: bool | None = None
    thinking_tokens: int | None = None
    """Longest thought of a turn; None: no limit."""
    draft: "Transformer | None" = None
    """A smaller model that guesses ahead."""
    description: str = ""
    """What the model is, for the first line."""
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The conversation so far, without the system message."""


def chat(options: argparse.Namespace) -> None:
    """Talk to a model until the input ends; options are those of `onesitting chat`."""
    model, tokenizer, sampling, cfg = _load(options)
    own = read_tools(Path(options.tools)) if options.tools else None
    thinking, thinking_tokens = parse_thinking(options.think)
    toolbox = ToolProcess(own or world_tools(cfg.seed if cfg else 0))
    described, draft = _describe(model), _load_draft(options.draft, model, tokenizer)
    from onesitting.inference.generate import for_decoding

    model = for_decoding(model, None)  # once, not for every reply
    offers = not options.no_tools and (own is not None or (cfg is not None and "world" in cfg.chat))
    state = Chat(
        model=model,
        tokenizer=tokenizer,
        sampling=sampling,
        system=options.system,
        # The world's are offered only to a model that learnt to use them; a file's were asked for.
        tools=fitting_tools(model, tokenizer, toolbox.schemas) if offers else [],
        toolbox=toolbox,
        thinking=thinking,
        thinking_tokens=thinking_tokens,
        draft=None if draft is None else for_decoding(draft, None),
        description=described,
    )
    with state.toolbox:
        _converse(state)


def _converse(state: Chat) -> None:
    """Answer line after line until the input ends or /quit."""
    ink = Ink(sys.stdout)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]  # input() edits lines once it is there

        ink.note(f"{state.description}. /help lists commands, Ctrl-D leaves.")
    for line in _lines(interactive, ink):
        try:
            if not line.startswith("/"):
                answer(state, line, ink)
            elif not command(state, line, ink):
                return
        except UserError as error:  # a mistake in one message does not end the chat
            ink.note(str(error))


def _lines(interactive: bool, ink: Ink) -> Iterator[str]:
    """Messages typed or piped, without empty ones."""
    if not interactive:
        yield from filter(None, (line.strip() for line in sys.stdin))
        return
    while True:
        try:
            line = input(ink.bold("you> ")).strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            ink.note("\n/quit or Ctrl-D leaves")
            continue
        if line:
            yield line


def command(state: Chat, line: str, ink: Ink) -> bool:
    """Carry out a /command; False ends the chat. Raises UserError for one that is not known or wrong."""
    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    if name in ("quit", "exit", "q"):
        return False
    if name == "help":
        ink.note(HELP)
    elif name == "reset":
        state.messages.clear()
        ink.note("new conversation")
    elif name == "system":
        state.system = rest
        state.messages.clear()
        ink.note("new conversation" + (f", system: {rest}" if rest else ", no system message"))
    elif name == "set":
        state.sampling = change_sampling(state.sampling, rest)
        ink.note(str(state.sampling))
    elif name == "tools":
        wanted = _choice(rest, {"on": True, "off": False})
        state.tools = fitting_tools(state.model, state.tokenizer, state.toolbox.schemas) if wanted else []
        ink.note(f"tools: {', '.join(tool['function']['name'] for tool in state.tools) or 'none'}")
    elif name == "think":
        state.thinking, state.thinking_tokens = parse_thinking(rest)
    else:
        raise UserError(f"unknown command /{name}; /help lists the commands")
    return True


def _choice(word: str, values: dict[str, bool | None]) -> bool | None:
    if word not in values:
        raise UserError(f"'{word}': use {', '.join(values)}")
    return values[word]


def parse_thinking(word: str) -> tuple[bool | None, int | None]:
    """(whether thoughts are opened, their longest in tokens) for on, off, auto or a number."""
    if word.isdigit():
        return True, int(word)
    if word not in ("on", "off", "auto"):
        raise UserError(f"think '{word}': use on, off, auto, or a number of tokens")
    return {"on": True, "off": False, "auto": None}[word], None


def change_sampling(sampling: "Sampling", text: str) -> "Sampling":
    """Sampling after `/set NAME VALUE`; raises UserError for a name or value that is not allowed."""
    name, _, value = text.replace("=", " ").partition(" ")
    name = name.replace("-", "_")
    numbers = [it.name for it in fields(sampling) if it.name != "stop"]
    if name not in numbers:
        raise UserError(f"cannot set '{name}'; use {', '.join(numbers)}")
    kind = int if name in ("top_k", "max_tokens", "seed") else float
    try:
        return replace(sampling, **{name: kind(value)})
    except UserError:
        raise
    except ValueError:
        raise UserError(f"{name} = '{value.strip()}': a number expected") from None


def answer(state: Chat, text: str, ink: Ink) -> None:
    """Print the reply to one message, with tool calls and their results; the conversation grows by them."""
    state.messages.append({"role": "user", "content": text})
    for n_rounds in range(MAX_TOOL_ROUNDS + 1):
        reply, stopped = _stream_reply(state, ink)
        state.messages.append(reply)
        if stopped or not reply["tool_calls"]:
            return
        if n_rounds == MAX_TOOL_ROUNDS:
            ink.note(f"stopped after {MAX_TOOL_ROUNDS} rounds of tool calls")
            return
        for call in reply["tool_calls"]:
            try:
                result = "error: stopped by the user" if stopped else state.toolbox.call(call)
            except KeyboardInterrupt:
                result, stopped = "error: stopped by the user", True
                state.toolbox.close()  # else its late answer would be taken for that of the next call
            ink.note(f"  → {result}")
            state.messages.append({"role": "tool", "content": result})
        if stopped:
            return


def _stream_reply(state: Chat, ink: Ink) -> tuple[dict[str, Any], bool]:
    """(the reply as a message, whether Ctrl-C stopped it); prints it while it is written."""
    from onesitting.inference.generate import stream
    from onesitting.inference.row import thought_of
    from onesitting.tokenizer.chat import parse_assistant

    prompt, sampling = fit_prompt(state)
    written: list[str] = []

    def pieces() -> Iterator[str]:
        if state.thinking:
            written.append("<think>")
            yield "<think>"
        thought = thought_of(state.tokenizer, state.thinking_tokens, state.thinking)
        for piece in stream(
            state.model, state.tokenizer, prompt, sampling, thought=thought, draft=state.draft
        ):
            written.append(piece)
            yield piece

    stopped = False
    try:
        for style, shown in split_reply(pieces()):
            ink.write(shown if style == "text" else ink.dim(shown))
    except KeyboardInterrupt:
        stopped = True
        ink.write(ink.dim(" [stopped]"))
    ink.end_line()
    return parse_assistant("".join(written)), stopped


def fit_prompt(state: Chat) -> tuple[list[int], "Sampling"]:
    """Token ids of the conversation with room for a reply, and the sampling cut to that room.

    The oldest turns are left out when the model's context would overflow: the newest matter most to a reply.
    Raises UserError if even the last message alone is too long.
    """
    from onesitting.tokenizer.chat import render

    context = state.model.cfg.context_length
    reserve = min(state.sampling.max_tokens, context // 4)
    system = [{"role": "system", "content": state.system}] if state.system else []
    messages = list(state.messages)
    while True:
        ids, _ = render(
            state.tokenizer,
            system + messages,
            state.tools or None,
            add_generation_prompt=True,
            thinking=state.thinking,
        )
        later_turns = [i for i, message in enumerate(messages) if message["role"] == "user" and i > 0]
        room = context - len(ids)
        if room >= reserve or (room > 0 and not later_turns):
            return ids, replace(state.sampling, max_tokens=min(state.sampling.max_tokens, room))
        if not later_turns:
            state.messages.clear()
            raise UserError(
                f"{len(ids)} tokens leave no room for a reply in a context of {context}; started anew"
            )
        messages = messages[later_turns[0] :]


def fitting_tools(
    model: "Transformer", tokenizer: "Tokenizer", schemas: Sequence[dict[str, Any]] = TOOLS
) -> list[dict[str, Any]]:
    """The first of the tools whose schemas leave half of the model's context to the conversation."""
    from onesitting.tokenizer.chat import render

    for n_tools in range(len(schemas), 0, -1):
        ids, _ = render(tokenizer, [], schemas[:n_tools])
        if len(ids) <= model.cfg.context_length // 2:
            return list(schemas[:n_tools])
    return []


def generate_texts(options: argparse.Namespace) -> None:
    """Print `n` continuations of a prompt; options are those of `onesitting generate`."""
    if options.n < 1:
        raise UserError(f"--n = {options.n}: at least 1")
    model, tokenizer, sampling, _ = _load(options)
    from onesitting.inference.generate import generate

    thought = None
    if options.think:
        from onesitting.inference.row import thought_of
        from onesitting.tokenizer.chat import render

        thinking, most = parse_thinking(options.think)
        thought = thought_of(tokenizer, most, thinking)
        message = {"role": "user", "content": options.prompt}
        ids, _ = render(tokenizer, [message], add_generation_prompt=True, thinking=thinking)
    else:
        ids = tokenizer.encode(options.prompt) or [tokenizer.eos_id]
    room = model.cfg.context_length - len(ids)
    if room < 1:
        raise UserError(f"--prompt has {len(ids)} tokens, this model's context is {model.cfg.context_length}")
    sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
    draft = _load_draft(options.draft, model, tokenizer)
    ink = Ink(sys.stdout)
    for number, completion in enumerate(
        generate(model, tokenizer, [ids] * options.n, sampling, thought=thought, draft=draft)
    ):
        if number:
            ink.note("---")
        shown = tokenizer.decode(ids, skip_special=False) if options.think else options.prompt
        print(ink.dim(shown) + completion.text)


def _load(
    options: argparse.Namespace,
) -> "tuple[Transformer, Tokenizer, Sampling, RunConfig | None]":
    """Model, tokenizer, sampling and, if the folder lies in a run, the run's settings."""
    folder = require_folder(options.run)  # before the seconds that importing torch takes
    from onesitting.checkpoint import find_model_folder, load_model
    from onesitting.model.rope import stretched
    from onesitting.tokenizer.unused import tokenizer_of_model
    from onesitting.train.device import detect, plan_device

    model_folder = find_model_folder(folder)
    plan = plan_device(DeviceConfig(device=options.device), detect())
    plan.apply()
    model = load_model(model_folder, plan.torch_device)
    if options.context_factor:
        model.cfg = stretched(model.cfg, options.context_factor)
    tokenizer = tokenizer_of_model(model_folder, model.cfg.vocab_size)
    return model, tokenizer, _sampling(options, model_folder), _run_config(model_folder)


def _load_draft(run: str, model: "Transformer", tokenizer: "Tokenizer") -> "Transformer | None":
    """The model of `--draft`; None without it. Raises UserError when its tokens are not those of the model."""
    if not run:
        return None
    from onesitting.checkpoint import find_model_folder, load_model
    from onesitting.tokenizer.unused import tokenizer_of_model

    folder = find_model_folder(require_folder(run))
    draft = load_model(folder, model.device)
    own = tokenizer_of_model(folder, draft.cfg.vocab_size)
    same = (own.token_bytes, own.special_ids) == (tokenizer.token_bytes, tokenizer.special_ids)
    if not same or draft.cfg.vocab_size != model.cfg.vocab_size:
        raise UserError(
            f"--draft {run}: its vocabulary ({own.vocab_size} tokens) is not the model's ({tokenizer.vocab_size}); "
            "a draft needs the same tokenizer: train it with --tokenizer.path RUN/tokenizer"
        )
    return draft


def _sampling(options: argparse.Namespace, model_folder: Path) -> "Sampling":
    """What the command line says, then the model's generation_config.json, then the defaults."""
    from onesitting.inference.sampling import Sampling

    path = model_folder / "generation_config.json"
    own: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = {it.name for it in fields(Sampling)}
    values: dict[str, Any] = {
        name: value for name, value in own.items() if name in names and value is not None
    }
    values |= {name: value for name, value in vars(options).items() if name in names and value is not None}
    values["stop"] = tuple(values.get("stop", ()))
    return Sampling(**values)


def _run_config(model_folder: Path) -> "RunConfig | None":
    """Settings of the run that a model folder lies in; None for a model from elsewhere."""
    for parent in model_folder.resolve().parents:
        if (parent / CONFIG_FILE).is_file():
            return resolve(load_recipe(parent))
    return None


def _describe(model: "Transformer") -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"{count / 1e6:.1f}M parameters, context of {model.cfg.context_length} tokens"
