"""Documents of the world: which kind document number `index` is, and its text.

A document is a pure function of (seed, split, index), so that several processes can write disjoint ranges.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from onesitting.data.world import World, word_problems
from onesitting.data.world.encyclopedia import paragraph
from onesitting.data.world.fact_questions import quiz
from onesitting.data.world.passages import passage_document
from onesitting.data.world.splits import Split
from onesitting.data.world.stories import story

# Shares of documents, cumulated: half stories (fluency and tracking), a fifth passages with questions
# (reading), the rest facts and worked sums.
_STORIES, _PASSAGES, _PARAGRAPHS, _QUIZZES = 0.45, 0.68, 0.84, 0.88
_SPLIT_NUMBER = {"train": 0, "val": 1, "test": 2}


def document(seed: int, split: Split, index: int) -> str:
    """Document number `index`, with no newline at its end."""
    # An int seed is several times cheaper than a string; the multiplier keeps streams of near indices apart.
    rng = Random(((seed * 3 + _SPLIT_NUMBER[split]) << 40 | index) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    draw = rng.random()
    if draw < _STORIES:
        return story(rng, split=split).text
    if draw < _PASSAGES:
        return passage_document(rng, split)
    if draw < _PARAGRAPHS:
        return "\n\n".join(_paragraphs(rng, split, seed))
    if draw < _QUIZZES:
        return quiz(World(seed), rng, split)
    return word_problems.document(rng, split)


def _paragraphs(rng: Random, split: Split, seed: int) -> list[str]:
    """One to three paragraphs of at least 300 characters together: short ones alone would repeat."""
    out = [paragraph(rng, split, seed)]
    while sum(map(len, out)) < 300 or (len(out) < 3 and rng.random() < 0.3):
        text = paragraph(rng, split, seed)
        if text not in out:
            out.append(text)
    return out


def documents(seed: int, split: Split, mb: float, *, start: int = 0) -> Iterator[str]:
    """Documents from `start` on until their UTF-8 bytes reach `mb` * 10^6."""
    size, index = 0, start
    while size < mb * 1e6:
        text = document(seed, split, index)
        size += len(text.encode())
        index += 1
        yield text
