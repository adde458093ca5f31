"""Anthropic's messages: requests in, answers or streams of events out."""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from onesitting.inference.engine import Delta
from onesitting.server.errors import ApiError
from onesitting.server.generation import (
    Conversation,
    Limits,
    Planned,
    deltas,
    plan_chat,
    prompt_of,
    sampling_of,
)
from onesitting.server.models import ServedModel
from onesitting.server.openai import sse
from onesitting.server.reply import Part, Reply, ReplyParser
from onesitting.server.schemas import JSON, Name, SamplingFields, StopString, Strict


class Block(Strict):
    """A piece of a message's content: text, a thought, a call, or a call's result."""

    type: Literal["text", "thinking", "redacted_thinking", "tool_use", "tool_result"]
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: Name | None = None
    name: Name | None = None
    input: JSON | None = None
    tool_use_id: Name | None = None
    content: "str | Annotated[list[Block], Field(max_length=1000)] | None" = None
    is_error: bool | None = None
    cache_control: Any = None
    citations: Any = None
    caller: Any = None


class Message(Strict):
    """One message."""

    role: Literal["user", "assistant"]
    content: str | Annotated[list[Block], Field(max_length=1000)]


class Tool(Strict):
    """A tool that the model may call."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    input_schema: JSON
    type: Literal["custom"] | None = None
    cache_control: Any = None


class ToolChoice(Strict):
    """Whether tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Strict):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    display: Name | None = None


class CountRequest(Strict):
    """POST /v1/messages/count_tokens."""

    model: Name
    messages: Annotated[list[Message], Field(min_length=1, max_length=2000)]
    system: str | Annotated[list[Block], Field(max_length=100)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)]
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    stop_sequences: Annotated[list[StopString], Field(max_length=16)] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Name | None = None


def _conversation(body: CountRequest) -> Conversation:
    if body.messages[-1].role == "assistant":
        raise ApiError(
            400,
            "the last message is the assistant's: going on with its words is not supported",
            param="messages",
        )
    messages: list[JSON] = []
    system = _text(body.system)
    if system:
        messages.append({"role": "system", "content": system})
    for message in body.messages:
        messages += _rendered(message)
    choice = body.tool_choice
    names = {"auto": "auto", "any": "required", "none": "none"}
    wanted = "auto" if choice is None else names.get(choice.type) or choice.name
    if wanted is None:
        raise ApiError(400, "tool_choice of type tool needs a name", param="tool_choice.name")
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                **({"description": tool.description} if tool.description else {}),
                "parameters": tool.input_schema,
            },
        }
        for tool in body.tools or []
    ]
    thinking = (
        None if body.thinking is None or body.thinking.type == "adaptive" else body.thinking.type == "enabled"
    )
    budget = body.thinking.budget_tokens if body.thinking is not None and thinking else None
    return Conversation(
        messages=messages, tools=tools, tool_choice=wanted, thinking=thinking, thinking_budget=budget
    )


