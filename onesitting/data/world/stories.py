"""Short stories of many shapes, told by a small simulation; see `grammar.Tale` for the state of a tale.

    story(rng) -> Story                                   free
    story(rng, characters=("Mia", "Tom"), object="red kite", place="river", animal="dog", mood="funny", split="test")

The split of a story is that of its situation (shape, hero, friend, thing, place): `Story.key` under `splits.split_of`.
A story of the test split therefore tells of a combination that no training story has, in whatever words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from onesitting.data.world import lexicon as lx
from onesitting.data.world import stories_finds as finds
from onesitting.data.world import stories_making as making
from onesitting.data.world import stories_nature as nature
from onesitting.data.world import stories_people as people
from onesitting.data.world import stories_sharing as sharing
from onesitting.data.world import stories_things as things
from onesitting.data.world import stories_ways as ways
from onesitting.data.world import stories_weather as skies
from onesitting.data.world.grammar import CHARACTERS, NO_WISH, Tale, Wish
from onesitting.data.world.splits import Split, split_of


@dataclass(frozen=True, slots=True)
class Story:
    """A told story with what is true in it."""

    text: str
    title: str
    """Empty if the text has no title."""
    shape: str
    characters: tuple[str, ...]
    key: str
    log: tuple[tuple[str, ...], ...]
    """(kind, fields…) of everything that happened: the source of questions."""
    words: dict[str, str]
    """The words that the tale's sentences were filled with (age, town, weekday…), whether or not they were told."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of story and the titles that suit it."""

    name: str
    tell: Callable[[Tale], None]
    titles: tuple[str, ...]
    uses: str = ""
    """`object`: takes any small object; `animal`: takes some animals; both, or neither."""
    animals: tuple[str, ...] = ()
    places: str = "any"


SHAPES: tuple[Shape, ...] = (
    Shape("lost", things.lost_and_found, ("The Lost {Noun}", "Where Is the {Noun}?", "{A} Looks for Something"), "object"),
    Shape("gift", things.gift, ("A Present for {B}", "The {Noun}", "{A} and the {Noun}"), "object", (), "shop"),
    Shape("broken", things.broken, ("The Broken {Noun}", "{A} Tells the Truth", "Many Pieces"), "", (), "none"),
    Shape("borrowed", things.borrowed, ("A Promise", "The {Noun} Comes Back", "{A} Waits"), "object"),
    Shape("finder", finds.finder, ("Whose {Noun} Is It?", "{A} Finds Something", "The Honest Finder"), "object"),
    Shape("thief", finds.animal_thief, ("The Little Thief", "The {Noun} Thief", "Stop, Thief!"), "object animal", finds.THIEVES, "out"),
    Shape("market", finds.market_day, ("A Day at the Market", "{A} Goes Shopping", "Two Things to Buy"), "", (), "market"),
    Shape("helping", people.helping, ("A Helping Hand", "{A} Helps", "Old {B}"), "", (), "out"),
    Shape("quarrel", people.quarrel, ("The Quarrel", "{A} and {B}", "One {Noun} for Two"), "object", (), "out"),
    Shape("contest", people.contest, ("The Contest", "{A} Does Not Give Up", "The First Prize"), "object", (), "contest"),
    Shape("secret", people.secret, ("The Secret", "A Surprise for {A}", "What {B} Did Not Say"), "object"),
    Shape("skill", ways.skill, ("{A} Learns Something", "Once More", "{A} Tries Again"), "", (), "skill"),
    Shape("visit", ways.visit, ("{B} Is Ill", "The Visit", "Get Well Soon"), "object", (), "none"),
    Shape("journey", ways.journey, ("The Long Road", "{A} Goes on a Journey", "On the Way"), "object", (), "none"),
    Shape("rescue", nature.rescue, ("{A} and the {Noun}", "The {Noun}", "A Friend in Need"), "animal", nature.RESCUED, "out"),
    Shape("pet", nature.lost_pet, ("Where Is {Pet}?", "{Pet} Runs Away", "Come Home, {Pet}"), "animal", nature.PETS, "out"),
    Shape("weather", skies.weather, ("The Rain", "A Picnic", "The Dark Cloud"), "", (), "out"),
    Shape("garden", skies.garden, ("The Garden", "{A} Waits", "Small Seeds"), "", (), "garden"),
    Shape("night", skies.night_sound, ("A Sound in the Night", "Who Is There?", "{A} Is Not Afraid"), "animal", skies.NIGHT_ANIMALS, "none"),
    Shape("cooking", making.cooking, ("Something Is Missing", "{A} Bakes", "In the Kitchen"), "", (), "none"),
    Shape("building", making.building, ("The Builders", "{A} Has a Plan", "Try Again"), "", (), "build"),
    Shape("floating", making.floating, ("What Floats?", "In the Water", "{A} Finds Out"), "", (), "water"),
    Shape("snow", sharing.snow, ("The Snowman", "{A} and the Snowman", "White Winter"), "", (), "none"),
    Shape("letter", sharing.letter, ("The Letter", "A Letter for {A}", "Who Wrote It?"), "object"),
    Shape("shares", sharing.shares, ("Fair Shares", "Four Friends", "Enough for All"), "", (), "out"),
)  # fmt: skip
_PLACES: dict[str, tuple[str, ...]] = {
    "any": things.EVERYWHERE,
    "out": things.OUTDOORS,
    "shop": ("market", "town square", "harbour", "station"),
    "market": ("market",),
    "garden": ("garden",),
    "water": ("river", "lake", "beach", "harbour"),
    "contest": (
        "park",
        "town square",
        "school",
        "lake",
        "meadow",
        "beach",
        "hill",
        "playground",
        "farm",
        "market",
    ),
    "skill": ("lake", "river", "park", "playground", "meadow", "school", "farm"),
    "build": ("garden", "meadow", "farm", "orchard"),
    "none": (),
}
OBJECTS: tuple[str, ...] = things.SMALL
"""Objects that a story can be asked for."""
ANIMALS: tuple[str, ...] = tuple(dict.fromkeys((*finds.THIEVES, *nature.RESCUED, *nature.PETS)))
"""Animals that a story can be asked for."""
PLACES: tuple[str, ...] = things.OUTDOORS
"""Places that a story can be asked for."""


