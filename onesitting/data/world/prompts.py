"""Prompts whose replies can be checked by rule: what reinforcement learning is rewarded for."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from onesitting.data.world.splits import Split, rng_for
from onesitting.data.world.suite import TASKS, item_of
from onesitting.data.world.tool_talk import agent_prompt

if TYPE_CHECKING:
    from onesitting.data.world import World

AGENT = "agent"
"""Task of prompts that a model answers in several turns: call, result, answer."""


def prompt(world: "World", split: Split, index: int, task: str = "") -> dict[str, Any]:
    """Prompt number `index` of a split: a pure function of (seed, split, index, task).

    task: a task of the suite, or `agent`: a question whose answer a tool knows; "": any of the suite's.
    Returns messages, tools, scorer and reference (for suite.SCORERS), a right reply as `oracle`, and meta
    with the task and the key that decides the split.
    """
    rng = rng_for("prompt", world.seed, split, index, *filter(None, (task,)))
    if task == AGENT:
        return agent_prompt(world, rng, split)
    while True:
        drawn = task or rng.choice(tuple(TASKS))
        talk = TASKS[drawn](world, rng, split)
        if talk.scored >= 0:
            break
    item = item_of(drawn, talk)
    return {
        "messages": item.messages,
        "tools": item.tools,
        "scorer": item.scorer,
        "reference": item.reference,
        "oracle": item.oracle,
        "meta": {"task": drawn, "key": item.key},
    }


def prompts(world: "World", split: Split, n: int, *, start: int = 0) -> Iterator[dict[str, Any]]:
    """Prompts start … start + n - 1 of a split."""
    return (prompt(world, split, index) for index in range(start, start + n))
