"""Short factual texts about invented people, shops, rooms and weeks, with their questions.

They hold many small facts side by side (who has which colour, what costs how much, what happens on which day), which
stories do not: reading them means finding the right one. People here are not inhabitants of the world, so
nothing in these texts contradicts its facts.
"""

from __future__ import annotations

from random import Random

from onesitting.data.world import lexicon as lx
from onesitting.data.world.grammar import CHARACTERS, Who
from onesitting.data.world.passage_questions import NOT_SAID, Question
from onesitting.data.world.state import state

TextWithQuestions = tuple[str, list[Question], str]
"""Text, all questions that it answers, key of its situation."""

_STRANGERS: tuple[Who, ...] = tuple(w for n, w in CHARACTERS.items() if n not in state(0).people)
_THINGS = tuple(k for k in lx.OBJECTS.values() if " " not in k.name)


def _people(rng: Random, n: int) -> list[Who]:
    return rng.sample(_STRANGERS, n)


_Facts = list[tuple[tuple[str, ...], Question]]
"""Wordings of a sentence, and the question that it answers."""
_COMPANIONS = ("dog", "cat", "horse", "parrot", "rabbit", "goat", "turtle", "hen")


def _profile_facts(rng: Random, who: Who, friend: Who, age: int, town: str) -> _Facts:
    """What can be said and asked about an invented person."""
    name, he, his = who.name, who.He, who.His
    kind = rng.choice(_COMPANIONS)
    colour, pet = rng.choice(lx.ANIMALS[kind].colours), rng.choice(lx.PET_NAMES)
    food, hobby = _as_taste(rng.choice(tuple(lx.FOODS))), rng.choice(lx.HOBBIES)[0]
    day, street = rng.choice(lx.WEEKDAYS), rng.choice(lx.STREETS)
    thing, tcolour = rng.choice(_THINGS), rng.choice(lx.COLOURS)
    return [
        (
            (f"{he} is {age} years old.", f"{his} age is {age}.", f"{he} turned {age} this year."),
            (rng.choice((f"How old is {name}?", f"What is the age of {name}?")), f"{name} is {age} years old.", (str(age),)),
        ),
        (
            (f"{he} lives in {town}.", f"{his} home is in {town}.", f"{he} has a small house in {town}."),
            (rng.choice((f"Where does {name} live?", f"In which town is {name} at home?")), f"{name} lives in {town}.", (town,)),
        ),
        (
            (f"{he} has {lx.with_article(f'{colour} {kind}')} called {pet}.", f"{pet}, {lx.with_article(f'{colour} {kind}')}, lives with {who.him}.",
             f"{his} {kind} {pet} is {colour}."),
            rng.choice((
                (f"What is the name of {name}'s {kind}?", f"The {kind} is called {pet}.", (pet,)),
                (f"What kind of animal is {pet}?", f"{pet} is {lx.with_article(kind)}.", (kind,)),
                (f"What colour is {pet}?", f"{pet} is {colour}.", (colour,)),
            )),
        ),
        (
            (f"{his} favourite food is {food}.", f"{he} likes {food} best of all.", f"Nothing tastes better to {who.him} than {food}."),
            (rng.choice((f"What is {name}'s favourite food?", f"Which food does {name} like best?")), f"{name} likes {food} best.", (food,)),
        ),
        (
            (f"In {who.his} free time, {who.he} loves {hobby}.", f"{he} loves {hobby}.", f"After work, {who.he} enjoys {hobby}."),
            (rng.choice((f"What does {name} love to do?", f"What is {name}'s hobby?")), f"{name} loves {hobby}.", (hobby,)),
        ),
        (
            (f"{he} does not work on {day}.", f"On {day}, {who.he} has a free day.", f"{his} free day is {day}."),
            (rng.choice((f"When does {name} not work?", f"On which day is {name} free?")), f"{name} is free on {day}.", (day,)),
        ),
        (
            (f"{his} house is on {street}.", f"One can find {who.his} house on {street}."),
            (rng.choice((f"On which street is {name}'s house?", f"What street does {name} live on?")), f"The house is on {street}.", (street,)),
        ),
        (
            (f"{his} best friend is {friend.name}.", f"{he} often meets {friend.name}, {who.his} best friend."),
            (rng.choice((f"Who is {name}'s best friend?", f"Whom does {name} often meet?")), f"The best friend is {friend.name}.", (friend.name,)),
        ),
        (
            (f"{he} never leaves the house without {who.his} {tcolour} {thing.name}.", f"{he} is proud of {who.his} {tcolour} {thing.name}."),
            (rng.choice((f"What colour is {name}'s {thing.name}?", f"Which colour has {name}'s {thing.name}?")), f"The {thing.name} is {tcolour}.", (tcolour,)),
        ),
    ]  # fmt: skip


