"""Conversations around single questions: facts of the world, sums with steps or with a thinking trace."""

from random import Random
from typing import TYPE_CHECKING

from onesitting.data.world.arithmetic import Problem
from onesitting.data.world.calendar import counted_days
from onesitting.data.world.fact_questions import (
    FactQuestion,
    fact_question,
    fact_sentence,
    facts_about,
    values_of_kind,
)
from onesitting.data.world.lexicon import WEEKDAYS
from onesitting.data.world.small_talk import GREETING_REPLIES, GREETINGS, closing
from onesitting.data.world.splits import Split, split_of
from onesitting.data.world.talk import Talk, politely
from onesitting.data.world.word_problems import problem
from onesitting.tools.protocol import JSON

if TYPE_CHECKING:
    from onesitting.data.world import World

_THINK = (
    "Think before you answer.",
    "Think first, then answer.",
    "You think about each question before you answer.",
    "Take your time and think.",
)


def facts_talk(world: "World", rng: Random, split: Split) -> Talk:
    """One to three questions about the world; the last one can be scored."""
    talk = Talk("facts")
    if rng.random() < 0.15:
        talk.user(rng.choice(GREETINGS)).assistant(rng.choice(GREETING_REPLIES))
    for _ in range(rng.choice((0, 0, 1, 2))):
        found = fact_question(world, rng, split)
        talk.user(politely(rng, found.question)).assistant(found.answer)
    found = fact_question(world, rng, split)
    talk.key = found.key
    talk.user(politely(rng, found.question)).assistant(found.answer)
    talk.expect("answer", *reference_and_guess_of_fact(world, rng, found))
    if rng.random() < 0.15:
        closing(rng, talk)
    return talk


def reference_and_guess_of_fact(world: "World", rng: Random, found: FactQuestion) -> tuple[JSON, str]:
    """The reference of a fact question, and the baseline: another fact of the same kind."""
    # Another value of the same kind is a wrong answer, unless the question itself names it.
    pool = values_of_kind(world.seed, found.fact.kind)
    rejected = [value for value in pool if value not in found.accepted and value not in found.question]
    guess = fact_sentence(world, rng.choice(facts_about(world, found.fact.kind)))
    return {"accepted": list(found.accepted), "rejected": rejected}, guess


def guessed_number(rng: Random, found: Problem) -> str:
    """The baseline: any number that the question names."""
    numbers = [word.strip(".,?:") for word in found.question.split()]
    return rng.choice([number for number in numbers if number.isdigit()] or ["10"])


_DAY_QUESTIONS = (
    "Which day is {n} days after {day}?",
    "What day comes {n} days after {day}?",
    "Today is {day}. What day is it in {n} days?",
    "It is {day}. Which day will it be in {n} days?",
)


def _counted_day(rng: Random, split: Split) -> tuple[str, str, str, str]:
    """A weekday to be found by counting: question, steps, answer, key."""
    while True:
        day, n, wording = rng.choice(WEEKDAYS), rng.randint(2, 9), rng.choice(_DAY_QUESTIONS)
        key = f"days|{day}|{n}|{wording}"
        if split_of(key) == split:
            days = counted_days(day, n)
            steps = ", ".join(f"{number} {name}" for number, name in enumerate(days, 1)) + "."
            return wording.format(n=n, day=day), steps, f"It is {days[-1]}.", key


def arithmetic_talk(world: "World", rng: Random, split: Split) -> Talk:
    """One or two problems, each worked out in steps; in the open or, if the system prompt asks, in thought."""
    talk = Talk("arithmetic")
    thinks = rng.random() < 0.25
    if thinks:
        talk.system(rng.choice(_THINK))
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.1:
            question, steps, sentence, talk.key = _counted_day(rng, split)
            right = sentence.split()[-1].rstrip(".")
            # The days on the way may be named in the steps, so the answer is what comes last.
            scorer, reference, guess = "last_word", {"answer": right}, f"It is {rng.choice(WEEKDAYS)}."
        else:
            found = problem(rng, split)
            question, steps, sentence, talk.key = found.question, found.steps, found.sentence, found.key
            scorer, reference, guess = "number", {"answer": found.answer}, guessed_number(rng, found)
        talk.user(politely(rng, question))
        if thinks:
            talk.assistant(sentence, thinking=steps)
        else:
            talk.assistant(f"{steps} {sentence}")
        talk.expect(scorer, reference, guess)
    if not thinks and rng.random() < 0.1:
        closing(rng, talk)
    return talk


def mixed_talk(world: "World", rng: Random, split: Split) -> Talk:
    """A sum, a fact and the like, one after the other, as people chat."""
    talk = Talk("mixed")
    if rng.random() < 0.4:
        talk.user(rng.choice(GREETINGS)).assistant(rng.choice(GREETING_REPLIES))
    for _ in range(rng.randint(2, 3)):
        if rng.random() < 0.5:
            fact = fact_question(world, rng, split)
            talk.user(politely(rng, fact.question)).assistant(fact.answer)
        else:
            found = problem(rng, split)
            talk.user(politely(rng, found.question)).assistant(f"{found.steps} {found.sentence}")
    closing(rng, talk)
    return talk
