"""A story as sentences: narration and quotations apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a story breaks."""

    rule: str
    sentence: int
    """Number of the sentence, from 0; -1: the text as a whole."""
    detail: str


@dataclass(slots=True)
class Sentence:
    """A sentence of the narration; a quotation inside it is the token `"` and stands in `quotes`."""

    tokens: list[str]
    quotes: list[list[str]]
    paragraph: int

    @property
    def words(self) -> list[str]:
        """Lower-case words of the narration."""
        return [t.lower() for t in self.tokens if t[0].isalnum()]


_TOKEN = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*'?|\d+|[.!?]+|[^\sA-Za-z0-9]")
END_MARKS = frozenset((".", "!", "?", "..."))


def base_name(token: str) -> str:
    """The name without a possessive ending: `Mia's` -> `Mia`."""
    return token[:-2] if token.endswith("'s") else token.removesuffix("'")


def tokenize(text: str) -> list[str]:
    """Words, numbers and marks of a text."""
    return _TOKEN.findall(text)


def parse(text: str) -> tuple[str, list[Sentence], list[Violation]]:
    """Title (or empty), sentences of the body, and what is wrong with quotes and paragraphs."""
    paragraphs = [p.strip() for p in text.strip().split("\n\n") if p.strip()]
    title = ""
    if (len(paragraphs) > 1 and len(paragraphs[0].split()) <= 8 and paragraphs[0][-1] not in '."!') or (
        len(paragraphs) > 1
        and len(paragraphs[0].split()) <= 6
        and '"' not in paragraphs[0]
        and paragraphs[0].istitle()
    ):
        title = paragraphs.pop(0)
    sentences: list[Sentence] = []
    problems: list[Violation] = []
    for number, paragraph in enumerate(paragraphs):
        if paragraph.count('"') % 2:
            problems.append(Violation("open quotation", len(sentences), paragraph[-40:]))
        sentences += _sentences(paragraph, number)
    return title, sentences, problems


def _sentences(paragraph: str, number: int) -> Iterator[Sentence]:
    current = Sentence([], [], number)
    for i, part in enumerate(paragraph.split('"')):
        if i % 2:
            quote = tokenize(part)
            # After a quotation that ended its sentence, another quotation begins a new one.
            if (
                current.tokens
                and current.tokens[-1] == '"'
                and current.quotes[-1]
                and current.quotes[-1][-1] in END_MARKS
            ):
                yield current
                current = Sentence([], [], number)
            current.tokens.append('"')
            current.quotes.append(quote)
            continue
        for token in tokenize(part):
            current.tokens.append(token)
            if token in END_MARKS:
                yield current
                current = Sentence([], [], number)
    if current.tokens:
        yield current
