"""Exercises put into words: bare questions, word problems about people and things, and pages of them.

The wording is drawn freely; the split depends on the operands alone (see arithmetic.py).
"""

from collections.abc import Callable
from random import Random

from onesitting.data.world.arithmetic import Exercise, Problem, exercise, product_steps, sum_steps
from onesitting.data.world.lexicon import BOYS, FOODS, GIRLS, OBJECTS
from onesitting.data.world.splits import Split

NAMES = GIRLS + BOYS

_SMALL_THINGS = (
    "shell", "button", "candle", "balloon", "pencil", "cup", "plate", "spoon", "book", "notebook", "bell",
    "bowl", "flower pot", "kite", "ball", "top",
)  # fmt: skip
# (singular, plural) of what a person can have dozens of.
COUNTABLES: tuple[tuple[str, str], ...] = tuple(
    [(name, OBJECTS[name].plural) for name in _SMALL_THINGS]
    + [
        (food.name, food.plural)
        for food in FOODS.values()
        if food.one in (f"a {food.name}", f"an {food.name}")
    ]
    + [
        ("coin", "coins"),
        ("stone", "stones"),
        ("leaf", "leaves"),
        ("stamp", "stamps"),
        ("nut", "nuts"),
        ("card", "cards"),
    ]
)

_BARE: dict[str, tuple[str, ...]] = {
    "sum": (
        "What is {a} + {b}?",
        "What is {a} plus {b}?",
        "{a} + {b} = ?",
        "Add {a} and {b}.",
        "How much is {a} plus {b}?",
        "Can you add {a} and {b} for me?",
        "Please work out {a} + {b}.",
        "What do I get when I add {b} to {a}?",
        "I have to add {a} and {b}. What is the result?",
    ),
    "difference": (
        "What is {a} - {b}?",
        "What is {a} minus {b}?",
        "{a} - {b} = ?",
        "Take {b} away from {a}.",
        "How much is {a} minus {b}?",
        "Can you work out {a} - {b}?",
        "Please subtract {b} from {a}.",
        "What is left when I take {b} from {a}?",
        "What is the difference between {a} and {b}?",
    ),
    "product": (
        "What is {a} × {b}?",
        "What is {a} times {b}?",
        "{a} × {b} = ?",
        "Multiply {a} by {b}.",
        "How much is {a} times {b}?",
        "Can you work out {a} × {b}?",
        "Please multiply {a} and {b}.",
    ),
    "comparison": (
        "Which number is larger, {a} or {b}?",
        "Which is bigger, {a} or {b}?",
        "Which one is more, {a} or {b}?",
        "Is {a} or {b} the larger number?",
        "Tell me the larger of {a} and {b}.",
    ),
    "sequence": (
        "Which number comes next: {list}?",
        "What comes after {list}?",
        "Go on: {list}, ...",
        "{who} counts: {list}. What is the next number?",
        "Find the next number: {list}.",
        "{who} writes {list} on the board. Which number comes next?",
    ),
    "two_step": (),
}
_BARE_ANSWERS = ("The answer is {c}.", "That makes {c}.", "The result is {c}.", "It is {c}.")

# (story, question, answer); {A} is "14 apples", {a} is "14".
_STORIES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "sum": (
        ("{who} has {A}. {other} gives {who} {b} more.", "How many {things} does {who} have now?",
         "{who} has {C} now."),
        ("{who} finds {A} in the morning and {b} more in the evening.",
         "How many {things} does {who} find that day?", "{who} finds {C} that day."),
        ("There are {A} in one box and {b} in another box.", "How many {things} are in the two boxes?",
         "There are {C} in the two boxes."),
        ("{who} has {A} and {other} has {b}.", "How many {things} do they have together?",
         "They have {C} together."),
        ("On {day} {who} sells {A}. The next day {who} sells {b} more.",
         "How many {things} does {who} sell in the two days?", "{who} sells {C} in the two days."),
        ("A shelf holds {A}. {who} puts {b} more on the shelf.",
         "How many {things} are on the shelf now?", "There are {C} on the shelf now."),
        ("{who} spends {a} coins on {day} and {b} coins on the next day.",
         "How many coins does {who} spend in all?", "{who} spends {c} coins in all."),
    ),
    "difference": (
        ("{who} has {A}. {who} gives {b} of them to {other}.", "How many {things} does {who} have left?",
         "{who} has {C} left."),
        ("There are {A} in a basket. {who} takes {b} of them.",
         "How many {things} are still in the basket?", "There are {C} still in the basket."),
        ("{who} has {a} coins and spends {b} coins at the market.",
         "How many coins does {who} have left?", "{who} has {c} coins left."),
        ("{who} has {A} and {other} has {b}.", "How many more {things} does {who} have than {other}?",
         "{who} has {c} more than {other}."),
        ("{who} wants to collect {A} and has {b} so far.", "How many {things} does {who} still need?",
         "{who} still needs {C}."),
        ("{who} had {A} and lost {b} of them on the way home.", "How many {things} did {who} still have?",
         "{who} still had {C}."),
    ),
    "product": (
        ("There are {b} boxes with {A} in each box.", "How many {things} are there in all?",
         "There are {C} in all."),
        ("{who} gets {A} each day for {b} days.", "How many {things} does {who} get in all?",
         "{who} gets {C} in all."),
        ("{who} saves {a} coins each week for {b} weeks.", "How many coins does {who} save?",
         "{who} saves {c} coins."),
        ("{b} children have {A} each.", "How many {things} do the children have together?",
         "The children have {C} together."),
        ("{who} fills {b} bags. Each bag holds {A}.", "How many {things} are in the bags?",
         "There are {C} in the bags."),
    ),
    "two_step": (
        ("{who} has {A}. {other} gives {who} {b} more. Then {who} loses {d} of them.",
         "How many {things} does {who} have now?", "{who} has {C} now."),
        ("There are {A} in a box. {who} adds {b} more, and {other} takes {d} out.",
         "How many {things} are in the box now?", "There are {C} in the box now."),
        ("{who} has {a} coins and earns {b} more. Then {who} spends {d} of them on a present.",
         "How many coins does {who} have left?", "{who} has {c} coins left."),
    ),
}  # fmt: skip


