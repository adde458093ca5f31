"""Conformance: the official `openai` client against a running server, chat completions and what is around it."""

import json
import math
from typing import Any

import openai
import pytest
from running import CONTEXT, Running

from onesitting.inference.generate import generate
from onesitting.inference.sampling import Sampling
from onesitting.tokenizer.chat import render

HELLO: list[Any] = [{"role": "user", "content": "What is 2 + 3?"}]
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"type": "integer", "maximum": 99}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
SAY: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "say",
        "parameters": {
            "type": "object",
            "properties": {"word": {"enum": ["yes", "no"]}},
            "required": ["word"],
            "additionalProperties": False,
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": HELLO, "max_tokens": 24, "seed": 1, **more}
    )


def joined(stream: Any) -> str:
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def test_answer_has_every_field(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.choices[0].message.role == "assistant"
    assert isinstance(answer.choices[0].message.content, str)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_greedy_text_is_that_of_generate(client: openai.OpenAI, server: Running) -> None:
    tokenizer, model = server.model.tokenizer, server.model.engine.model
    ids, _ = render(tokenizer, HELLO, add_generation_prompt=True)
    [done] = generate(model, tokenizer, [ids], Sampling(temperature=0, max_tokens=60))
    # Chat takes white space from the ends of a text and thoughts out of it; its tokens are all of them.
    answer = ask(client, temperature=0, max_tokens=60, logprobs=True)
    assert bytes(b for t in answer.choices[0].logprobs.content for b in t.bytes) == tokenizer.decode_bytes(
        done.ids
    )
    assert answer.usage.prompt_tokens == len(ids)


@pytest.mark.parametrize(
    "more", [{}, {"temperature": 0}, {"stop": ["a"]}, {"n": 2}, {"max_tokens": 1}, {"top_p": 0.5}]
)
def test_stream_is_the_answer_in_pieces(client: openai.OpenAI, more: dict[str, Any]) -> None:
    answer = ask(client, **more)
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for chunk in ask(client, stream=True, **more):
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == {c.index: c.message.content for c in answer.choices}
    assert reasons == {c.index: c.finish_reason for c in answer.choices}


def test_stream_begins_with_the_role_and_ends_with_the_reason(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_comes_as_the_last_chunk_when_asked_for(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == ask(client).usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in ask(client, stream=True))


def test_stream_helper_of_the_client_understands_the_stream(client: openai.OpenAI) -> None:
    letter = next(
        c for c in ask(client).choices[0].message.content[2:] if c.isalnum()
    )  # the helper wants a whole reply
    with client.chat.completions.stream(
        model="tiny", messages=HELLO, max_tokens=24, seed=1, stop=letter
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ask(client, stop=letter).choices[0].message.content


@pytest.mark.parametrize("n", [1, 2, 5])
def test_n_gives_different_samples(client: openai.OpenAI, n: int) -> None:
    answer = ask(client, n=n)
    assert [c.index for c in answer.choices] == list(range(n))
    assert len({c.message.content for c in answer.choices}) == n
    assert answer.choices[0].message.content == ask(client).choices[0].message.content


def test_seed_repeats_and_another_one_differs(client: openai.OpenAI) -> None:
    texts = [ask(client, seed=seed).choices[0].message.content for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("stop", ["e", ["e", "t"], ["never written, surely"]])
def test_text_ends_before_a_stop_string(client: openai.OpenAI, stop: Any) -> None:
    plain = ask(client, max_tokens=60).choices[0].message.content
    text = ask(client, max_tokens=60, stop=stop).choices[0].message.content
    assert plain.startswith(text.rstrip())
    assert all(one not in text for one in ([stop] if isinstance(stop, str) else stop))


@pytest.mark.parametrize("most", [1, 7])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_length_is_bounded_and_says_so(client: openai.OpenAI, name: str, most: int) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, seed=1, **{name: most})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == most
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("n_top", [0, 3, 20])
@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_probabilities_of_the_tokens_written(
    client: openai.OpenAI, n_top: int, stream: bool
) -> None:
    answer = ask(client, logprobs=True, top_logprobs=n_top, stream=stream)
    if stream:
        entries = [
            e for c in answer if c.choices and c.choices[0].logprobs for e in c.choices[0].logprobs.content
        ]
    else:
        entries = answer.choices[0].logprobs.content
        assert len(entries) == answer.usage.completion_tokens
    for entry in entries:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == n_top
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1.0001
        assert entry.top_logprobs == sorted(entry.top_logprobs, key=lambda top: -top.logprob)


def test_logit_bias_forbids_and_forces(client: openai.OpenAI, server: Running) -> None:
    token = server.model.tokenizer.encode("a")[0]
    assert set(ask(client, logit_bias={str(token): 100}, temperature=0).choices[0].message.content) == {"a"}


@pytest.mark.parametrize(
    "more",
    [
        {"frequency_penalty": 2},
        {"presence_penalty": 2},
        {"extra_body": {"repetition_penalty": 1.5}},
        {"extra_body": {"top_k": 3}},
        {"extra_body": {"min_p": 0.3}},
        {"temperature": 1.9},
    ],
)
def test_sampling_setting_changes_the_text(client: openai.OpenAI, more: dict[str, Any]) -> None:
    assert (
        ask(client, max_tokens=80, **more).choices[0].message.content
        != ask(client, max_tokens=80).choices[0].message.content
    )


def test_top_k_of_one_is_greedy(client: openai.OpenAI) -> None:
    greedy = ask(client, temperature=0).choices[0].message.content
    assert ask(client, extra_body={"top_k": 1}).choices[0].message.content == greedy


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_json_schema_is_followed(client: openai.OpenAI, seed: int, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = ask(client, response_format=form, seed=seed, max_tokens=200, stream=stream)
    person = json.loads(joined(answer) if stream else answer.choices[0].message.content)
    assert list(person) == ["name", "age"]
    assert 0 <= person["age"] <= 120


def test_json_schema_may_follow_a_thought(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    body = {"thinking": True, "thinking_budget": 10}
    message = ask(client, response_format=form, max_tokens=200, extra_body=body).choices[0].message
    assert json.loads(message.content)["age"] >= 0
    assert message.reasoning_content


def test_json_object_begins_an_object(client: openai.OpenAI) -> None:
    text = ask(client, response_format={"type": "json_object"}, max_tokens=40).choices[0].message.content
    assert text.startswith("{")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"add", "say"}),
        ({"type": "function", "function": {"name": "add"}}, {"add"}),
        ({"type": "function", "function": {"name": "say"}}, {"say"}),
    ],
)
def test_tool_choice_forces_a_valid_call(
    client: openai.OpenAI, choice: Any, names: set[str], stream: bool
) -> None:
    answer = ask(client, tools=[ADD, SAY], tool_choice=choice, max_tokens=150, stream=stream)
    if stream:
        calls = [call for c in answer for call in c.choices[0].delta.tool_calls or []]
    else:
        calls = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content is None
    [call] = calls
    assert call.id.startswith("call_")
    assert call.function.name in names
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == ({"a", "b"} if call.function.name == "add" else {"word"})


def test_result_of_a_tool_continues_the_conversation(client: openai.OpenAI) -> None:
    first = ask(client, tools=[ADD], tool_choice="required", max_tokens=150).choices[0].message
    messages = [*HELLO, first, {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "5"}]
    answer = ask(client, messages=messages, tools=[ADD])
    assert answer.usage.prompt_tokens > ask(client, tools=[ADD]).usage.prompt_tokens


def test_tool_choice_none_offers_no_tools(client: openai.OpenAI) -> None:
    assert ask(client, tools=[ADD], tool_choice="none").usage.prompt_tokens == ask(client).usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_thought_comes_as_reasoning_content(client: openai.OpenAI, stream: bool) -> None:
    answer = ask(client, extra_body={"thinking": True, "thinking_budget": 6}, stream=stream)
    if stream:
        deltas = [c.choices[0].delta for c in answer if c.choices]
        thought = "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
        content = "".join(d.content or "" for d in deltas)
    else:
        message = answer.choices[0].message
        thought, content = message.reasoning_content, message.content
        assert answer.usage.completion_tokens_details.reasoning_tokens > 0
    assert thought
    assert content
    assert "think>" not in thought + content


@pytest.mark.parametrize("more", [{"reasoning_effort": "none"}, {"extra_body": {"thinking": False}}])
def test_thinking_is_switched_off(client: openai.OpenAI, more: dict[str, Any]) -> None:
    assert ask(client, **more).usage.prompt_tokens > ask(client).usage.prompt_tokens  # an empty thought


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be brief."}, *HELLO],
        [{"role": "developer", "content": "Be brief."}, *HELLO],
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 3?"}],
            }
        ],
        [*HELLO, {"role": "assistant", "content": "5"}, {"role": "user", "content": "And 漢字 😀?"}],
        [{"role": "user", "content": ""}],
    ],
)
def test_forms_of_messages_are_read(client: openai.OpenAI, messages: list[Any]) -> None:
    assert ask(client, messages=messages).usage.prompt_tokens > 5


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "other"]
    assert client.models.retrieve("other").owned_by == "onesitting"
    with pytest.raises(openai.NotFoundError, match="served here: tiny, other"):
        client.models.retrieve("gpt-4")


def test_models_side_by_side_differ(client: openai.OpenAI) -> None:
    assert (
        ask(client, temperature=0, model="tiny").choices[0].message.content
        != ask(client, temperature=0, model="other").choices[0].message.content
    )


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 99}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 3}, "logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": [""]}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": ""}]}, "role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "content",
        ),
        ({"extra_body": {"temprature": 1}}, "temprature: unknown field"),
        ({"seed": 1.5}, "seed"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "beyond the vocabulary"),
        ({"tool_choice": "required"}, "no such tool"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "gone"}}}, "'gone'"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
                }
            },
            "JSON schema",
        ),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, f"context is {CONTEXT}"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_mistake_is_answered_with_what_is_wrong(
    client: openai.OpenAI, more: dict[str, Any], word: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, stream=stream, **more)
    assert word in error.value.message
    assert error.value.type == "invalid_request_error"


def test_unknown_model_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        ask(client, model="gpt-4")
    assert error.value.code == "model_not_found"
    assert error.value.param == "model"


def test_request_id_comes_back(client: openai.OpenAI) -> None:
    assert len(ask(client)._request_id) == 32
