"""Checks a story against the rules of the world, whoever wrote it.

    check_story(text) -> list[Violation]        empty: grammatical and free of contradictions

It reads the text alone, sentence by sentence, with rules of its own: form (`story_grammar`), then who is there,
which pronoun can mean whom, who has what, where the tale is, what is lost or broken, what colour a thing has, what
animals eat and sound like, how money adds up, which time of day it is, and whether the story comes to an end. Only
what the narration says counts as having happened; what people say in quotation marks is checked for form, names and colours.
What a rule does not understand it lets pass: the checker looks for errors, it does not ask for proof.
"""

from __future__ import annotations

import re

from onesitting.data.world import lexicon as lx
from onesitting.data.world.story_grammar import Sentence, Violation, check_form, parse
from onesitting.data.world.story_mind import (
    Mind,
    check_names,
    check_pronouns,
    check_speakers,
    subject_of,
)
from onesitting.data.world.story_parse import base_name
from onesitting.data.world.story_tables import (
    BREAK,
    CLOSING,
    CLOSING_PHRASE,
    FOODS_OF,
    GENERIC_ANIMALS,
    GENERIC_THINGS,
    GET,
    GIVE,
    HOMOGRAPHS,
    LOSE,
    NAMES,
    SOUND_OF,
    TIMES,
)  # fmt: skip

__all__ = ["Violation", "check_story", "violations"]


UNFINISHED = Violation("unfinished", -1, "too short for a story")


def check_story(text: str) -> list[Violation]:
    """Everything that is wrong with a story; an empty list if nothing is."""
    form, content = violations(text)
    return content if UNFINISHED in content else form + content  # a fragment's form says nothing


def violations(text: str) -> tuple[list[Violation], list[Violation]]:
    """What is wrong with a story's form, and with what it tells; each in the order of the text."""
    title, sentences, problems = parse(text)
    form, content = problems + check_form(sentences, title), list[Violation]()
    if len(text.split()) < 25:
        return form, [UNFINISHED]
    mind = Mind()
    for i, sentence in enumerate(sentences):
        for rule, detail in _read(mind, sentence, i):
            content.append(Violation(rule, i, detail))
    return form, content + _as_a_whole(mind, sentences, text)


def _read(mind: Mind, sentence: Sentence, i: int) -> list[tuple[str, str]]:
    out = check_names(mind, sentence, i)
    out += check_pronouns(mind, sentence, i)
    out += check_speakers(mind, sentence)
    out += _things(mind, sentence)
    out += _animals(mind, sentence)
    out += _places(mind, sentence, i)
    out += _time(mind, sentence)
    return out


# -- things -----------------------------------------------------------------------------------------

_TWO_WORDS = frozenset(k for k in lx.OBJECTS if " " in k)
_SECOND = frozenset(k.split()[1] for k in _TWO_WORDS)


def _noun_at(tokens: list[str], n: int) -> str:
    """The object whose head stands at position n, or empty: a `flower pot` is no `pot`."""
    word = tokens[n].lower()
    if word in _SECOND and n and f"{tokens[n - 1].lower()} {word}" in _TWO_WORDS:
        return f"{tokens[n - 1].lower()} {word}"
    return word if word in lx.OBJECTS and word not in HOMOGRAPHS else ""


def _things(mind: Mind, sentence: Sentence) -> list[tuple[str, str]]:
    """Things come in with `a` or an owner, keep their colour, and are had by one person at a time."""
    out: list[tuple[str, str]] = []
    for run in (sentence.tokens, *sentence.quotes):
        for n in range(len(run)):
            noun = _noun_at(run, n)
            if not noun:
                continue
            first = n - noun.count(" ")
            before = [t.lower() for t in run[max(0, first - 2) : first]]
            definite = "the" in before[-1:] or (
                before[:1] == ["the"] and before[-1:] and before[-1] in lx.COLOURS
            )
            if definite and noun not in mind.seen and noun not in GENERIC_THINGS:
                out.append(("thing from nowhere", f"the {noun}"))
            mind.seen.add(noun)
            if before and before[-1] in lx.COLOURS:
                known = mind.colour.setdefault(noun, before[-1])
                if known != before[-1]:
                    out.append(("another colour", f"{known} {noun}, {before[-1]} {noun}"))
    out += _possession(mind, sentence)
    return out