def profile(rng: Random) -> TextWithQuestions:
    """One person: age, job, town, animal, tastes."""
    who, friend = _people(rng, 2)
    name, he = who.name, who.He
    job = rng.choice(tuple(lx.JOBS.values()))
    age, town = rng.randint(22, 70), rng.choice(lx.TOWNS)
    facts = _profile_facts(rng, who, friend, age, town)
    chosen = rng.sample(facts, rng.randint(4, 7))
    left = [f for f in facts if f not in chosen]
    opening = rng.choice((f"{name} is {lx.with_article(job.name)}.", f"{name} works as {lx.with_article(job.name)}.",
                          f"Everybody knows {name}, the {job.name}."))  # fmt: skip
    extra = rng.choice(
        (f"{he} {job.does}.", f"At work, {who.he} uses {job.tool}.", f"{he} wears {job.gear}.", "")
    )
    text = " ".join(filter(None, [opening, extra, *(rng.choice(sentences) for sentences, _ in chosen)]))
    questions = [q for _, q in chosen]
    questions.append((f"What is {name}'s job?", f"{name} is {lx.with_article(job.name)}.", (job.name,)))
    if left:
        # The same form of question as the answerable ones, about what this text leaves out.
        asked = rng.choice(left)[1][0]
        # A question about a pet would tell that there is one.
        if (
            not any(kind in asked for kind in _COMPANIONS)
            and "animal" not in asked
            and not asked.startswith("What colour is")
        ):
            questions.append((asked, *NOT_SAID))
    return text, questions, f"profile/{name}/{job.name}/{town}/{age}"


def _shop_questions(
    rng: Random, things: list[lx.ObjectKind], prices: list[int], owner: str
) -> list[Question]:
    """Questions about the shop as a whole: cheapest, dearest, owner, and a thing that it does not sell."""
    questions: list[Question] = []
    cheap, dear = prices.index(min(prices)), prices.index(max(prices))
    questions.append(
        ("What is the cheapest thing?", f"The {things[cheap].name} is the cheapest.", (things[cheap].name,))
    )
    questions.append(
        (
            rng.choice(("What costs the most?", "What is the most expensive thing?")),
            f"The {things[dear].name} costs the most.",
            (things[dear].name,),
        )
    )
    other = rng.choice([t for t in _THINGS if t not in things])
    questions.append((f"How much is the {other.name}?", *NOT_SAID))
    questions.append(
        (
            rng.choice(("Whose shop is it?", "Who owns the shop?")),
            f"The shop belongs to {owner}.",
            (owner,),
        )
    )
    return questions


def shop(rng: Random) -> TextWithQuestions:
    """A shop's goods with colours and prices, and a comparison."""
    (owner,) = _people(rng, 1)
    things = rng.sample(_THINGS, rng.randint(3, 5))
    colours = [rng.choice(lx.COLOURS) for _ in things]
    prices = rng.sample(range(2, 40), len(things))
    town = rng.choice(lx.TOWNS)
    where = rng.choice(("on the shelf", "in the window", "on a table", "near the door", "in a glass case"))
    lines: list[str] = []
    questions: list[Question] = []
    for thing, colour, price in zip(things, colours, prices, strict=True):
        item = f"{colour} {thing.name}"
        lines.append(rng.choice((
            f"The {item} costs {price} coins.", f"There is {lx.with_article(item)} for {price} coins.",
            f"{owner.He} sells {lx.with_article(item)} for {price} coins.", f"For {price} coins, one can buy {lx.with_article(item)}.",
            f"The price of the {item} is {price} coins.",
        )))  # fmt: skip
        questions.append((rng.choice((f"How much is the {thing.name}?", f"What does the {thing.name} cost?", f"What is the price of the {thing.name}?")),
                          f"The {thing.name} costs {price} coins.", (str(price),)))  # fmt: skip
        questions.append((f"What colour is the {thing.name}?", f"The {thing.name} is {colour}.", (colour,)))
        questions.append((rng.choice((f"Which thing costs {price} coins?", f"What can I buy for {price} coins?")),
                          f"The {thing.name} costs {price} coins.", (thing.name,)))  # fmt: skip
    questions += _shop_questions(rng, things, prices, owner.name)
    opening = rng.choice((
        f"{owner.name} has a small shop in {town}.", f"In {town} there is a shop that belongs to {owner.name}.",
        f"Many people in {town} go to the shop of {owner.name}.", f"{owner.name} opened a shop in {town}.",
    ))  # fmt: skip
    rng.shuffle(lines)
    ending = rng.choice(
        (
            "",
            "",
            f"The best things stand {where}.",
            "Everything is of good quality.",
            "The shop is closed on Sunday.",
        )
    )
    return (
        " ".join(filter(None, [opening, *lines, ending])),
        questions,
        "shop/" + "/".join(f"{t.name}{p}" for t, p in zip(things, prices, strict=True)),
    )