def _fitting(wish: Wish) -> tuple[Shape, ...]:
    """Shapes that can tell of what was asked for."""
    return tuple(
        shape
        for shape in SHAPES
        if (not wish.object or "object" in shape.uses)
        and (not wish.animal or wish.animal in shape.animals)
        and (not wish.place or wish.place in _PLACES[shape.places])
        and (len(wish.characters) < 3)
    )


def make_wish(
    characters: tuple[str, ...] = (), object: str = "", place: str = "", animal: str = "", mood: str = ""
) -> Wish:
    """Checks what was asked for. ValueError with the word that no story knows.

    object: a noun of `OBJECTS`, with or without one adjective before it.
    """
    for name in characters:
        if name not in CHARACTERS:
            raise ValueError(
                f"no story knows a person called {name!r}; the names are in lexicon.GIRLS and BOYS"
            )
    noun, adjective = object, ""
    if object and noun not in OBJECTS:
        adjective, _, noun = object.partition(" ")
        if noun not in OBJECTS:
            raise ValueError(f"no story knows the object {object!r}; the objects are stories.OBJECTS")
    if place and place not in lx.PLACES:
        raise ValueError(f"no story knows the place {place!r}; the places are lexicon.PLACES")
    if animal and animal not in ANIMALS:
        raise ValueError(f"no story knows the animal {animal!r}; the animals are stories.ANIMALS")
    wish = Wish(tuple(characters), noun, adjective, place, animal, mood)
    if not _fitting(wish):
        raise ValueError(f"no shape of story takes all of this together: {wish}")
    return wish


def story(
    rng: Random,
    *,
    characters: tuple[str, ...] = (),
    object: str = "",
    place: str = "",
    animal: str = "",
    mood: str = "",
    split: Split | None = None,
    shape: str = "",
    title: float = 0.3,
) -> Story:
    """A story; with what is asked for where that is given, and of this split if one is named.

    title: probability of a title line. shape: one of `SHAPES` by name.
    Raises ValueError if no shape can take what is asked for.
    """
    free = not (characters or object or place or animal or mood)
    wish = NO_WISH if free else make_wish(characters, object, place, animal, mood)
    shapes = SHAPES if free else _fitting(wish)
    if shape:
        shapes = tuple(s for s in shapes if s.name == shape)
    random = rng.random
    for _attempt in range(2000):
        chosen = shapes[int(random() * len(shapes))]
        tale = Tale(random, wish)
        chosen.tell(tale)
        a, b = tale.a.name, tale.b.name
        key = f"story/{chosen.name}/{a}/{b}/{tale.noun}/{tale.place}"
        if split is None or split_of(key) == split:
            break
    else:
        raise ValueError(f"no story of the {split} split fits {wish}")
    head = _title(tale, chosen) if random() < title else ""
    body = tale.text()
    return Story(
        f"{head}\n\n{body}" if head else body, head, chosen.name, (a, b), key, tuple(tale.log), tale.d
    )


def _title(tale: Tale, shape: Shape) -> str:
    noun = tale.noun.title()
    return tale.pick(shape.titles).format(A=tale.a.name, B=tale.b.name, Noun=noun, Pet=tale.d.get("pet", ""))