def _possession(mind: Mind, sentence: Sentence) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    tokens = sentence.tokens
    nouns = [(n, noun) for n in range(len(tokens)) if (noun := _noun_at(tokens, n))]
    if nouns:
        mind.thing = nouns[-1][1]
    lowered = [t.lower() for t in tokens]
    for n, noun in nouns:
        own = next((m for m in (n - 1, n - 2) if m > 0 and lowered[m] in ("his", "her")), 0)
        who = subject_of(mind, tokens, own) if own else None
        if who and noun not in mind.holder and NAMES[who] == (lowered[own] == "her"):
            mind.holder[noun] = who
    for n, word in enumerate(lowered):
        if (
            word not in GIVE
            and word not in GET
            and word not in LOSE
            and word not in BREAK
            and word not in ("had", "mended", "glued")
        ):
            continue
        stop = next(
            (m for m in range(n + 1, len(tokens)) if lowered[m] in GIVE or lowered[m] in GET), len(tokens)
        )
        later = [noun for m, noun in nouns if n < m < stop]
        earlier = [noun for m, noun in nouns if m < n]
        it = "it" in lowered[n + 1 : n + 4] and not (word in GIVE and lowered[n + 1 : n + 3] != ["it", "to"])
        noun = later[0] if later else mind.thing if it else ""
        who = subject_of(mind, tokens, n)
        if word in BREAK:
            target = noun or (earlier[-1] if earlier else mind.thing if "it" in lowered else "")
            if target:
                mind.broken.add(target)
        elif word in ("mended", "glued"):
            mind.broken.discard(noun or mind.thing)
        elif noun and who:
            out += _change_hands(mind, word, who, noun, tokens, n)
    text = " ".join(lowered)
    if nouns and re.search(r"was (gone|missing|no longer|not there)|could not find", text):
        mind.holder[nouns[0][1]] = None
        mind.lost.add(nouns[0][1])
    if nouns and re.search(
        r"there was the|it was the|could take the|here is the| lay |wiped|hugged the", text
    ):
        mind.lost.discard(nouns[0][1])
    if re.search(r"\bwhole\b|as good as new", text):
        mind.broken.clear()
    return out


def _change_hands(
    mind: Mind, word: str, who: str, noun: str, tokens: list[str], n: int
) -> list[tuple[str, str]]:
    """One verb of giving, getting or losing; what it says of who has the thing."""
    out: list[tuple[str, str]] = []
    owner = mind.holder.get(noun, "")
    if word in GIVE:
        if noun in mind.broken:
            out.append(("gives a broken thing", noun))
        if owner and owner != who:
            out.append(("gives what another has", f"{who}: the {noun} of {owner}"))
        if owner is None and noun in mind.lost and word != "brought":
            out.append(("gives a lost thing", f"{who}: {noun}"))
        taker = next((base_name(t) for t in tokens[n + 1 :] if t in NAMES and t != who), "")
        if not taker:
            pronoun = next((t.lower() for t in tokens[n + 1 :] if t.lower() in ("him", "her")), "")
            taker = mind.recent.get(pronoun == "her", "") if pronoun else ""
        mind.holder[noun] = taker or who
        mind.lost.discard(noun)
    elif word in LOSE:
        if owner and owner != who:
            out.append(("loses what another has", f"{who}: the {noun} of {owner}"))
        if word in ("lost", "dropped") and tokens[n + 1 : n + 2] not in (["a"], ["an"]):
            mind.holder[noun] = None
            mind.lost.add(noun)
    elif word == "had":
        if n + 1 < len(tokens) and tokens[n + 1].lower() in ("a", "an", "the", "his", "her"):
            mind.holder[noun] = who
    elif tokens[n + 1 : n + 2] and tokens[n + 1].lower() != "turns":
        if owner and owner != who and word == "found" and noun not in mind.lost and "from" not in tokens:
            out.append(("takes what another has", f"{who}: the {noun} of {owner}"))
        mind.holder[noun] = who
        mind.lost.discard(noun)
    return out