def _text(content: str | list[Block] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(block.text or "" for block in content)


def _rendered(message: Message) -> list[JSON]:
    """A message as `render` takes it: results of tools are messages of their own, before what the user says."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    text = _text([block for block in message.content if block.type == "text"])
    if message.role == "assistant":
        thoughts = [block.thinking or "" for block in message.content if block.type == "thinking"]
        calls = [
            {"function": {"name": block.name, "arguments": block.input or {}}}
            for block in message.content
            if block.type == "tool_use"
        ]
        reasoning = "\n".join(thoughts) if thoughts else None
        return [{"role": "assistant", "content": text, "reasoning_content": reasoning, "tool_calls": calls}]
    results = [
        {"role": "tool", "content": _text(block.content)}
        for block in message.content
        if block.type == "tool_result"
    ]
    return [*results, *([{"role": "user", "content": text}] if text or not results else [])]


def plan_messages(served: ServedModel, body: MessagesRequest, limits: Limits, client: str) -> Planned:
    """What the engine has to do for a request."""
    fields = SamplingFields(
        temperature=body.temperature, top_p=body.top_p, top_k=body.top_k, stop=body.stop_sequences
    )
    sampling = sampling_of(served, fields, body.max_tokens, limits)
    return plan_chat(served, _conversation(body), sampling, {}, limits, client)


def count(served: ServedModel, body: CountRequest) -> int:
    """Tokens of a conversation, what opens the reply included."""
    return len(prompt_of(served, _conversation(body)).ids)


def _stop(delta: Delta, reply: Reply) -> tuple[str, str | None]:
    """(stop_reason, stop_sequence)."""
    if delta.finish_reason != "stop":
        return "max_tokens", None
    if reply.calls:
        return "tool_use", None
    return ("end_turn", None) if delta.stop_string is None else ("stop_sequence", delta.stop_string)


def _usage(planned: Planned, n_written: int) -> JSON:
    return {
        "input_tokens": planned.prompt_tokens,
        "output_tokens": n_written,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }


def _head(served: ServedModel, planned: Planned) -> JSON:
    return {
        "id": f"msg_{uuid.uuid4().hex[:24]}",
        "type": "message",
        "role": "assistant",
        "model": served.name,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(planned, 0),
    }


async def message_answer(served: ServedModel, planned: Planned) -> JSON:
    """The answer to a request that does not stream."""
    parser, reply = ReplyParser(served.tokenizer, planned.starts), Reply()
    n_written = 0
    reason: tuple[str, str | None] = ("end_turn", None)
    async for delta in deltas(served, planned.request):
        for part in parser.feed(delta):
            reply.add(part)
        n_written += len(delta.tokens) + (delta.stop_id is not None)
        if delta.finish_reason is not None:
            reason = _stop(delta, reply)
    content: list[JSON] = (
        [{"type": "thinking", "thinking": reply.thought, "signature": ""}] if reply.thought else []
    )
    if reply.text or not (content or reply.calls):
        content.append({"type": "text", "text": reply.text})
    content += [
        {"type": "tool_use", "id": call.call_id, "name": call.name, "input": json.loads(call.text)}
        for call in reply.calls
    ]
    head = {**_head(served, planned), "content": content, "usage": _usage(planned, n_written)}
    return {**head, "stop_reason": reason[0], "stop_sequence": reason[1]}


class _Blocks:
    """Content blocks of a stream: opens and closes them as parts of other kinds come."""

    def __init__(self) -> None:
        self.index = -1
        self.kind = ""

    def add(self, part: Part) -> list[bytes]:
        """The events of one part."""
        events: list[bytes] = []
        if part.kind != self.kind or part.kind == "call":
            events += self.close()
            self.index, self.kind = self.index + 1, part.kind
            start = {
                "text": {"type": "text", "text": ""},
                "thought": {"type": "thinking", "thinking": "", "signature": ""},
                "call": {"type": "tool_use", "id": part.call_id, "name": part.name, "input": {}},
            }[part.kind]
            events.append(_event("content_block_start", index=self.index, content_block=start))
        change = {
            "text": {"type": "text_delta", "text": part.text},
            "thought": {"type": "thinking_delta", "thinking": part.text},
            "call": {"type": "input_json_delta", "partial_json": part.text},
        }[part.kind]
        events.append(_event("content_block_delta", index=self.index, delta=change))
        return events

    def close(self) -> list[bytes]:
        """The events that end the open block."""
        if not self.kind:
            return []
        self.kind = ""
        return [_event("content_block_stop", index=self.index)]


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)


async def message_events(served: ServedModel, planned: Planned) -> AsyncIterator[bytes]:
    """The events of a request that streams."""
    parser, reply, blocks = ReplyParser(served.tokenizer, planned.starts), Reply(), _Blocks()
    n_written = 0
    reason: tuple[str, str | None] = ("end_turn", None)
    begun = False
    async for delta in deltas(served, planned.request):
        if not begun:
            begun = True
            yield _event("message_start", message=_head(served, planned))
            yield _event("ping")
        for part in parser.feed(delta):
            reply.add(part)
            for event in blocks.add(part):
                yield event
        n_written += len(delta.tokens) + (delta.stop_id is not None)
        if delta.finish_reason is not None:
            reason = _stop(delta, reply)
    if blocks.index < 0:  # an empty reply is an empty text
        for event in blocks.add(Part("text", "")):
            yield event
    for event in blocks.close():
        yield event
    stop = {"stop_reason": reason[0], "stop_sequence": reason[1]}
    yield _event("message_delta", delta=stop, usage=_usage(planned, n_written))
    yield _event("message_stop")
