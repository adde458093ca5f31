"""The world's facts as questions and answers; each (fact, wording) pair belongs to one split."""

from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING

from onesitting.data.world.lexicon import (
    ANIMALS,
    BOYS,
    FOODS,
    GIRLS,
    JOBS,
    OBJECTS,
    PLACES,
    number_word,
    with_article,
)
from onesitting.data.world.splits import Split, split_of
from onesitting.data.world.state import Fact, State, state
from onesitting.data.world.talk import capitalised

if TYPE_CHECKING:
    from onesitting.data.world import World


@dataclass(frozen=True)
class FactQuestion:
    """A fact, asked and answered."""

    fact: Fact
    question: str
    answer: str
    """A whole sentence."""
    accepted: tuple[str, ...]
    key: str
    """The fact with its wording."""


# kind -> (questions, answers). {s} subject, {v} value; the other fields are made in `_fields`.
_WORDINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "eats": (
        ("What does {as} eat?", "What do {plural} eat?", "What should I give {as} to eat?",
         "What do {plural} like to eat?",
         "Which food is right for {as}?", "What is the food of {plural}?"),
        ("{As} eats {v}.",),
    ),
    "sleeps": (
        ("Where does {as} sleep?", "Where do {plural} sleep?", "Where is {as} at night?",
         "Where can I find {as} when it sleeps?",
         "In what place do {plural} sleep?"),
        ("{As} sleeps {in_v}.",),
    ),
    "legs": (
        ("How many legs does {as} have?", "How many legs do {plural} have?", "How many legs has {as}?",
         "Tell me how many legs {as} has.", "What number of legs does {as} have?"),
        ("{As} has {v} legs.",),
    ),
    "baby": (
        ("What is a young {s} called?", "What do you call a baby {s}?", "What is the name for a young {s}?",
         "What do people call the young of {as}?", "What is the baby of {as} called?"),
        ("A young {s} is called {av}.",),
    ),
    "cover": (
        ("What covers the body of {as}?", "What is the body of {as} covered with?",
         "What do {plural} have on their bodies?",
         "What does {as} have on its body?", "With what are {plural} covered?"),
        ("The body of {as} is covered with {v}.",),
    ),
    "skill": (
        ("What can {as} do?", "What can {plural} do?", "What are {plural} able to do?",
         "What is {as} good at?",
         "What do {plural} do well?"),
        ("{As} can {v}.",),
    ),
    "sound": (
        ("What sound does {as} make?", "What sound do {plural} make?", "What does {as} sound like?",
         "How does {as} sound?", "What do you hear from {as}?"),
        ("{As} {v}.",),
    ),
    "price": (
        ("How much does {one} cost?", "What does {one} cost?", "What is the price of {one}?",
         "How many coins does {one} cost?",
         "How many coins do I need for {one}?", "What must I pay for {one}?",
         "I want to buy {one}. How much is it?"),
        ("{One} costs {coins}.",),
    ),
    "shop": (
        ("Where can I buy {as}?", "Where do people buy {as}?", "Which shop sells {as}?",
         "Which shop has {plural}?",
         "I need {as}. Where should I go?", "Where do they sell {plural}?"),
        ("You can buy {as} at the {v}.",),
    ),
    "use": (
        ("What do you use {as} for?", "What can I do with {as}?", "What is {as} good for?",
         "Why do people have {plural}?",
         "What do people do with {as}?"),
        ("You use {as} to {v}.",),
    ),
    "deed": (
        ("What does {as} do?", "What does {as} do all day?", "What is the work of {as}?",
         "Tell me what {as} does.",
         "What kind of work does {as} do?"),
        ("{As} {does}.",),
    ),
    "workplace": (
        ("Where does {as} work?", "Where can I find {as} at work?", "At what place does {as} work?",
         "Where is {as} during the day?", "Where do I go if I look for {as}?"),
        ("{As} works {in_v}.",),
    ),
    "source": (
        ("Where {do} {what} come from?", "What {is_are} {what} made from?",
         "Tell me where people get {what}.",
         "What do people need to get {what}?"),
        ("{comes} {v}.",),
    ),
    "effect": (
        ("What happens when {s}?", "What happens if {s}?", "{S}. What happens then?",
         "Tell me what happens when {s}.",
         "Do you know what happens when {s}?", "Suppose that {s}. What follows?"),
        ("When {s}, {v}.",),
    ),
    "river": (
        ("Which river flows through {s}?", "What is the river of {s} called?",
         "What is the name of the river in {s}?",
         "I am in {s}. Which river is here?", "What do people call the river at {s}?"),
        ("The river of {s} is the {v}.",),
    ),
    "hill": (
        ("Which hill is near {s}?", "What is the hill near {s} called?",
         "What is the name of the hill at {s}?",
         "On which hill can I walk in {s}?", "What do people call the hill at {s}?"),
        ("The hill near {s} is {v}.",),
    ),
    "market_day": (
        ("When is the market in {s}?", "On which day is the market in {s}?",
         "What is the market day of {s}?",
         "Which day is market day in {s}?", "When can I go to the market in {s}?"),
        ("The market in {s} is on {v}.",),
    ),
    "festival": (
        ("Which festival does {s} have?", "What is the festival of {s} called?",
         "What do people celebrate in {s}?",
         "What is the name of the festival in {s}?", "Which festival can I see in {s}?"),
        ("{S} has the {v}.",),
    ),
    "festival_month": (
        ("In which month is the festival of {s}?", "When is the festival in {s}?",
         "When does {s} celebrate?",
         "Which month has the festival of {s}?", "What month is the festival in {s}?"),
        ("The festival of {s} is in {v}.",),
    ),
    "produce": (
        ("What is {s} known for?", "For which food is {s} known?", "Which food comes from {s}?",
         "What is the best food of {s}?",
         "What should I eat in {s}?"),
        ("{S} is known for its {v}.",),
    ),
    "holder": (
        ("Who is the {job} of {town}?", "Who is the {job} in {town}?",
         "What is the name of the {job} in {town}?",
         "I need a {job} in {town}. Who is it?", "Who works as a {job} in {town}?"),
        ("The {job} of {town} is {v}.",),
    ),
    "home_town": (
        ("Where does {s} live?", "In which town does {s} live?", "Where is the home of {s}?",
         "Which town does {s} live in?"),
        ("{s} lives in {v}.",),
    ),
    "job": (
        ("What is the job of {s}?", "What does {s} do for work?", "What is {s}'s job?",
         "Which job does {s} have?"),
        ("{s} is {av}.",),
    ),
    "age": (
        ("How old is {s}?", "What is the age of {s}?", "Do you know how old {s} is?",
         "Tell me the age of {s}."),
        ("{s} is {v} years old.",),
    ),
    "friend": (
        ("Who is the best friend of {s}?", "Who is {s}'s friend?", "Which friend does {s} have?",
         "Who is a friend of {s}?"),
        ("{s}'s friend is {v}.",),
    ),
}  # fmt: skip