# -- animals ----------------------------------------------------------------------------------------


def _animals(mind: Mind, sentence: Sentence) -> list[tuple[str, str]]:
    """Animals come in with `a`, keep their colour, eat their food and make their sound."""
    out: list[tuple[str, str]] = []
    lowered = [t.lower() for t in sentence.tokens]
    for run in (sentence.tokens, *sentence.quotes):
        for n, token in enumerate(run):
            word = token
            if word not in lx.ANIMALS or word == "kid":
                continue
            before = run[n - 1].lower() if n else ""
            if before in lx.COLOURS:
                known = mind.colour.setdefault(word, before)
                if known != before:
                    out.append(("another colour", f"{known} {word}, {before} {word}"))
            if run is sentence.tokens:
                if before == "the" and word not in mind.seen and word not in GENERIC_ANIMALS:
                    out.append(("animal from nowhere", f"the {word}"))
                mind.seen.add(word)
                if word not in GENERIC_ANIMALS or before != "the":
                    mind.animal = word
    for token in sentence.tokens:
        if token in lx.PET_NAMES and token not in mind.pets and mind.animal:
            mind.pets[token] = mind.animal
    kinds = {a for a in lx.ANIMALS if a in sentence.tokens}
    kind = next(iter(kinds)) if len(kinds) == 1 else mind.animal
    if kind:
        for word in lowered:
            sounds = SOUND_OF.get(word)
            person = any(t in NAMES for t in sentence.tokens) and word in ("called", "cried", "whistled")
            if (
                sounds
                and kind not in sounds
                and not person
                and not sentence.quotes
                and kind in (kinds or {mind.animal})
            ):
                out.append(("wrong sound", f"the {kind} {word}"))
        out += _food(kind, lowered)
    return out


def _food(kind: str, lowered: list[str]) -> list[tuple[str, str]]:
    text = " ".join(lowered)
    if not re.search(r"\bit (some|a)\b|\b(ate|eats|eat)\b|\bsome \w+( \w+)?( on the| and|$| \.)", text):
        return []
    eaten = {f for f in FOODS_OF if re.search(rf"\b(?<!under )(some|the|of) {f}\b", text)}
    wrong = [f for f in eaten if kind not in FOODS_OF[f]]
    return (
        [("wrong food", f"{kind}: {wrong[0]}")] if wrong and (" it " in text or f"the {kind}" in text) else []
    )


# -- place and time ---------------------------------------------------------------------------------

_MOVE = re.compile(
    r"\b(?:went|walked|ran|hurried|came|set off|skipped)\b(?: (?:back|down the street|along a narrow road|over|off|away))*"
    r" (?:to|for) the (" + "|".join(sorted(lx.PLACES, key=len, reverse=True)) + r")\b"
)
_AT = re.compile(
    r"\b(at|in|by|on) the ("
    + "|".join(sorted(lx.PLACES, key=len, reverse=True))
    + r")\b(?! (?:window|door|house))"
)
_HOME = re.compile(
    r"\b(?:went|walked|ran|came|go|carried \w+|brought \w+|took \w+) (?:back )?home\b|\bthe next (?:day|morning)\b|\bon the birthday\b|\bat home\b|\bhouse of\b"
)


def _places(mind: Mind, sentence: Sentence, i: int) -> list[tuple[str, str]]:
    """The tale is in one place at a time, and somebody has to go before it is in another."""
    out: list[tuple[str, str]] = []
    text = " ".join(t.lower() for t in sentence.tokens)
    move = _MOVE.search(text)
    here = _AT.search(text)
    if (
        here
        and lx.PLACES[here[2]].at == here[1]
        and "had " not in text
        and "lived" not in text
        and (not move or here.start() < move.start())
    ):
        if mind.place and mind.place != here[2]:
            out.append(("elsewhere without going", f"{here[0]}, but the tale is at the {mind.place}"))
        elif not mind.moved and i > 1:
            out.append(("elsewhere without going", here[0]))
        mind.place = here[2]
        mind.moved = True
    if move:
        if mind.place == move[1]:
            out.append(("goes where it already is", move[0]))
        mind.place, mind.moved = move[1], True
    elif _HOME.search(text):
        mind.place, mind.moved = "", True
    return out


