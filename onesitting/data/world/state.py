"""The facts of one world: who lives where, who does what, what things cost; all fixed by a seed.

API
    state(seed=0) -> State            cached; the default seed's world is *the* world
    State.towns, .people, .prices     tables by name
    State.town("Millbrook").holder("baker") -> Person
    State.person("Mia"), State.children, State.adults
    State.price("kite") -> 7          coins, for objects and foods alike
    State.date(day_of_year), State.weekday(month, day)    the world's calendar (1 January is a Monday)
    State.facts -> tuple[Fact, ...]   every fact as (kind, subject, value, key): what the suite asks
What holds in every world (a cow eats grass) is in `lexicon.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from random import Random

from onesitting.data.world import lexicon as lx


@dataclass(frozen=True, slots=True)
class Pet:
    """An animal that lives with a person."""

    name: str
    kind: str
    colour: str


@dataclass(frozen=True, slots=True)
class Thing:
    """An object that somebody owns."""

    kind: str
    colour: str
    material: str


@dataclass(frozen=True, slots=True)
class Person:
    """An inhabitant. First names are unique within a world."""

    name: str
    family_name: str
    girl: bool
    age: int
    job: str
    """Empty for children."""
    town: str
    street: str
    mother: str
    father: str
    partner: str
    children: tuple[str, ...]
    siblings: tuple[str, ...]
    friend: str
    pet: Pet | None
    food: str
    """Favourite food."""
    colour: str
    """Favourite colour."""
    hobby: str
    """`painting`: favourite thing to do."""
    game: str
    thing: Thing
    """The thing that this person likes best of all that he or she owns."""

    @property
    def he(self) -> str:
        """Subject pronoun."""
        return "she" if self.girl else "he"

    @property
    def him(self) -> str:
        """Object pronoun."""
        return "her" if self.girl else "him"

    @property
    def his(self) -> str:
        """Possessive pronoun."""
        return "her" if self.girl else "his"


@dataclass(frozen=True, slots=True)
class Town:
    """A town with its places, its calendar and the people who hold its jobs."""

    name: str
    river: str
    hill: str
    places: tuple[str, ...]
    market_day: str
    festival: str
    festival_month: str
    produce: str
    """Food that the town is known for."""
    animal: str
    """Wild animal that lives near it."""
    north_of: str
    """The town that lies south of this one."""
    jobs: dict[str, str] = field(hash=False)
    """Job -> name of the person who has it."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is true; `key` identifies it for the split of questions."""

    kind: str
    subject: str
    value: str

    @property
    def key(self) -> str:
        """Identity of the fact, without any wording."""
        return f"{self.kind}:{self.subject}"


@dataclass(frozen=True)
class State:
    """A whole world."""

    seed: int
    towns: dict[str, Town]
    people: dict[str, Person]
    prices: dict[str, int]
    """Object or food -> coins."""

    def town(self, name: str) -> Town:
        """The town of this name; KeyError if there is none."""
        return self.towns[name]

    def person(self, name: str) -> Person:
        """The person of this first name; KeyError if there is none."""
        return self.people[name]

    def holder(self, town: str, job: str) -> Person | None:
        """Who has this job in this town, if anybody."""
        name = self.towns[town].jobs.get(job)
        return self.people[name] if name else None

    def price(self, item: str) -> int:
        """Coins that an object or a helping of food costs."""
        return self.prices[item]

    @cached_property
    def children(self) -> tuple[Person, ...]:
        """Everybody who still goes to school."""
        return tuple(p for p in self.people.values() if not p.job)

    @cached_property
    def adults(self) -> tuple[Person, ...]:
        """Everybody with a job."""
        return tuple(p for p in self.people.values() if p.job)

    def date(self, day_of_year: int) -> tuple[str, int]:
        """Month and day (from 1) of day 0…364."""
        day = day_of_year
        for month, length in zip(lx.MONTHS, lx.MONTH_DAYS, strict=True):
            if day < length:
                return month, day + 1
            day -= length
        raise ValueError(f"day of year {day_of_year} is outside 0…364")

    def weekday(self, month: str, day: int) -> str:
        """Day of the week; 1 January is a Monday in every year of this world."""
        before = sum(lx.MONTH_DAYS[: lx.MONTHS.index(month)])
        return lx.WEEKDAYS[(before + day - 1) % 7]

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        """Every fact that can be asked with one short answer."""
        out: list[Fact] = []
        for town in self.towns.values():
            out += _town_facts(town)
        for person in self.people.values():
            out += _person_facts(person)
        out += [Fact("price", item, str(coins)) for item, coins in self.prices.items()]
        for animal in lx.ANIMALS.values():
            out += _animal_facts(animal)
        for thing in lx.OBJECTS.values():
            out.append(Fact("shop", thing.name, thing.shop))
            out.append(Fact("use", thing.name, thing.use))
        for job in lx.JOBS.values():
            out.append(Fact("deed", job.name, job.deed))
            out.append(Fact("workplace", job.name, job.place))
        out += [Fact("source", food.name, food.source) for food in lx.FOODS.values()]
        out += [Fact("effect", cause, effect) for cause, effect, _ in lx.PHYSICS]
        return tuple(out)


