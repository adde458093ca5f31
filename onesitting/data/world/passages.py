"""Passages with questions: a story or a short factual text, and questions whose answers stand in it.

    passage_with_questions(rng, split) -> Passage(text, questions=[(question, answer, accepted)], key)

accepted: keys of which a right answer must contain one (compared without regard to case). About one
question in eight asks for what the text leaves open; its answer is `The text does not say.`
Split: a passage belongs to the split of its situation (`key` under `splits.split_of`), and with it all of its
questions; a question of the test split is therefore about people and things in a combination that is never trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from onesitting.data.world.passage_questions import Question, questions_about
from onesitting.data.world.passage_texts import TEXTS
from onesitting.data.world.splits import Split, split_of
from onesitting.data.world.stories import story


@dataclass(frozen=True, slots=True)
class Passage:
    """A text and questions about it."""

    text: str
    questions: list[Question]
    key: str
    """Identity of the situation that the text tells of."""


def passage_with_questions(rng: Random, split: Split, *, n: int = 4) -> Passage:
    """A passage of this split with up to n questions (at least one)."""
    while True:
        if rng.random() < 0.6:
            told = story(rng, split=split, title=0.15)
            passage = Passage(told.text, questions_about(rng, told, n), told.key)
        else:
            text, questions, key = rng.choice(TEXTS)(rng)
            if split_of(key) != split:
                continue
            passage = Passage(text, rng.sample(questions, min(n, len(questions))), key)
        if passage.questions:
            return passage


def passage_document(rng: Random, split: Split) -> str:
    """A passage followed by its questions and answers as plain text, in one of a few layouts."""
    passage = passage_with_questions(rng, split, n=rng.randint(2, 5))
    pairs = [(q, a) for q, a, _ in passage.questions]
    layout = rng.randrange(5)
    if layout == 0:
        tail = "\n\n".join(f"Question: {q}\nAnswer: {a}" for q, a in pairs)
    elif layout == 1:
        tail = "\n".join(f"Q: {q}\nA: {a}" for q, a in pairs)
    elif layout == 2:
        tail = "Questions about the text\n\n" + "\n".join(
            f"{i}. {q} {a}" for i, (q, a) in enumerate(pairs, 1)
        )
    elif layout == 3:
        tail = "\n".join(f"- {q}\n  {a}" for q, a in pairs)
    else:
        asked = "\n".join(f"{i}. {q}" for i, (q, _) in enumerate(pairs, 1))
        answered = "\n".join(f"{i}. {a}" for i, (_, a) in enumerate(pairs, 1))
        tail = f"Questions:\n{asked}\n\nAnswers:\n{answered}"
    if layout == 0 and rng.random() < 0.4:
        return f"Read the text and answer the questions.\n\n{passage.text}\n\n{tail}"
    return f"{passage.text}\n\n{tail}"
