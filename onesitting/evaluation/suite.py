"""Scores of a model on the items of a question suite, with confidence intervals and baselines.

Items are data (`data/world/suite.py`): a prompt, a scorer's name, a reference, and a baseline reply that
the same scorer judges. Replies come from the model greedily, or from any function of the items, so that an
oracle and an empty reply can be scored in tests by the same code.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from onesitting.config import EvaluationConfig
from onesitting.data.world.scoring import Reply, Score
from onesitting.data.world.suite import Item, score
from onesitting.tokenizer.chat import parse_assistant, render

if TYPE_CHECKING:
    from onesitting.model.transformer import Transformer
    from onesitting.tokenizer.bpe import Tokenizer

Mode = Literal["chat", "base"]
N_EXAMPLES = 4  # a task; right and wrong ones, enough to see what a model does
Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class RawReply:
    """What a model wrote: its text with special tokens spelled out, and whether it ended by itself."""

    text: str
    stopped: bool


@dataclass(frozen=True)
class Example:
    """A prompt, the reply to it and the verdict."""

    prompt: str
    reply: str
    correct: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """How often the replies to a task's items were right."""

    n: int
    """Items that were asked."""
    correct: int
    accuracy: float
    ci_low: float
    """Lower end of the Wilson 95 % interval."""
    ci_high: float
    baseline: float | None
    """Accuracy of the items' baseline replies under the same scorer; None where there is none."""
    examples: list[Example] = field(default_factory=list[Example])
    left_out: int = 0
    """Items for which there was no time."""


Replies = Callable[[Sequence[Item]], Sequence[RawReply | None]]
"""Replies to items, None where there was no time to ask."""


def run_suite(
    model: "Transformer",
    tokenizer: "Tokenizer",
    items: Mapping[str, Sequence[Item]],
    *,
    mode: Mode = "chat",
    max_tokens: int = 300,
    thinking: bool | None = None,
    thinking_tokens: int | None = None,
    ends_at: float | None = None,
) -> dict[str, TaskResult]:
    """Task -> result of the model's greedy replies; `stops` is measured over all replies of chat items.

    items: from World.suite (mode "chat") or World.base_suite (mode "base"). Parts of a task's score are
    reported as tasks of their own (`stories_consistent`, `tools_valid`).
    max_tokens: a reply that is longer is cut and counts as one that did not stop; the world's longest stories
    have about 260 tokens.
    thinking: open a thought in every reply, leave it out, or let the model choose; thinking_tokens: its longest.
    ends_at: by time.monotonic(), when to be done; items for which there is no time are left out (`generate`).
    """

    began = time.monotonic()

    def reply(asked: Sequence[Item]) -> Sequence[RawReply | None]:
        # To judge the replies will take about as long as to judge the baselines' did.
        until = None if ends_at is None else ends_at - (time.monotonic() - began)
        return model_replies(
            model, tokenizer, asked, mode=mode, max_tokens=max_tokens, thinking=thinking,
            thinking_tokens=thinking_tokens, ends_at=until,
        )  # fmt: skip

    return score_suite(items, reply, mode=mode)


def run_suite_thinking(
    model: "Transformer",
    tokenizer: "Tokenizer",
    items: Mapping[str, Sequence[Item]],
    settings: EvaluationConfig,
    ends_at: float | None = None,
) -> dict[str, TaskResult]:
    """The suite in chat form with thoughts as asked; `both` asks without, and again with as `<task>_thinking`."""
    most = settings.thinking_tokens or None
    if settings.thinking == "both":
        half_at = None if ends_at is None else (time.monotonic() + ends_at) / 2
        without = run_suite(model, tokenizer, items, thinking=False, ends_at=half_at)
        with_thoughts = run_suite(
            model, tokenizer, items, thinking=True, thinking_tokens=most, ends_at=ends_at
        )
        return without | {f"{task}_thinking": result for task, result in with_thoughts.items()}
    wanted = {"auto": None, "on": True, "off": False}[settings.thinking]
    return run_suite(model, tokenizer, items, thinking=wanted, thinking_tokens=most, ends_at=ends_at)


