"""What a reader of a story knows so far, and the rules about persons: who is there, whom a pronoun can mean, who speaks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from onesitting.data.world import lexicon as lx
from onesitting.data.world.story_parse import Sentence, base_name
from onesitting.data.world.story_tables import (
    FEMALE,
    INTRODUCERS,
    MALE,
    NAMES,
    STRANGERS,
)  # fmt: skip


@dataclass(slots=True)
class Mind:
    """What a reader of the story knows so far."""

    cast: dict[str, bool] = field(default_factory=dict[str, bool])
    """Name -> is a girl."""
    recent: dict[bool, str] = field(default_factory=dict[bool, str])
    """Last named girl (True) and boy (False)."""
    before: dict[bool, str] = field(default_factory=dict[bool, str])
    """`recent` as it was before the sentence that is being read."""
    genders: list[set[bool]] = field(default_factory=list[set[bool]])
    """Per sentence that mentions persons: their genders."""
    holder: dict[str, str | None] = field(default_factory=dict[str, str | None])
    broken: set[str] = field(default_factory=set[str])
    lost: set[str] = field(default_factory=set[str])
    colour: dict[str, str] = field(default_factory=dict[str, str])
    seen: set[str] = field(default_factory=set[str])
    """Things and animals that were mentioned."""
    thing: str = ""
    animal: str = ""
    pets: dict[str, str] = field(default_factory=dict[str, str])
    plural: bool = False
    """The last sentence had a noun that looks like a plural."""
    place: str = ""
    moved: bool = False
    time: int = -1


# -- persons ----------------------------------------------------------------------------------------


def check_names(mind: Mind, sentence: Sentence, i: int) -> list[tuple[str, str]]:
    """Names come in at the opening or with a word that says who it is."""
    out: list[tuple[str, str]] = []
    runs = [sentence.tokens, *sentence.quotes]
    for run in runs:
        for n, token in enumerate(run):
            name = base_name(token)
            girl = NAMES.get(name)
            if girl is None:
                continue
            before = [t.lower() for t in run[max(0, n - 4) : n]]
            after = [t.lower() for t in run[n + 1 : n + 4]]
            if name not in mind.cast:
                introduced = (
                    i <= 2
                    or any(w in INTRODUCERS for w in before)
                    or (
                        after[:1] == [","]
                        and after[1:2]
                        and after[1] in ("his", "her", "an", "a", "the", "who")
                    )
                    or after[:2] == ["two", "good"]
                    or (run is not sentence.tokens and before[-2:] in (["i", "am"], ["name", "is"]))
                    or (before[-1:] in (["and"], [","]) and any(base_name(t) in mind.cast for t in run[:n]))
                )
                mind.cast[name] = girl
                if not introduced:
                    out.append(("name from nowhere", name))
            for kid, is_girl in (("girl", True), ("boy", False)):
                if girl != is_girl and (
                    before[-2:] in ([kid, "named"], [kid, "called"])
                    or (after[:1] in (["was"], ["is"]) and kid in [t.lower() for t in run[n + 2 : n + 5]])
                ):
                    out.append(("wrong gender", f"{kid} {name}"))
    return out


_NOT_PLURAL = frozenset(lx.words("his was has is as its this always"))
_PRONOUNS = {
    "he": False,
    "him": False,
    "his": False,
    "himself": False,
    "she": True,
    "her": True,
    "herself": True,
}


def check_pronouns(mind: Mind, sentence: Sentence, i: int) -> list[tuple[str, str]]:
    """A pronoun needs a person of its gender in this sentence or shortly before."""
    out: list[tuple[str, str]] = []
    here: set[bool] = set()
    mind.before = dict(mind.recent)
    previous = mind.genders[-1] if mind.genders else set[bool]()
    earlier = set[bool]().union(*mind.genders[-3:])
    for n, token in enumerate(sentence.tokens):
        word = token.lower()
        name = base_name(token)
        if name in NAMES:
            here.add(NAMES[name])
            mind.recent[NAMES[name]] = name
        elif word in FEMALE or base_name(word) in FEMALE:
            here.add(True)
            if word in STRANGERS:
                mind.recent.pop(True, None)
        elif word in MALE or base_name(word) in MALE:
            here.add(False)
            if word in STRANGERS:
                mind.recent.pop(False, None)
        elif word in _PRONOUNS:
            girl = _PRONOUNS[word]
            near = here | (
                previous if n == 0 or (n and sentence.tokens[n - 1] == '"' and not here) else earlier
            )
            # A pronoun may come before its name: `In her bag, Mia…`.
            ahead = (
                {NAMES[base_name(t)] for t in sentence.tokens[n:] if base_name(t) in NAMES}
                if word in ("his", "her")
                else set[bool]()
            )
            if girl not in near | ahead:
                out.append(("pronoun without a person", token))
            here.add(girl)
    words = sentence.words
    together = (
        words[:1] == ["they"]
        or words[:5] == ["the", "two", "of", "them"]
        or words[:2] == ["together", "they"]
    )
    if together and len(mind.cast) < 2 and not mind.plural and not mind.animal:
        out.append(("they without two", " ".join(words[:5])))
    if "they" in words or "them" in words or "both" in words:
        here |= set(mind.cast.values())
    mind.plural = any(
        w.endswith("s") and w[-2:] not in ("ss", "us", "is") for w in words if w not in _NOT_PLURAL
    )
    if here:
        mind.genders.append(here)
    return out


_TO_ANOTHER = frozenset(["gave", "handed", "thanked", "hugged", "told", "lent", "helped", "met", "asked"])
_SAID = frozenset(lx.words("said cried asked called answered whispered shouted"))


def check_speakers(mind: Mind, sentence: Sentence) -> list[tuple[str, str]]:
    """Nobody speaks to himself by name, and nobody gives to or thanks himself."""
    out: list[tuple[str, str]] = []
    tokens = sentence.tokens
    for n, token in enumerate(tokens):
        name, word = base_name(token), token.lower()
        if name in NAMES and n and sentence.quotes:
            speaks = tokens[n - 1].lower() in _SAID or (
                n + 1 < len(tokens) and tokens[n + 1].lower() in _SAID
            )
            for quote in sentence.quotes if speaks else []:
                for m, said in enumerate(quote):
                    vocative = (
                        m
                        and quote[m - 1] == ","
                        and m + 1 < len(quote)
                        and quote[m + 1] in ("!", ".", "?", ",")
                    )
                    about = quote[max(0, m - 2) : m] not in (["I", "am"], ["name", "is"]) and quote != [
                        name,
                        quote[-1],
                    ]
                    if said == name and (vocative or about):
                        out.append(("speaks to himself", name))
        if (
            word in _TO_ANOTHER
            and n
            and tokens[n - 1] in NAMES
            and tokens[n - 1 : n] == tokens[n + 1 : n + 2]
        ):
            out.append(("gives to himself", tokens[n - 1]))
    names = [t for t in tokens if t in NAMES]
    if not sentence.quotes and len(names) != len(set(names)) and "First" not in tokens:
        out.append(("one person twice", max(names, key=names.count)))
    if (
        re.search(r"^(\w+) and (\w+) ", " ".join(tokens))
        and len(names) >= 2
        and names[0] == names[1]
        and tokens[1] == "and"
    ):
        out.append(("one person twice", names[0]))
    return out


def subject_of(mind: Mind, tokens: list[str], n: int) -> str | None:
    """Who acts at the verb at position n: the nearest person before it (or, after a quotation, before the comma)."""
    for token in reversed(tokens[:n]):
        name, word = base_name(token), token.lower()
        if token in NAMES:
            return name
        if word in ("he", "she"):
            girl = word == "she"
            first = next((base_name(t) for t in tokens[:n] if t in NAMES), "")
            return first if first and NAMES[first] == girl else mind.before.get(girl)
        if (
            word in ("they", "it", "who", "somebody", "nobody", "man", "woman", "postman", "boy", "girl")
            or word in lx.ANIMALS
        ):
            return None
        if word in FEMALE or word in MALE:
            return None
        if token in (".", ";", ":"):
            return None
    return None
