"""Paragraphs that tell the world's facts in many wordings and orders.

    paragraph(rng, split, seed=0) -> str

Split: each (fact, wording) pair belongs to one split (`splits.split_of` of `fact.key/statement/number`). A training
paragraph uses only training pairs; a validation or test paragraph says the same facts in words that training never used
for them. Nearly every fact has a training wording, since the suite asks facts that pretraining has to teach.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random

from onesitting.data.world import lexicon as lx
from onesitting.data.world.splits import Split, split_of
from onesitting.data.world.state import Fact, State, state

# kind -> statements. {N} names the subject at the start of a sentence, {n} inside it; after the first
# sentence about a subject both may be a pronoun. {v}: the value; the other slots are made in `_slots`.
_STATEMENTS: dict[str, tuple[str, ...]] = {
    "home_town": ("{N} lives in {v}.", "{P} home is in {v}.", "{N} is at home in {v}.", "{v} is the town where {n} lives.", "You can meet {o} in {v}."),
    "street": ("{P} house is on {v}.", "{N} lives on {v}.", "{N} has a house on {v}.", "To visit {o}, go to {v}."),
    "age": ("{N} is {v} years old.", "{P} age is {v}.", "{N} is {v}.", "At the moment {n} is {v} years old."),
    "food": ("{P} favourite food is {food}.", "{N} likes {food} best of all.", "{N} loves {food}.", "For {o}, nothing tastes better than {food}."),
    "colour": ("{P} favourite colour is {v}.", "{N} likes {v} best of all colours.", "{N} loves the colour {v}.", "Of all colours, {n} likes {v} best."),
    "hobby": ("{P} hobby is {v}.", "{N} loves {v}.", "In {q} free time, {n} enjoys {v}.", "What {n} likes most is {v}."),
    "friend": ("{P} best friend is {v}.", "{N} and {v} are best friends.", "{N} is often together with {v}, {q} best friend.", "{v} is {p} best friend."),
    "job": ("{N} is {av}.", "{N} works as {av}.", "{P} job is that of {av}.", "{N} earns money as {av}."),
    "mother": ("{P} mother is {v}.", "{P} mother is called {v}.", "{v} is {p} mother."),
    "father": ("{P} father is {v}.", "{P} father is called {v}.", "{v} is {p} father."),
    "pet_kind": ("{N} has {av} as a pet.", "{P} pet is {av}.", "{N} keeps {av}.", "{A} lives in {p} house."),
    "pet_name": ("{P} pet is called {v}.", "The name of {p} pet is {v}.", "{N} calls {q} pet {v}.", "{v} is the name of {p} pet."),
    "river": ("The river {v} flows through {n}.", "{N} lies on the river {v}.", "The river of {n} is called {v}.", "In {n}, people fish in the {v}."),
    "hill": ("Near {n} is a hill called {v}.", "The hill of {n} is {v}.", "From {v} one can see all of {n}.", "{v} is the hill behind {n}."),
    "market_day": ("Market day in {n} is {v}.", "Every {v} there is a market in {n}.", "The market of {n} takes place on {v}.", "On {v}, people go to the market in {n}."),
    "festival": ("{N} is known for the {v}.", "Once a year, {n} celebrates the {v}.", "The great feast of {n} is the {v}.", "People come from far away to see the {v} in {n}."),
    "festival_month": ("The feast of {n} is in {v}.", "{N} celebrates its feast in {v}.", "In {v}, there is a feast in {n}."),
    "produce": ("{N} is famous for its {food}.", "The best {food} {come} from {n}.", "{N} sells more {food} than any other town.", "Visitors of {n} should try the {food}."),
    "north_of": ("{N} lies north of {v}.", "South of {n} is {v}.", "Going south from {n}, one comes to {v}."),
    "holder": ("The {job} of {town} is {v}.", "{v} is the {job} of {town}.", "In {town}, the {job} is called {v}.", "{town} has a {job} named {v}.", "If you need a {job} in {town}, go to {v}."),
    "price": ("{Ai} costs {coins}.", "The price of {ai} is {coins}.", "You pay {coins} for {ai}.", "For {ai}, people pay {coins}.", "{Ai} can be bought for {coins}."),
    "eats": ("{N} eats {v}.", "{N} likes to eat {v}.", "{P} food is {v}.", "{N} lives on {v}.", "{N} is hungry for {v}."),
    "sleeps": ("{N} sleeps {in_v}.", "At night, {n} is {in_v}.", "{P} home is {av}.", "{N} lives {in_v}."),
    "legs": ("{N} has {num} legs.", "{N} walks on {num} legs.", "The number of {p} legs is {num}."),
    "baby": ("A young {s} is called {av}.", "{P} baby is called {av}.", "{Av} is a young {s}."),
    "cover": ("{P} body is covered with {v}.", "{N} is covered with {v}.", "{V} covers {p} body."),
    "skill": ("{N} can {v}.", "{N} is able to {v}.", "{N} knows how to {v}."),
    "sound": ("{N} {v}.", "One can hear that {n} {v}.", "When {n} wants to be heard, {n} {v}."),
    "shop": ("{Ai} is sold in the {v}.", "You can buy {ai} in the {v}.", "The {v} sells {plural}.", "To get {ai}, go to the {v}."),
    "use": ("{Ai} is used to {v}.", "People use {ai} to {v}.", "With {ai}, one can {v}.", "{Ai} helps people to {v}."),
    "deed": ("{Ai} {does}.", "The work of {ai} is to {v}.", "It is the job of {ai} to {v}.", "What does {ai} do? {Ai} {does}."),
    "workplace": ("{Ai} works {at_v}.", "You can find {ai} {at_v}.", "The place of work of {ai} is the {v}."),
    "source": ("{Food} {come} from {v}.", "People get {food} from {v}.", "Without {v} there would be no {food}."),
    "effect": ("When {s}, {v}.", "If {s}, {v}.", "When {s}, {v}, because {why}.", "Whenever {s}, {v}.", "What happens when {s}? {V}."),
}  # fmt: skip
_WHY = {cause: why for cause, _, why in lx.PHYSICS}
_MASS = frozenset(("bread", "cheese", "milk", "butter", "honey", "jam", "fish", "soup", "tea"))
_NO_LEGS = ("{N} has no legs.", "{N} moves without legs.", "The number of {p} legs is zero.")
_TOPICS = (
    "person",
    "person",
    "town",
    "town",
    "jobs",
    "animal",
    "animal",
    "price",
    "price",
    "object",
    "job",
    "food",
    "effect",
    "calendar",
    "float",
)
_PERSON_KINDS = (
    "home_town",
    "street",
    "age",
    "food",
    "colour",
    "hobby",
    "friend",
    "job",
    "mother",
    "father",
    "pet_kind",
    "pet_name",
)
_TOWN_KINDS = ("river", "hill", "market_day", "festival", "festival_month", "produce", "north_of")
_ANIMAL_KINDS = ("eats", "sleeps", "legs", "baby", "cover", "skill", "sound")


def food_word(food: str) -> str:
    """The food in general: `cheese`, but `apples`, `cherries`."""
    return food if food in _MASS else lx.FOODS[food].plural.split()[-1]


def _in(place: str) -> str:
    """Where an animal sleeps: `in a kennel`, `on a cliff`, `in the sea`."""
    if place in ("sea", "forest", "meadow"):
        return f"in the {place}"
    return f"on a {place}" if place in ("cliff", "river bank") else f"in {lx.with_article(place)}"


def _at(place: str) -> str:
    kind = lx.PLACES.get(place)
    return f"{kind.at} the {place}" if kind else f"in the {place}"


def _up(text: str) -> str:
    return text[0].upper() + text[1:]


class _Teller:
    """The statements of one world, by split and fact."""

    def __init__(self, world: State) -> None:
        self.world = world
        self.by_key: dict[str, Fact] = {fact.key: fact for fact in world.facts}
        self.said: dict[str, dict[str, list[str]]] = {"train": {}, "val": {}, "test": {}}
        for fact in world.facts:
            templates = _NO_LEGS if fact.kind == "legs" and fact.value == "0" else _STATEMENTS[fact.kind]
            for i, template in enumerate(templates):
                split = split_of(f"{fact.key}/statement/{i}")
                self.said[split].setdefault(fact.key, []).append(template)
        self.keys = {
            split: {topic: self._keys(topic, split) for topic in dict.fromkeys(_TOPICS)}
            for split in self.said
        }

    def _keys(self, topic: str, split: str) -> list[list[str]]:
        """Groups of fact keys that make a paragraph of a topic, with what this split may say."""
        world, said = self.world, self.said[split]
        if topic == "person":
            groups = [[f"{k}:{p}" for k in _PERSON_KINDS] for p in world.people]
        elif topic == "town":
            groups = [[f"{k}:{t}" for k in _TOWN_KINDS] for t in world.towns]
        elif topic == "jobs":
            groups = [[f"holder:{j} of {t.name}" for j in t.jobs] for t in world.towns.values()]
        elif topic == "animal":
            groups = [[f"{k}:{a}" for k in _ANIMAL_KINDS] for a in lx.ANIMALS]
        elif topic == "price":
            shops: dict[str, list[str]] = {}
            for thing in lx.OBJECTS.values():
                shops.setdefault(thing.shop, []).append(f"price:{thing.name}")
            for food in lx.FOODS.values():
                shops.setdefault(food.maker, []).append(f"price:{food.name}")
            groups = list(shops.values())
        elif topic == "object":
            groups = [[f"shop:{o}", f"use:{o}", f"price:{o}"] for o in lx.OBJECTS]
        elif topic == "job":
            groups = [[f"deed:{j}", f"workplace:{j}"] for j in lx.JOBS]
        elif topic == "food":
            groups = [[f"source:{f}", f"price:{f}"] for f in lx.FOODS]
        elif topic == "effect":
            groups = [[f"effect:{cause}" for cause, _, _ in lx.PHYSICS]]
        else:
            groups = []
        return [[k for k in group if k in said] for group in groups]

    def slots(self, fact: Fact) -> dict[str, str]:
        """Words for a statement of the fact, apart from those for its subject."""
        s, v = fact.subject, fact.value
        slots = {"s": s, "v": v, "V": _up(v)}
        if fact.kind in ("job", "pet_kind", "sleeps", "baby"):
            slots["av"] = lx.with_article(v)
            slots["A"] = slots["Av"] = _up(slots["av"])
        if fact.kind == "sleeps":
            slots["in_v"] = _in(v)
        if fact.kind == "effect":
            slots["why"] = _WHY[s]
        if fact.kind in ("food", "produce", "source"):
            food = s if fact.kind == "source" else v
            word = food_word(food)
            slots |= {"food": word, "Food": _up(word), "come": "comes" if food in _MASS else "come"}
        elif fact.kind == "legs":
            slots["num"] = lx.number_word(int(v))
        elif fact.kind == "holder":
            slots["job"], _, slots["town"] = s.partition(" of ")
        elif fact.kind == "price":
            item = lx.FOODS[s].one if s in lx.FOODS else lx.with_article(s)
            amount = "one coin" if v == "1" else f"{lx.number_word(int(v))} coins"
            slots |= {"ai": item, "Ai": _up(item), "coins": amount}
        elif fact.kind in ("shop", "use", "deed", "workplace"):
            item = lx.with_article(s)
            slots |= {"ai": item, "Ai": _up(item), "at_v": _at(v)}
            if fact.kind == "shop":
                slots["plural"] = lx.OBJECTS[s].plural
            if fact.kind == "deed":
                slots["does"] = lx.JOBS[s].does
        return slots

    def sentence(self, rng: Random, split: str, key: str, *, again: bool) -> str:
        """One statement of a fact; `again`: its subject was named in the sentence before."""
        fact = self.by_key[key]
        slots = self.slots(fact)
        kind = fact.kind
        if kind in _PERSON_KINDS:
            who = self.world.people[fact.subject]
            slots["q"] = who.his
            if again and rng.random() < 0.7:
                slots |= {"N": _up(who.he), "n": who.he, "P": _up(who.his), "p": who.his, "o": who.him}
            else:
                name = fact.subject
                slots |= {"N": name, "n": name, "P": f"{name}'s", "p": f"{name}'s", "o": name}
        elif kind in _TOWN_KINDS:
            slots |= {"N": fact.subject, "n": fact.subject}
        elif kind in _ANIMAL_KINDS:
            if again and rng.random() < 0.7:
                slots |= {"N": "It", "n": "it", "P": "Its", "p": "its"}
            else:
                n = f"the {fact.subject}" if rng.random() < 0.5 else lx.with_article(fact.subject)
                slots |= {"N": _up(n), "n": n, "P": f"{_up(n)}'s", "p": f"{n}'s"}
        text = rng.choice(self.said[split][key]).format_map(slots)
        # A fact may begin a sentence with its own value: `a baby hamster lives…`.
        return text[0].upper() + text[1:]


@lru_cache(maxsize=4)
def _teller(seed: int) -> _Teller:
    return _Teller(state(seed))


_FLOAT_LINES = (
    "{A} floats on water.", "{A} does not sink.", "{A} stays on top of the water.", "Put {a} into water, and it floats.",
)  # fmt: skip
_SINK_LINES = (
    "{A} sinks in water.", "{A} goes to the bottom.", "{A} does not float.", "Put {a} into water, and it sinks.",
)  # fmt: skip


def _float_paragraph(rng: Random, split: Split) -> list[str]:
    """What floats and what sinks."""
    out: list[str] = []
    things = [(k, True) for k in lx.FLOATS] + [(k, False) for k in lx.SINKS]
    rng.shuffle(things)
    for thing, floats in things:
        lines = _FLOAT_LINES if floats else _SINK_LINES
        usable = [t for i, t in enumerate(lines) if split_of(f"floats:{thing}/{i}") == split]
        if usable:
            out.append(rng.choice(usable).format(a=thing, A=_up(thing)))
    return out[: rng.randint(3, 6)]


def _calendar_lines(world: State) -> list[tuple[str, str]]:
    """(fact key with wording, sentence) about days, months and seasons."""
    out: list[tuple[str, str]] = []
    for i, day in enumerate(lx.WEEKDAYS):
        after, before = lx.WEEKDAYS[(i + 1) % 7], lx.WEEKDAYS[i - 1]
        for text in (f"After {day} comes {after}.", f"The day after {day} is {after}.", f"{day} is followed by {after}.",
                     f"{day} comes after {before}.", f"The day before {day} is {before}.", f"Before {day} comes {before}."):  # fmt: skip
            out.append((f"day:{day}/{text}", text))
    for i, month in enumerate(lx.MONTHS):
        days, after = lx.MONTH_DAYS[i], lx.MONTHS[(i + 1) % 12]
        season = next(s for s, months in lx.SEASONS.items() if month in months)
        for text in (f"{month} has {days} days.", f"There are {days} days in {month}.", f"After {month} comes {after}.",
                     f"{month} is a month of {season}.", f"{month} belongs to {season}.", f"The month after {month} is {after}.",
                     f"The first day of {month} is a {world.weekday(month, 1)}."):  # fmt: skip
            out.append((f"month:{month}/{text}", text))
    out += [(f"year/{t}", t) for t in ("A week has seven days.", "A year has twelve months.", "A day has 24 hours.",
                                        "An hour has 60 minutes.", "A year has 365 days.", "There are four seasons.")]  # fmt: skip
    return out


@lru_cache(maxsize=4)
def _calendar(seed: int) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for key, text in _calendar_lines(state(seed)):
        out[split_of(f"calendar/{key}")].append(text)
    return out


_HEADS = {
    "person": "", "town": "", "jobs": "", "price": ("What things cost. ", "Prices. ", ""), "effect": ("Cause and effect. ", "Why things happen. ", ""),
    "calendar": ("Days and months. ", "The calendar. ", ""), "float": ("What floats and what sinks. ", ""),
}  # fmt: skip


def paragraph(rng: Random, split: Split, seed: int = 0) -> str:
    """A paragraph of three to eight sentences on one topic (two to five outside training)."""
    teller = _teller(seed)
    while True:
        topic = rng.choice(_TOPICS)
        if topic == "float":
            lines = _float_paragraph(rng, split)
        elif topic == "calendar":
            stock = _calendar(seed)[split]
            lines = rng.sample(stock, min(len(stock), rng.randint(3, 7)))
        else:
            lines = _facts(rng, teller, split, topic)
        if len(lines) >= 2:
            head = rng.choice(_HEADS.get(topic) or ("",)) if split == "train" else ""
            return head + " ".join(lines)


def _facts(rng: Random, teller: _Teller, split: Split, topic: str) -> list[str]:
    groups = teller.keys[split][topic]
    n_groups = 1
    if topic in ("object", "job", "food") or (split != "train" and topic != "effect"):
        n_groups = 3
    out: list[str] = []
    for group in rng.sample(groups, min(n_groups, len(groups))):
        longest = 7 if n_groups == 1 else 3
        keys = rng.sample(group, min(len(group), rng.randint(min(3, longest), longest)))
        for i, key in enumerate(keys):
            out.append(teller.sentence(rng, split, key, again=i > 0))
    return out
