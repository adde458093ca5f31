import re
from random import Random

import pytest

from onesitting.data.world import World
from onesitting.data.world.grammar import CHARACTERS
from onesitting.data.world.splits import split_of
from onesitting.data.world.stories import ANIMALS, OBJECTS, PLACES, SHAPES, story


def test_a_story_is_a_function_of_its_random_stream() -> None:
    assert story(Random(5)).text == story(Random(5)).text
    assert story(Random(5)).text != story(Random(6)).text


def test_stories_have_60_to_230_words_and_a_median_near_140() -> None:
    rng = Random(1)
    lengths = sorted(len(story(rng).text.split()) for _ in range(1500))
    assert lengths[0] >= 60
    assert lengths[-1] <= 230
    assert 110 <= lengths[len(lengths) // 2] <= 160


def test_every_shape_occurs_and_no_slot_is_left_open() -> None:
    rng = Random(2)
    told = [story(rng) for _ in range(1500)]
    assert {t.shape for t in told} == {s.name for s in SHAPES}
    assert not [t.text for t in told if re.search(r"[{}\[\]|]|  ", t.text)]


def test_what_is_asked_for_is_in_the_story() -> None:
    rng = Random(3)
    for _ in range(150):
        noun, place = rng.choice(OBJECTS), rng.choice(PLACES)
        a, b = rng.sample(sorted(CHARACTERS), 2)
        told = story(rng, characters=(a, b), object=f"red {noun}", place=place)
        assert told.characters == (a, b)
        for wanted in (a, b, f"red {noun}", place):
            assert wanted in told.text, (wanted, told.text)


def test_an_animal_can_be_asked_for() -> None:
    rng = Random(4)
    for animal in ANIMALS:
        assert animal in story(rng, animal=animal, characters=("Mia",)).text.lower()


def test_a_funny_story_ends_with_a_laugh() -> None:
    rng = Random(8)
    assert all("laugh" in story(rng, mood="funny", shape="lost").text for _ in range(20))


@pytest.mark.parametrize(
    "wish", [{"object": "spaceship"}, {"characters": ("Xyz",)}, {"place": "moon"}, {"animal": "dragon"}]
)
def test_an_unknown_wish_is_refused_by_name(wish: dict[str, object]) -> None:
    word = next(iter(wish.values()))
    with pytest.raises(ValueError, match=word if isinstance(word, str) else word[0]):  # type: ignore[index]
        story(Random(0), **wish)  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_story_belongs_to_the_split_of_its_situation(split: str) -> None:
    rng = Random(9)
    for _ in range(60):
        assert split_of(story(rng, split=split).key) == split  # type: ignore[arg-type]


def test_no_situation_of_the_test_split_occurs_in_training() -> None:
    rng = Random(10)
    train = {story(rng, split="train").key for _ in range(8000)}
    test = {story(rng, split="test").key for _ in range(200)}
    assert not train & test


def test_the_same_document_comes_from_any_start() -> None:
    world = World(0)
    texts = list(world.documents("train", 0.05))
    assert texts[20] == world.document("train", 20)
    assert next(world.documents("train", 0.001, start=20)) == texts[20]
    assert World(1).document("train", 20) != texts[20]


def test_three_megabytes_have_no_duplicates_and_2000_distinct_words() -> None:
    texts = list(World(0).documents("train", 3))
    assert len(set(texts)) == len(texts)
    words = {w.lower() for text in texts for w in re.findall(r"[A-Za-z]+", text)}
    assert len(words) >= 2000


def test_training_documents_do_not_occur_in_validation_or_test() -> None:
    world = World(0)
    train = set(world.documents("train", 1))
    for split in ("val", "test"):
        assert not train & set(world.documents(split, 0.1))
