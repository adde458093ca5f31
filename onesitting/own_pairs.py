"""Preferences from a model's own attempts: it answers each prompt several times, rewards judge, best meets worst.

Pairs that somebody wrote say which of two replies is better, but the model would hardly have said either. These are
replies that it did say (Xu et al. 2024, arXiv:2404.10719, find that DPO suffers where pairs are far from what the
model says, and that it gains from making them anew). The best attempts alone are conversations for SFT:
rejection sampling (Touvron et al. 2023, arXiv:2307.09288, section 3.2.3) or expert iteration.

Prompts come from the training split, never from the ones that a suite or a validation asks.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onesitting.cli_settings import Parser
from onesitting.config import DeviceConfig
from onesitting.data.prompts import Prompt, Prompts, read_prompts
from onesitting.data.sources import WORLD
from onesitting.errors import UserError
from onesitting.rewards import Attempt, Term, parse_terms, weighted_sum
from onesitting.runlog import append_jsonl, read_jsonl

if TYPE_CHECKING:
    from onesitting.model.transformer import Transformer
    from onesitting.tokenizer.bpe import Tokenizer

CHUNK = 256
"""Attempts that are made before their pairs are written: a few batches of the engine, seconds of work to lose."""

ORACLE = ("never", "missing", "first")
"""Where a prompt's written reply stands among attempts with the same reward: nowhere, behind or before them."""

OPTIONS: tuple[tuple[str, type, str | int | float, str, str], ...] = (
    ("--n", int, 1000, "N", "prompts that are asked"),
    ("--first", int, 0, "N", "number of the first prompt, to ask others than a round before"),
    ("--samples", int, 8, "N", "attempts at each prompt"),
    ("--per-prompt", int, 1, "N", "pairs of one prompt, at most: best and worst, second best and second worst, …"),
    ("--temperature", float, 1.0, "X", "of the attempts; above 0, since all would be equal"),
    ("--max-tokens", int, 300, "N", "longest attempt, in tokens; longer ones are left out"),
    ("--seed", int, 0, "N", "seed of the random choices"),
    ("--world-seed", int, 0, "N", "seed of the synthetic world: that of the run"),
    ("--judge", str, "", "RUN", "run or folder of the reward model that the reward `judge` asks"),
    ("--device", str, "auto", "NAME", "auto, cuda, mps, xpu or cpu"),
    ("--best", str, "", "FILE", "also write each prompt's best attempt, as conversations for SFT (.jsonl)"),
    ("--best-from", float, 1.0, "X", "reward that an attempt in --best must have"),
)  # fmt: skip
"""Option, type, default, its name in the help, the help."""


