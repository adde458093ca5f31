"""From an event to a sentence: a small template language, characters with their pronouns, and the teller of a tale.

Template language: `[one|two|]` picks one alternative, `{slot}` is filled from the tale. Slots of persons:
    {S} {s}      the subject, at the start of a sentence or inside it: the name, or a pronoun where that is clear
    {S's} {s's}  the same as a possessive (`Her` or `Mia's`); {Sn} is always the name, as after `said`
    {he} {him} {his}    pronouns of the subject, for use after {S} or {Sn} in the same sentence
    {O}          the other person's name; {Om} is a pronoun where that is clear, else the name; {Ohe} {Ohis} after {O}
Conventions that hold in the whole corpus (a small model can learn them, `story_rules` relies on them): a pronoun at
the start of a sentence means a person named or meant in the sentence before, and where both persons of a
tale have the same gender it means that sentence's subject.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from onesitting.data.world import lexicon as lx

Segment = str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled template: its segments, and whether its last sentence mentions the subject and the other person."""

    segments: tuple[Segment, ...]
    subject: bool
    other: bool


Templates = tuple[Template, ...]


def compile_template(line: str) -> Template:
    """Segments of a template; literal text and tuples of alternatives take turns."""
    segments: list[Segment] = []
    for i, piece in enumerate(re.split(r"\[([^\]]*)\]", line)):
        if i % 2:
            segments.append(tuple(piece.split("|")))
        elif piece:
            segments.append(piece)
    # The next sentence may say `she` only for a person in the last sentence of this one, speech aside.
    told = [
        part for part in re.split(r"[.!?]+(?:\s|$)", re.sub(r'"[^"]*"', " ", line)) if re.search(r"\w", part)
    ]
    last = told[-1] if told else ""
    subject = bool(re.search(r"\{(S|s|Sn|S's|s's|he|him|his|He|His)\}", last))
    return Template(tuple(segments), subject, "{O" in last)


def book(text: str) -> dict[str, Templates]:
    """Templates by key: a line `#key` opens a group, each following line is one template."""
    out: dict[str, list[Template]] = {}
    key = ""
    for raw in text.strip().splitlines():
        line = raw.strip()
        if line.startswith("#"):
            key = line[1:].strip()
            assert key not in out, f"two groups are called {key}"
            out[key] = []
        elif line:
            out[key].append(compile_template(line))
    return {k: tuple(v) for k, v in out.items()}


class Who:
    """A character: a first name with its pronouns."""

    __slots__ = ("He", "His", "girl", "he", "him", "his", "kid", "name")

    def __init__(self, name: str, girl: bool) -> None:
        self.name = name
        self.girl = girl
        self.he, self.him, self.his = ("she", "her", "her") if girl else ("he", "him", "his")
        self.He, self.His = self.he.capitalize(), self.his.capitalize()
        self.kid = "girl" if girl else "boy"


CHARACTERS: dict[str, Who] = {n: Who(n, True) for n in lx.GIRLS} | {n: Who(n, False) for n in lx.BOYS}
_NAMES: tuple[str, ...] = tuple(CHARACTERS)

# (word used before a noun, is it a colour)
_OBJECT_WORDS = (
    "old",
    "new",
    "little",
    "big",
    "shiny",
    "pretty",
    "small",
    "fine",
    "strange",
    "lovely",
    "plain",
)
MATERIAL_WORDS = {"wood": "wooden", "wool": "woollen", "gold": "golden"}
TIMES = ("morning", "afternoon", "evening", "night")


