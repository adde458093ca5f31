from typing import Any

import pytest

from onesitting.data.records import RecordError, conversation_of, guess_chat_form, guess_text_field

Record = dict[str, Any]
QA = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("records", "field"),
    [
        ([{"id": "1", "text": "x"}], "text"),
        ([{"title": "long title here", "Content": "x"}], "Content"),
        ([{"id": "1", "essay": "long words"}, {"id": "2", "essay": "more long words"}], "essay"),
        ([{"id": 1, "n": 2.5}], None),
        ([{"text": ["a"]}], None),
        ([{"messages": QA, "id": "abc"}], None),
    ],
)
def test_text_field_is_guessed(records: list[Record], field: str | None):
    assert guess_text_field(records) == field


CONVERSATIONS: dict[str, tuple[Record, list[Record]]] = {
    "openai": ({"messages": QA}, QA),
    "text as JSON": (
        {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},
        QA,
    ),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, QA[1]]}, QA),
    "sharegpt": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, QA),
    "minimind": (
        {"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        QA,
    ),
    "alpaca": ({"instruction": "q", "input": "", "output": "a"}, QA),
    "alpaca with input": (
        {"instruction": "q", "input": "data", "output": "a"},
        [{"role": "user", "content": "q\n\ndata"}, QA[1]],
    ),
    "alpaca with history": (
        {"instruction": "q", "output": "a", "history": [["q", "a"]], "system": ""},
        QA + QA,
    ),
    "prompt": ({"prompt": "q", "response": "a"}, QA),
    "completion": ({"prompt": QA[:1], "completion": QA[1:]}, QA),
    "question": ({"question": "q", "answer": "a", "id": 3}, QA),
    "empty system": ({"messages": [{"role": "system", "content": " "}, *QA]}, QA),
    "thought": (
        {"messages": [QA[0], {"role": "assistant", "content": "a", "reasoning_content": "r"}]},
        [QA[0], {"role": "assistant", "content": "a", "reasoning_content": "r"}],
    ),
    "thought in the text": (
        {"messages": [QA[0], {"role": "assistant", "content": "<think>\nr\n</think>\n\na"}]},
        [QA[0], {"role": "assistant", "content": "a", "reasoning_content": "r"}],
    ),
}
CALLS = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
WITH_CALL = [
    QA[0],
    {"role": "assistant", "content": "", "tool_calls": CALLS},
    {"role": "tool", "content": "r"},
    QA[1],
]
TOOL_FORMS: dict[str, Record] = {
    "openai": {"messages": [QA[0], {**WITH_CALL[1], "content": None}, WITH_CALL[2], QA[1]]},
    "arguments as text": {
        "messages": [
            QA[0],
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
            {"role": "tool", "content": "r", "tool_call_id": "c1"},
            QA[1],
        ]
    },
    "older openai": {
        "messages": [
            QA[0],
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
            {"role": "function", "name": "f", "content": "r"},
            QA[1],
        ]
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "r"},
            {"from": "gpt", "value": "a"},
        ]
    },
    "hermes": {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'},
            {"from": "tool", "value": "<tool_response>r</tool_response>"},
            {"from": "gpt", "value": "a"},
        ]
    },
}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_known_forms_become_openai_messages(name: str):
    record, messages = CONVERSATIONS[name]
    form = guess_chat_form(record)
    assert form
    assert conversation_of(record, form) == (messages, None)


@pytest.mark.parametrize("name", TOOL_FORMS)
def test_tool_calls_of_known_forms_become_openai_messages(name: str):
    record = TOOL_FORMS[name]
    assert conversation_of(record, guess_chat_form(record) or "") == (WITH_CALL, None)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": QA, "tools": [TOOL]},
        {"messages": QA, "tools": '[{"type": "function", "function": {"name": "f"}}]'},
        {"messages": QA, "functions": [{"name": "f"}]},
        {"conversations": [{"role": "system", "content": "", "tools": '[{"name": "f"}]'}, *QA]},
    ],
)
def test_tools_are_found(record: Record):
    assert conversation_of(record, guess_chat_form(record) or "") == (QA, [TOOL])


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"messages": [{"role": "user", "content": "q"}]}, "no assistant message"),
        ({"messages": [{"role": "robot", "content": "q"}]}, "unknown role 'robot'"),
        ({"messages": [QA[0], {"role": "assistant", "content": ""}]}, "empty assistant message"),
        ({"messages": [{"role": "user", "content": ""}, QA[1]]}, "empty user message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, QA[1]]}, "not text"),
        ({"messages": [{"role": "user", "content": 5}, QA[1]]}, "int, not text"),
        ({"messages": ["q", "a"]}, "not an object"),
        ({"messages": [QA[0], {"role": "assistant", "tool_calls": [{"arguments": {}}]}]}, "without a name"),
        (
            {"messages": [QA[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "no object",
        ),
        ({"messages": [QA[0], {"role": "assistant", "tool_calls": {"name": "f"}}]}, "no list"),
        ({"messages": QA, "tools": "f"}, "no list of objects"),
        ({"instruction": "q", "output": "a", "history": [1]}, "pairs"),
    ],
)
def test_other_records_are_refused_with_what_is_wrong(record: Record, problem: str):
    with pytest.raises(RecordError, match=problem):
        conversation_of(record, guess_chat_form(record) or "messages")
