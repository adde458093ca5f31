"""Prompts with answers that can be checked: from the world and from files."""

import json
from pathlib import Path

import pytest

from onesitting.data.prompts import prompt_of, read_prompts
from onesitting.data.world.scoring import Reply
from onesitting.data.world.suite import SCORERS
from onesitting.errors import UserError
from onesitting.tools.protocol import Tool, make_schema


def write(path: Path, records: list[object]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_a_record_of_gsm8k_has_the_number_behind_the_marks_as_its_answer():
    prompt = prompt_of({"question": "How many?", "answer": "3 * 400 = 1200.\n#### 1,200"})
    assert prompt.messages == [{"role": "user", "content": "How many?"}]
    assert (prompt.scorer, prompt.reference) == ("number", {"answer": "1200"})


def test_a_record_of_messages_brings_its_own_scorer_and_reference():
    messages = [{"role": "user", "content": "Colour?"}]
    prompt = prompt_of({"messages": messages, "reference": "blue"})
    assert SCORERS[prompt.scorer](Reply("It is blue."), prompt.reference).correct
    prompt = prompt_of({"messages": messages, "reference": {"exact": "Blue"}, "scorer": "instruction"})
    assert not SCORERS[prompt.scorer](Reply("blue"), prompt.reference).correct


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ([], "not an object"),
        ({"question": "?"}, "without an answer"),
        ({"text": "?"}, "neither"),
        ({"messages": [{"role": "user", "content": "?"}], "reference": ["3"]}, "neither text, a number"),
        (
            {"messages": [{"role": "user", "content": "?"}], "reference": {"tests": "x"}, "scorer": "number"},
            "no `answer`, which the scorer 'number'",
        ),
        (
            {"messages": [{"role": "user", "content": "?"}], "reference": {"name": "f"}, "scorer": "tool"},
            "no `arguments`, which the scorer 'tool'",
        ),
        (
            {"messages": [{"role": "user", "content": "?"}], "reference": "x", "scorer": "guess"},
            "no scorer 'guess'",
        ),
    ],
)
def test_a_bad_record_is_refused_with_what_is_wrong(record: object, problem: str):
    with pytest.raises(ValueError, match=problem):
        prompt_of(record)


def test_bad_records_above_the_limit_end_with_file_and_line(tmp_path: Path):
    spec = write(tmp_path / "p.jsonl", [{"question": "?", "answer": "1"}, {"text": "?"}])
    with pytest.raises(UserError, match=r"p\.jsonl:2"):
        read_prompts((spec,), 0)


def test_each_pass_over_a_file_holds_every_training_prompt_once_and_no_validation_prompt(tmp_path: Path):
    spec = write(tmp_path / "p.jsonl", [{"question": f"What is {i}?", "answer": str(i)} for i in range(60)])
    prompts = read_prompts((spec,), 3)
    (source,) = prompts.sources
    n_train, n_val = len(source.by_split["train"]), len(source.by_split["val"])  # pyright: ignore
    assert n_train + n_val == 60
    assert n_val > 0
    asked = [prompts.get("train", i).messages[0]["content"] for i in range(2 * n_train)]
    assert len(set(asked[:n_train])) == n_train
    assert set(asked[:n_train]) == set(asked[n_train:])
    assert asked[:n_train] != asked[n_train:]
    held_out = {prompts.get("val", i).messages[0]["content"] for i in range(n_val)}
    assert not held_out & set(asked)


def test_sources_take_turns(tmp_path: Path):
    spec = write(tmp_path / "p.jsonl", [{"question": "mine?", "answer": "1"}])
    prompts = read_prompts(("world:arithmetic", spec), 0)
    assert prompts.get("train", 0).messages[0]["content"] != "mine?"
    assert prompts.get("train", 1).messages[0]["content"] == "mine?"


@pytest.mark.parametrize("task", ["arithmetic", "tools", "facts", "agent"])
def test_prompts_of_one_task_are_pure_and_their_oracle_is_right(task: str):
    from onesitting.data.world import World
    from onesitting.data.world.prompts import prompt
    from onesitting.data.world.suite import reply_of

    world = World(0)
    for index in range(20):
        found = prompt(world, "train", index, task)
        assert found == prompt(world, "train", index, task)
        assert found["meta"]["task"] == task
        last = found["oracle"][-1] if task == "agent" else found["oracle"]
        assert SCORERS[found["scorer"]](reply_of(last), found["reference"]).correct


def test_an_unknown_task_of_the_world_is_refused():
    with pytest.raises(UserError, match=r"no task 'sums'; use stories, .*agent"):
        read_prompts(("world:sums",), 0)


