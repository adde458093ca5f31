from random import Random

import pytest
from corruptions import CORRUPTIONS, detection_rates

from onesitting.data.world.stories import SHAPES, story
from onesitting.data.world.story_rules import check_story

GOOD = (
    "Once there was a kind girl named Mia. She had a red kite that she loved. One sunny morning, she went to the hill. "
    "On the hill, Mia put the kite down. Then her friend Tom came along. Tom picked up the kite and gave it to Mia. "
    '"Thank you, Tom!" said Mia. They walked home together, and both of them were happy.'
)


def rules(text: str) -> set[str]:
    return {violation.rule for violation in check_story(text)}


def test_generated_stories_are_accepted() -> None:
    rng = Random(2024)
    rejected = [(v, told.text) for _ in range(600) if (v := check_story((told := story(rng)).text))]
    assert len(rejected) <= 1, rejected[:3]


def test_every_shape_is_accepted() -> None:
    rng = Random(7)
    for shape in SHAPES:
        texts = [story(rng, shape=shape.name).text for _ in range(12)]
        assert sum(bool(check_story(text)) for text in texts) == 0, shape.name


def test_a_well_formed_story_from_another_hand_passes() -> None:
    assert check_story(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("Then her friend Tom came along. ", "", "name from nowhere"),
        ("Tom picked up the kite and gave", "Mia had the kite. Tom gave", "gives what another has"),
        ("put the kite down", "put the blue kite down", "another colour"),
        ("put the kite down", "put the umbrella down", "thing from nowhere"),
        ("On the hill", "By the river", "elsewhere without going"),
        ("One sunny morning, she", "One sunny morning, he", "pronoun without a person"),
        ("a kind girl named Mia", "a kind boy named Mia", "wrong gender"),
        ("a kind girl", "an kind girl", "wrong article"),
        ("she went to", "she went went to", "doubled word"),
        ('said Mia', "said Tom", "speaks to himself"),
        ('Tom!" said', "Tom! said", "open quotation"),
        ("was a kind girl", "was a kind gorl", "unknown word"),
        ("both of them were happy.", "both of them", "no end mark"),
        (" They walked home together, and both of them were happy.", "", "no ending"),
        ("Tom picked up the kite and gave it to Mia. ", "Mia dropped the kite. ", "never found"),
        ("gave it to Mia", "gaved it to Mia", "unknown word"),
    ],
)  # fmt: skip
def test_an_error_is_named(old: str, new: str, rule: str) -> None:
    spoiled = GOOD.replace(old, new)
    assert spoiled != GOOD
    assert rule in rules(spoiled), check_story(spoiled)


def test_money_has_to_add_up() -> None:
    shopping = (
        "Once there was a boy named Ben. Ben had nine coins in his pocket. On Monday morning, he went to the market. "
        "At the market, Ben saw a blue cup. The cup cost four coins. Ben bought the cup and put {left} coins back into "
        "his pocket. He walked home and sang a little song. It had been a good day."
    )
    assert rules(shopping.format(left="five")) == set()
    assert rules(shopping.format(left="six")) == {"money does not add up"}


def test_an_animal_that_eats_the_wrong_food_is_noticed() -> None:
    rescue = (
        "Once there was a boy named Ben. One morning, he went to the forest. In the forest, Ben saw a small rabbit. "
        "The rabbit was hungry. Ben gave it some {food}, and it ate all of it. The rabbit rested a little. "
        "Then Ben walked home and sang a little song. It had been a good day."
    )
    assert rules(rescue.format(food="carrots")) == set()
    assert rules(rescue.format(food="meat")) == {"wrong food"}


def test_nonsense_and_fragments_are_rejected() -> None:
    assert rules("Mia went") == {"unfinished"}
    assert rules("the kite of and to was a " * 10)
    assert rules(" ".join(reversed(GOOD.split())))


def test_corrupted_stories_are_noticed_at_the_documented_rates() -> None:
    rates = detection_rates(30, check_story)
    floors = {f.__name__: floor for f, floor in CORRUPTIONS.items()}
    assert {name: rate for name, (rate, _) in rates.items() if rate < floors[name] - 0.15} == {}
