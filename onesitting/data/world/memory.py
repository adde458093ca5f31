"""Conversations in which the user tells something and asks for it later."""

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from onesitting.data.world.fact_questions import fact_question
from onesitting.data.world.lexicon import (
    BOYS,
    COLOURS,
    FOODS,
    GIRLS,
    JOBS,
    OBJECTS,
    PET_NAMES,
    TOWNS,
    WEEKDAYS,
    with_article,
)  # fmt: skip
from onesitting.data.world.small_talk import small_talk_turn
from onesitting.data.world.splits import Split, split_of
from onesitting.data.world.talk import Talk
from onesitting.data.world.word_problems import bare_problem

if TYPE_CHECKING:
    from onesitting.data.world import World


@dataclass(frozen=True)
class Slot:
    """Something that a user may tell about himself or herself."""

    values: tuple[str, ...]
    tell: tuple[str, ...]
    """How the user says it; {v} value, {av} with an article."""
    heard: tuple[str, ...]
    """How the assistant shows that it listened."""
    ask: tuple[str, ...]
    answer: str
    missing: str
    """The answer to somebody who has not said it."""


_NAMES = GIRLS + BOYS
_PETS = (
    "dog",
    "cat",
    "rabbit",
    "hamster",
    "parrot",
    "turtle",
    "horse",
    "goat",
    "hen",
    "duck",
    "donkey",
    "mouse",
)
_FAVOURITES = tuple(
    food for food, kind in FOODS.items() if kind.one.endswith(f" {food}") or " of " in kind.one
)

SLOTS: dict[str, Slot] = {
    "name": Slot(
        _NAMES,
        ("My name is {v}.", "I am {v}.", "Hi, I am {v}.", "Hello! My name is {v}.",
         "You can call me {v}.", "People call me {v}."),
        ("Nice to meet you, {v}!", "Hello {v}! How can I help you?", "Hi {v}! It is nice to meet you."),
        ("What is my name?", "Do you remember my name?", "Who am I?", "Can you tell me my name?",
         "What was my name?",
         "Do you still know my name?", "What am I called?"),
        "Your name is {v}.",
        "You have not told me your name.",
    ),
    "pet": Slot(
        _PETS,
        ("I have {av}.", "I have a pet. It is {av}.", "At home I have {av}.", "My pet is {av}."),
        ("How nice that you have {av}!", "I like animals. {AV} is a good friend."),
        ("What pet do I have?", "Which animal do I have?", "Do you remember my pet?",
         "What kind of pet is mine?", "Which animal lives with me?"),
        "You have {av}.",
        "You have not told me about a pet.",
    ),
    "pet_name": Slot(
        PET_NAMES,
        ("My pet is called {v}.", "My pet's name is {v}.", "I call my pet {v}.",
         "I have a pet and its name is {v}."),
        ("{v} is a lovely name!", "What a good name: {v}!"),
        ("What is the name of my pet?", "Which name did I give my pet?",
         "Do you remember the name of my pet?", "What did I call my pet?",
         "What is my pet called?"),
        "Your pet is called {v}.",
        "You have not told me the name of your pet.",
    ),
    "number": Slot(
        tuple(map(str, range(2, 100))),
        ("My lucky number is {v}.", "Please remember the number {v}.", "I think of the number {v}.",
         "Keep the number {v} in mind."),
        ("I will remember {v}.", "The number {v}, good.", "All right, {v}."),
        ("What was my number?", "Which number did I tell you?", "Do you remember my number?",
         "What number did I say?", "Tell me my number."),
        "Your number is {v}.",
        "You have not told me a number.",
    ),
    "colour": Slot(
        COLOURS,
        ("My favourite colour is {v}.", "I like {v} best of all colours.",
         "The colour that I like best is {v}.", "I love the colour {v}."),
        ("{V} is a beautiful colour.", "I like {v} too."),
        ("What is my favourite colour?", "Which colour do I like best?",
         "Do you remember my favourite colour?", "What colour do I love?"),
        "Your favourite colour is {v}.",
        "You have not told me your favourite colour.",
    ),
    "food": Slot(
        _FAVOURITES,
        ("My favourite food is {v}.", "I like {v} more than any other food.",
         "The food that I like best is {v}."),
        ("{V} is a good choice!", "I see, {v}!"),
        ("What is my favourite food?", "Which food do I like best?", "Do you remember my favourite food?",
         "What do I like to eat most?"),
        "Your favourite food is {v}.",
        "You have not told me your favourite food.",
    ),
    "town": Slot(
        TOWNS,
        ("I live in {v}.", "My home is in {v}.", "I am from {v}.", "I come from {v}."),
        ("{v} is a nice town.", "I know {v}!"),
        ("Where do I live?", "Which town am I from?", "In which town is my home?",
         "Do you remember where I live?", "Where am I from?"),
        "You live in {v}.",
        "You have not told me where you live.",
    ),
    "friend": Slot(
        _NAMES,
        ("My best friend is {v}.", "My best friend is called {v}.",
         "I have a good friend. The name is {v}."),
        ("It is good to have a friend like {v}.", "{v} must be nice!"),
        ("Who is my best friend?", "What is the name of my friend?", "What is my friend called?",
         "Do you remember my friend?"),
        "Your friend is {v}.",
        "You have not told me about a friend.",
    ),
    "day": Slot(
        WEEKDAYS,
        ("My birthday is on {v}.", "My birthday is this {v}.", "I have my birthday on {v}."),
        ("How nice! I wish you a happy {v}.", "{v}! That will be a good day."),
        ("When is my birthday?", "On which day is my birthday?", "Do you remember my birthday?",
         "What day is my birthday?"),
        "Your birthday is on {v}.",
        "You have not told me when your birthday is.",
    ),
    "job": Slot(
        tuple(JOBS),
        ("I am {av}.", "I work as {av}.", "My job is {av}."),
        ("{AV} has a lot to do!", "That is good work."),
        ("What is my job?", "What do I do for work?", "Do you remember my job?", "What do I work as?"),
        "You are {av}.",
        "You have not told me your job.",
    ),
    "thing": Slot(
        tuple(OBJECTS),
        ("I lost my {v}.", "Yesterday I lost my {v}.", "I can't find my {v}."),
        ("I am sorry about your {v}.", "Oh no! I hope that you find your {v}."),
        ("What did I lose?", "What can't I find?", "Do you remember what I lost?",
         "What am I looking for?"),
        "You lost your {v}.",
        "You have not told me that you lost something.",
    ),
}  # fmt: skip
_NEVER_TOLD = 0.12  # share of conversations that ask for what was not said