# How often each group is asked. What is true of every world (animals, things) comes up again and again in
# the stories and can be learned in minutes; there are over a thousand facts about single people, and few are.
GROUPS: dict[str, tuple[float, tuple[str, ...]]] = {
    "animals": (0.34, ("eats", "sleeps", "legs", "baby", "cover", "skill", "sound")),
    "things": (0.14, ("shop", "use", "source")),
    "prices": (0.12, ("price",)),
    "jobs": (0.10, ("deed", "workplace")),
    "nature": (0.08, ("effect",)),
    "towns": (0.14, ("river", "hill", "market_day", "festival", "festival_month", "produce", "holder")),
    "people": (0.08, ("home_town", "job", "age", "friend")),
}
_ASKED_IN_PARAGRAPHS = ("What does {as} do?", "What happens when {s}?")
_USEFUL_GROUPS = ("tool", "kitchen", "garden", "art", "book", "clothes")
_HOME_PHRASES = {"sea": "in the sea", "cliff": "on a cliff", "river bank": "on a river bank"}


@lru_cache(maxsize=4)
def _facts_by_kind(seed: int) -> dict[str, list[Fact]]:
    found: dict[str, list[Fact]] = {kind: [] for kind in _WORDINGS}
    for fact in state(seed).facts:
        if fact.kind in found and not _says_little(fact):
            found[fact.kind].append(fact)
    return found


def _says_little(fact: Fact) -> bool:
    """A use that sounds odd ("you use a balloon to have at a party"); a young bee that is called a young bee."""
    if fact.kind == "baby":
        return fact.subject in fact.value
    return fact.kind == "use" and OBJECTS[fact.subject].group not in _USEFUL_GROUPS


@lru_cache(maxsize=4)
def values_of_kind(seed: int, kind: str) -> tuple[str, ...]:
    """Every value that facts of this kind have: the answer pool of a guess."""
    return tuple(sorted({fact.value for fact in _facts_by_kind(seed)[kind]}))