def _town_facts(town: Town) -> list[Fact]:
    name = town.name
    out = [
        Fact("river", name, town.river),
        Fact("hill", name, town.hill),
        Fact("market_day", name, town.market_day),
        Fact("festival", name, town.festival),
        Fact("festival_month", name, town.festival_month),
        Fact("produce", name, town.produce),
        Fact("north_of", name, town.north_of),
    ]
    return out + [Fact("holder", f"{job} of {name}", person) for job, person in town.jobs.items()]


def _person_facts(person: Person) -> list[Fact]:
    name = person.name
    out = [
        Fact("home_town", name, person.town),
        Fact("street", name, person.street),
        Fact("age", name, str(person.age)),
        Fact("food", name, person.food),
        Fact("colour", name, person.colour),
        Fact("hobby", name, person.hobby),
        Fact("friend", name, person.friend),
    ]
    if person.job:
        out.append(Fact("job", name, person.job))
    if person.mother:
        out.append(Fact("mother", name, person.mother))
    if person.father:
        out.append(Fact("father", name, person.father))
    if person.pet:
        out += [Fact("pet_kind", name, person.pet.kind), Fact("pet_name", name, person.pet.name)]
    return out


def _animal_facts(animal: lx.AnimalKind) -> list[Fact]:
    out = [
        Fact("eats", animal.name, " and ".join(animal.foods)),
        Fact("sleeps", animal.name, animal.home),
        Fact("legs", animal.name, str(animal.legs)),
        Fact("baby", animal.name, animal.baby),
        Fact("cover", animal.name, animal.cover),
        Fact("skill", animal.name, animal.skill),
    ]
    return out if animal.sound == "makes no sound" else [*out, Fact("sound", animal.name, animal.sound)]


# Each town has these; the rest of its nine jobs differ.
_EVERYWHERE = ("baker", "teacher", "farmer")
_PLACES_EVERYWHERE = ("market", "school", "bakery", "park", "river")
_COMMON_PETS = (
    "dog",
    "cat",
    "rabbit",
    "hamster",
    "parrot",
    "turtle",
    "goldfish",
    "horse",
    "goat",
    "hen",
    "duck",
)


@lru_cache(maxsize=4)
def state(seed: int = 0) -> State:
    """The world of this seed, always the same."""
    rng = Random(f"onesitting world {seed}")
    girls = rng.sample(lx.GIRLS, len(lx.GIRLS))
    boys = rng.sample(lx.BOYS, len(lx.BOYS))
    pets = rng.sample(lx.PET_NAMES, len(lx.PET_NAMES))
    order = rng.sample(lx.TOWNS, len(lx.TOWNS))
    rivers, hills = rng.sample(lx.RIVERS, 8), rng.sample(lx.HILLS, 8)
    festivals, months = rng.sample(lx.FESTIVALS, 8), rng.sample(lx.MONTHS, 8)
    produce = rng.sample(sorted(lx.FOODS), 8)
    animals = rng.sample([a.name for a in lx.ANIMALS.values() if a.group == "wild"], 8)
    towns: dict[str, Town] = {}
    people: dict[str, Person] = {}
    for i, name in enumerate(order):
        jobs = [*_EVERYWHERE, *rng.sample([j for j in lx.JOBS if j not in _EVERYWHERE], 6)]
        inhabitants = _inhabitants(rng, name, jobs, girls, boys, pets)
        people |= {p.name: p for p in inhabitants}
        workplaces = [lx.JOBS[j].place for j in jobs if lx.JOBS[j].place in lx.PLACES]
        extra = rng.sample([p for p in lx.PLACES if p not in _PLACES_EVERYWHERE and p not in workplaces], 3)
        towns[name] = Town(
            name=name,
            river=rivers[i],
            hill=hills[i],
            places=tuple(dict.fromkeys([*_PLACES_EVERYWHERE, *workplaces, *extra])),
            market_day=lx.WEEKDAYS[rng.randrange(6)],
            festival=festivals[i],
            festival_month=months[i],
            produce=produce[i],
            animal=animals[i],
            north_of=order[(i + 1) % len(order)] if i + 1 < len(order) else "the sea",
            jobs={p.job: p.name for p in inhabitants if p.job},
        )
    prices = {k.name: rng.randint(*k.price) for k in [*lx.OBJECTS.values(), *lx.FOODS.values()]}
    return State(seed, towns, people, prices)


