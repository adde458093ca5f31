"""Requests whose form can be checked: lists, numbers of sentences, one word, yes or no, JSON, copies."""

import json
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from onesitting.data.world import lexicon as lx
from onesitting.data.world.fact_questions import fact_question, fact_sentence, facts_about
from onesitting.data.world.splits import Split, split_of
from onesitting.data.world.talk import Talk, capitalised, politely

if TYPE_CHECKING:
    from onesitting.data.world import World

_GROUP_NAMES = {"pet": "pets", "farm": "farm animals", "wild": "wild animals"}
_SHOP_NAMES = {"toy": "toys", "clothes": "clothes", "kitchen": "things for the kitchen", "tool": "tools"}
CATEGORIES: dict[str, tuple[str, ...]] = {
    "colours": lx.COLOURS,
    "days of the week": lx.WEEKDAYS,
    "months": lx.MONTHS,
    "jobs": tuple(lx.JOBS),
    "towns": lx.TOWNS,
    "games": lx.GAMES,
    "seasons": tuple(lx.SEASONS),
    **{
        name: tuple(a.name for a in lx.ANIMALS.values() if a.group == group)
        for group, name in _GROUP_NAMES.items()
    },
    **{
        name: tuple(o.name for o in lx.OBJECTS.values() if o.group == group)
        for group, name in _SHOP_NAMES.items()
    },
    "fruits": ("apple", "pear", "plum", "orange", "lemon", "melon", "peach", "cherry", "strawberry"),
    "vegetables": ("carrot", "potato", "tomato", "onion", "cabbage", "pumpkin"),
}


def _list(world: "World", rng: Random, split: Split) -> Talk:
    """`- red`, `- blue`, `- green`."""
    category, n = rng.choice(tuple(CATEGORIES)), rng.choice((2, 3, 3, 4, 5))
    n = min(n, len(CATEGORIES[category]))
    wording = rng.choice(
        ("Name {n} {c} as a list.", "Give me a list of {n} {c}.", "List {n} {c}.",
         "Write a list with {n} {c}.",
         "Make a list of {n} {c}, one on each line.", "I need {n} {c}. Write them as a list.")
    )  # fmt: skip
    items = rng.sample(CATEGORIES[category], n)
    talk = Talk("instructions", f"list|{category}|{n}|{wording}")
    talk.user(politely(rng, wording.format(n=lx.number_word(n), c=category)))
    talk.assistant("\n".join(f"- {item}" for item in items))
    other = rng.choice(tuple(CATEGORIES))
    guess = "\n".join(f"- {item}" for item in CATEGORIES[other][:3])
    return talk.expect("instruction", {"items": n, "allowed": list(CATEGORIES[category])}, guess)


_ABOUT_ANIMAL = ("eats", "sleeps", "legs", "cover", "skill", "baby")


def _sentences(world: "World", rng: Random, split: Split) -> Talk:
    """Exactly n sentences about an animal or a job."""
    animal, n = rng.choice(tuple(lx.ANIMALS)), rng.choice((1, 2, 2, 3, 3, 4))
    wording = rng.choice(
        ("Tell me about {a} in exactly {n} sentence{s}.", "Write {n} sentence{s} about {a}.",
         "Describe {a} in {n} sentence{s}.",
         "What do you know about {a}? Answer in {n} sentence{s}.",
         "Give me exactly {n} sentence{s} about {a}.",
         "In {n} sentence{s}: what is {a} like?")
    )  # fmt: skip
    talk = Talk("instructions", f"sentences|{animal}|{n}|{wording}")
    talk.user(
        politely(rng, wording.format(a=lx.with_article(animal), n=lx.number_word(n), s="s" if n > 1 else ""))
    )
    facts = [fact for kind in _ABOUT_ANIMAL for fact in facts_about(world, kind) if fact.subject == animal]
    talk.assistant(" ".join(fact_sentence(world, fact) for fact in rng.sample(facts, n)))
    # Only the number of sentences and the animal are asked for; whether they are true is the facts task.
    guess = f"I like {lx.ANIMALS[animal].plural}. They are nice."
    return talk.expect("instruction", {"sentences": n, "mentions": [animal]}, guess)


_ONE_WORD_KINDS = ("baby", "market_day", "festival_month", "sleeps", "source", "workplace", "price", "legs")


