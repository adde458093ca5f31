"""A seeded synthetic world that writes its own corpus: stories, paragraphs, questions, sums, conversations, a suite.

    world = World(seed=0)
    for text in world.documents("train", mb=16): ...
    world.document("train", 123)          # the same text as the 124th of documents("train")
    world.state.holder("Millbrook", "baker").name

Importing this package is cheap (no torch, no tables built); the tables are built on first use.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from onesitting.data.world.splits import Split
from onesitting.data.world.state import State, state

if TYPE_CHECKING:
    from onesitting.data.world.suite import Item


class World:
    """One world: its facts (`state`) and everything that it can write; all of it a function of the seed."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @property
    def state(self) -> State:
        """Towns, people, prices and facts of this world."""
        return state(self.seed)

    def document(self, split: Split, index: int) -> str:
        """Document number `index` of a split: a pure function of (seed, split, index), for parallel writers."""
        from onesitting.data.world import corpus

        return corpus.document(self.seed, split, index)

    def documents(self, split: Split, mb: float, *, start: int = 0) -> Iterator[str]:
        """Documents from number `start` on until `mb` megabytes (10^6 bytes of UTF-8) are reached."""
        from onesitting.data.world import corpus

        return corpus.documents(self.seed, split, mb, start=start)

    def conversations(self, split: Split, n: int, *, start: int = 0) -> Iterator[dict[str, Any]]:
        """n conversations from number `start` on: messages in OpenAI's form, tools where offered, meta."""
        from onesitting.data.world import conversations

        return conversations.conversations(self, split, n, start=start)

    def preferences(self, split: Split, n: int, *, start: int = 0) -> Iterator[dict[str, Any]]:
        """n preference pairs: prompt (messages), tools where offered, chosen, rejected, meta."""
        from onesitting.data.world import preferences

        return preferences.preferences(self, split, n, start=start)

    def prompts(self, split: Split, n: int, *, start: int = 0) -> Iterator[dict[str, Any]]:
        """n prompts whose replies a scorer can check: messages, tools, scorer, reference, oracle, meta."""
        from onesitting.data.world import prompts

        return prompts.prompts(self, split, n, start=start)

    def suite(self, n_per_task: int, seed: int = 0) -> dict[str, list[Item]]:
        """Task -> evaluation items in chat form, from the test split."""
        from onesitting.data.world import suite

        return suite.suite(self, n_per_task, seed)

    def base_suite(self, n_per_task: int, seed: int = 0) -> dict[str, list[Item]]:
        """Task -> evaluation items in completion form, for a model before fine-tuning."""
        from onesitting.data.world import suite

        return suite.base_suite(self, n_per_task, seed)
