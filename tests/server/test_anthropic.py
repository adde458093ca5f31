"""Conformance: the official `anthropic` client against a running server."""

from typing import Any

import anthropic
import openai
import pytest

HELLO: list[Any] = [{"role": "user", "content": "What is 2 + 3?"}]
GREEDY = {"top_k": 1}
"""This protocol has no seed. Not every version of the client has a parameter for it."""
ADD: Any = {
    "name": "add",
    "description": "Add.",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 99}},
        "required": ["a"],
        "additionalProperties": False,
    },
}


def ask(claude: anthropic.Anthropic, **more: Any) -> Any:
    body = {**GREEDY, **more.pop("extra_body", {})}
    return claude.messages.create(
        **{"model": "tiny", "messages": HELLO, "max_tokens": 24, "extra_body": body, **more}
    )


def test_message_has_every_field(claude: anthropic.Anthropic) -> None:
    message = ask(claude)
    assert (message.type, message.role, message.model) == ("message", "assistant", "tiny")
    assert message.id.startswith("msg_")
    assert message.content[0].type == "text"
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert message.usage.output_tokens <= 24


def test_message_is_the_chat_completion_of_the_same_conversation(
    claude: anthropic.Anthropic, client: openai.OpenAI
) -> None:
    messages: Any = [{"role": "system", "content": "Be brief."}, *HELLO]
    chat = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=24)
    assert ask(claude, system="Be brief.").content[0].text == chat.choices[0].message.content
    blocks = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    assert ask(claude, system=blocks).content[0].text == chat.choices[0].message.content


def test_stream_has_the_events_of_the_protocol(claude: anthropic.Anthropic) -> None:
    events = list(ask(claude, stream=True))
    kinds = [event.type for event in events if event.type != "ping"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    text = "".join(event.delta.text for event in events if event.type == "content_block_delta")
    assert text == ask(claude).content[0].text
    assert events[-2].usage.output_tokens == ask(claude).usage.output_tokens


def test_stream_helper_of_the_client_understands_the_stream(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model="tiny", messages=HELLO, max_tokens=24, extra_body=GREEDY) as stream:
        assert "".join(stream.text_stream) == ask(claude).content[0].text
        assert stream.get_final_message().stop_reason == ask(claude).stop_reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "add"}])
def test_tool_is_called_with_valid_input(claude: anthropic.Anthropic, choice: Any, stream: bool) -> None:
    more = {"tools": [ADD], "tool_choice": choice, "max_tokens": 100}
    if stream:
        with claude.messages.stream(model="tiny", messages=HELLO, **more) as events:
            message = events.get_final_message()
    else:
        message = ask(claude, **more)
    [call] = message.content
    assert (call.type, call.name, message.stop_reason) == ("tool_use", "add", "tool_use")
    assert call.input["a"] <= 99
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "5"}]}
    turns = [*HELLO, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert ask(claude, messages=turns, tools=[ADD]).usage.input_tokens > 30


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_is_a_block_of_its_own(claude: anthropic.Anthropic, stream: bool) -> None:
    more: Any = {"thinking": {"type": "enabled", "budget_tokens": 6}, "max_tokens": 30}
    if stream:
        with claude.messages.stream(model="tiny", messages=HELLO, extra_body=GREEDY, **more) as events:
            message = events.get_final_message()
    else:
        message = ask(claude, **more)
    assert [block.type for block in message.content] == ["thinking", "text"]
    turns = [*HELLO, {"role": "assistant", "content": message.content}, {"role": "user", "content": "Go on"}]
    assert ask(claude, messages=turns).stop_reason


def test_stop_sequence_is_named(claude: anthropic.Anthropic) -> None:
    plain = ask(claude, max_tokens=60).content[0].text
    letter = next(c for c in plain[3:] if c.isascii() and not c.isspace())
    message = ask(claude, max_tokens=60, stop_sequences=["never", letter])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", letter)
    assert letter not in message.content[0].text


@pytest.mark.parametrize("choice", ["auto", "none", "any"])
@pytest.mark.parametrize("thinking", [None, "enabled", "disabled"])
def test_tokens_are_counted_as_they_are_read(
    claude: anthropic.Anthropic, thinking: str | None, choice: str
) -> None:
    more: Any = {"tools": [ADD], "tool_choice": {"type": choice}}
    if thinking is not None:
        more["thinking"] = {"type": thinking, **({"budget_tokens": 4} if thinking == "enabled" else {})}
    counted = claude.messages.count_tokens(model="tiny", messages=HELLO, **more)
    assert counted.input_tokens == ask(claude, max_tokens=100, **more).usage.input_tokens


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"temperature": 1.5}}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "role"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "{"}]}, "going on with its words"),
        ({"tool_choice": {"type": "any"}}, "no such tool"),
        ({"tools": [ADD], "tool_choice": {"type": "tool"}}, "needs a name"),
        ({"extra_body": {"wrong": 1}}, "unknown field"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, "context is"),
    ],
)
def test_mistake_is_answered_in_this_protocols_form(
    claude: anthropic.Anthropic, more: Any, word: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as error:
        ask(claude, **more)
    body: Any = error.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert word in body["error"]["message"]


def test_unknown_model_is_404(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        ask(claude, model="claude")
