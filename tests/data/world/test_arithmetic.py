import re
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from onesitting.data.world.arithmetic import (
    KINDS,
    difference_steps,
    exercise,
    product_steps,
    split_of_exercise,
    sum_steps,
)
from onesitting.data.world.word_problems import bare_problem, document, problem, word_problem

EQUATION = re.compile(r"(\d+) ([-+×]) (\d+) = (\d+)\.")


def equations(steps: str) -> list[tuple[int, str, int, int]]:
    return [(int(a), sign, int(b), int(c)) for a, sign, b, c in EQUATION.findall(steps)]


def value(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "×": a * b}[sign]


def is_easy(a: int, sign: str, b: int) -> bool:
    """A table fact, whole tens, or tens and ones put together with at most one carried ten."""
    if sign == "×":
        return (a <= 10 and b <= 10) or (a % 10 == 0 and b <= 10)
    if sign == "+":
        return max(a, b) < 10 or a % 10 == 0 or b % 10 == 0
    return a < 20 or (a % 10 == 0 and b % 10 == 0)


@given(st.integers(1, 99), st.integers(1, 99))
def test_each_step_of_a_sum_is_true_and_easy_and_the_last_one_is_the_answer(a: int, b: int):
    found = equations(sum_steps(a, b))
    assert all(value(x, sign, y) == z and is_easy(x, sign, y) for x, sign, y, z in found)
    assert found[-1][3] == a + b


@given(st.integers(1, 100).flatmap(lambda a: st.tuples(st.just(a), st.integers(1, a))))
def test_each_step_of_a_difference_is_true_and_easy_and_the_last_one_is_the_answer(numbers: tuple[int, int]):
    a, b = numbers
    found = equations(difference_steps(a, b))
    assert all(value(x, sign, y) == z and is_easy(x, sign, y) for x, sign, y, z in found)
    assert found[-1][3] == a - b


@given(st.integers(2, 99), st.integers(2, 9))
def test_each_step_of_a_product_is_true_and_easy_and_the_last_one_is_the_answer(a: int, b: int):
    found = equations(product_steps(a, b))
    assert all(value(x, sign, y) == z and is_easy(x, sign, y) for x, sign, y, z in found)
    assert found[-1][3] == a * b


def test_answers_agree_with_the_numbers_of_the_question():
    rng = Random(0)
    for _ in range(500):
        found = bare_problem(rng, "train")
        numbers = [int(n) for n in re.findall(r"\d+", found.question)]
        a, b = numbers[:2]
        expected = {
            "sum": a + b,
            "difference": abs(a - b),
            "product": a * b,
            "comparison": max(a, b),
            "sequence": numbers[-1] + (numbers[1] - numbers[0]),
        }[found.kind]
        assert int(found.answer) == expected
        assert found.answer in found.sentence
        assert found.answer in found.steps


def test_word_problems_count_at_least_two_of_everything():
    rng = Random(1)
    for _ in range(500):
        found = word_problem(rng, "train")
        numbers = [int(n) for n in re.findall(r"\d+", found.question)]
        assert min([*numbers, int(found.answer)]) >= 2
        assert found.answer in re.findall(r"\d+", found.sentence)


def test_no_test_exercise_is_posed_in_training_in_either_order():
    train = {exercise(Random(i), "train").key for i in range(20_000)}
    test = {exercise(Random(i), "test").key for i in range(300)}
    assert not train & test
    assert {key.split()[0] for key in test} == set(KINDS)


def test_swapping_the_operands_of_a_sum_keeps_its_split():
    keys: dict[frozenset[int], set[str]] = {}
    for i in range(3000):
        found = exercise(Random(i), "train", "sum")
        keys.setdefault(frozenset(found.numbers), set()).add(split_of_exercise(found))
    assert all(splits == {"train"} for splits in keys.values())


def test_no_page_for_training_poses_a_test_problem():
    test = {problem(Random(i), "test").key for i in range(200)}
    sums = {tuple(map(int, key.split()[1:])) for key in test if key.startswith("sum ")}
    posed: set[tuple[int, int]] = set()
    for i in range(3000):
        for a, b in re.findall(
            r"(?:What is|How much is|work out) (\d+) (?:\+|plus) (\d+)\?", document(Random(i), "train")
        ):
            posed.add((min(int(a), int(b)), max(int(a), int(b))))
    assert len(posed) > 200
    assert not posed & sums


def test_pages_are_a_function_of_the_random_stream():
    assert document(Random(5), "train") == document(Random(5), "train")
    assert len({document(Random(i), "train") for i in range(500)}) == 500