def fact_question(world: "World", rng: Random, split: Split, group: str | None = None) -> FactQuestion:
    """A random fact in a wording that belongs to this split."""
    weights = [weight for weight, _ in GROUPS.values()]
    table = _facts_by_kind(world.seed)
    while True:
        kind = rng.choice(GROUPS[group or rng.choices(tuple(GROUPS), weights)[0]][1])
        fact = rng.choice(table[kind])
        wording = rng.choice(_WORDINGS[kind][0])
        key = f"fact|{fact.key}|{wording}"
        # The encyclopedia's paragraphs ask some questions themselves: these are training's for every fact.
        if ("train" if wording in _ASKED_IN_PARAGRAPHS else split_of(key)) == split:
            return _asked(world.state, fact, wording, key)


def quiz(world: "World", rng: Random, split: Split) -> str:
    """A page of questions and answers for pretraining, in one of a few layouts."""
    found = [fact_question(world, rng, split) for _ in range(rng.randint(4, 8))]
    layout = rng.randrange(3)
    if layout == 0:
        return "\n".join(f"Question: {q.question}\nAnswer: {q.answer}" for q in found)
    if layout == 1:
        return "\n".join(f"{q.question} {q.answer}" for q in found)
    asker, answerer = rng.sample(GIRLS + BOYS, 2)
    return "\n".join(f'{asker} asks: "{q.question}"\n{answerer} says: "{q.answer}"' for q in found)


def fact_sentence(world: "World", fact: Fact) -> str:
    """The fact as a statement."""
    return _WORDINGS[fact.kind][1][0].format(**_fields(world.state, fact))


def facts_about(world: "World", kind: str) -> list[Fact]:
    """All facts of a kind that can be asked."""
    return _facts_by_kind(world.seed)[kind]


def _asked(world: State, fact: Fact, wording: str, key: str) -> FactQuestion:
    fields = _fields(world, fact)
    question = wording.format(**fields)
    answer = _WORDINGS[fact.kind][1][0].format(**fields)
    return FactQuestion(fact, question, answer, _accepted(fact, fields), key)


def _accepted(fact: Fact, fields: dict[str, str]) -> tuple[str, ...]:
    if fact.kind == "deed":
        return (fields["does"], fact.value)
    if fact.kind == "legs":
        return (fields["v"], fact.value)
    if " and " in fact.value and fact.kind == "eats":
        first, second = fact.value.split(" and ")
        return (fact.value, f"{second} and {first}")
    return (fact.value,)


def _fields(world: State, fact: Fact) -> dict[str, str]:
    """What the wordings of this fact may mention."""
    subject, value, kind = fact.subject, fact.value, fact.kind
    fields = {"s": subject, "v": value, "S": capitalised(subject), "as": with_article(subject)}
    fields["As"] = capitalised(fields["as"])
    if subject in ANIMALS and kind in GROUPS["animals"][1]:
        fields["plural"] = ANIMALS[subject].plural
        fields["in_v"] = _HOME_PHRASES.get(value, f"in {with_article(value)}")
        fields["av"] = with_article(value)
        if kind == "legs":
            fields["v"] = "no" if value == "0" else number_word(int(value))
    elif kind in ("shop", "use"):
        fields["plural"] = OBJECTS[subject].plural
    elif kind == "price":
        fields["one"] = FOODS[subject].one if subject in FOODS else with_article(subject)
        fields["One"] = capitalised(fields["one"])
        fields["coins"] = f"{value} coin" + ("s" if value != "1" else "")
    elif kind == "deed":
        fields["does"] = JOBS[subject].does
    elif kind == "workplace":
        fields["in_v"] = f"{PLACES[value].at if value in PLACES else 'at'} the {value}"
    elif kind == "source":
        fields |= _source_fields(subject, value)
    elif kind == "holder":
        fields["job"], fields["town"] = subject.split(" of ")
    elif kind == "job":
        fields["av"] = with_article(value)
    return fields


_GROWN = ("trees", "plants", "ground", "cows", "hens", "bees", "river")


def _source_fields(food: str, source: str) -> dict[str, str]:
    """`Apples come from apple trees`, `Bread is made from flour and water`."""
    what = FOODS[food].plural.split(" of ")[-1]
    single = what == food
    grown = source.split()[-1] in _GROWN
    verb = (
        ("comes from" if single else "come from")
        if grown
        else ("is made from" if single else "are made from")
    )
    return {
        "what": what,
        "do": "does" if single else "do",
        "is_are": "is" if single else "are",
        "comes": f"{capitalised(what)} {verb}",
    }
