"""Word lists that `story_rules` reads stories with."""

from __future__ import annotations

from onesitting.data.world import lexicon as lx
from onesitting.data.world.stories_finds import SOUND_PAST

NAMES: dict[str, bool] = dict.fromkeys(lx.GIRLS, True) | dict.fromkeys(lx.BOYS, False)
"""First name -> is a girl's."""
FEMALE = frozenset(lx.words("grandmother mother aunt sister woman girl lady"))
MALE = frozenset(
    lx.words("""grandfather father uncle brother man boy king captain postman baker teacher seller
    shopkeeper""")
)
STRANGERS = frozenset(lx.words("man woman postman seller shopkeeper baker teacher"))
"""Persons without a name, whom `he` or `she` may mean next."""
INTRODUCERS = frozenset(
    lx.words("""named called name friend friends neighbour cousin classmate brother sister old girl boy
    grandmother grandfather mother father aunt uncle""")
)
"""Words before a name that say who somebody is."""

GIVE = frozenset(["gave", "handed", "lent", "sold", "brought"])
GET = frozenset(lx.words("took found picked got bought grabbed received"))
LOSE = frozenset(["lost", "dropped"])
BREAK = frozenset(("broke",))
GENERIC_THINGS = frozenset(lx.words("basket bell blanket bag box spoon hammer flute kite"))
"""Things that also occur by the way (`opened the box`), so that no story is about them for sure."""
HOMOGRAPHS = frozenset(("saw", "top"))
"""Names of things that are mostly other words."""
GENERIC_ANIMALS = frozenset(lx.words("dog bird mouse bear snail horse"))

SOUND_OF: dict[str, set[str]] = {}
for _kind in lx.ANIMALS.values():
    _past = SOUND_PAST.get(_kind.sound)
    if _past and " " not in _past and _past not in ("sang", "talked"):
        SOUND_OF.setdefault(_past, set()).add(_kind.name)
FOODS_OF: dict[str, set[str]] = {}
"""Food -> animals that eat it."""
for _kind in lx.ANIMALS.values():
    for _food in _kind.foods:
        FOODS_OF.setdefault(_food, set()).add(_kind.name)

TIMES = {"morning": 0, "noon": 1, "afternoon": 2, "evening": 3, "night": 4}
CLOSING = frozenset(
    lx.words("""smile smiled smiling happy happily home friends laughed laughing giggled never always joy
    asleep slept remember remembered dreamed learned proud afraid worth ever""")
)
"""A story ends with one of these words in its last sentence, or with `CLOSING_PHRASE`."""
CLOSING_PHRASE = r"\b(had been .*day|was a day|better care|knew (the|where)|best (day|of)|good night)\b"
