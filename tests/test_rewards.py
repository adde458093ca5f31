"""Rewards: what each function says of attempts, and their weighted sum."""

from typing import Any

import pytest

from onesitting.config import RLConfig, RunConfig
from onesitting.errors import UserError
from onesitting.rewards import REWARDS, Attempt, check_rl, parse_terms, unit_test, weighted_sum
from onesitting.tools.sandbox import Limits

CALL = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "2 + 3"}}}
RIGHT_CALL = {"name": "calculator", "arguments": [{"expression": "2 + 4"}]}
BROKEN = {"type": "invalid", "text": "{", "error": "not JSON"}


def attempt(content: str = "", **more: Any) -> Attempt:
    message = {"role": "assistant", "content": content, "tool_calls": [], "reasoning_content": None}
    message |= {key: more.pop(key) for key in ("tool_calls", "reasoning_content") if key in more}
    before = more.pop("before", [])
    return Attempt(prompt=[{"role": "user", "content": "?"}], messages=[*before, message], **more)


def tool(result: str) -> dict[str, str]:
    return {"role": "tool", "content": result}


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("exact", attempt(" Blue  cat ", reference={"answer": "blue cat"}), 1.0),
        ("exact", attempt("a blue cat", reference={"accepted": ["blue cat"]}), 0.0),
        ("numeric", attempt("3 + 4 is 7. So 1,007.50", reference={"answer": "1007.5"}), 1.0),
        ("numeric", attempt("It is 7, not 8.", reference={"answer": "7"}), 0.0),
        ("numeric", attempt("none", reference={"answer": "7"}), 0.0),
        ("scorer", attempt("That makes 85.", reference={"answer": "85"}, scorer="number"), 1.0),
        ("scorer", attempt("It is green.", reference={"accepted": ["blue"]}), 0.0),
        ("stopped", attempt("x", stopped=False), 0.0),
        ("well_formed", attempt("x"), 1.0),
        ("well_formed", attempt("x", stopped=False), 0.0),
        ("well_formed", attempt("", tool_calls=[CALL]), 1.0),
        ("well_formed", attempt("", tool_calls=[BROKEN]), 0.0),
        ("well_formed", attempt(""), 0.0),
        ("thought", attempt("7", reasoning_content="3 + 4"), 1.0),
        ("thought", attempt("7", reasoning_content=""), 0.0),
        ("thought", attempt("", reasoning_content="3 + 4 never ends"), 0.0),
        ("length", attempt("x", n_tokens=25, max_tokens=100), 0.75),
        ("overlong", attempt("x", n_tokens=80, max_tokens=100), 0.0),
        ("overlong", attempt("x", n_tokens=90, max_tokens=100), -0.5),
        ("overlong", attempt("x", n_tokens=100, max_tokens=100), -1.0),
        (
            "overlong",  # the first turn was cut at its limit, and two more might have followed
            attempt("x", n_tokens=64, max_tokens=192, turn_tokens=[64], max_turn_tokens=64, stopped=False),
            -1.0,
        ),
        (
            "overlong",
            attempt("x", n_tokens=120, max_tokens=192, turn_tokens=[40, 40, 40], max_turn_tokens=64),
            0.0,
        ),
        ("length", attempt("x", n_tokens=96, max_tokens=192, turn_tokens=[48, 48], max_turn_tokens=64), 0.5),
        ("tool_success", attempt("5", before=[{"role": "assistant", "tool_calls": [CALL]}, tool("5")]), 1.0),
        ("tool_success", attempt("?", before=[tool("error: no"), tool("5")]), 0.5),
        ("tool_success", attempt("5"), 0.0),
        ("near_call", attempt("5", reference=RIGHT_CALL), 0.0),
        ("near_call", attempt(tool_calls=[CALL], reference=RIGHT_CALL), 0.8),  # "2 + " of "2 + 3" and "2 + 4"
        (
            "near_call",
            attempt("4", before=[{"role": "assistant", "tool_calls": [CALL]}], reference=RIGHT_CALL),
            0.8,
        ),
        ("near_call", attempt(tool_calls=[CALL, BROKEN], reference=RIGHT_CALL | {"name": "lookup"}), 0.0),
        ("near_call", attempt("5", reference={"name": None}), 1.0),
        ("near_call", attempt(tool_calls=[CALL], reference={"name": None}), 0.0),
    ],
)
def test_a_reward_says_what_its_docstring_says(name: str, given: Attempt, value: float):
    assert REWARDS[name](given) == pytest.approx(value)