def _one_word(world: "World", rng: Random, split: Split) -> Talk:
    while True:
        found = fact_question(world, rng, split)
        if found.fact.kind in _ONE_WORD_KINDS and len(found.fact.value.split()) == 1:
            break
    wording = rng.choice(
        (
            "{q} Answer in one word.",
            "Answer in one word: {q}",
            "{q} Use one word only.",
            "In one word: {q}",
            "{q} Just one word, please.",
        )
    )
    value = "no" if found.fact.value == "0" else found.fact.value
    answer = lx.number_word(int(value)) if found.fact.kind == "legs" and value.isdigit() else value
    if found.fact.kind == "price":
        answer = value
    talk = (
        Talk("instructions", found.key + "|" + wording)
        .user(wording.format(q=found.question))
        .assistant(capitalised(answer))
    )
    guess = capitalised(rng.choice([fact.value for fact in facts_about(world, found.fact.kind)]))
    accepted = [answer, value] + (["none", "zero", "0"] if found.fact.value == "0" else [])
    return talk.expect("instruction", {"words": 1, "accepted": accepted}, guess)


def _statement(world: "World", rng: Random) -> tuple[str, bool]:
    """A question that yes or no answers, as often the one as the other."""
    truth = rng.random() < 0.5
    kind = rng.choice(("floats", "group", "eats", "sound", "shop"))
    if kind == "floats":
        thing = rng.choice([o for o in lx.OBJECTS.values() if o.floats == truth])
        return f"Does {lx.with_article(thing.name)} float on water?", truth
    animal = rng.choice(tuple(lx.ANIMALS.values()))
    a = lx.with_article(animal.name)
    if kind == "group":
        group = animal.group if truth else rng.choice([g for g in _GROUP_NAMES if g != animal.group])
        return f"Is {a} {lx.with_article(_GROUP_NAMES[group][:-1])}?", truth
    if kind == "shop":
        thing = rng.choice(tuple(lx.OBJECTS.values()))
        shops = sorted({o.shop for o in lx.OBJECTS.values()} - {thing.shop})
        return (
            f"Can I buy {lx.with_article(thing.name)} at the {thing.shop if truth else rng.choice(shops)}?",
            truth,
        )
    if kind == "eats":
        foods = sorted({food for other in lx.ANIMALS.values() for food in other.foods} - set(animal.foods))
        return f"Does {a} eat {rng.choice(animal.foods) if truth else rng.choice(foods)}?", truth
    sounds = sorted({other.sound for other in lx.ANIMALS.values()} - {animal.sound})
    return f"Is it true that {a} {animal.sound if truth else rng.choice(sounds)}?", truth


def _yes_no(world: "World", rng: Random, split: Split) -> Talk:
    question, truth = _statement(world, rng)
    wording = rng.choice(
        (
            "{q} Answer yes or no.",
            "Yes or no: {q}",
            "{q} Just say yes or no.",
            "Answer with yes or no only. {q}",
        )
    )
    talk = (
        Talk("instructions", f"yes_no|{question}|{wording}")
        .user(wording.format(q=question))
        .assistant("Yes." if truth else "No.")
    )
    return talk.expect("instruction", {"yes_no": "yes" if truth else "no"}, rng.choice(("Yes.", "No.")))


_JSON_FIELDS: tuple[tuple[str, Callable[[Random], Any]], ...] = (
    ("age", lambda rng: rng.randint(5, 70)),
    ("town", lambda rng: rng.choice(lx.TOWNS)),
    ("job", lambda rng: rng.choice(tuple(lx.JOBS))),
    ("pet", lambda rng: rng.choice(("dog", "cat", "rabbit", "horse", "goat", "duck", "hen", "parrot"))),
    ("colour", lambda rng: rng.choice(lx.COLOURS)),
)
_JSON_SENTENCES = {
    "age": "is {} years old", "town": "lives in {}", "job": "works as {}", "pet": "has {}",
     "colour": "likes {}",
}  # fmt: skip


def _json(world: "World", rng: Random, split: Split) -> Talk:
    """`{"name": "Mia", "age": 7}` from a sentence."""
    name = rng.choice(lx.GIRLS + lx.BOYS)
    fields = rng.sample(_JSON_FIELDS, rng.choice((1, 2, 2)))
    value: dict[str, Any] = {"name": name} | {key: make(rng) for key, make in fields}
    said = {key: lx.with_article(value[key]) if key in ("job", "pet") else value[key] for key, _ in fields}
    sentence = f"{name} " + " and ".join(_JSON_SENTENCES[key].format(said[key]) for key, _ in fields) + "."
    keys = lx.and_list(list(value))
    wording = rng.choice(
        ("Write this as JSON with the keys {k}: {t}", "{t} Give me JSON with the keys {k}.",
         "Turn this into JSON with the keys {k}. {t}",
         "{t} Write that as JSON. Use the keys {k}.")
    )  # fmt: skip
    talk = (
        Talk("instructions", f"json|{sentence}")
        .user(wording.format(k=keys, t=sentence))
        .assistant(json.dumps(value))
    )
    return talk.expect("instruction", {"json": value}, sentence)