@pytest.mark.parametrize(
    ("scorer", "reference", "reply"),
    [
        (None, {"answer": "85"}, "It is 85."),
        (None, 85, "It is 85."),
        ("answer", {"accepted": ["eighty-five", "85"]}, "It is 85."),
        ("number", 85.0, "So 85"),
        ("number", "1,085", "So 1,085."),
        ("number", {"answer": 1234567}, "1234567"),
        ("last_word", "Thursday", "On Thursday."),
    ],
)
def test_a_reference_is_read_in_every_form_that_says_what_is_right(
    scorer: object, reference: object, reply: str
):
    record = {"messages": [{"role": "user", "content": "?"}], "reference": reference}
    prompt = prompt_of({**record, "scorer": scorer} if scorer else record)
    assert SCORERS[prompt.scorer](Reply(reply), prompt.reference).correct
    assert not SCORERS[prompt.scorer](Reply("It is 86."), prompt.reference).correct


AREA = make_schema("area", "Area.", {"width": {"type": "number"}})


def test_a_call_is_scored_by_the_schemas_of_the_record(tmp_path: Path):
    reference = {"name": "area", "arguments": [{"width": 3}]}
    record = {"messages": [{"role": "user", "content": "?"}], "reference": reference, "scorer": "tool"}
    call = {"type": "function", "function": {"name": "area", "arguments": {"width": 3}}}
    for prompt in (prompt_of({**record, "tools": [AREA]}), prompt_of(record, [AREA])):
        assert prompt.tools == [AREA]
        assert SCORERS["tool"](Reply("", (call,)), prompt.reference).correct


def test_tools_of_ones_own_are_offered_and_one_that_nobody_runs_is_found(tmp_path: Path):
    area = Tool(schema=AREA, function="mine.py:area")
    spec = write(
        tmp_path / "p.jsonl",
        [{"messages": [{"role": "user", "content": f"{i}?"}], "reference": "x"} for i in range(30)],
    )
    prompts = read_prompts((spec,), 0, tools=[area])
    assert prompts.get("train", 0).tools == [AREA]
    assert prompts.unknown_tools() == []
    assert "area" in {tool.name for tool in prompts.tools}
    other = write(
        tmp_path / "o.jsonl",
        [{"messages": [{"role": "user", "content": "?"}], "reference": "x", "tools": [AREA]}],
    )
    assert read_prompts((other,), 0).unknown_tools() == ["area"]


CALL = {"type": "function", "function": {"name": "now", "arguments": {}}}


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {"name": "now", "description": "Time."}},
        {"name": "now", "description": "Time.", "parameters": {"type": "object", "properties": {}}},
        {"type": "function", "name": "now", "description": "Time."},
    ],
    ids=["no parameters", "flat", "flat without parameters"],
)
def test_schemas_of_tools_are_brought_into_one_form(tool: dict[str, object]):
    record = {"messages": [{"role": "user", "content": "?"}], "scorer": "tool", "tools": [tool]}
    prompt = prompt_of({**record, "reference": {"name": "now", "arguments": [{}]}})
    wanted = make_schema("now", "Time.", {})
    wanted["function"]["parameters"].pop("required")
    assert prompt.tools == [wanted]
    assert SCORERS["tool"](Reply("", (CALL,)), prompt.reference).correct
    given = {"name": "now", "arguments": [{}], "tools": [tool]}
    prompt = prompt_of({**record, "tools": None, "reference": given})
    assert SCORERS["tool"](Reply("", (CALL,)), prompt.reference).correct


@pytest.mark.parametrize(
    ("tool", "problem"),
    [
        ("now", "a tool is no object"),
        ({"function": {}}, "a tool has no `name`"),
        ({"name": "f", "parameters": [1]}, "the `parameters` of tool 'f'"),
    ],
)
def test_what_is_no_tool_is_a_bad_record(tool: object, problem: str):
    messages = [{"role": "user", "content": "?"}]
    with pytest.raises(ValueError, match=problem):
        prompt_of({"messages": messages, "reference": "x", "tools": [tool]})


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_small_file_validates_on_a_prompt_that_it_does_not_train_on(tmp_path: Path, n: int):
    for first in range(0, 60, n):  # whichever split their contents would choose
        records = [{"question": f"What is {first + i}?", "answer": str(i)} for i in range(n)]
        prompts = read_prompts((write(tmp_path / "p.jsonl", records + records[:1]),), 0)
        by_split = prompts.sources[0].by_split  # pyright: ignore
        said = {split: {one.messages[0]["content"] for one in by_split[split]} for split in ("train", "val")}
        assert said["train"]
        assert said["val"]
        assert not said["train"] & said["val"]
        assert prompts.notes == ()


def test_a_file_of_one_prompt_says_that_it_validates_on_it(tmp_path: Path):
    for i in range(20):
        prompts = read_prompts((write(tmp_path / "p.jsonl", [{"question": f"{i}?", "answer": "1"}]),), 0)
        assert prompts.get("train", 0) == prompts.get("val", 0)
        (note,) = prompts.notes
        assert "holds one prompt" in note