def belongings(rng: Random) -> TextWithQuestions:
    """Several people, each with a thing, a colour, a place: who has what."""
    people = _people(rng, rng.randint(3, 4))
    things = rng.sample(_THINGS, len(people))
    colours = rng.sample(lx.COLOURS, len(people))
    places = rng.sample(tuple(lx.PLACES.values()), len(people))
    lines: list[str] = []
    questions: list[Question] = []
    for who, thing, colour, place in zip(people, things, colours, places, strict=True):
        name, item, at = who.name, f"{colour} {thing.name}", f"{place.at} the {place.name}"
        lines.append(rng.choice((
            f"{name} is {at} and has {lx.with_article(item)}.", f"{at.capitalize()}, {name} is waiting with {lx.with_article(item)}.",
            f"{name} has {lx.with_article(item)} and is {at}.", f"The {item} belongs to {name}, who is {at}.",
        )))  # fmt: skip
        questions += [
            (
                rng.choice((f"Where is {name}?", f"In what place is {name}?")),
                f"{name} is {at}.",
                (f"the {place.name}",),
            ),
            (
                rng.choice((f"What does {name} have?", f"Which thing belongs to {name}?")),
                f"{name} has {lx.with_article(item)}.",
                (thing.name,),
            ),
            (
                rng.choice((f"Who has the {thing.name}?", f"Whose {thing.name} is it?")),
                f"{name} has the {thing.name}.",
                (name,),
            ),
            (rng.choice((f"Who is {at}?", f"Which person is {at}?")), f"{name} is {at}.", (name,)),
            (f"What colour is the {thing.name}?", f"The {thing.name} is {colour}.", (colour,)),
        ]
    questions.append((f"How old is {rng.choice(people).name}?", *NOT_SAID))
    asked = rng.choice(people)
    other = rng.choice(places)
    true = places[people.index(asked)]
    head = "Yes" if other is true else "No"
    truth = f"{head}, {asked.name} is {true.at} the {true.name}"
    questions.append((f"Is {asked.name} {other.at} the {other.name}?", f"{truth}.", (truth,)))
    if rng.random() < 0.4:
        lines.append(f"All of them are waiting for {rng.choice(_AWAITED)}.")
    opening = rng.choice(
        (
            "It is a busy day.",
            "Everybody is somewhere else today.",
            "This is what the friends are doing.",
            "",
            "It is noon.",
        )
    )
    return (
        " ".join(filter(None, [opening, *lines])),
        questions,
        "have/" + "/".join(f"{w.name}{t.name}" for w, t in zip(people, things, strict=True)),
    )


_AWAITED = ("the bus", "the rain to stop", "a letter", "the evening", "good news")
# Base form; the third person adds `s` (or `es` to `go`) to the first word.
_DEEDS: tuple[str, ...] = (
    "go to the market", "work in the garden", "visit the library", "play chess", "bake bread", "clean the house",
    "go swimming", "learn to play the flute", "help at the farm", "write letters", "paint pictures", "walk up the hill",
    "go fishing", "mend clothes", "read to the children", "sing in the choir", "feed the hens", "sweep the yard",
    "cook soup", "water the plants", "practise the drum", "sell eggs", "take a long walk", "sort old books",
)  # fmt: skip


def _does(deed: str) -> str:
    """Third person: `go fishing` -> `goes fishing`."""
    verb, rest = deed.split(" ", 1)
    return f"{verb}{'es' if verb == 'go' else 's'} {rest}"


def _as_taste(food: str) -> str:
    """The food as something that one likes: `cheese`, but `apples`."""
    kind = lx.FOODS[food]
    counted = kind.one.endswith(" " + food) and kind.one.split()[1] not in ("bowl", "cup")
    return kind.plural if counted and " " not in kind.plural else kind.plural.split()[-1]


def week(rng: Random) -> TextWithQuestions:
    """One person's week: a deed for each of several days."""
    (who,) = _people(rng, 1)
    name = who.name
    n = rng.randint(3, 5)
    days = sorted(rng.sample(range(7), n))
    deeds = rng.sample(_DEEDS, n)
    lines: list[str] = []
    questions: list[Question] = []
    for i, (day, deed) in enumerate(zip(days, deeds, strict=True)):
        weekday = lx.WEEKDAYS[day]
        subject = who.he if i else name
        does = _does(deed)
        lines.append(
            rng.choice(
                (
                    f"On {weekday}, {subject} {does}.",
                    f"{subject[0].upper() + subject[1:]} {does} on {weekday}.",
                )
            )
        )
        questions.append(
            (
                rng.choice((f"What does {name} do on {weekday}?", f"What is {name}'s plan for {weekday}?")),
                f"On {weekday}, {name} {does}.",
                (does,),
            )
        )
        questions.append(
            (
                rng.choice((f"On which day does {name} {deed}?", f"When does {name} {deed}?")),
                f"{name} {does} on {weekday}.",
                (weekday,),
            )
        )
    free = [d for i, d in enumerate(lx.WEEKDAYS) if i not in days]
    questions.append((f"What does {name} do on {rng.choice(free)}?", *NOT_SAID))
    opening = rng.choice(
        (f"{name} has a full week.", f"This is the week of {name}.", f"{name} likes to plan the week.", "")
    )
    ending = rng.choice(
        ("", f"The other days are for {who.his} family.", f"On the other days, {who.he} rests.")
    )
    if ending:
        questions.pop()
    return (
        " ".join(filter(None, [opening, *lines, ending])),
        questions,
        f"week/{name}/" + "/".join(f"{d}{e}" for d, e in zip(days, deeds, strict=True)),
    )


TEXTS = (profile, shop, belongings, week)
