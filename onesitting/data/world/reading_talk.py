"""Conversations about a text that the user shows: one question after the other, answered from the text."""

from random import Random
from typing import TYPE_CHECKING

from onesitting.data.world.passage_questions import questions_about
from onesitting.data.world.passage_texts import TEXTS
from onesitting.data.world.passages import Passage
from onesitting.data.world.scoring import contains, normalised
from onesitting.data.world.small_talk import closing
from onesitting.data.world.splits import Split, split_of
from onesitting.data.world.stories import story
from onesitting.data.world.talk import Talk
from onesitting.tools.protocol import JSON

if TYPE_CHECKING:
    from onesitting.data.world import World

# Stories are three times as long as the factual texts, and a row of tokens holds fewer of them.
_STORY_SHARE = 0.4

_SHOWN = (
    "{t}\n\n{q}",
    "{t}\n\nQuestion: {q}",
    "Read this text.\n\n{t}\n\n{q}",
    "Here is a text:\n\n{t}\n\n{q}",
    "Please read this and answer my question.\n\n{t}\n\n{q}",
    "I have read this:\n\n{t}\n\n{q}",
    "Text: {t}\n\nQuestion: {q}",
    "{t}\n\nAnswer from the text: {q}",
)
_MORE = ("{q}", "{q}", "{q}", "And now: {q}", "Another question: {q}", "Thanks. {q}")


def passage(rng: Random, split: Split, *, n: int) -> Passage:
    """A text of this split with one to n questions that it answers (or leaves open)."""
    while True:
        if rng.random() < _STORY_SHARE:
            told = story(rng, split=split, title=0.0)
            found = Passage(told.text, questions_about(rng, told, n), told.key)
        else:
            text, questions, key = rng.choice(TEXTS)(rng)
            if split_of(key) != split:
                continue
            found = Passage(text, rng.sample(questions, min(n, len(questions))), key)
        if found.questions:
            return found


def reading_talk(world: "World", rng: Random, split: Split) -> Talk:
    """A text and one to four questions about it; the last one can be scored."""
    n = rng.choice((1, 2, 3, 4))
    found = passage(rng, split, n=n + 2)
    asked = found.questions[:n]
    talk = Talk("reading", found.key)
    for number, (question, answer, _) in enumerate(asked):
        frame = rng.choice(_MORE if number else _SHOWN)
        talk.user(frame.format(t=found.text, q=question)).assistant(answer)
    talk.expect("answer", *reference_and_guess(rng, found, len(asked) - 1))
    if rng.random() < 0.08:
        closing(rng, talk)
    return talk


def reference_and_guess(rng: Random, found: Passage, index: int) -> tuple[JSON, str]:
    """The reference of one of a passage's questions, and the baseline: the answer to another one of them.

    Rejected are the answers to the other questions, unless the question or the right answer names them too.
    """
    question, answer, accepted = found.questions[index]
    others = [entry for number, entry in enumerate(found.questions) if number != index]
    rejected = {key for _, _, keys in others for key in keys} - set(accepted)
    wrong = sorted(key for key in rejected if not contains(question, key) and not contains(answer, key))
    # A text with a single question: its first sentence is as good a guess.
    guess = rng.choice(others)[1] if others else found.text.split(". ")[0] + "."
    # A key may be the stem of a word ("rain" of "rained"): then the answer's own word is accepted too.
    words = normalised(answer).split()
    forms = [
        word for key in accepted for word in words if word.startswith(key.lower()) and word != key.lower()
    ]
    return {"accepted": [*accepted, *forms], "rejected": wrong}, guess