def model_replies(
    model: "Transformer",
    tokenizer: "Tokenizer",
    items: Sequence[Item],
    *,
    mode: Mode,
    max_tokens: int,
    thinking: bool | None = None,
    thinking_tokens: int | None = None,
    ends_at: float | None = None,
) -> list[RawReply | None]:
    """Greedy replies to items, which are written together: where one ends, the next begins; None: no time for it."""
    from onesitting.inference.generate import generate
    from onesitting.inference.row import thought_of
    from onesitting.inference.sampling import Sampling

    thinking = thinking if mode == "chat" else None
    prompts = [prompt_ids(tokenizer, item, mode, thinking) for item in items]
    thought = thought_of(tokenizer, thinking_tokens, thinking) if mode == "chat" else None
    reply = Sampling(temperature=0.0, max_tokens=max_tokens)
    line = replace(reply, stop=("\n",))
    # In completion form a line is the whole answer, except for stories, which have paragraphs.
    each = [line if mode == "base" and item.scorer != "story" else reply for item in items]
    completions = generate(
        model, tokenizer, prompts, each, tokenizer.stop_ids, thought=thought, ends_at=ends_at
    )
    opened = "<think>" if thinking else ""  # it stands in the prompt, and is part of the reply
    return [
        None
        if done.finish_reason == "deadline"
        else RawReply(opened + done.text, done.finish_reason == "stop")
        for done in completions
    ]


def prompt_ids(tokenizer: "Tokenizer", item: Item, mode: Mode, thinking: bool | None = None) -> list[int]:
    """The item as token ids, up to where the reply begins, or its thought if thinking is True."""
    if mode == "base":
        return [tokenizer.eos_id, *tokenizer.encode(item.prompt)]
    return render(tokenizer, item.messages, item.tools, add_generation_prompt=True, thinking=thinking)[0]


def score_suite(
    items: Mapping[str, Sequence[Item]], reply: Replies, *, mode: Mode = "chat"
) -> dict[str, TaskResult]:
    """Task -> result of the replies that `reply` gives to the items of all tasks at once.

    Tasks take turns, an item each, so that where the time ends each has been asked about as often.
    """
    turns = zip_longest(*([(task, item) for item in of_task] for task, of_task in items.items()))
    asked = [turn for turn in chain.from_iterable(turns) if turn is not None]
    guesses = [score(item, item.baseline_reply) for _, item in asked]
    replies = reply([item for _, item in asked])
    answered = [
        _Answered(task, item, raw, score(item, parsed(raw.text, mode, item.prompt)), guess)
        for (task, item), raw, guess in zip(asked, replies, guesses, strict=True)
        if raw is not None
    ]
    results: dict[str, TaskResult] = {}
    for task, of_task in items.items():
        mine = [answer for answer in answered if answer.task == task]
        results |= _task_results(task, mine)
        results[task] = replace(results[task], left_out=len(of_task) - len(mine))
    if mode == "chat":
        results["stops"] = _result([answer.raw.stopped for answer in answered], None)
    return results


class _Answered(NamedTuple):
    """An item, the reply to it, and what both the reply and the baseline are worth."""

    task: str
    item: Item
    raw: RawReply
    score: Score
    guess: Score


def _task_results(task: str, answers: Sequence[_Answered]) -> dict[str, TaskResult]:
    """The task's result, and one for each part of its scores."""
    right, guessed = [a.score.correct for a in answers], [a.guess.correct for a in answers]
    results = {task: _result(right, guessed, _examples(answers))}
    for part in dict.fromkeys(name for answer in answers for name in answer.score.parts):
        got = [a.score.parts[part] for a in answers if part in a.score.parts]
        guessed = [a.guess.parts[part] for a in answers if part in a.guess.parts]
        results[f"{task}_{part}"] = _result(got, guessed)
    return results


def parsed(text: str, mode: Mode, prompt: str = "") -> Reply:
    """A reply's text as the scorers read it; without the thinking trace."""
    if mode == "base":
        return Reply(text.split("<|endoftext|>", maxsplit=1)[0].strip())
    message: dict[str, Any] = parse_assistant(text)
    return Reply(message["content"] or "", tuple(message["tool_calls"] or ()))


def _result(
    correct: Sequence[bool], baseline: Sequence[bool] | None, examples: Iterable[Example] = ()
) -> TaskResult:
    n, n_correct = len(correct), sum(correct)
    low, high = wilson_interval(n_correct, n)
    return TaskResult(
        n=n,
        correct=n_correct,
        accuracy=n_correct / n if n else 0.0,
        ci_low=low,
        ci_high=high,
        baseline=sum(baseline) / len(baseline) if baseline else None,
        examples=list(examples),
    )


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy of `correct` out of `n`; (0, 1) for n = 0.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22.
    """
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # Where all or none are right the end is exact; rounding may leave it a hair outside.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == n else centre + half)


def _examples(answers: Sequence[_Answered]) -> list[Example]:
    """Up to half of them wrong ones, the rest right ones, in the order of the items."""
    wrong = [i for i, a in enumerate(answers) if not a.score.correct][: N_EXAMPLES // 2]
    right = [i for i, a in enumerate(answers) if a.score.correct][: N_EXAMPLES - len(wrong)]
    return [
        Example(a.item.text(), a.raw.text, a.score.correct, a.score.detail)
        for a in (answers[i] for i in sorted(wrong + right))
    ]