class Tale:
    """A story while it is told: the state of its little world, its sentences, and a log of what is true.

    holder: object noun -> character, or None when it lies somewhere. `log` holds (kind, fields…) for questions.
    """

    __slots__ = (
        "a", "b", "broken", "d", "holder", "last", "last_o", "log", "noun", "parts", "place", "r", "time",
        "wish",
    )  # fmt: skip

    def __init__(self, random: Callable[[], float], wish: Wish) -> None:
        self.r = random
        self.wish = wish
        self.parts: list[str] = []
        self.log: list[tuple[str, ...]] = []
        self.holder: dict[str, Who | None] = {}
        self.broken: set[str] = set()
        self.time = 0 if random() < 0.65 else 1
        self.last: Who | None = None
        self.last_o: Who | None = None
        self.noun = self.place = ""
        names = wish.characters
        self.a = CHARACTERS[names[0]] if names else CHARACTERS[self.pick(_NAMES)]
        self.b = CHARACTERS[names[1]] if len(names) > 1 else CHARACTERS[self.pick(_NAMES)]
        while self.b is self.a or (self.b.name in names[:1]):
            self.b = CHARACTERS[self.pick(_NAMES)]
        self.d: dict[str, str] = {"time": TIMES[self.time], "girl": self.a.kid, "Ogirl": self.b.kid}

    # -- chance ---------------------------------------------------------------------------------
    def pick(self, items: tuple[str, ...]) -> str:
        """One of the items."""
        return items[int(self.r() * len(items))]

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.r() < p

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.r() * (high - low + 1))

    # -- words ----------------------------------------------------------------------------------
    def say(self, templates: Templates, s: Who | None = None, o: Who | None = None) -> None:
        """Tells one sentence (or a short fixed run of them) with subject `s` (the hero) and other person `o`."""
        r, d = self.r, self.d
        s = s or self.a
        o = o or (self.b if s is self.a else self.a)
        template = templates[int(r() * len(templates))]
        if self.last is s and (self.last_o is None or self.last_o.girl != s.girl) and r() < 0.72:
            d["S"], d["s"], d["S's"], d["s's"] = s.He, s.he, s.His, s.his
        else:
            d["S"] = d["s"] = s.name
            d["S's"] = d["s's"] = s.name + "'s"
        known = o.girl != s.girl and (self.last is o or self.last_o is o)
        d["Om"] = o.him if known else o.name
        d["Sn"], d["he"], d["him"], d["his"], d["He"] = s.name, s.he, s.him, s.his, s.He
        d["O"], d["Ohe"], d["Ohim"], d["Ohis"] = o.name, o.he, o.him, o.his
        text = "".join([seg if type(seg) is str else seg[int(r() * len(seg))] for seg in template.segments])
        self.parts.append(text.format_map(d))
        self.last = s if template.subject else None
        self.last_o = o if template.other else None

    def maybe(self, p: float, templates: Templates, s: Who | None = None, o: Who | None = None) -> None:
        """Tells the sentence with probability p."""
        if self.r() < p:
            self.say(templates, s, o)

    def para(self) -> None:
        """Begins a new paragraph; the next sentence uses names."""
        self.parts.append("\n\n")
        self.last = self.last_o = None

    def text(self) -> str:
        """The whole tale."""
        return " ".join(self.parts).replace(" \n\n ", "\n\n").strip()

    # -- what happens ---------------------------------------------------------------------------
    def thing(self, kinds: tuple[str, ...], owner: Who | None, *, colour: float = 0.7) -> str:
        """Chooses the object of the tale: sets {noun}, {obj}, {an_obj}; returns the noun."""
        wished = self.wish.object
        noun = wished if wished in kinds else self.pick(kinds)
        if wished == noun and self.wish.adjective:
            word = self.wish.adjective
        elif self.r() < colour:
            word = self.pick(lx.COLOURS)
        elif self.r() < 0.5:
            word = self.pick(_OBJECT_WORDS)
        else:
            material = self.pick(lx.OBJECTS[noun].materials)
            word = MATERIAL_WORDS.get(material, material)
        if word in lx.COLOURS:
            self.log.append(("colour", noun, word))
        self.d["noun"], self.d["obj"], self.d["an_obj"] = (
            noun,
            f"{word} {noun}",
            lx.with_article(f"{word} {noun}"),
        )
        self.d["an_art"] = lx.with_article(noun)
        self.noun = noun
        self.holder[noun] = owner
        if owner:
            self.log.append(("owner", noun, owner.name))
        return noun

    def scene(self, places: tuple[str, ...]) -> str:
        """Chooses a place: sets {place}, {at}, {At}, {thing}, {thing2}; returns the kind of place."""
        name = self.wish.place if self.wish.place in places else self.pick(places)
        while name == self.place:
            name = self.pick(places)
        kind = lx.PLACES[name]
        d = self.d
        d["place"], d["at"] = f"the {name}", f"{kind.at} the {name}"
        d["At"] = d["at"].capitalize()
        i = int(self.r() * len(kind.things))
        d["thing"], d["thing2"], d["thing3"] = kind.things[i], kind.things[i - 1], kind.things[i - 2]
        self.place = name
        return name

    def lose(self, who: Who, noun: str) -> None:
        """`who` no longer has the object; it lies somewhere."""
        assert self.holder[noun] is who
        self.holder[noun] = None
        self.log.append(("lost", who.name, noun))

    def find(self, who: Who, noun: str, spot: str) -> None:
        """`who` now has an object that lay somewhere."""
        assert self.holder[noun] is None
        self.holder[noun] = who
        self.d["spot"] = spot
        self.log.append(("found", who.name, noun, spot))

    def give(self, giver: Who, taker: Who, noun: str) -> None:
        """The object changes hands."""
        assert self.holder[noun] is giver
        assert noun not in self.broken
        self.holder[noun] = taker
        self.log.append(("gave", giver.name, taker.name, noun))


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asked a story to have; empty: free."""

    characters: tuple[str, ...] = ()
    object: str = ""
    adjective: str = ""
    place: str = ""
    animal: str = ""
    mood: str = ""


NO_WISH = Wish()