def _copy(world: "World", rng: Random, split: Split) -> Talk:
    """Capitals, repetition, word for word."""
    kind = rng.choice(("upper", "repeat", "exact"))
    noun, colour = rng.choice(tuple(lx.OBJECTS)), rng.choice(lx.COLOURS)
    if kind == "upper":
        wording = rng.choice(
            (
                "Write the word {w} in capital letters.",
                "Write {w} in capital letters only.",
                "Put this in capital letters: {w}",
                "Shout the word {w}!",
            )
        )
        text, answer, guess = noun, noun.upper(), noun
    elif kind == "repeat":
        n = rng.randint(2, 5)
        word = rng.choice((noun, colour))
        wording = rng.choice(
            ("Say {w} {n} times.", "Repeat the word {w} {n} times.", "Write {w} {n} times in a row.")
        ).replace("{n}", lx.number_word(n))
        text, answer, guess = word, " ".join([word] * n), " ".join([word] * 3)
    else:
        wording = rng.choice(
            (
                "Repeat after me: {w}",
                "Say exactly this: {w}",
                "Copy this sentence: {w}",
                "Write down these words: {w}",
            )
        )
        who = rng.choice(lx.GIRLS + lx.BOYS)
        text = rng.choice(
            (
                f"{who} has {lx.with_article(colour)} {noun}.",
                f"The {noun} of {who} is {colour}.",
                f"{who} likes the {colour} {noun}.",
            )
        )
        answer, guess = text, f"{who} has it."
    talk = (
        Talk("instructions", f"copy|{kind}|{text}|{wording}")
        .user(politely(rng, wording.format(w=text)))
        .assistant(answer)
    )
    return talk.expect("instruction", {"exact": answer}, guess)


def _fact_with_rule(world: "World", rng: Random, split: Split) -> Talk:
    """A fact, and a phrase that the answer has to begin or end with."""
    found = fact_question(world, rng, split)
    phrase = rng.choice(
        ("Have a nice day!", "That is all.", "I hope that helps.", "Goodbye!", "The end.", "Is that good?")
    )
    start = rng.choice(("Well!", "Listen!", "My friend!", "Yes, yes!", "Of course!"))
    at_end = rng.random() < 0.6
    if at_end:
        wording = rng.choice(
            (
                '{q} End your answer with "{p}"',
                '{q} Please finish with "{p}"',
                'End with "{p}" when you answer: {q}',
            )
        )
        text, reference = f"{found.answer} {phrase}", {"ends": phrase}
    else:
        phrase = start
        wording = rng.choice(
            (
                '{q} Begin your answer with "{p}"',
                '{q} Please start with "{p}"',
                'Start with "{p}" when you answer: {q}',
            )
        )
        text, reference = f"{phrase} {found.answer}", {"starts": phrase}
    talk = (
        Talk("instructions", f"{found.key}|{phrase}")
        .user(wording.format(q=found.question, p=phrase))
        .assistant(text)
    )
    guess = rng.choice(facts_about(world, found.fact.kind))
    return talk.expect(
        "instruction", {**reference, "accepted": list(found.accepted)}, fact_sentence(world, guess)
    )


_KINDS: tuple[tuple[float, Callable[["World", Random, Split], Talk]], ...] = (
    (0.20, _list),
    (0.15, _sentences),
    (0.15, _one_word),
    (0.15, _yes_no),
    (0.12, _json),
    (0.13, _copy),
    (0.10, _fact_with_rule),
)


def instruction_talk(world: "World", rng: Random, split: Split) -> Talk:
    """One to three requests whose form and content can be checked; the last one can be scored."""
    talk = _request(world, rng, split)
    for _ in range(rng.choice((0, 1, 2))):
        talk = _request(world, rng, split).after(talk)
    return talk


def _request(world: "World", rng: Random, split: Split) -> Talk:
    """A request of this split and its fulfilment."""
    make = rng.choices([make for _, make in _KINDS], [weight for weight, _ in _KINDS])[0]
    while True:
        talk = make(world, rng, split)
        # Talks about a fact have the fact's split already; their longer key must not move them.
        if talk.key.startswith("fact|") or split_of(talk.key) == split:
            return talk
