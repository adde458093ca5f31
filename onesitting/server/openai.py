"""OpenAI's chat completions and completions: requests in, answers or streams of chunks out."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from onesitting.inference.engine import Delta
from onesitting.inference.row import TokenLogprob
from onesitting.server.errors import ApiError
from onesitting.server.generation import (
    Conversation,
    Limits,
    Planned,
    deltas,
    plan,
    plan_chat,
    row_settings,
    sampling_of,
)
from onesitting.server.models import ServedModel
from onesitting.server.reply import Part, Reply, ReplyParser
from onesitting.server.schemas import ChatRequest, CompletionRequest, Message, NamedTool

JSON = dict[str, Any]


def plan_chat_request(served: ServedModel, body: ChatRequest, limits: Limits, client: str) -> Planned:
    """What the engine has to do for a chat request."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    n_top = (body.top_logprobs or 0) if body.logprobs else None
    choice = body.tool_choice
    thinking = body.thinking
    if thinking is None and body.reasoning_effort is not None:
        thinking = body.reasoning_effort != "none"
    asked = Conversation(
        messages=[message_of(message) for message in body.messages],
        tools=[tool.model_dump(exclude_none=True, by_alias=True) for tool in body.tools or []],
        tool_choice=choice.function.name if isinstance(choice, NamedTool) else choice or "auto",
        schema=_schema(body),
        thinking=thinking,
        thinking_budget=body.thinking_budget,
    )
    longest = body.max_completion_tokens or body.max_tokens
    sampling = sampling_of(served, body, longest, limits)
    return plan_chat(served, asked, sampling, row_settings(served, body, n_top), limits, client)


def message_of(message: Message) -> JSON:
    """A message as `render` takes it."""
    role = "system" if message.role == "developer" else message.role
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    out: JSON = {"role": role, "content": content or ""}
    if role == "assistant":
        out["reasoning_content"] = message.reasoning_content
        out["tool_calls"] = [
            {"function": {"name": call.function.name, "arguments": call.function.arguments or "{}"}}
            for call in message.tool_calls or []
        ]
    return out


def _schema(body: ChatRequest) -> JSON | None:
    form = body.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "object"}
    if form.json_schema is None or form.json_schema.schema_ is None:
        raise ApiError(400, "response_format json_schema needs json_schema.schema", param="response_format")
    return form.json_schema.schema_


def usage_of(prompt_tokens: int, written: Sequence[int], thoughts: int = 0) -> JSON:
    """OpenAI's count of tokens; written: of each text."""
    n_written = sum(written)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": n_written,
        "total_tokens": prompt_tokens + n_written,
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }


def finish_reason(delta: Delta, called: bool) -> str:
    """OpenAI's word for how a text ended."""
    if called and delta.finish_reason == "stop":
        return "tool_calls"
    return "stop" if delta.finish_reason == "stop" else "length"


def logprob_entries(served: ServedModel, found: Sequence[TokenLogprob]) -> list[JSON]:
    """Log-probabilities as chat completions have them."""

    def entry(token: int, logprob: float) -> JSON:
        spelled = served.tokenizer.decode([token], skip_special=False)
        # Bytes are given only of tokens that stand for text; JSON has no -inf.
        return {
            "token": spelled,
            "logprob": max(logprob, -9999.0),
            "bytes": list(served.tokenizer.token_bytes[token]),
        }

    return [{**entry(it.token, it.logprob), "top_logprobs": [entry(*one) for one in it.top]} for it in found]


class _Text:
    """One of the `n` texts of a request while it arrives."""

    def __init__(self, served: ServedModel, planned: Planned) -> None:
        self.parser = ReplyParser(served.tokenizer, planned.starts)
        self.reply = Reply()
        self.raw = ""
        self.n_tokens = 0
        self.n_thought = 0
        self.logprobs: list[TokenLogprob] = []
        self.reason = "stop"

    def feed(self, delta: Delta) -> list[Part]:
        parts = self.parser.feed(delta)
        for part in parts:
            self.reply.add(part)
            self.n_thought += len(delta.tokens) if part.kind == "thought" else 0
        self.raw += delta.text
        self.n_tokens += len(delta.tokens) + (delta.stop_id is not None)
        self.logprobs += delta.logprobs
        if delta.finish_reason is not None:
            self.reason = finish_reason(delta, bool(self.reply.calls))
        return parts