def main(argv: list[str]) -> None:
    """The command `pairs`."""
    parser = Parser(
        "pairs",
        "RUN --out FILE [options]",
        "Make preferences from a model's own attempts. Goes on where it stopped.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, of one of its stages, or of a model")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="file of pairs (.jsonl); what is in it stays"
    )
    for name, default, text in (
        ("--prompts", WORLD, "world, one of its tasks (world:tools), or files of prompts with what is right"),
        ("--rewards", "scorer=1", "weighted sum that judges, as rl.rewards"),
    ):
        parser.add_argument(name, nargs="+", default=[default], metavar="NAME", help=f"{text} [{default}]")
    oracle = "use the right reply that a prompt comes with: never, where it is missing, or before all others"
    parser.add_argument("--oracle", choices=ORACLE, default="never", help=f"{oracle} [never]")
    for name, kind, default, metavar, text in OPTIONS:
        shown = default if default != "" else "none"
        parser.add_argument(name, type=kind, default=default, metavar=metavar, help=f"{text} [{shown}]")
    write_pairs(parser.parse_args(argv))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One attempt with its reward."""

    message: dict[str, Any]
    reward: float
    finished: bool
    """It ended by itself. A reply that was cut has no end to learn from, or to unlearn."""


@dataclass
class Counts:
    """What one call did."""

    prompts: int = 0
    attempts: int = 0
    cut: int = 0
    reward: float = 0.0
    """Sum over attempts."""
    undecided: int = 0
    """Prompts whose attempts are all equally good, or equal."""
    written: dict[str, int] = field(default_factory=dict[str, int])
    """File -> lines."""


def write_pairs(options: argparse.Namespace) -> Counts:
    """Ask the model what is not in the file yet; append the pairs as they come. options: those of `main`.

    Attempt number s at prompt number i is a function of (weights, seed, i, s): going on changes nothing.
    Raises UserError for a model, prompts or rewards that are not there, and a file of another model or seed.
    """
    from onesitting.checkpoint import find_model_folder, load_model
    from onesitting.model.lora import weights_hash
    from onesitting.stages.reference import model_identity
    from onesitting.stages.reward import load_reward_model
    from onesitting.tokenizer.unused import tokenizer_of_model
    from onesitting.train.device import detect, plan_device

    _check(options)
    device = plan_device(DeviceConfig(device=options.device), detect())
    device.apply()
    judge = load_reward_model(options.judge, device.torch_device) if options.judge else None
    terms = parse_terms(options.rewards, {"judge": judge.judge} if judge else {})
    folder = find_model_folder(Path(options.run).expanduser())
    identities = [model_identity(folder), *([weights_hash(judge.model)] if judge else [])]
    made_by = _made_by(options, "/".join(identities))
    pairs = Lines.open(options.out, made_by)
    best = Lines.open(options.best, made_by) if options.best else None
    files = [file for file in (pairs, best) if file is not None]
    first = max(options.first, min(file.next for file in files))
    model = load_model(folder, device.torch_device)
    tokenizer = tokenizer_of_model(folder, model.cfg.vocab_size)
    counts, start = Counts(written={str(file.path): 0 for file in files}), time.perf_counter()
    prompts = read_prompts(options.prompts, options.world_seed)
    for index, prompt, group in attempts(model, tokenizer, prompts, terms, options, first, counts):
        found = pairs_of(group, options.per_prompt)
        counts.undecided += not found
        common = {"tools": prompt.tools} if prompt.tools else {}
        meta = {"prompt": index, "made_by": made_by}
        records = [
            {"prompt": prompt.messages, "chosen": better.message, "rejected": worse.message, **common}
            | {"meta": {**meta, "rewards": [better.reward, worse.reward]}}
            for better, worse in found
        ]
        counts.written[str(pairs.path)] += pairs.add(index, records)
        if best is not None:
            right = [one for one in ranked(group) if one.reward >= options.best_from][:1]
            records = [
                {
                    "messages": [*prompt.messages, one.message],
                    **common,
                    "meta": {**meta, "reward": one.reward},
                }
                for one in right
            ]
            counts.written[str(best.path)] += best.add(index, records)
    _say(counts, time.perf_counter() - start)
    return counts


def _check(options: argparse.Namespace) -> None:
    for name, least in (("n", 1), ("samples", 2), ("per_prompt", 1), ("max_tokens", 1)):
        if getattr(options, name) < least:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {getattr(options, name)}: give at least {least}")
    if options.temperature <= 0:
        raise UserError(
            f"--temperature {options.temperature}: all attempts at a prompt would be equal; give 1, or a little less"
        )


def _made_by(options: argparse.Namespace, identity: str) -> str:
    """A hash of all that attempts depend on: lines of one file have one."""
    names = ("prompts", "oracle", "samples", "temperature", "max_tokens", "seed", "world_seed", "rewards")
    content = json.dumps([identity, *(getattr(options, name) for name in names)])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _say(counts: Counts, seconds: float) -> None:
    mean = counts.reward / max(1, counts.attempts)
    print(
        f"{counts.prompts} prompts, {counts.attempts} attempts in {seconds:.0f} s: mean reward {mean:.3f}, "
        f"{counts.cut} cut at --max-tokens, {counts.undecided} prompts without a better and a worse reply"
    )
    for path, n in counts.written.items():
        print(f"{path}: {n} written")


# ---- attempts --------------------------------------------------------------------------------------------------


def attempts(
    model: "Transformer",
    tokenizer: "Tokenizer",
    prompts: Prompts,
    terms: Sequence[Term],
    options: argparse.Namespace,
    first: int,
    counts: Counts,
) -> Iterator[tuple[int, Prompt, list[Judged]]]:
    """(its number, the prompt, judged replies) of training prompts first … options.first + options.n - 1, once each.

    The replies are the model's attempts and, as `options.oracle` says, the prompt's written one.
    """
    from onesitting.stages.rollout import RolloutSettings, rollout

    settings = RolloutSettings(temperature=options.temperature, max_tokens=options.max_tokens)
    samples, waiting = options.samples, new_prompts(prompts, first, options.first + options.n)
    while chunk := list(islice(waiting, max(1, CHUNK // samples))):
        asked = [prompt for _, prompt in chunk for _ in range(samples)]
        indices = [index * samples + sample for index, _ in chunk for sample in range(samples)]
        done = rollout(model, tokenizer, asked, settings, indices=indices, seed=f"{options.seed}/pairs")
        made = [
            _attempt(prompt, one.messages[-1], one.n_sampled, one.stopped, options.max_tokens)
            for prompt, one in zip(asked, done, strict=True)
        ]
        own, written = _judged(terms, made), _oracles(terms, chunk, tokenizer, options)
        counts.prompts += len(chunk)
        counts.attempts += len(own)
        counts.cut += sum(not one.finished for one in own)
        counts.reward += sum(one.reward for one in own)
        for number, (index, prompt) in enumerate(chunk):
            group = own[number * samples : (number + 1) * samples]
            other = [written[index]] if index in written else []
            yield index, prompt, [*other, *group] if options.oracle == "first" else [*group, *other]


def _attempt(prompt: Prompt, message: dict[str, Any], n_tokens: int, stopped: bool, limit: int) -> Attempt:
    return Attempt(
        prompt=prompt.messages, messages=[message], tools=prompt.tools, reference=prompt.reference,
        scorer=prompt.scorer, n_tokens=n_tokens, max_tokens=limit, stopped=stopped,
    )  # fmt: skip


def _judged(terms: Sequence[Term], made: Sequence[Attempt]) -> list[Judged]:
    return [
        Judged(message=without_empty(one.reply), reward=reward, finished=one.stopped)
        for one, reward in zip(made, weighted_sum(terms, made)[0], strict=True)
    ]


def _oracles(
    terms: Sequence[Term],
    chunk: Sequence[tuple[int, Prompt]],
    tokenizer: "Tokenizer",
    options: argparse.Namespace,
) -> dict[int, Judged]:
    """Number of a prompt -> its written reply, judged as the attempts are."""
    from onesitting.tokenizer.chat import render

    known = [(index, prompt, prompt.oracle) for index, prompt in chunk if prompt.oracle is not None]
    if options.oracle == "never":
        known = []
    made = [
        _attempt(prompt, oracle, sum(render(tokenizer, [oracle])[1]), True, options.max_tokens)
        for _, prompt, oracle in known
    ]
    return {index: one for (index, _, _), one in zip(known, _judged(terms, made), strict=True)}


def new_prompts(prompts: Prompts, first: int, end: int) -> Iterator[tuple[int, Prompt]]:
    """Training prompts first … end - 1 with their numbers, but for those that asked the same before."""
    seen: set[str] = set()
    for index in range(end):
        prompt = prompts.get("train", index)
        key = json.dumps([prompt.messages, prompt.tools], sort_keys=True)
        if key not in seen and index >= first:
            yield index, prompt
        seen.add(key)


def without_empty(message: dict[str, Any]) -> dict[str, Any]:
    """The message without its empty fields."""
    return {name: value for name, value in message.items() if value or name in ("role", "content")}


def ranked(group: Sequence[Judged]) -> list[Judged]:
    """Different attempts that ended by themselves and said something, the best first, else in their order."""
    different: dict[str, Judged] = {}
    for one in group:
        if one.finished and (one.message.get("content") or one.message.get("tool_calls")):
            different.setdefault(json.dumps(one.message, sort_keys=True), one)
    return sorted(different.values(), key=lambda one: -one.reward)


def pairs_of(group: Sequence[Judged], most: int) -> list[tuple[Judged, Judged]]:
    """At most `most` pairs, the better attempt first: best and worst, second best and second worst, …"""
    order = ranked(group)
    pairs = list(zip(order, reversed(order), strict=True))[: min(most, len(order) // 2)]
    return [(better, worse) for better, worse in pairs if better.reward > worse.reward]


# ---- files -----------------------------------------------------------------------------------------------------


@dataclass
class Lines:
    """A file of records in the order of their prompts."""

    path: Path
    next: int
    """Number of the first prompt whose records are not in it."""

    @classmethod
    def open(cls, name: str, made_by: str) -> "Lines":
        """The file as it is. Raises UserError if it is of another kind, or its lines of other attempts."""
        path = Path(name).expanduser()
        if path.suffix != ".jsonl":
            raise UserError(f"{name}: a file of JSON lines is written; name it ….jsonl")
        last = -1
        for record in read_jsonl(path):
            meta = record.get("meta") or {}
            if meta.get("made_by") != made_by:
                raise UserError(
                    f"{name} holds lines of another model, other prompts or settings; write to another "
                    "file, or delete it"
                )
            last = max(last, int(meta["prompt"]))
        return cls(path, last + 1)

    def add(self, index: int, records: Sequence[dict[str, Any]]) -> int:
        """Append the records of a prompt, unless they are there; how many were written."""
        if index < self.next:
            return 0
        if records:  # all with one write: going on looks at the last prompt alone
            append_jsonl(self.path, *records)
        return len(records)
