"""Conformance: completions, responses and embeddings with the official `openai` client."""

import json
from typing import Any

import openai
import pytest
from running import Running, running

from onesitting.inference.generate import generate
from onesitting.inference.sampling import Sampling

FLAT_ADD: Any = {
    "type": "function",
    "name": "add",
    "description": "Add.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 99}},
        "required": ["a"],
        "additionalProperties": False,
    },
}


def complete(client: openai.OpenAI, **more: Any) -> Any:
    return client.completions.create(
        **{"model": "tiny", "prompt": "The cat", "max_tokens": 20, "seed": 1, **more}
    )


def test_completion_is_the_text_of_generate(client: openai.OpenAI, server: Running) -> None:
    tokenizer, model = server.model.tokenizer, server.model.engine.model
    sampling = Sampling(temperature=0, max_tokens=40)
    prompts = ["The cat", "naïve café"]
    expected = [generate(model, tokenizer, [tokenizer.encode(p)], sampling)[0].text for p in prompts]
    answer = complete(client, prompt=prompts, temperature=0, max_tokens=40)
    assert [choice.text for choice in answer.choices] == expected
    ids = [tokenizer.encode(p) for p in prompts]
    assert [c.text for c in complete(client, prompt=ids, temperature=0, max_tokens=40).choices] == expected


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"stop": "e"}, {"echo": True}, {"logprobs": 2}])
def test_completion_stream_is_the_answer_in_pieces(client: openai.OpenAI, more: dict[str, Any]) -> None:
    answer = complete(client, **more)
    texts: dict[int, str] = {}
    for chunk in complete(client, stream=True, **more):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == {choice.index: choice.text for choice in answer.choices}


def test_completion_logprobs_and_echo(client: openai.OpenAI) -> None:
    answer = complete(client, logprobs=2, echo=True)
    found = answer.choices[0].logprobs
    assert answer.choices[0].text.startswith("The cat")
    assert (
        len(found.tokens)
        == len(found.token_logprobs)
        == len(found.top_logprobs)
        == answer.usage.completion_tokens
    )
    assert found.text_offset[0] == len("The cat")


def test_completion_of_nothing_begins_a_document(client: openai.OpenAI) -> None:
    assert complete(client, prompt="").usage.prompt_tokens == 1


def test_control_token_as_id_is_refused(client: openai.OpenAI, server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="control token"):
        complete(client, prompt=[5, server.model.tokenizer.im_start_id])


def respond(client: openai.OpenAI, **more: Any) -> Any:
    body = {"model": "tiny", "input": "What is 2 + 3?", "max_output_tokens": 20, "temperature": 0, **more}
    return client.responses.create(**body)


def test_response_has_text_and_usage(client: openai.OpenAI) -> None:
    answer = respond(client)
    assert answer.output[0].type == "message"
    assert answer.output_text
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert (answer.status, answer.incomplete_details is None) in [("completed", True), ("incomplete", False)]


def test_response_is_the_chat_completion_of_the_same_conversation(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    chat = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=20)
    answer = respond(client, instructions="Be brief.", input=[{"role": "user", "content": "Hi"}])
    assert answer.output_text == chat.choices[0].message.content


def test_response_stream_has_the_events_of_the_protocol(client: openai.OpenAI) -> None:
    events = list(respond(client, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:-1] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == respond(client).output_text


def test_response_stream_helper_of_the_client_understands_the_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="tiny", input="Hi", temperature=0, tools=[FLAT_ADD], tool_choice="required"
    ) as stream:
        final = stream.get_final_response()
    assert json.loads(final.output[0].arguments)  # pyright: ignore


@pytest.mark.parametrize("stream", [False, True])
def test_response_calls_a_tool(client: openai.OpenAI, stream: bool) -> None:
    more = {"tools": [FLAT_ADD], "tool_choice": {"type": "function", "name": "add"}, "max_output_tokens": 100}
    answer = list(respond(client, stream=True, **more))[-1].response if stream else respond(client, **more)
    [call] = answer.output
    assert (call.type, call.name) == ("function_call", "add")
    assert json.loads(call.arguments)["a"] <= 99
    turns = [{"role": "user", "content": "2 + 3?"}, call.model_dump(exclude_none=True),
             {"type": "function_call_output", "call_id": call.call_id, "output": "5"}]  # fmt: skip
    assert respond(client, input=turns).output_text is not None


