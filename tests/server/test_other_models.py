"""Models from elsewhere: more rows than the tokenizer has entries, and vocabularies without thoughts or calls."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from running import TEXT, Running, running

from onesitting.errors import UserError
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer
from onesitting.tokenizer.unused import with_unused_entries

HELLO: Any = [{"role": "user", "content": "Hello"}]
NUMBER = {
    "type": "object", "properties": {"a": {"type": "integer", "maximum": 99}}, "required": ["a"],
    "additionalProperties": False,
}  # fmt: skip
ADD: Any = {"type": "function", "function": {"name": "add", "parameters": NUMBER}}


def without(tokenizer: Tokenizer, tags: set[str]) -> Tokenizer:
    """The tokenizer with control tokens of other names in the place of these."""
    spec = json.loads(json.dumps(tokenizer.spec))
    for number, entry in enumerate(spec["added_tokens"]):
        if entry["content"] in tags:
            entry["content"] = f"<|other_{number}|>"
    for text, token in list(spec["model"]["vocab"].items()):
        if text in tags:
            del spec["model"]["vocab"][text]
            spec["model"]["vocab"][f"<|other_{token}|>"] = token
    return Tokenizer(json.dumps(spec), tokenizer.settings)


@pytest.fixture(scope="module")
def padded() -> Iterator[Running]:
    with running(unnamed_rows=64) as one:
        yield one


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    tags = {"<think>", "</think>", "<tool_call>", "</tool_call>"}
    with running(tokenizer=without(train_tokenizer([TEXT] * 20, vocab_size=384), tags)) as one:
        assert not tags & one.model.tokenizer.special_ids.keys()
        yield one


def clients(server: Running) -> tuple[openai.OpenAI, anthropic.Anthropic]:
    return (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60),
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60),
    )


def test_rows_without_a_name_do_not_end_anybodys_text(padded: Running) -> None:
    client, _ = clients(padded)
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": NUMBER}}
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=60, seed=1, response_format=wanted
    )
    assert json.loads(answer.choices[0].message.content or "")["a"] <= 99
    hot = client.completions.create(model="tiny", prompt="x", max_tokens=200, seed=1, temperature=2.0)
    assert hot.usage is not None
    assert hot.usage.completion_tokens > 20


def test_a_tokenizer_of_more_entries_than_rows_is_refused() -> None:
    tokenizer = train_tokenizer([TEXT] * 20, vocab_size=384)
    with pytest.raises(UserError, match="give the tokenizer that belongs to this model"):
        with_unused_entries(tokenizer, tokenizer.vocab_size - 1)


def test_a_vocabulary_without_thoughts_and_calls_is_served_without_them(plain: Running) -> None:
    client, claude = clients(plain)

    def chat(**more: Any) -> Any:
        return client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8, **more)

    assert chat(tools=[ADD], tool_choice="none").choices[0].finish_reason
    assert chat(extra_body={"thinking_budget": 30}).choices[0].finish_reason
    assert chat(extra_body={"thinking_budget": 0}).choices[0].finish_reason
    assert chat(reasoning_effort="none").choices[0].finish_reason
    message = claude.messages.create(
        model="tiny", messages=HELLO, max_tokens=8, thinking={"type": "disabled"}
    )
    assert message.stop_reason
    with pytest.raises(openai.BadRequestError, match="has no <tool_call>"):
        chat(tools=[ADD], tool_choice="required")
