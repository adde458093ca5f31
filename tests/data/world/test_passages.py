import re
from random import Random

import pytest

from onesitting.data.world.passages import passage_document, passage_with_questions
from onesitting.data.world.splits import split_of

INFERRED = ("why", "how much did the two", "what was the price of both", "what made", "what was wrong")


def test_a_passage_is_a_function_of_its_random_stream() -> None:
    assert passage_with_questions(Random(1), "train") == passage_with_questions(Random(1), "train")


def test_every_answer_contains_an_accepted_key() -> None:
    rng = Random(2)
    for _ in range(1500):
        for question, answer, accepted in passage_with_questions(rng, "train", n=6).questions:
            assert question.endswith("?")
            assert answer.endswith(".")
            assert any(key.lower() in answer.lower() for key in accepted), (question, answer, accepted)


def test_answers_stand_in_the_passage_unless_they_are_inferred_or_left_open() -> None:
    rng = Random(3)
    missing: list[tuple[str, str]] = []
    n = 0
    for _ in range(1500):
        passage = passage_with_questions(rng, "train", n=6)
        for question, answer, accepted in passage.questions:
            n += 1
            if answer == "The text does not say." or answer.startswith(("Yes", "No")):
                continue
            if question.lower().startswith(INFERRED):
                continue
            if not any(key.lower() in passage.text.lower() for key in accepted):
                missing.append((question, answer))
    # `came first` is told as `had won`
    assert all("first" in answer for _, answer in missing), missing[:5]
    assert len(missing) < 0.01 * n


def test_an_open_question_is_not_answered_by_its_passage() -> None:
    rng = Random(4)
    shares: list[bool] = []
    for _ in range(2000):
        passage = passage_with_questions(rng, "train", n=6)
        for question, answer, _ in passage.questions:
            is_open = answer == "The text does not say."
            shares.append(is_open)
            if is_open and question.startswith("How much is the "):
                noun = question.removeprefix("How much is the ").rstrip("?")
                assert f" {noun} costs" not in passage.text
            if is_open and question.startswith(("How old was", "What was the age")):
                name = question.removeprefix("How old was ").removeprefix("What was the age of ").rstrip("?")
                assert not re.search(rf"{name} was \w+ years old|{name} was a (boy|girl) of", passage.text)
    assert 0.05 < sum(shares) / len(shares) < 0.25


def test_one_question_is_not_asked_twice_about_a_passage() -> None:
    rng = Random(5)
    for _ in range(800):
        questions = [q for q, _, _ in passage_with_questions(rng, "train", n=6).questions]
        assert len(questions) == len(set(questions)) >= 1


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_passage_belongs_to_the_split_of_its_situation(split: str) -> None:
    rng = Random(6)
    for _ in range(80):
        assert split_of(passage_with_questions(rng, split).key) == split  # type: ignore[arg-type]


def test_no_test_passage_and_no_test_question_with_its_passage_is_trained_on() -> None:
    rng = Random(7)
    train = {passage_with_questions(rng, "train").key for _ in range(6000)}
    test = {passage_with_questions(rng, "test").key for _ in range(150)}
    assert not train & test


def test_documents_hold_the_passage_its_questions_and_answers() -> None:
    rng = Random(8)
    layouts = {
        ("Question: " in t, "Q: " in t, "Answers:" in t, "1. " in t, "\n- " in t)
        for t in (passage_document(rng, "train") for _ in range(200))
    }
    assert len(layouts) == 5