def test_response_follows_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    assert isinstance(
        json.loads(respond(client, text={"format": form}, max_output_tokens=40).output_text)["ok"], bool
    )


def test_response_thinks(client: openai.OpenAI) -> None:
    answer = respond(client, reasoning={"effort": "high"}, max_output_tokens=30)
    assert answer.output[0].type == "reasoning"
    assert answer.usage.output_tokens_details.reasoning_tokens > 0


def test_memory_of_responses_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="not stored"):
        respond(client, previous_response_id="resp_1")


@pytest.mark.parametrize("form", [{"encoding_format": "float"}, {}])  # without it the client asks for base64
def test_embeddings_are_unit_vectors_of_the_texts(client: openai.OpenAI, form: Any) -> None:
    answer = client.embeddings.create(model="tiny", input=["The cat sat", "The cat sat", "😀"], **form)
    first, again, other = (item.embedding for item in answer.data)
    assert len(first) == 48
    assert sum(x * x for x in first) == pytest.approx(1, abs=1e-4)
    assert first == again != other


@pytest.mark.parametrize("wrong", ["", [], "word " * 3000])
def test_embedding_of_nothing_or_too_much_is_refused(client: openai.OpenAI, wrong: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="tiny", input=wrong)


@pytest.mark.parametrize("temperature", [0.9, 2.0])
def test_streamed_logprobs_are_those_of_the_answer(client: openai.OpenAI, temperature: float) -> None:
    more = {
        "n": 2,
        "echo": True,
        "logprobs": 3,
        "max_tokens": 30,
        "temperature": temperature,
        "stop": ["zq!"],
    }
    answer = complete(client, **more)
    found: dict[int, dict[str, list[Any]]] = {}
    for chunk in complete(client, stream=True, **more):
        for choice in chunk.choices:
            if choice.logprobs is not None:
                kept = found.setdefault(choice.index, {"text_offset": [], "tokens": [], "top_logprobs": []})
                for name, values in kept.items():
                    values += getattr(choice.logprobs, name)
    for choice in answer.choices:
        whole = choice.logprobs
        assert found[choice.index] == {
            "text_offset": whole.text_offset, "tokens": whole.tokens, "top_logprobs": whole.top_logprobs,
        }  # fmt: skip
        assert all(len(top) == 3 for top in whole.top_logprobs), "parts of characters have names of their own"


def test_one_prompt_that_is_refused_ends_the_others() -> None:
    with running(n_slots=2, max_waiting=2) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
        with pytest.raises(openai.RateLimitError):
            complete(client, prompt=["The cat"] * 30, max_tokens=400, logit_bias={"2": -100})
        assert server.wait_until_idle(2.0) < 2.0


@pytest.mark.parametrize("key", ["$defs", "definitions"])
def test_any_of_several_tools_with_definitions_of_their_own_is_called_validly(
    client: openai.OpenAI, key: str
) -> None:
    def tool(name: str, kind: dict[str, Any]) -> Any:
        parameters = {
            "properties": {"item": {"$ref": f"#/{key}/A"}}, "required": ["item"], "additionalProperties": False,
            key: {"A": {"$ref": f"#/{key}/B"}, "B": kind},
        }  # fmt: skip
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    kinds = {"count": {"type": "integer", "maximum": 99}, "check": {"type": "boolean"}}
    for seed in range(6):
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=300, seed=seed,
            tools=[tool(name, kind) for name, kind in kinds.items()], tool_choice="required",
        )  # fmt: skip
        [call] = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        item = json.loads(call.function.arguments)["item"]
        assert type(item) is {"count": int, "check": bool}[call.function.name]
