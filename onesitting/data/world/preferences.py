"""Pairs of replies to one prompt, the better one first: what preference training (DPO) learns from.

Both replies are judged by the scorers of the suite, so that `rejected` is wrong by the world's own rules:
another fact, a broken tool call, a wrong form; or it is right and does not stop (`runs_on`).
"""

import json
from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING, Any

from onesitting.data.world.splits import Split, rng_for
from onesitting.data.world.suite import TASKS, Item, item_of, reply_of, score
from onesitting.data.world.talk import Message, assistant_message

if TYPE_CHECKING:
    from onesitting.data.world import World


def preference(world: "World", split: Split, index: int) -> dict[str, Any]:
    """Pair number `index` of a split: prompt (messages), tools, chosen, rejected, meta: a pure function.

    meta: the task, the key that decides the split, and the flaw of the rejected reply.
    """
    rng = rng_for("preference", world.seed, split, index)
    while True:
        task = rng.choice(tuple(TASKS))
        talk = TASKS[task](world, rng, split)
        if talk.scored < 0:
            continue
        item = item_of(task, talk)
        flaw, rejected = _rejected(rng, item)
        if flaw:
            out = {"prompt": item.messages, "chosen": item.oracle, "rejected": rejected}
            out["meta"] = {"task": task, "key": item.key, "flaw": flaw}
            return out | {"tools": item.tools} if item.tools else out


def preferences(world: "World", split: Split, n: int, *, start: int = 0) -> Iterator[dict[str, Any]]:
    """Pairs start … start + n - 1 of a split."""
    return (preference(world, split, index) for index in range(start, start + n))


def _rejected(rng: Random, item: Item) -> tuple[str, Message]:
    """A flaw and a reply that has it; an empty flaw if none could be made."""
    if item.oracle.get("tool_calls"):
        broken = _broken_call(rng, item.oracle)
        return ("invalid_call", broken) if not score(item, reply_of(broken)).correct else ("", broken)
    if rng.random() < 0.3:
        return "runs_on", _run_on(item.oracle)
    flaw, spoil = rng.choice(_FLAWS)
    for name, make in ((flaw, spoil), ("wrong_answer", _guess)):
        rejected = make(item)
        if not score(item, reply_of(rejected)).correct:
            return name, rejected
    return "", item.baseline


def _broken_call(rng: Random, message: Message) -> Message:
    """The call with one thing wrong: no such tool, an argument missing, renamed, or of another type."""
    function = message["tool_calls"][0]["function"]
    name, arguments = function["name"], json.loads(function["arguments"])
    key = rng.choice(tuple(arguments))
    kind = rng.choice(("name", "missing", "renamed", "type"))
    if kind == "name":
        name += "s"
    elif kind == "missing":
        del arguments[key]
    elif kind == "renamed":
        arguments[f"the_{key}"] = arguments.pop(key)
    else:
        arguments[key] = [arguments[key]]
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments)},
    }
    return assistant_message("") | {"tool_calls": [call]}


def _run_on(message: Message) -> Message:
    """The reply, and then a question and an answer that nobody asked for."""
    extra = " What is your name? My name is Tom. What is your name? My name is Tom. What is your name?"
    return {**message, "content": message["content"] + extra}


def _guess(item: Item) -> Message:
    return item.baseline


def _shortened(item: Item) -> Message:
    """Without its last line or last word."""
    text = item.oracle["content"]
    cut = text.rpartition("\n")[0] or text.rpartition(" ")[0] or "Hm."
    return {**item.oracle, "content": cut}


def _evasive(item: Item) -> Message:
    return assistant_message("I don't know.")


_FLAWS: tuple[tuple[str, Callable[[Item], Message]], ...] = (
    ("wrong_answer", _guess),
    ("wrong_answer", _guess),
    ("cut_short", _shortened),
    ("evasive", _evasive),
)
