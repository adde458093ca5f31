"""Sums, differences, products, comparisons and sequences, each with worked steps.

Numbers reach the model digit by digit, so a step never asks for more than a table fact or a carry of
one ten: 47 + 38 becomes 40 + 30 = 70, 7 + 8 = 15, 70 + 15 = 85.

Problems are split by operation and operands (`Problem.key`): a test problem is never posed in training,
in no wording and in neither order of a commutative operation. One-digit facts (the tables that every
step uses) all belong to training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from onesitting.data.world.splits import Split, split_of


@dataclass(frozen=True)
class Problem:
    """A question with a number as its answer."""

    kind: str
    """sum, difference, product, comparison, sequence or two_step."""
    question: str
    steps: str
    """Worked steps as sentences; the last one holds the answer."""
    answer: str
    """The number, in digits."""
    sentence: str
    """The answer as a sentence."""
    key: str
    """Operation and operands: what the split depends on."""


@dataclass(frozen=True)
class Exercise:
    """An operation on numbers before it is put into words."""

    kind: str
    numbers: tuple[int, ...]
    answer: int
    steps: str
    key: str


def sum_steps(a: int, b: int) -> str:
    """`a + b` in steps: tens with tens, ones with ones, then together (0 <= a, b < 100)."""
    tens_a, ones_a, tens_b, ones_b = a // 10 * 10, a % 10, b // 10 * 10, b % 10
    if not (tens_a or tens_b) or not (ones_a or ones_b):
        return f"{a} + {b} = {a + b}."
    steps: list[str] = []
    if tens_a and tens_b:
        steps.append(f"{tens_a} + {tens_b} = {tens_a + tens_b}.")
    if ones_a and ones_b:
        steps.append(f"{ones_a} + {ones_b} = {ones_a + ones_b}.")
    steps.append(f"{tens_a + tens_b} + {ones_a + ones_b} = {a + b}.")
    return " ".join(steps)


def difference_steps(a: int, b: int) -> str:
    """`a - b` in steps, with a ten borrowed where the ones need it (b <= a <= 100)."""
    if a < 10 or (a % 10 == 0 and b % 10 == 0):
        return f"{a} - {b} = {a - b}."
    ones_b, tens_b = b % 10, b // 10 * 10
    ones_a = a % 10 if a % 10 >= ones_b else a % 10 + 10
    tens_a = a - ones_a
    if tens_a == 0:
        return f"{a} - {b} = {a - b}."
    steps = [f"{a} is {tens_a} + {ones_a}."]
    if tens_b:
        steps.append(f"{tens_a} - {tens_b} = {tens_a - tens_b}.")
    if ones_b:
        steps.append(f"{ones_a} - {ones_b} = {ones_a - ones_b}.")
    steps.append(f"{tens_a - tens_b} + {ones_a - ones_b} = {a - b}.")
    return " ".join(steps)


def product_steps(a: int, b: int) -> str:
    """`a × b` in steps for b < 10: the tens of a, the ones of a, then together."""
    tens, ones = a // 10 * 10, a % 10
    if not tens or not ones:
        return f"{a} × {b} = {a * b}."
    return f"{tens} × {b} = {tens * b}. {ones} × {b} = {ones * b}. {tens * b} + {ones * b} = {a * b}."


def comparison_steps(a: int, b: int) -> str:
    """Why one of two different numbers below 100 is the larger: by its tens, else by its ones."""
    if max(a, b) < 10:
        return f"{min(a, b)} comes before {max(a, b)}."
    if a // 10 != b // 10:
        return f"{a} has {_tens(a)} and {b} has {_tens(b)}."
    return f"Both have {_tens(a)}. {a} has {_ones(a)} and {b} has {_ones(b)}."


def _tens(n: int) -> str:
    return "no tens" if n < 10 else f"{n // 10} ten" + ("s" if n >= 20 else "")


def _ones(n: int) -> str:
    return "no ones" if n % 10 == 0 else f"{n % 10} one" + ("s" if n % 10 > 1 else "")


def _sum(rng: Random) -> Exercise:
    a = rng.randint(1, 89)
    b = rng.randint(1, 100 - a)
    return Exercise("sum", (a, b), a + b, sum_steps(a, b), f"sum {min(a, b)} {max(a, b)}")


def _difference(rng: Random) -> Exercise:
    a = rng.randint(5, 100)
    b = rng.randint(1, a - 1)
    return Exercise("difference", (a, b), a - b, difference_steps(a, b), f"difference {a} {b}")


def _product(rng: Random) -> Exercise:
    b = rng.randint(2, 9)
    # Half of the products come from the tables; beyond 200 the last step would need more than one carry.
    a = rng.randint(2, 10) if rng.random() < 0.5 else rng.randint(11, min(99, 200 // b))
    return Exercise("product", (a, b), a * b, product_steps(a, b), f"product {min(a, b)} {max(a, b)}")


def _comparison(rng: Random) -> Exercise:
    a, b = rng.sample(range(1, 100), 2)
    return Exercise(
        "comparison", (a, b), max(a, b), comparison_steps(a, b), f"comparison {min(a, b)} {max(a, b)}"
    )


def _sequence(rng: Random) -> Exercise:
    start, step = rng.randint(1, 50), rng.choice((2, 3, 4, 5, 6, 7, 8, 9, 10))
    numbers = tuple(start + step * i for i in range(4))
    steps = f"Each number is {step} more than the one before. {sum_steps(numbers[-1], step)}"
    return Exercise("sequence", numbers, numbers[-1] + step, steps, f"sequence {start} {step}")


def _two_step(rng: Random) -> Exercise:
    a = rng.randint(2, 60)
    b = rng.randint(2, 95 - a)
    c = rng.randint(2, a + b - 1)
    steps = f"{sum_steps(a, b)} {difference_steps(a + b, c)}"
    return Exercise("two_step", (a, b, c), a + b - c, steps, f"two_step {a} {b} {c}")


_MAKERS: dict[str, tuple[float, Callable[[Random], Exercise]]] = {
    "sum": (0.30, _sum),
    "difference": (0.25, _difference),
    "product": (0.20, _product),
    "comparison": (0.10, _comparison),
    "sequence": (0.10, _sequence),
    "two_step": (0.05, _two_step),
}
KINDS = tuple(_MAKERS)
# Largest operand of a table fact: 10 + 10, 19 - 9 (a ten borrowed), 10 × 10.
_TABLE_LIMITS = {"sum": 10, "difference": 19, "product": 10}


def split_of_exercise(exercise: Exercise) -> Split:
    """The split of an exercise; the table facts that worked steps use are training's."""
    limit = _TABLE_LIMITS.get(exercise.kind, 0)
    return "train" if max(exercise.numbers) <= limit else split_of(exercise.key)


def exercise(rng: Random, split: Split, kind: str | None = None) -> Exercise:
    """A random exercise of this split (of this kind, or of any)."""
    weights = [weight for weight, _ in _MAKERS.values()]
    kind = kind or rng.choices(KINDS, weights)[0]
    make = _MAKERS[kind][1]
    while True:
        found = make(rng)
        if split_of_exercise(found) == split:
            return found
