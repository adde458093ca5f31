"""Rewards: plain functions from an attempt to a number, and their weighted sum.

A reward says how good one attempt at a prompt was: usually from 0 to 1. Names with weights make the reward of a run:
`--rl.rewards scorer=1 stopped=0.1`. Each function here may also be called on its own.
"""

import re
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from onesitting.config import RunConfig
from onesitting.data.prompts import world_task
from onesitting.data.world.scoring import Reply
from onesitting.data.world.suite import SCORERS
from onesitting.errors import UserError
from onesitting.tools.from_file import read_tools
from onesitting.tools.protocol import ERROR, JSON, parsed_arguments
from onesitting.tools.sandbox import Limits, run_python

N_THREADS = 4
"""Programs of `unit_test` that run at the same time."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What a model did with a prompt."""

    prompt: Sequence[JSON]
    """Messages before the model's first word."""
    messages: Sequence[JSON]
    """What followed: the model's messages and the results of its tool calls; at least one message."""
    tools: Sequence[JSON] | None = None
    """Schemas of the tools that were offered."""
    reference: JSON = field(default_factory=dict[str, Any])
    """What is right, in the form that the scorer wants: {"answer": "85"}, {"accepted": [...]}, {"tests": "…"}."""
    scorer: str = "answer"
    """Name in the world's SCORERS."""
    n_tokens: int = 0
    """Tokens that the model wrote."""
    max_tokens: int = 0
    """Tokens that it might have written, in all of its turns."""
    turn_tokens: Sequence[int] = ()
    """Tokens of each turn of the model; (): it had one, of n_tokens."""
    max_turn_tokens: int = 0
    """Tokens that a turn might have had; 0: max_tokens."""
    stopped: bool = True
    """It ended by itself."""

    @property
    def reply(self) -> JSON:
        """The last message."""
        return dict(self.messages[-1])

    @property
    def content(self) -> str:
        """Text of the last message, without thought and calls."""
        return str(self.reply.get("content") or "").strip()


Reward = Callable[[Attempt], float]
Batched = Callable[[Sequence[Attempt]], Sequence[float]]
"""A reward of many attempts at once, such as a reward model."""


@contextmanager
def _needing(reader: str) -> Generator[None]:
    """Say which part of a prompt's reference is missing, and who reads it."""
    try:
        yield
    except KeyError as error:
        raise UserError(
            f"rl.prompts: a prompt's reference has no {error}, which {reader} reads; add it (docs/rewards.md), or "
            "judge by other rewards with --rl.rewards"
        ) from None


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_CODE = re.compile(r"```(?:python|py)?\s*\n(.*?)```", re.DOTALL)
_HARNESS = """
def _run():
    import os, sys
    proof = sys.stdin.readline()
    sys.stdin = open(os.devnull)
    del globals()["_run"]
    exec(compile({program!r}, "program.py", "exec"), globals())
    print(proof, end="", flush=True)
_run()
"""


def exact(attempt: Attempt) -> float:
    """1 if the text is the reference's `answer`, or one of its `accepted`, up to case and white space."""
    reference = attempt.reference
    right = [reference["answer"]] if "answer" in reference else list(reference.get("accepted", ()))
    text = " ".join(attempt.content.lower().split())
    return float(any(text == " ".join(str(one).lower().split()) for one in right))


def numeric(attempt: Attempt) -> float:
    """1 if the last number of the text equals the reference's `answer` (1,000 is 1000; 2.50 is 2.5)."""
    numbers = _NUMBER.findall(attempt.content.replace(",", ""))
    right = _NUMBER.findall(str(attempt.reference.get("answer", "")).replace(",", ""))
    return float(bool(numbers) and bool(right) and float(numbers[-1]) == float(right[-1]))


def scorer(attempt: Attempt) -> float:
    """1 if the scorer that the prompt names says right (data/world/suite.py: answer, number, tool, …)."""
    reply = Reply(attempt.content, tuple(attempt.reply.get("tool_calls") or ()))
    with _needing(f"the scorer '{attempt.scorer}'"):
        return float(SCORERS[attempt.scorer](reply, attempt.reference).correct)


def stopped(attempt: Attempt) -> float:
    """1 if the model ended by itself, 0 if it was cut."""
    return float(attempt.stopped)


def well_formed(attempt: Attempt) -> float:
    """1 if it ended by itself, said or called something, and none of its calls is unreadable."""
    calls = [call for message in attempt.messages for call in message.get("tool_calls") or ()]
    says = bool(attempt.content) or bool(attempt.reply.get("tool_calls"))
    return float(attempt.stopped and says and all(call.get("type") != "invalid" for call in calls))


def thought(attempt: Attempt) -> float:
    """1 if the last message thinks before it answers: a thought that is closed and not empty, then text."""
    return float(bool(attempt.reply.get("reasoning_content")) and bool(attempt.content))


def length(attempt: Attempt) -> float:
    """1 for an empty attempt, falling in a line to 0 for one of all the tokens that it might have had.

    These are the tokens of all its turns, made or not: a further turn never raises it.
    """
    return 1.0 - attempt.n_tokens / attempt.max_tokens if attempt.max_tokens else 0.0


def overlong(attempt: Attempt) -> float:
    """0 up to four fifths of the allowed tokens, then falling in a line to −1 for an attempt that was cut.

    Of several turns, each of which may have as many tokens, the longest counts.
    Source: soft overlong punishment of DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 13.
    """
    most = attempt.max_turn_tokens or attempt.max_tokens
    if not most:
        return 0.0
    longest, free = max(attempt.turn_tokens, default=attempt.n_tokens), 0.8 * most
    return -min(1.0, max(0.0, (longest - free) / (most - free)))


