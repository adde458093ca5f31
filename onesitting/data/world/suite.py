"""The evaluation suite: questions of the test split, each with its scorer, reference and baseline reply."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from onesitting.data.world.fact_questions import fact_question
from onesitting.data.world.instructions import instruction_talk
from onesitting.data.world.memory import memory_talk
from onesitting.data.world.personas import system_talk
from onesitting.data.world.question_talk import (
    arithmetic_talk,
    facts_talk,
    guessed_number,
    reference_and_guess_of_fact,
)
from onesitting.data.world.reading_talk import passage, reading_talk, reference_and_guess
from onesitting.data.world.scoring import (
    Reply,
    Score,
    Scorer,
    score_answer,
    score_instruction,
    score_last_word,
    score_number,
    score_tool,
    sentences,
)
from onesitting.data.world.splits import Split, rng_for
from onesitting.data.world.stories import story
from onesitting.data.world.story_talk import patchwork, score_story, story_talk
from onesitting.data.world.talk import Message, Talk, assistant_message
from onesitting.data.world.tool_talk import tool_talk
from onesitting.data.world.word_problems import problem
from onesitting.tools.protocol import JSON

if TYPE_CHECKING:
    from onesitting.data.world import World

_ATTEMPTS = 30  # tries an item, before the test split is taken to have no more of them

SCORERS: dict[str, Scorer] = {
    "answer": score_answer,
    "number": score_number,
    "last_word": score_last_word,
    "instruction": score_instruction,
    "tool": score_tool,
    "story": score_story,
}


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question of the suite."""

    task: str
    key: str
    """Facts and wording: what training must not have."""
    messages: list[Message] = field(default_factory=list[Message])
    """Chat form: everything before the reply."""
    tools: list[JSON] | None = None
    prompt: str = ""
    """Completion form, for a model that has seen no conversations."""
    scorer: str
    reference: JSON
    baseline: Message
    """A reply without understanding."""
    oracle: Message
    """A right reply."""

    @property
    def baseline_reply(self) -> Reply:
        """The baseline as the scorers read it."""
        return reply_of(self.baseline)

    def text(self) -> str:
        """The prompt, for people to read."""
        return self.prompt or "\n".join(f"{m['role']}: {m['content']}" for m in self.messages)


def reply_of(message: Message) -> Reply:
    """An assistant message as the scorers read it."""
    return Reply(message.get("content") or "", tuple(message.get("tool_calls") or ()))


def score(item: Item, reply: Reply | str) -> Score:
    """The verdict on a reply; a string is a reply without tool calls."""
    reply = Reply(reply) if isinstance(reply, str) else reply
    return SCORERS[item.scorer](reply, item.reference)


def _instructions(world: "World", rng: Random, split: Split) -> Talk:
    return (instruction_talk if rng.random() < 0.75 else system_talk)(world, rng, split)


TASKS: dict[str, Callable[["World", Random, Split], Talk]] = {
    "stories": story_talk,
    "reading": reading_talk,
    "facts": facts_talk,
    "arithmetic": arithmetic_talk,
    "instructions": _instructions,
    "tools": tool_talk,
    "memory": memory_talk,
}


def suite(world: "World", n_per_task: int, seed: int = 0) -> dict[str, list[Item]]:
    """Task -> items in chat form, from the test split: a function of (world, n_per_task, seed).

    No two items of a task ask the same; where the test split has fewer than n_per_task different questions
    (a few hundred facts), all that were found are returned.
    """
    return {task: _different(partial(_chat_item, world, task), task, n_per_task, seed) for task in TASKS}


def _different(make: Callable[[Random], Item | None], task: str, n: int, seed: int) -> list[Item]:
    """Up to n items with different keys."""
    items: dict[str, Item] = {}
    for attempt in range(_ATTEMPTS * n):
        item = make(rng_for("suite", seed, task, attempt))
        if item:
            items.setdefault(item.key, item)
        if len(items) == n:
            break
    return list(items.values())


def _chat_item(world: "World", task: str, rng: Random) -> Item | None:
    talk = TASKS[task](world, rng, "test")
    return item_of(task, talk) if talk.scored >= 0 else None


def item_of(task: str, talk: Talk) -> Item:
    """The item that asks for the scored turn of a conversation."""
    return Item(
        task=task,
        key=talk.key,
        messages=talk.messages[: talk.scored],
        tools=talk.tools,
        scorer=talk.scorer,
        reference=talk.reference,
        baseline=talk.baseline,
        oracle=talk.messages[talk.scored],
    )


def base_suite(world: "World", n_per_task: int, seed: int = 0) -> dict[str, list[Item]]:
    """Task -> items in completion form, for a model before fine-tuning; the other tasks need a conversation."""
    makers = {"stories": _base_story, "reading": _base_reading, "facts": _base_fact, "arithmetic": _base_sum}
    return {
        task: _different(partial(make, world), f"base {task}", n_per_task, seed)
        for task, make in makers.items()
    }


def _asked(task: str, key: str, question: str, scorer: str, reference: JSON, guess: str, oracle: str) -> Item:
    """An item in the layout of the pretraining text: a question, and the reply goes on after `Answer:`."""
    return Item(
        task=task,
        key=key,
        prompt=f"{question}\nAnswer:",
        scorer=scorer,
        reference=reference,
        baseline=assistant_message(guess),
        oracle=assistant_message(oracle),
    )


def _base_story(world: "World", rng: Random) -> Item:
    told = story(rng, split="test", title=0.0)
    # The first two sentences name the hero; the rest is the model's.
    opening = " ".join(sentences(told.text.split("\n\n")[0])[:2])
    assert told.text.startswith(opening)
    return Item(
        task="stories",
        key=told.key,
        prompt=opening,
        scorer="story",
        reference={"before": opening},
        baseline=assistant_message(patchwork(rng)),
        oracle=assistant_message(told.text[len(opening) :].strip()),
    )


def _base_reading(world: "World", rng: Random) -> Item:
    found = passage(rng, "test", n=4)
    question, answer, _ = found.questions[0]
    reference, guess = reference_and_guess(rng, found, 0)
    asked = f"{found.text}\n\nQuestion: {question}"
    return _asked("reading", found.key, asked, "answer", reference, guess, answer)


def _base_fact(world: "World", rng: Random) -> Item:
    found = fact_question(world, rng, "test")
    reference, guess = reference_and_guess_of_fact(world, rng, found)
    return _asked("facts", found.key, f"Question: {found.question}", "answer", reference, guess, found.answer)


def _base_sum(world: "World", rng: Random) -> Item:
    found = problem(rng, "test")
    answer = f"{found.steps} {found.sentence}"
    guess = guessed_number(rng, found)
    reference = {"answer": found.answer}
    return _asked("arithmetic", found.key, f"Question: {found.question}", "number", reference, guess, answer)