async def collect(served: ServedModel, planned: Planned) -> list[_Text]:
    """All texts of a request."""
    texts = [_Text(served, planned) for _ in range(planned.request.n)]
    async for delta in deltas(served, planned.request):
        texts[delta.index].feed(delta)
    return texts


async def chat_answer(served: ServedModel, planned: Planned, body: ChatRequest) -> JSON:
    """The answer to a chat request that does not stream."""
    texts = await collect(served, planned)
    choices = [
        {
            "index": index,
            "message": _message(text.reply),
            "logprobs": {"content": logprob_entries(served, text.logprobs), "refusal": None}
            if body.logprobs
            else None,
            "finish_reason": text.reason,
        }
        for index, text in enumerate(texts)
    ]
    usage = usage_of(planned.prompt_tokens, [t.n_tokens for t in texts], sum(t.n_thought for t in texts))
    return {**_head(served, "chatcmpl", "chat.completion"), "choices": choices, "usage": usage}


def _message(reply: Reply) -> JSON:
    message: JSON = {
        "role": "assistant",
        "content": reply.text or (None if reply.calls else ""),
        "refusal": None,
    }
    if reply.thought:
        message["reasoning_content"] = reply.thought
    if reply.calls:
        message["tool_calls"] = reply.openai_calls()
    return message


def _head(served: ServedModel, prefix: str, kind: str) -> JSON:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": served.name,
        "system_fingerprint": None,
    }


async def chat_chunks(served: ServedModel, planned: Planned, body: ChatRequest) -> AsyncIterator[JSON]:
    """The chunks of a chat request that streams."""
    head = _head(served, "chatcmpl", "chat.completion.chunk")
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    if with_usage:
        head["usage"] = None
    texts = [_Text(served, planned) for _ in range(planned.request.n)]
    begun: set[int] = set()

    def chunk(index: int, delta: Mapping[str, Any], reason: str | None = None, logprobs: Any = None) -> JSON:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [choice]}

    async for delta in deltas(served, planned.request):
        text = texts[delta.index]
        if delta.index not in begun:
            begun.add(delta.index)
            yield chunk(delta.index, {"role": "assistant", "content": ""})
        found = logprob_entries(served, delta.logprobs) if body.logprobs else []
        logprobs = {"content": found, "refusal": None} if found else None
        n_calls = len(text.reply.calls)
        for part in text.feed(delta):
            yield chunk(delta.index, _chunk_delta(part, n_calls), None, logprobs)
            n_calls += part.kind == "call"
            logprobs = None
        if (
            logprobs is not None
        ):  # a token whose text is held back, or that is no text, has its probability too
            yield chunk(delta.index, {"content": ""}, None, logprobs)
        if delta.finish_reason is not None:
            yield chunk(delta.index, {}, text.reason)
    if with_usage:
        usage = usage_of(planned.prompt_tokens, [t.n_tokens for t in texts], sum(t.n_thought for t in texts))
        yield {**head, "choices": [], "usage": usage}


def _chunk_delta(part: Part, n_calls: int) -> JSON:
    if part.kind == "text":
        return {"content": part.text}
    if part.kind == "thought":
        return {"reasoning_content": part.text}
    function = {"name": part.name, "arguments": part.text}
    return {"tool_calls": [{"index": n_calls, "id": part.call_id, "type": "function", "function": function}]}