def _inhabitants(
    rng: Random, town: str, jobs: list[str], girls: list[str], boys: list[str], pets: list[str]
) -> list[Person]:
    """Three families of four and three people who live alone: nine jobs, six children."""
    rng.shuffle(jobs)
    homes: list[list[dict[str, object]]] = []
    streets = rng.sample(lx.STREETS, 6)
    for k in range(6):
        home = _family(rng, girls, boys) if k < 3 else _single(rng, girls, boys)
        shared = {"town": town, "street": streets[k], "family_name": rng.choice(lx.FAMILY_NAMES)}
        homes.append([member | shared for member in home])
    flat = [member for home in homes for member in home]
    for member in flat:
        adult = member["age"] >= 20  # type: ignore[operator]
        member["job"] = jobs.pop() if adult else ""
    for adult in (True, False):
        ring = [m for m in flat if bool(m["job"]) == adult]
        rng.shuffle(ring)
        # Friends in pairs where possible; the odd one out befriends the first.
        for i in range(0, len(ring), 2):
            other = ring[i + 1] if i + 1 < len(ring) else ring[0]
            ring[i]["friend"] = other["name"]
            if i + 1 < len(ring):
                other["friend"] = ring[i]["name"]
    return [Person(**(member | _tastes(rng, pets))) for member in flat]  # type: ignore[arg-type]


def _family(rng: Random, girls: list[str], boys: list[str]) -> list[dict[str, object]]:
    mother, father = girls.pop(), boys.pop()
    kids = [(girls if girl else boys).pop() for girl in (rng.random() < 0.5, rng.random() < 0.5)]
    none: dict[str, object] = {"mother": "", "father": "", "partner": "", "children": (), "siblings": ()}
    ages = rng.sample(range(5, 13), 2)
    base = rng.randint(30, 45)
    out = [
        none | {"name": mother, "girl": True, "age": base, "partner": father, "children": tuple(kids)},
        none
        | {
            "name": father,
            "girl": False,
            "age": base + rng.randint(0, 4),
            "partner": mother,
            "children": tuple(kids),
        },
    ]
    for i, kid in enumerate(kids):
        links = {"mother": mother, "father": father, "siblings": (kids[1 - i],)}
        out.append(none | links | {"name": kid, "girl": kid in lx.GIRLS, "age": ages[i]})
    return out


def _single(rng: Random, girls: list[str], boys: list[str]) -> list[dict[str, object]]:
    girl = rng.random() < 0.5
    name = (girls if girl else boys).pop()
    return [
        {"name": name, "girl": girl, "age": rng.randint(24, 70), "mother": "", "father": "", "partner": "",
         "children": (), "siblings": ()}
    ]  # fmt: skip


def _tastes(rng: Random, pets: list[str]) -> dict[str, object]:
    pet = None
    if rng.random() < 0.38 and pets:
        kind = rng.choice(_COMMON_PETS)
        pet = Pet(pets.pop(), kind, rng.choice(lx.ANIMALS[kind].colours))
    kind = rng.choice(sorted(lx.OBJECTS))
    return {
        "pet": pet,
        "food": rng.choice(sorted(lx.FOODS)),
        "colour": rng.choice(lx.COLOURS),
        "hobby": rng.choice(lx.HOBBIES)[0],
        "game": rng.choice(lx.GAMES),
        "thing": Thing(kind, rng.choice(lx.COLOURS), rng.choice(lx.OBJECTS[kind].materials)),
    }