_LATER = re.compile(
    r"\b(every|each|next|days?|weeks?|later|tomorrow|until|last|months?|when|then one|after|from|all)\b"
)


def _time(mind: Mind, sentence: Sentence) -> list[tuple[str, str]]:
    """Within a day, the time of day does not run backward."""
    words = sentence.words
    named = [TIMES[w] for w in words if w in TIMES]
    if not named:
        return []
    text = " ".join(words)
    if (
        len(set(named)) > 1
        or "had" in words
        or _LATER.search(text)
        or text.startswith(("one ", "once "))
        or "whole" in words
    ):
        mind.time = -1
        return []
    if min(named) < mind.time:
        return [("time runs backward", text)]
    mind.time = max(named)
    return []


# -- the whole --------------------------------------------------------------------------------------

_NUMBERS = {word: n for n, word in enumerate(lx.NUMBERS)}


def _as_a_whole(mind: Mind, sentences: list[Sentence], text: str) -> list[Violation]:
    out: list[Violation] = []
    if len(sentences) < 4:
        out.append(Violation("unfinished", -1, "fewer than four sentences"))
    ending = sentences[-1].words if sentences else []
    if not CLOSING & set(ending) and not re.search(CLOSING_PHRASE, " ".join(ending)):
        out.append(
            Violation("no ending", len(sentences) - 1, " ".join(sentences[-1].tokens) if sentences else "")
        )
    out += [Violation("never found", -1, noun) for noun in sorted(mind.lost)]
    out += [Violation("never mended", -1, noun) for noun in sorted(mind.broken)]
    told: dict[str, int] = {}
    for i, sentence in enumerate(sentences):
        line = " ".join(sentence.tokens + [t for q in sentence.quotes for t in q])
        if len(sentence.words) >= 4 and line in told:
            out.append(Violation("told twice", i, line))
        told[line] = i
    if len(mind.cast) > 7:
        out.append(Violation("too many people", -1, ", ".join(mind.cast)))
    return out + _money(text)


_COINS = r"(" + "|".join(lx.NUMBERS) + r") coins?"


def _money(text: str) -> list[Violation]:
    """What somebody had, minus what things cost, is what is left; four times a share is the whole."""
    lowered = text.lower()
    had = re.search(rf"(?:had|were|has|here are|gave (?:him|her)) {_COINS}", lowered)
    left = re.search(
        rf"{_COINS} (?:was|were) left|had {_COINS} left|put {_COINS} back|still had {_COINS}", lowered
    )
    out: list[Violation] = []
    if had and left:
        rest = _NUMBERS[next(g for g in left.groups() if g)]
        between = lowered[had.end() : left.start()]
        total = re.search(rf"(?:that was|that makes|together) {_COINS}", between)
        prices = [_NUMBERS[m] for m in re.findall(_COINS, between[: total.start()] if total else between)]
        have = _NUMBERS[had[1]]
        if prices and sum(prices) + rest != have:
            out.append(Violation("money does not add up", -1, f"{have} - {prices} is not {rest}"))
        if total and prices and sum(prices) != _NUMBERS[total[1]]:
            out.append(Violation("money does not add up", -1, f"{prices} is not {total[1]}"))
    share = re.search(r"four children and (\w+) \w+\. so each of them got (\w+)", lowered) or re.search(
        r"there are (\w+)\. that makes (\w+) for each", lowered
    )
    if (
        share
        and share[1] in _NUMBERS
        and share[2] in _NUMBERS
        and _NUMBERS[share[1]] != 4 * _NUMBERS[share[2]]
    ):
        out.append(Violation("shares do not add up", -1, share[0]))
    return out
