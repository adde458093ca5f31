"""Which split a piece of content belongs to: a function of the content alone.

The key is what a test question must not share with training: the operands of a sum, a fact with the
wording of its question, the arguments of a tool call. Two texts with one key always land in one split.
"""

from hashlib import blake2b
from random import Random
from typing import Literal

Split = Literal["train", "val", "test"]

# 5 % each for validation and test: of the 2,500 sums below 100 this leaves about 125 test problems.
_VAL_FROM, _TEST_FROM = 90, 95


def split_of(key: str) -> Split:
    """The split of this content key: 90 % train, 5 % val, 5 % test."""
    bucket = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little") % 100
    return "train" if bucket < _VAL_FROM else "val" if bucket < _TEST_FROM else "test"


def rng_for(*parts: object) -> Random:
    """A random stream that is a function of `parts` alone (not of Python's hash seed)."""
    text = "/".join(map(str, parts))
    return Random(int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little"))
