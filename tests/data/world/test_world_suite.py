import random

import pytest

from onesitting.data.world import World
from onesitting.data.world.conversations import talk
from onesitting.data.world.scoring import (
    Reply,
    score_answer,
    score_instruction,
    score_number,
    score_tool,
    sentences,
)
from onesitting.data.world.suite import TASKS, base_suite, score, suite
from onesitting.data.world.tools import TOOLS

WORLD = World(0)


def test_the_suite_is_a_function_of_world_size_and_seed():
    assert suite(World(0), 5, seed=3) == suite(WORLD, 5, seed=3)
    assert suite(WORLD, 5, seed=3) != suite(WORLD, 5, seed=4)
    assert {task: len(items) for task, items in suite(WORLD, 7).items()} == dict.fromkeys(TASKS, 7)


def test_a_larger_suite_begins_with_the_smaller_one():
    small, large = suite(WORLD, 5), suite(WORLD, 9)
    assert all(large[task][:5] == items for task, items in small.items())


def test_items_of_a_task_differ():
    for items in (*suite(WORLD, 60).values(), *base_suite(WORLD, 60).values()):
        assert len({item.text() for item in items}) == 60


def test_no_item_is_in_the_training_conversations():
    items = [item for group in suite(WORLD, 100).values() for item in group]
    keys = {item.key for item in items}
    prompts = {item.text() for item in items}
    # 50,000 were compared when the splits were set; a random tenth of them keeps the test quick.
    indices = random.Random(0).sample(range(50_000), 5_000)
    for index in indices:
        made = talk(WORLD, "train", index)
        assert not made.key or made.key not in keys, made.key
        if made.scored >= 0:
            before = made.messages[: made.scored]
            assert "\n".join(f"{m['role']}: {m['content']}" for m in before) not in prompts


def test_right_replies_in_other_words_are_right():
    reference = {"accepted": ["Tom"], "rejected": ["Mia", "Ben"]}
    for reply in ("Tom", "It was Tom.", "tom!", "The answer is Tom."):
        assert score_answer(Reply(reply), reference).correct, reply
    for reply in ("", "Mia", "Tom or Mia", "Tomas", "It was Tom and Ben."):
        assert not score_answer(Reply(reply), reference).correct, reply
    assert score_answer(Reply("a red  Kite"), {"accepted": ["the red kite"]}).correct
    assert score_answer(
        Reply("He lost the toy boat."), {"accepted": ["toy boat"], "rejected": ["boat"]}
    ).correct
    assert not score_answer(
        Reply("He lost the toy boat."), {"accepted": ["boat"], "rejected": ["toy boat"]}
    ).correct


def test_the_last_number_counts():
    reference = {"answer": "85"}
    assert score_number(Reply("70 + 15 = 85. The answer is 85."), reference).correct
    assert score_number(Reply("85 apples"), reference).correct
    assert not score_number(Reply("85, no, 86."), reference).correct
    assert not score_number(Reply("1.85"), reference).correct
    assert not score_number(Reply("eighty"), reference).correct


@pytest.mark.parametrize(
    ("reply", "reference", "correct"),
    [
        ("- cow\n- pig", {"items": 2, "allowed": ["cow", "pig", "hen"]}, True),
        ("- cow\n- cow", {"items": 2, "allowed": ["cow", "pig"]}, False),
        ("- cow\n- car", {"items": 2, "allowed": ["cow", "pig"]}, False),
        ("cow\npig", {"items": 2, "allowed": ["cow", "pig"]}, False),
        ("- cow\n- pig\n- hen", {"items": 2, "allowed": ["cow", "pig", "hen"]}, False),
        ("A cow eats grass. It moos.", {"sentences": 2, "mentions": ["cow"]}, True),
        ("A cow eats grass. It moos", {"sentences": 2, "mentions": ["cow"]}, False),
        ("It eats grass. It moos.", {"sentences": 2, "mentions": ["cow"]}, False),
        ("Barn.", {"words": 1, "accepted": ["barn"]}, True),
        ("A barn.", {"words": 1, "accepted": ["barn"]}, False),
        ("Yes.", {"yes_no": "yes"}, True),
        ("Yes, it does.", {"yes_no": "yes"}, False),
        ('{"age": 7, "name": "Mia"}', {"json": {"name": "Mia", "age": 7}}, True),
        ('{"name": "Mia", "age": "7"}', {"json": {"name": "Mia", "age": 7}}, False),
        ("name: Mia", {"json": {"name": "Mia"}}, False),
        ("KITE", {"exact": "KITE"}, True),
        ("Kite", {"exact": "KITE"}, False),
        ("A cow eats grass. Meow!", {"ends": "Meow!", "accepted": ["grass"]}, True),
        ("A cow eats corn. Meow!", {"ends": "Meow!", "accepted": ["grass"]}, False),
        ("Meow! A cow eats grass.", {"ends": "Meow!", "accepted": ["grass"]}, False),
    ],
)
def test_instructions_are_kept_to_the_letter(reply: str, reference: dict[str, object], correct: bool):
    assert score_instruction(Reply(reply), reference).correct == correct


def test_a_call_is_judged_for_form_and_for_content():
    reference = {"tools": list(TOOLS), "name": "calculator", "arguments": [{"expression": "3 * 4"}]}

    def verdict(name: str, **arguments: object):
        return score_tool(Reply("", ({"name": name, "arguments": arguments},)), reference)

    assert verdict("calculator", expression="3*4").correct
    assert verdict("calculator", expression="3 + 4").parts == {"valid": True}
    assert not verdict("calculator", expression="3 + 4").correct
    assert verdict("calendar", day="Monday", days=3).parts == {"valid": True}
    assert verdict("calculator", sum="3 * 4").parts == {"valid": False}
    assert not score_tool(Reply("12"), reference).correct
    twice = ({"name": "calculator", "arguments": {"expression": "3 * 4"}},) * 2
    assert not score_tool(Reply("", twice), reference).correct
    none = {"tools": list(TOOLS), "name": None, "accepted": ["grass"], "rejected": []}
    assert score_tool(Reply("It eats grass."), none).correct
    assert not score_tool(Reply("It eats grass.", twice), none).correct


def test_sentences_are_counted_with_their_quotes():
    assert sentences('"Stop!" he said. He ran. Did he?') == ['"Stop!" he said.', "He ran.", "Did he?"]


def test_a_story_needs_enough_sentences_and_no_contradiction():
    item = suite(WORLD, 1)["stories"][0]
    told = item.oracle["content"]
    assert score(item, told).correct
    assert not score(item, " ".join(sentences(told)[:3])).correct
    elsewhere = score(item, "\n".join(sentences(suite(WORLD, 2)["stories"][1].oracle["content"])))
    assert not elsewhere.parts["as_asked"]