def memory_talk(world: "World", rng: Random, split: Split) -> Talk:
    """The user tells one to three things; after up to two other turns he or she asks for one of them."""
    while True:
        names = rng.sample(tuple(SLOTS), rng.choice((1, 2, 2, 3)))
        values = {name: rng.choice(SLOTS[name].values) for name in names}
        asked = (
            rng.choice(names)
            if rng.random() > _NEVER_TOLD
            else rng.choice([s for s in SLOTS if s not in names])
        )
        wording = rng.choice(SLOTS[asked].ask)
        key = f"memory|{asked}|{values.get(asked, '-' + '-'.join(sorted(names)))}|{wording}"
        if split_of(key) == split:
            break
    talk = Talk("memory", key)
    for name in names:
        slot, fields = SLOTS[name], _value_fields(values[name])
        talk.user(rng.choice(slot.tell).format(**fields)).assistant(rng.choice(slot.heard).format(**fields))
    for _ in range(rng.choice((0, 1, 1, 2))):
        _other_turn(world, rng, split, talk)
    slot = SLOTS[asked]
    if asked in values:
        fields = _value_fields(values[asked])
        talk.user(wording).assistant(slot.answer.format(**fields))
        # A wrong value of the same sort, or another thing that was told, makes a reply wrong.
        others = [value for name, value in values.items() if name != asked]
        rejected = [value for value in {*slot.values, *others} if value != values[asked]]
        return talk.expect(
            "answer", {"accepted": [values[asked]], "rejected": sorted(rejected)}, _guess(rng, asked)
        )
    talk.user(wording).assistant(slot.missing)
    accepted = ["have not told me", "did not tell me", "don't know", "do not know"]
    return talk.expect("answer", {"accepted": accepted, "rejected": []}, _guess(rng, asked))


def _guess(rng: Random, slot: str) -> str:
    """The baseline: an answer from the pool, without having listened."""
    return SLOTS[slot].answer.format(**_value_fields(rng.choice(SLOTS[slot].values)))


def _value_fields(value: str) -> dict[str, str]:
    phrase = with_article(value)
    return {"v": value, "V": value[0].upper() + value[1:], "av": phrase, "AV": phrase[0].upper() + phrase[1:]}


def _other_turn(world: "World", rng: Random, split: Split, talk: Talk) -> None:
    """Something in between that has nothing to do with what was told."""
    kind = rng.random()
    if kind < 0.5:
        small_talk_turn(rng, talk)
    elif kind < 0.8:
        found = fact_question(world, rng, split)
        talk.user(found.question).assistant(found.answer)
    else:
        problem = bare_problem(rng, split)
        talk.user(problem.question).assistant(f"{problem.steps} {problem.sentence}")
