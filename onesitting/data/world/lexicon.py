"""Words of the synthetic world, as small tables: names, animals, objects, foods, places, jobs, weather, calendar.

Nothing here is random and nothing depends on a seed: these are the words and the truths that hold in every world
(a cow eats grass, a stone sinks). What differs from seed to seed (who lives where, what things cost) is `state.py`.
Tables are written one line an entry with `|` between fields, because a reader checks a column faster than a call.
"""

from __future__ import annotations

from onesitting.data.world.kinds import (
    ANIMALS,
    FOODS,
    JOBS,
    OBJECTS,
    PLACES,
    AnimalKind,
    FoodKind,
    JobKind,
    ObjectKind,
    PlaceKind,
    rows,
)

__all__ = [
    "ANIMALS",
    "BOYS",
    "COLOURS",
    "FAMILY_NAMES",
    "FESTIVALS",
    "FLOATS",
    "FOODS",
    "GAMES",
    "GIRLS",
    "HILLS",
    "HOBBIES",
    "JOBS",
    "MONTHS",
    "MONTH_DAYS",
    "NUMBERS",
    "OBJECTS",
    "PET_NAMES",
    "PHYSICS",
    "PLACES",
    "RIVERS",
    "SEASONS",
    "SINKS",
    "STREETS",
    "TOWNS",
    "WEEKDAYS",
    "AnimalKind",
    "FoodKind",
    "JobKind",
    "ObjectKind",
    "PlaceKind",
    "and_list",
    "article",
    "number_word",
    "with_article",
    "words",
]


def words(text: str) -> tuple[str, ...]:
    """Words of a block of text."""
    return tuple(text.split())


GIRLS: tuple[str, ...] = (
    words("""Mia Anna Lily Zoe Emma Ruby Nora Ella Lucy Rosa Clara Ivy Maya Sara Julia Alice Grace Hanna Lena Tara Amy Eva
    Nina Lola Daisy Molly Poppy Holly Penny Katie Sophie Olive Hazel Iris Freya Leah Marta Paula Vera Wendy Stella
    Bella Carla Dora Edith Flora Greta Heidi Irene Joan Kira Laura Mabel Naomi Opal Pearl Rita Sonia Tessa Uma Violet
    Yara Zara Abby Beth Cora Diana Elsie Fiona Gina Ada Ines Jana Kate Lydia Mary Nell Olga Petra Quinn Rachel Sally
    Thea Ursula Vicky Willa Yasmin Agnes Bianca Celia Dina Esther Frida Gloria Helen Isla Judy Karen Lara Mona Nadia
    Odette Peggy Rhoda Susan Tilda Una Vivian Wanda Amina Leila Priya Mei Yuki Ingrid Aisha Fatima Rosie Maggie""")
)
BOYS: tuple[str, ...] = (
    words("""Tom Ben Sam Max Leo Jack Finn Noah Adam Luke Oscar Theo Hugo Paul Mark Peter Simon Felix Oliver Henry Jacob
    Daniel Omar Ravi Kenji Otto Emil Anton Bruno Carl David Eric Frank George Harry Ian Jonas Kevin Liam Martin
    Nico Owen Philip Robin Steven Tim Victor Walter Yusuf Zack Alan Billy Colin Derek Edgar Fred Gus Harold Isaac
    Jim Karl Lars Milo Ned Oswald Pablo Rory Stan Toby Umar Vince Wim Arthur Basil Caleb Dylan Elias Floyd Gavin
    Howard Ivan Joel Kurt Louis Miguel Nathan Orson Percy Ralph Seth Thomas Uri Vernon Wesley Aaron Boris Cyrus Dean
    Ezra Gilbert Hans Igor Jamal Kofi Lionel Marcus Nils Olaf Pedro Rashid Samir Tariq Urban Vito Warren Andy Bobby""")
)
PET_NAMES: tuple[str, ...] = (
    words("""Biscuit Pepper Cookie Patch Shadow Buttons Ginger Snowy Rusty Socks Pickle Muffin Bandit Coco Dusty Fluffy
    Bubbles Nutmeg Pebble Whiskers Acorn Bramble Cinnamon Domino Feather Gizmo Honey Jasper Kiwi Lucky Mango Noodle
    Olly Peanut Rocket Scout Tango Velvet Waffle Ziggy Toffee Marble Misty Sparky Smoky Tiger Spot Brownie""")
)
FAMILY_NAMES: tuple[str, ...] = (
    words("""Brown Green White Hill Wood Baker Stone Field Rivers Lake Marsh Fisher Carter Potter Miller Weaver Cooper
    Turner Archer Shepherd Winter Summers Day King Bell Bird Fox Lamb Finch Reed Moss Thorn Ash Birch Rose Berry""")
)

COLOURS: tuple[str, ...] = (
    "red",
    "blue",
    "green",
    "yellow",
    "white",
    "black",
    "brown",
    "orange",
    "pink",
    "purple",
    "grey",
)
WEEKDAYS: tuple[str, ...] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: tuple[str, ...] = words(
    "January February March April May June July August September October November December"
)
MONTH_DAYS: tuple[int, ...] = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
SEASONS: dict[str, tuple[str, str, str]] = {
    "spring": ("March", "April", "May"),
    "summer": ("June", "July", "August"),
    "autumn": ("September", "October", "November"),
    "winter": ("December", "January", "February"),
}
NUMBERS: tuple[str, ...] = (
    words("""zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty""")
)