TESTS = {"tests": "assert double(2) == 4\nassert double(-1) == -2"}


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone.", 1.0),
        ("def double(x):\n    return x + 2", 0.0),
        ("def double(x:", 0.0),
        ("import sys\nsys.exit(0)", 0.0),
        ("print('passed')\nraise SystemExit", 0.0),
        (
            "import os\nprint(open(__file__).read().rsplit('print(\"', 1)[-1][:16], flush=True)\nos._exit(0)",
            0.0,
        ),
        ("import os, sys\nprint(open(__file__).read(), sys.argv, flush=True)\nos._exit(0)", 0.0),
        ("import os, sys\nprint(sys.stdin.read(), flush=True)\nos._exit(0)", 0.0),
        ("import os\nprint([v for v in globals().values()], vars(), flush=True)\nos._exit(0)", 0.0),
        (
            "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
            "def double(x):\n    return 2 * P(x).x\nif __name__ == '__main__':\n    print('\"\"\" {braces} done')",
            1.0,
        ),
    ],
)
def test_code_is_rewarded_if_it_passes_its_tests_in_the_sandbox(code: str, value: float):
    assert unit_test(attempt(code, reference=TESTS), Limits(seconds=30)) == value


def test_code_that_never_ends_gets_nothing():
    assert unit_test(attempt("while True: pass", reference=TESTS), Limits(seconds=1)) == 0.0


def test_the_sum_is_weighted_and_its_parts_are_not():
    attempts = [
        attempt("85", reference={"answer": "85"}, scorer="number"),
        attempt("84", reference={"answer": "85"}, scorer="number", stopped=False),
    ]
    model = {"judge": lambda many: [2.0 * len(one.content) for one in many]}
    terms = parse_terms(("scorer", "stopped=0.5", "judge=0.1"), model)
    totals, parts = weighted_sum(terms, attempts)
    assert totals == pytest.approx([1 + 0.5 + 0.4, 0.4])
    assert parts == {"scorer": [1.0, 0.0], "stopped": [1.0, 0.0], "judge": [4.0, 4.0]}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("scorr",), "no reward 'scorr'; use scorer"),
        (("scorer=x",), "a number behind the ="),
        (("stopped=0.5", "scorer", "stopped=0.25"), "names 'stopped' twice: give it once"),
        ((), "is empty"),
    ],
)
def test_a_wrong_reward_is_refused(texts: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=message):
        parse_terms(texts)


@pytest.mark.parametrize(
    ("name", "given", "missing"),
    [
        ("unit_test", attempt("x = 1"), "tests"),
        ("near_call", attempt("", tool_calls=[CALL], reference={"name": "calculator"}), "arguments"),
        ("scorer", attempt("7", reference={"tests": "assert x"}, scorer="number"), "answer"),
    ],
)
def test_what_a_reference_lacks_is_said_with_who_reads_it(name: str, given: Attempt, missing: str):
    with pytest.raises(UserError, match=f"no '{missing}', which .*{name if name != 'scorer' else 'number'}"):
        REWARDS[name](given)


def test_code_that_prints_much_and_passes_its_tests_has_passed():
    code = "print('x' * 20_000)\ndef f():\n    return 1"
    assert unit_test(attempt(code, reference={"tests": "assert f() == 1"})) == 1.0


def test_what_reinforcement_learning_would_refuse_is_refused_before_other_stages_run(tmp_path: Any):
    for wrong, said in (
        ({"rewards": ("scorr=1",)}, "no reward 'scorr'"),
        ({"prompts": ("world:sums",)}, "no task 'sums'"),
        ({"tools": str(tmp_path / "no.py")}, "no Python file"),
    ):
        with pytest.raises(UserError, match=said):
            check_rl(RunConfig(rl=RLConfig(**wrong)))
    check_rl(RunConfig(rl=RLConfig(rewards=("judge=0.5", "scorer"), prompts=("world:agent", "mine.jsonl"))))