def tool_success(attempt: Attempt) -> float:
    """Fraction of the tool calls whose result is no error; 0 without a call."""
    results = [message for message in attempt.messages if message.get("role") == "tool"]
    good = [not str(message.get("content", "")).startswith(ERROR) for message in results]
    return sum(good) / len(good) if good else 0.0


def near_call(attempt: Attempt) -> float:
    """How near the nearest of the attempt's calls is to the reference's `name` and one of its `arguments`; 1 is equal.

    0 without a call of that tool; else the mean similarity of the arguments' texts (difflib's ratio). It tells
    attempts apart where none is right. If the reference wants no call, 1 for none.
    """
    calls = [call for message in attempt.messages for call in message.get("tool_calls") or ()]
    name = attempt.reference.get("name")
    if name is None:
        return float(not calls)
    with _needing("near_call"):
        rights: Sequence[JSON] = attempt.reference["arguments"]
    made = [call["function"] for call in calls if call.get("function", {}).get("name") == name]
    return max(
        (_similarity(parsed_arguments(one["arguments"]), right) for one in made for right in rights),
        default=0.0,
    )


def _similarity(arguments: Any, right: JSON) -> float:
    if not isinstance(arguments, dict):
        return 0.0
    given: JSON = {str(name): value for name, value in arguments.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    names = given.keys() | right.keys()
    both = [(str(given[name]), str(right[name])) for name in names if name in given and name in right]
    return sum(SequenceMatcher(None, *pair, autojunk=False).ratio() for pair in both) / max(1, len(names))


def unit_test(attempt: Attempt, limits: Limits | None = None) -> float:
    """1 if the Python code in the text passes the reference's `tests` (asserts), run behind it in a sandbox.

    The code is the last fenced block, or the whole text without one. That the tests were reached is proven by a
    word, another one each time, printed behind them; a program that ends early has not passed. The word is in no file
    and no variable of the program. A limit remains: code and tests share a process, so code that is written to cheat
    can search the interpreter for it, or return objects that equal everything. docs/rewards.md says what helps.
    """
    with _needing("unit_test"):
        tests = attempt.reference["tests"]
    blocks = _CODE.findall(attempt.content)
    code = blocks[-1] if blocks else attempt.content
    proof = secrets.token_hex(8)
    harness = _HARNESS.format(program=f"{code}\n\n{tests}\n")
    # The word comes last: a program that prints much more than a tool may has still passed.
    done = run_python(harness, limits=limits or Limits(output_chars=100_000), stdin=f"{proof}\n")
    return float(done.status == "ok" and done.output.rstrip().endswith(proof))


REWARDS: Mapping[str, Reward] = {
    "scorer": scorer,
    "exact": exact,
    "numeric": numeric,
    "stopped": stopped,
    "well_formed": well_formed,
    "thought": thought,
    "length": length,
    "overlong": overlong,
    "tool_success": tool_success,
    "near_call": near_call,
    "unit_test": unit_test,
}


@dataclass(frozen=True)
class Term:
    """One part of a weighted sum."""

    name: str
    weight: float
    score: Batched


def parse_terms(texts: Sequence[str], more: Mapping[str, Batched] | None = None) -> list[Term]:
    """`("scorer=1", "stopped=0.1")` as terms; a name alone has weight 1.

    more: batched rewards under further names, such as a reward model. Raises UserError for an unknown name, one that
    is there twice, or a weight that is no number.
    """
    more = more or {}
    terms: list[Term] = []
    for text in texts:
        name, _, weight = text.partition("=")
        if name not in REWARDS and name not in more:
            raise UserError(
                f"rl.rewards: there is no reward '{name}'; use {', '.join([*REWARDS, *more])}, "
                "each with a weight, as in stopped=0.1"
            )
        if name in [term.name for term in terms]:
            raise UserError(
                f"rl.rewards names '{name}' twice: give it once, with the sum of its weights, as in {name}=0.5"
            )
        try:
            value = float(weight or 1.0)
        except ValueError:
            raise UserError(
                f"rl.rewards = {text!r}: a number behind the = expected, as in {name}=0.5"
            ) from None
        terms.append(Term(name, value, more[name] if name in more else each(REWARDS[name])))
    if not terms:
        raise UserError(f"rl.rewards is empty: name at least one of {', '.join(REWARDS)}")
    return terms


def check_rl(cfg: RunConfig) -> None:
    """Refuse what the stages of reinforcement learning would refuse when they begin, after hours of others."""
    parse_terms(cfg.rl.rewards, {"judge": lambda attempts: [0.0] * len(attempts)})
    for spec in cfg.rl.prompts:
        world_task(spec)
    if cfg.rl.tools:
        read_tools(Path(cfg.rl.tools).expanduser())


def each(reward: Reward) -> Batched:
    """A reward of one attempt as one of many; programs run a few at a time."""
    if reward is not unit_test:
        return lambda attempts: [reward(attempt) for attempt in attempts]

    def threaded(attempts: Sequence[Attempt]) -> list[float]:
        with ThreadPoolExecutor(N_THREADS) as pool:
            return list(pool.map(reward, attempts))

    return threaded


def weighted_sum(
    terms: Sequence[Term], attempts: Sequence[Attempt]
) -> tuple[list[float], dict[str, list[float]]]:
    """(the reward of each attempt, name -> its unweighted component of each attempt)."""
    components = {term.name: [float(value) for value in term.score(attempts)] for term in terms}
    weights = {term.name: term.weight for term in terms}
    totals = [
        sum(weights[name] * values[i] for name, values in components.items()) for i in range(len(attempts))
    ]
    return totals, components