def plan_completions(
    served: ServedModel, body: CompletionRequest, limits: Limits, client: str
) -> list[Planned]:
    """What the engine has to do for each prompt of a completion request."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(400, "best_of other than n is not supported", param="best_of")
    longest = 16 if body.max_tokens is None else body.max_tokens  # OpenAI's default
    sampling = sampling_of(served, body, longest, limits)
    planned: list[Planned] = []
    for ids in ids_of(served, body.prompt, "prompt"):
        ids = ids or [served.tokenizer.eos_id]
        settings = row_settings(served, body, body.logprobs)
        request = plan(served, ids, sampling, settings, limits, client)
        planned.append(Planned(request=request, prompt_tokens=len(ids)))
    return planned


def ids_of(served: ServedModel, given: str | Sequence[Any], param: str) -> list[list[int]]:
    """Token ids of each text that a client gave: a text or a list of texts, in letters or as ids.

    Ids may be any but control tokens, which only the server writes. Raises ApiError naming the first that is not.
    """
    several = not isinstance(given, str) and bool(given) and not isinstance(given[0], int)
    texts: Sequence[Any] = given if several else [given]
    return [
        served.tokenizer.encode(text) if isinstance(text, str) else _checked(served, text, param)
        for text in texts
    ]


def _checked(served: ServedModel, ids: Sequence[int], param: str) -> list[int]:
    special = set(served.tokenizer.special_ids.values()) - {served.tokenizer.eos_id}
    for token in ids:
        if not 0 <= token < served.tokenizer.vocab_size:
            raise ApiError(400, f"{param} has token {token}, beyond the vocabulary", param=param)
        if token in special:
            raise ApiError(400, f"{param} has token {token}, which is a control token", param=param)
    return list(ids)


async def completion_answer(served: ServedModel, planned: Sequence[Planned], body: CompletionRequest) -> JSON:
    """The answer to a completion request that does not stream."""
    import asyncio

    tasks = [asyncio.ensure_future(collect(served, one)) for one in planned]
    try:
        groups = await asyncio.gather(*tasks)
    finally:  # one that is refused ends the others, which would be written for nobody
        for task in tasks:
            task.cancel()
    choices: list[JSON] = []
    for one, texts in zip(planned, groups, strict=True):
        echo = served.tokenizer.decode(one.request.prompt) if body.echo else ""
        for text in texts:
            logprobs = None if body.logprobs is None else _old_logprobs(served, text.logprobs, len(echo))
            choices.append(
                {
                    "index": len(choices),
                    "text": echo + text.raw,
                    "logprobs": logprobs,
                    "finish_reason": "stop" if text.reason == "tool_calls" else text.reason,
                }
            )
    written = [text.n_tokens for texts in groups for text in texts]
    usage = usage_of(sum(one.prompt_tokens for one in planned), written)
    return {**_head(served, "cmpl", "text_completion"), "choices": choices, "usage": usage}


def _old_logprobs(served: ServedModel, found: Sequence[TokenLogprob], offset: int) -> JSON:
    """Log-probabilities as completions have them."""

    def spelled(token: int) -> str:
        return served.tokenizer.decode([token], skip_special=False)

    def named(token: int) -> str:
        """As OpenAI does: parts of characters, which are all spelled alike, by their bytes."""
        text = spelled(token)
        written = "".join(f"\\x{byte:02x}" for byte in served.tokenizer.token_bytes[token])
        return f"bytes:{written}" if "\ufffd" in text else text

    offsets: list[int] = []
    for it in found:
        offsets.append(offset)
        offset += len(spelled(it.token))
    return {
        "tokens": [spelled(it.token) for it in found],
        "token_logprobs": [max(it.logprob, -9999.0) for it in found],
        "top_logprobs": [{named(t): max(p, -9999.0) for t, p in it.top} for it in found],
        "text_offset": offsets,
    }


async def completion_chunks(
    served: ServedModel, planned: Sequence[Planned], body: CompletionRequest
) -> AsyncIterator[JSON]:
    """The chunks of a completion request that streams; several prompts come one after the other."""
    head = _head(served, "cmpl", "text_completion")
    written: list[int] = []
    first = 0
    for one in planned:
        echoed: set[int] = set()
        counts = [0] * one.request.n
        echo = served.tokenizer.decode(one.request.prompt) if body.echo else ""
        offsets = [len(echo)] * one.request.n
        async for delta in deltas(served, one.request):
            text = delta.text
            if body.echo and delta.index not in echoed:
                echoed.add(delta.index)
                text = echo + text
            counts[delta.index] += len(delta.tokens) + (delta.stop_id is not None)
            logprobs = None
            if body.logprobs is not None:
                logprobs = _old_logprobs(served, delta.logprobs, offsets[delta.index])
                offsets[delta.index] += sum(map(len, logprobs["tokens"]))
            reason = None if delta.finish_reason is None else finish_reason(delta, False)
            choice = {
                "index": first + delta.index,
                "text": text,
                "logprobs": logprobs,
                "finish_reason": reason,
            }
            if text or reason or logprobs:
                yield {**head, "choices": [choice]}
        first += one.request.n
        written += counts
    if body.stream_options is not None and body.stream_options.include_usage:
        usage = usage_of(sum(one.prompt_tokens for one in planned), written)
        yield {**head, "choices": [], "usage": usage}


def sse(event: Mapping[str, Any], name: str = "") -> bytes:
    """One server-sent event."""
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"{f'event: {name}' + chr(10) if name else ''}data: {text}\n\n".encode("utf-8", "replace")
