"""Training conversations: one table of kinds and shares, and a pure function of (seed, split, index)."""

from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING, Any

from onesitting.data.world.instructions import instruction_talk
from onesitting.data.world.memory import memory_talk
from onesitting.data.world.personas import system_talk
from onesitting.data.world.question_talk import arithmetic_talk, facts_talk, mixed_talk
from onesitting.data.world.reading_talk import reading_talk
from onesitting.data.world.small_talk import clarification_talk, greeting_talk, unknowable_talk
from onesitting.data.world.splits import Split, rng_for
from onesitting.data.world.story_talk import story_talk
from onesitting.data.world.talk import Talk
from onesitting.data.world.tool_talk import tool_talk

if TYPE_CHECKING:
    from onesitting.data.world import World

TalkMaker = Callable[["World", Random, Split], Talk]

# kind -> (share of the conversations, what writes one). Of the tokens, reading has 30 % and stories and tools
# 12-20 % each: copying the right words from the context is what a small model needs the most examples for.
MIXTURE: dict[str, tuple[float, TalkMaker]] = {
    "reading": (0.22, reading_talk),
    "tools": (0.11, tool_talk),
    "memory": (0.12, memory_talk),
    "stories": (0.08, story_talk),
    "instructions": (0.14, instruction_talk),
    "arithmetic": (0.10, arithmetic_talk),
    "facts": (0.09, facts_talk),
    "system": (0.05, system_talk),
    "refusal": (0.03, unknowable_talk),
    "small_talk": (0.03, greeting_talk),
    "clarification": (0.02, clarification_talk),
    "mixed": (0.01, mixed_talk),
}
_MAKERS = [maker for _, maker in MIXTURE.values()]
_SHARES = [share for share, _ in MIXTURE.values()]


def talk(world: "World", split: Split, index: int) -> Talk:
    """Conversation number `index` of a split, with the turn that can be scored."""
    rng = rng_for("conversation", world.seed, split, index)
    return rng.choices(_MAKERS, _SHARES)[0](world, rng, split)


def conversation(world: "World", split: Split, index: int) -> dict[str, Any]:
    """Conversation number `index` of a split: a pure function of (seed, split, index).

    Returns messages in OpenAI's form, tools (schemas) where some are offered, and meta: the kind, and the key
    (facts and wording) that decides its split.
    """
    made = talk(world, split, index)
    out: dict[str, Any] = {"messages": made.messages, "meta": {"kind": made.kind, "key": made.key}}
    return out | {"tools": made.tools} if made.tools else out


def conversations(world: "World", split: Split, n: int, *, start: int = 0) -> Iterator[dict[str, Any]]:
    """Conversations start … start + n - 1 of a split. A few small ones (a greeting) may come up twice."""
    return (conversation(world, split, index) for index in range(start, start + n))