TOWNS: tuple[str, ...] = (
    "Willowby", "Stonebridge", "Appledale", "Fernhill", "Millbrook", "Sandbay", "Larkfield", "Foxley",
)  # fmt: skip
RIVERS: tuple[str, ...] = (
    "Silverrun",
    "Otterbeck",
    "Brightwater",
    "Greywash",
    "Willowrun",
    "Longbeck",
    "Clearwater",
    "Mossbeck",
)
HILLS: tuple[str, ...] = (
    "Crow Hill",
    "Windy Hill",
    "Bell Hill",
    "Round Hill",
    "Beacon Hill",
    "Goat Hill",
    "Pine Hill",
    "Old Hill",
)
STREETS: tuple[str, ...] = (
    "Mill Lane", "Rose Street", "Bridge Street", "Hill Road", "Garden Lane", "School Street",
    "Market Street",
    "River Road", "Church Lane", "Apple Lane", "Station Road", "Oak Street",
)  # fmt: skip
FESTIVALS: tuple[str, ...] = (
    "Lantern Festival", "Apple Fair", "Kite Day", "Boat Race", "Harvest Dinner", "Snow Fair",
    "Flower Parade", "Music Night",
)  # fmt: skip
GAMES: tuple[str, ...] = (
    "hide and seek",
    "chess",
    "football",
    "cards",
    "tag",
    "marbles",
    "jump rope",
    "catch",
)
HOBBIES: tuple[tuple[str, str], ...] = (
    ("painting", "paint"), ("singing", "sing"), ("swimming", "swim"), ("reading", "read"), ("dancing",
     "dance"),
    ("fishing", "fish"), ("cooking", "cook"), ("running", "run"), ("drawing", "draw"), ("gardening",
     "work in the garden"),
    ("sewing", "sew"), ("skating", "skate"),
)  # fmt: skip

# cause, effect, why: general truths. Present tense, no capitals, no full stop.
PHYSICS: tuple[tuple[str, str, str], ...] = tuple(
    (r[0], r[1], r[2])
    for r in rows("""
it rains|the ground gets wet|water falls from the clouds
ice lies in the sun|the ice melts|the sun warms it
a cup falls on a stone floor|the cup breaks|clay is hard but not strong
a stone falls into water|the stone sinks|a stone is heavy for its size
wood is put into water|the wood floats|wood is light for its size
a plant gets no water|the plant dries out|plants need water to live
a plant gets water and light|the plant grows|plants need water and light
water gets very cold|the water turns to ice|water freezes in the cold
water gets very hot|the water boils|heat turns water into steam
wet clothes hang in the wind|the clothes dry|the wind carries the water away
a candle burns|the candle gets shorter|the flame uses up the wax
you mix blue and yellow paint|you get green paint|blue and yellow make green
you mix red and yellow paint|you get orange paint|red and yellow make orange
you mix red and blue paint|you get purple paint|red and blue make purple
you mix red and white paint|you get pink paint|red and white make pink
the sun goes down|it gets dark|the light of the sun is gone
the sun comes up|it gets light|the sun gives light
sugar is stirred into tea|the tea gets sweet|sugar melts into the tea
salt is stirred into water|the water gets salty|salt melts into the water
bread stays too long in the oven|the bread burns|the oven is very hot
milk stays in the sun|the milk turns sour|warm milk does not stay fresh
iron stays in the rain|the iron gets rusty|water and air change iron
paper gets wet|the paper becomes soft and weak|water gets into the paper
a balloon meets a thorn|the balloon bursts|the thorn makes a hole in it
wind blows hard|the leaves fly away|leaves are light
snow lies in a warm room|the snow turns to water|snow melts when it is warm
a ball is thrown up|the ball comes down again|the earth pulls it down
a fire gets no air|the fire goes out|fire needs air
you walk through mud|your boots get dirty|mud sticks to boots
you do not sleep|you get tired|the body needs rest
you do not eat|you get hungry|the body needs food
you run fast|you get warm|the body works hard
""")
)
FLOATS: tuple[str, ...] = ("wood", "paper", "straw", "wax", "cork", "a leaf", "a feather", "an apple")
SINKS: tuple[str, ...] = ("iron", "brass", "clay", "glass", "silver", "gold", "a stone", "a coin")

VOWEL_SOUNDS = frozenset("aeiou")
_AN_EXCEPTIONS = frozenset(("hour", "honest"))
_A_EXCEPTIONS = frozenset(("one", "useful", "unicorn", "used", "uniform"))


def article(word: str) -> str:
    """`an` or `a`, by the sound that the word (or phrase) begins with."""
    first = word.split(" ", 1)[0].lower()
    if first in _AN_EXCEPTIONS:
        return "an"
    return "an" if first[0] in VOWEL_SOUNDS and first not in _A_EXCEPTIONS else "a"


def with_article(phrase: str) -> str:
    """The phrase with `a` or `an` before it."""
    return f"{article(phrase)} {phrase}"


def and_list(items: list[str] | tuple[str, ...]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def number_word(n: int) -> str:
    """Words up to twenty, digits beyond."""
    return NUMBERS[n] if n < len(NUMBERS) else str(n)
