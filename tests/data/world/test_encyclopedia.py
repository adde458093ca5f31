import re
from random import Random

import pytest

from onesitting.data.world.encyclopedia import _teller, paragraph
from onesitting.data.world.lexicon import ANIMALS, NUMBERS, OBJECTS
from onesitting.data.world.splits import split_of
from onesitting.data.world.state import state

WORLD = state(0)


def texts(split: str, n: int) -> list[str]:
    rng = Random(f"paragraphs {split}")
    return [paragraph(rng, split) for _ in range(n)]  # type: ignore[arg-type]


def test_paragraphs_are_made_of_finished_sentences() -> None:
    for text in texts("train", 1500):
        assert not re.search(r"[{}|]|  ", text), text
        assert text[-1] in ".?", text
        assert all(s[0].isupper() or s[0].isdigit() for s in re.split(r"(?<=[.?]) ", text)), text


def test_what_paragraphs_say_is_true_in_the_world() -> None:
    checked = 0
    for text in texts("train", 4000):
        for town, job, name in re.findall(r"In (\w+), the ([a-z ]+) is called (\w+)\.", text):
            assert WORLD.towns[town].jobs[job] == name
            checked += 1
        for name, town in re.findall(r"\b(\w+) lives in ([A-Z]\w+)\.", text):
            if name in WORLD.people:
                assert WORLD.person(name).town == town
                checked += 1
        for noun, price in re.findall(r"\b[Aa]n? ([a-z ]+) costs (\w+) coins?\.", text):
            if noun in OBJECTS:
                assert str(WORLD.price(noun)) == price or NUMBERS[WORLD.price(noun)] == price
                checked += 1
        for animal, food in re.findall(r"(?:An?|The) (\w+) likes to eat ([a-z ]+)\.", text):
            assert food == " and ".join(ANIMALS[animal].foods)
            checked += 1
    assert checked > 300


def test_every_fact_is_told_in_training() -> None:
    told = _teller(0).said["train"]
    assert {fact.key for fact in WORLD.facts} == set(told)


def test_a_wording_of_a_fact_belongs_to_one_split() -> None:
    said = _teller(0).said
    pairs = {split: {(key, t) for key, ts in said[split].items() for t in ts} for split in said}
    assert not pairs["train"] & pairs["test"]
    assert not pairs["train"] & pairs["val"]
    assert len(pairs["test"]) > 200
    assert split_of("any key") in said


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_paragraphs_share_no_sentence_about_a_named_subject_with_training(split: str) -> None:
    def sentences(of: str, n: int) -> set[str]:
        # Sentences with a pronoun for a subject do not tell which fact they are about.
        return {
            s
            for t in texts(of, n)
            for s in re.split(r"(?<=[.?]) ", t)
            if not re.match(r"(He|She|It|His|Her|Its)\b", s)
        }

    shared = sentences("train", 6000) & sentences(split, 300)
    assert not {
        s
        for s in shared
        if re.search(r"[A-Z]\w+ (?:lives|is|has|likes)|costs|market", s)
        and " he " not in s
        and " she " not in s
    }, shared
