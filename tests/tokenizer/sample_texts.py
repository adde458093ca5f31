"""Texts of letters, digits, blanks and signs from several scripts, as a function of a seed."""

import random

WORDS = [
    "the",
    "a",
    "small",
    "old",
    "red",
    "boat",
    "house",
    "river",
    "child",
    "teacher",
    "ran",
    "said",
    "don't",
    "we'll",
    "went",
    "over",
    "under",
    "quickly",
    "12",
    "345",
    "7",
    "naïve",
    "Über",
    "水",
    "日本語",
    "emoji",
    "🙂",
    "don't,",
    '"yes"',
    "(no)",
    "[x]",
    "{y:",
    "1}",
    "a_b",
    "==",
    "!=",
    "->",
    "\t",
    "tab\n\n",
    "line",
]


def some_texts(n: int = 300, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(rng.choices(WORDS, k=rng.randint(5, 60))) + rng.choice(["", ".", "\n"]) for _ in range(n)
    ]
