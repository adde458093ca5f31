"""Reads a story into sentences and checks each one's form; what the sentences say is checked by `story_rules`.

Form, in the narration and inside quotation marks: words that the world knows, capitals and end marks, closed
quotes, `a`/`an`, no doubled words, agreement of subject and verb, base forms after `to`, `did` and modal verbs, no article
before a pronoun, verb or full stop, a verb in every sentence.

Unknown phrasing: pairs of neighbouring words (names, things, animals, places, colours and numbers count as their class)
are compared with the pairs of `_N_HARVESTED` stories that the world tells. One unseen pair in a sentence
is taken as a new way to say something; more than one in seven words is `odd word order`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache
from itertools import pairwise
from random import Random
from types import ModuleType

from onesitting.data.world import (
    grammar,
    lexicon,
    openings,
    stories,
    stories_finds,
    stories_making,
    stories_nature,
    stories_people,
    stories_things,
)
from onesitting.data.world.story_parse import END_MARKS, Sentence, Violation, base_name, parse

_N_HARVESTED = 6_000


# -- words ------------------------------------------------------------------------------------------


def _strings(value: object, depth: int = 0) -> Iterator[str]:
    """Every string inside a table."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for k, v in value.items():  # type: ignore[reportUnknownVariableType]
            yield from _strings(k, depth + 1)
            yield from _strings(v, depth + 1)
    elif isinstance(value, tuple | list | frozenset):
        for item in value:  # type: ignore[reportUnknownVariableType]
            yield from _strings(item, depth + 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from _strings(getattr(value, f.name), depth + 1)


def _module_strings(modules: Iterable[ModuleType]) -> Iterator[str]:
    for module in modules:
        for name, value in vars(module).items():
            if not name.startswith("__") and not callable(value):
                yield from _strings(value)


_MODULES = (
    lexicon,
    grammar,
    openings,
    stories,
    stories_things,
    stories_people,
    stories_nature,
    stories_making,
)


@lru_cache(maxsize=1)
def known_words() -> tuple[frozenset[str], frozenset[str]]:
    """(lower-case words, words with a capital) of the world's tables, templates and a sample of its stories."""
    lower: set[str] = set()
    upper: set[str] = set()
    texts = [re.sub(r"\{[^}]*\}", " ", s) for s in _module_strings(_MODULES)]
    for text in [*texts, *_harvest_texts()[:3000]]:
        for word in re.findall(r"[A-Za-z]+(?:['-][A-Za-z]+)*", text):
            (lower if word[0].islower() else upper).add(word)
    lower |= {word.lower() for word in upper if word.lower() in _LOWER_TOO}
    return frozenset(lower), frozenset(upper)


_LOWER_TOO = frozenset(lexicon.words("hooray bravo surprise delicious wonderful psst nobody everybody"))


@lru_cache(maxsize=1)
def _harvest_texts() -> tuple[str, ...]:
    rng = Random("words of the world")
    return tuple(stories.story(rng, title=0).text for _ in range(_N_HARVESTED))


_CLASSES: dict[str, str] = {}
for check_names, _class in (
    (lexicon.GIRLS + lexicon.BOYS, "NAME"),
    (lexicon.PET_NAMES, "PET"),
    (tuple(lexicon.OBJECTS), "THING"),
    (tuple(lexicon.ANIMALS), "ANIMAL"),
    (lexicon.COLOURS, "COLOUR"),
    (openings.TRAITS, "TRAIT"),
    (lexicon.NUMBERS[2:], "NUMBER"),
    (lexicon.TOWNS, "TOWN"),
    (lexicon.MONTHS, "MONTH"),
    (lexicon.WEEKDAYS, "DAY"),
    (tuple(lexicon.PLACES), "PLACE"),
    (tuple(stories_finds.SOUND_PAST.values()), "SOUND"),
):
    for _name in check_names:
        _CLASSES[_name] = _class


def _classes(tokens: list[str]) -> list[str]:
    """Words with names, things, places… replaced by their class; a `fishing rod` is one thing."""
    out: list[str] = []
    second = False
    for token, following in zip(tokens, [*tokens, ""][1:], strict=True):
        if second:
            second = False
            continue
        pair = _CLASSES.get(f"{token} {following}")
        if pair:
            out.append(pair)
            second = True
        elif token.endswith(("'s", "'")) and token.split("'")[0] in _CLASSES:
            out += [_CLASSES[token.split("'")[0]], "'s"]
        else:
            out.append(_CLASSES.get(token) or _CLASSES.get(token.lower()) or token.lower())
    return out


def _runs(sentence: Sentence) -> Iterator[list[str]]:
    """The narration of a sentence, then each of its quotations."""
    yield sentence.tokens
    yield from sentence.quotes


@lru_cache(maxsize=1)
def _known_pairs() -> frozenset[tuple[str, str]]:
    pairs: set[tuple[str, str]] = set()
    for text in _harvest_texts():
        for sentence in parse(text)[1]:
            for run in _runs(sentence):
                classes = ["<", *_classes(run)]
                pairs.update(pairwise(classes))
    return frozenset(pairs)


# -- forms ------------------------------------------------------------------------------------------

_BE_WRONG = {
    "i": ("is", "are", "were", "has"), "you": ("is", "am", "was", "has"), "we": ("is", "am", "was", "has"),
    "they": ("is", "am", "was", "has"), "he": ("am", "are", "were", "have"), "she": ("am", "are", "were", "have"),
    "it": ("am", "are", "were", "have"), "both": ("was", "is"), "there": ("am",),
}  # fmt: skip
IRREGULAR_PAST = frozenset(
    lexicon.words("""was were had did went came ran saw took found gave got bought sold brought thought said
    told knew felt lost left kept held hung sat stood lay laid fell broke flew threw blew grew drew began
    sang sank swam ate drank slept woke wrote spoke rode drove met lit made became forgot led fed taught
    caught fought shook stole wore tore swept rang built lent sent spent shone stuck dug won froze heard
    paid meant wound bent came undid beat hid could would might""")
)
_SAME = frozenset(
    lexicon.words("""put cut read hit hurt let set shut cost burst spread stood lay need needed found felt
    left lit wound""")
)
_PAST_ONLY = IRREGULAR_PAST - _SAME - {"could", "would", "might", "saw", "ground"}
_BASE_AFTER = frozenset(lexicon.words("to could would will must may can did shall might"))
_AUX = frozenset(
    lexicon.words("""is are am was were be been has have had do does did can could will would must may might
    shall let""")
)
_NO_AFTER_ARTICLE = frozenset(
    lexicon.words(""". , ! ? and or but he she they we i him them it is was are were to of in on at by for
    with from the a an his my your our their said had has went ran did not then so because""")
)
_ARTICLES = frozenset(lexicon.words("a an the my your our their"))
_PRESENT = frozenset(
lexicon.words("""want know think like love see need hope wish eat live come go take give look say tell
    keep find feel make mean help float floats sink sinks costs cost turns melts looks needs counts loses
    wants gets stay stays tells make makes forgive worry thank listen look come stop wait try begin
    remember hold breathe kick grow grows turn call close watch run blow bend pull put hurts works count
    play read write bring share hurry miss wonder belong""")
)  # fmt: skip


def check_form(sentences: list[Sentence], title: str) -> list[Violation]:
    """Violations of form, sentence by sentence."""
    lower, upper = known_words()
    out: list[Violation] = []
    for word in re.findall(r"[A-Za-z]+(?:['-][A-Za-z]+)*", title):
        if not _known(word, lower, upper):
            out.append(Violation("unknown word", -1, word))
    for i, sentence in enumerate(sentences):
        out += [Violation(rule, i, detail) for rule, detail in _marks(sentence)]
        for j, run in enumerate(_runs(sentence)):
            out += [Violation(rule, i, detail) for rule, detail in _forms(run, lower, upper)]
            if j == 0 and not _has_verb(sentence):
                out.append(Violation("no verb", i, " ".join(run)))
    return out


def _known(word: str, lower: frozenset[str], upper: frozenset[str]) -> bool:
    base = base_name(word)
    return base in upper or base.lower() in lower or word in upper or word.lower() in lower


def _marks(sentence: Sentence) -> Iterator[tuple[str, str]]:
    tokens = sentence.tokens
    first, last = tokens[0], tokens[-1]
    if first != '"' and not (first[0].isupper() or first[0].isdigit()):
        yield "small first letter", first
    if last != '"' and last not in END_MARKS:
        yield "no end mark", " ".join(tokens[-4:])
    for k, quote in enumerate(sentence.quotes):
        if not quote:
            yield "empty quotation", ""
            continue
        at = [n for n, t in enumerate(tokens) if t == '"'][k]
        after = tokens[at + 1] if at + 1 < len(tokens) else ""
        if quote[-1] not in END_MARKS and quote[-1] not in (",", ":") and not _is_name_quote(tokens, at):
            yield "no mark at the end of a quotation", " ".join(quote[-3:])
        if quote[-1] == "." and after and after[0].islower():
            yield "full stop before the speaker", after
        if quote[-1] == "," and not after:
            yield "unfinished quotation", " ".join(quote[-3:])
        continued = k > 0 and sentence.quotes[k - 1] and sentence.quotes[k - 1][-1] == ","
        if not quote[0][0].isupper() and not quote[0][0].isdigit() and not continued:
            yield "small first letter", quote[0]


def _is_name_quote(tokens: list[str], at: int) -> bool:
    """`On it was written: "For Mia".` — a quotation that is a part of the sentence."""
    return (at > 0 and tokens[at - 1] == ":") or (at + 1 < len(tokens) and tokens[at + 1] in END_MARKS)


def _forms(run: list[str], lower: frozenset[str], upper: frozenset[str]) -> Iterator[tuple[str, str]]:
    for n, token in enumerate(run):
        if not token[0].isalpha():
            continue
        word = token.lower()
        if not _known(token, lower, upper):
            yield "unknown word", token
        elif token[0].islower() and word not in lower and word.removesuffix("'s") not in lower:
            yield "small letter in a name", token
        following = run[n + 1] if n + 1 < len(run) else ""
        after = following.lower()
        if not following:
            continue
        if word == after and word not in ("very", "had", "that", "no"):
            yield "doubled word", word
        if word in ("a", "an") and after[0].isalpha() and lexicon.article(after) != word:
            yield "wrong article", f"{word} {following}"
        if word in _ARTICLES and after in _NO_AFTER_ARTICLE:
            yield "article before nothing", f"{token} {following}"
        if after in _BE_WRONG.get(word, ()) and not (
            n
            and run[n - 1].lower()
            in (
                "if",
                "and",
                "both",
                "or",
                "of",
                "with",
                "to",
                "for",
                "did",
                "does",
                "do",
                "may",
                "can",
                "must",
                "see",
                "would",
            )
        ):
            yield "agreement", f"{token} {following}"
        if (
            word in _BASE_AFTER
            and after in _PAST_ONLY
            and not (word == "can" and n and run[n - 1] == "watering")
        ):
            yield "verb form", f"{token} {following}"
    classes = ["<", *_classes(run)]
    unseen = [p for p in pairwise(classes) if p not in _known_pairs()]
    if len(unseen) > 1 + len(run) // 14:
        yield "odd word order", " / ".join(" ".join(p) for p in unseen)


def _has_verb(sentence: Sentence) -> bool:
    if sentence.quotes:
        return True
    return any(
        w in IRREGULAR_PAST or w in _AUX or w in _SAME or w.endswith("ed") or w in _PRESENT
        for w in sentence.words
    )