def _counted(n: int, thing: tuple[str, str]) -> str:
    return f"{n} {thing[0] if n == 1 else thing[1]}"


def _fields(rng: Random, found: Exercise) -> dict[str, str]:
    """Everything that a wording may mention."""
    who, other = rng.sample(NAMES, 2)
    thing = rng.choice(COUNTABLES)
    numbers = found.numbers
    return {
        "who": who,
        "other": other,
        "things": thing[1],
        "day": rng.choice(("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")),
        "a": str(numbers[0]),
        "b": str(numbers[1]),
        "c": str(found.answer),
        "d": str(numbers[2]) if found.kind == "two_step" else "",
        "A": _counted(numbers[0], thing),
        "C": _counted(found.answer, thing),
        "list": ", ".join(map(str, numbers)),
    }


def bare_problem(rng: Random, split: Split, kind: str | None = None) -> Problem:
    """A question of numbers alone."""
    found = exercise(rng, split, kind or rng.choice([kind for kind, wordings in _BARE.items() if wordings]))
    fields = _fields(rng, found)
    question = rng.choice(_BARE[found.kind]).format(**fields)
    sentence = rng.choice(_BARE_ANSWERS).format(**fields)
    if found.kind == "comparison":
        sentence = f"{found.answer} is larger."
    return Problem(found.kind, question, found.steps, str(found.answer), sentence, found.key)


def word_problem(rng: Random, split: Split, kind: str | None = None) -> Problem:
    """A small story with a question; quantities are at least 2, so that plurals fit."""
    kind = kind or rng.choices(tuple(_STORIES), (0.35, 0.35, 0.2, 0.1))[0]
    found = exercise(rng, split, kind)
    while min(*found.numbers, found.answer) < 2:
        found = exercise(rng, split, kind)
    fields = _fields(rng, found)
    story, question, answer = rng.choice(_STORIES[kind])
    text = f"{story} {question}".format(**fields)
    return Problem(
        kind, text[0].upper() + text[1:], found.steps, fields["c"], answer.format(**fields), found.key
    )


def problem(rng: Random, split: Split) -> Problem:
    """A problem of this split, half of them in a story."""
    return bare_problem(rng, split) if rng.random() < 0.5 else word_problem(rng, split)


def document(rng: Random, split: Split) -> str:
    """A page of arithmetic for pretraining, in one of several layouts."""
    return rng.choice(_LAYOUTS)(rng, split)


def _exercise_sheet(rng: Random, split: Split) -> str:
    found = [bare_problem(rng, split) for _ in range(rng.randint(3, 6))]
    return "\n".join(f"{p.question} {p.steps} {p.sentence}" for p in found)


def _questions_and_answers(rng: Random, split: Split) -> str:
    found = [problem(rng, split) for _ in range(rng.randint(2, 4))]
    return "\n".join(f"Question: {p.question}\nAnswer: {p.steps} {p.sentence}" for p in found)


def _story_page(rng: Random, split: Split) -> str:
    found = [word_problem(rng, split) for _ in range(rng.randint(2, 3))]
    return "\n\n".join(f"{p.question}\n{p.steps}\n{p.sentence}" for p in found)


def _lesson(rng: Random, split: Split) -> str:
    teacher, pupil = rng.sample(NAMES, 2)
    lines = [rng.choice((f"{teacher} asks and {pupil} answers.", f"{pupil} learns to count with {teacher}."))]
    for _ in range(rng.randint(2, 3)):
        p = bare_problem(rng, split)
        praise = rng.choice(("Well done!", "That is right.", "Good.", "Yes!", "Very good."))
        answer = f"{p.steps} {p.sentence}"
        lines.append(f'{teacher} asks: "{p.question}"\n{pupil} says: "{answer}"\n{teacher} says: "{praise}"')
    return "\n".join(lines)


def _tables(rng: Random, split: Split) -> str:
    """One-digit tables: the facts that every worked step uses (training's in each split)."""
    lines: list[str] = []
    for _ in range(rng.randint(3, 5)):
        n, kind = rng.randint(2, 9), rng.choice(("times", "plus", "minus", "count"))
        if kind == "times":
            lines.append(" ".join(product_steps(i, n) for i in range(1, 11)))
        elif kind == "plus":
            lines.append(" ".join(sum_steps(i, n) for i in range(1, 10)))
        elif kind == "minus":
            lines.append(" ".join(f"{i + n} - {n} = {i}." for i in range(1, 10)))
        else:
            start = rng.randint(0, 9)
            lines.append(
                f"Count by {n} from {start}: " + ", ".join(str(start + n * i) for i in range(8)) + "."
            )
    return "\n".join(lines)


_LAYOUTS: tuple[Callable[[Random, Split], str], ...] = (
    _exercise_sheet, _exercise_sheet, _questions_and_answers, _questions_and_answers, _story_page, _lesson,
    _tables,
)  # fmt: skip
