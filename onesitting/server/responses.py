"""OpenAI's responses, without memory between requests: items in, an answer or a stream of events out."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import Field

from onesitting.server.errors import ApiError
from onesitting.server.generation import (
    Conversation,
    Limits,
    Planned,
    deltas,
    plan_chat,
    row_settings,
    sampling_of,
)
from onesitting.server.models import ServedModel
from onesitting.server.openai import sse
from onesitting.server.reply import Part, ReplyParser
from onesitting.server.schemas import JSON, Name, SamplingFields, Strict, TextPart


class Item(Strict):
    """A message, a call, a call's result, or a thought."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | Annotated[list[TextPart], Field(max_length=1000)] | None = None
    id: Name | None = None
    status: Name | None = None
    call_id: Name | None = None
    name: Name | None = None
    arguments: str | None = None
    output: str | Annotated[list[TextPart], Field(max_length=1000)] | None = None
    summary: Annotated[list[JSON], Field(max_length=100)] | None = None
    encrypted_content: str | None = None
    phase: Name | None = None


class FlatTool(Strict):
    """A function that the model may call."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: JSON | None = None
    strict: bool | None = None


class FlatChoice(Strict):
    """A tool choice that names the tool."""

    type: Literal["function"]
    name: Name


class TextFormat(Strict):
    """Form of the text."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: str | None = None
    schema_: JSON | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    """Options of the text."""

    format: TextFormat | None = None
    verbosity: Name | None = None


class Reasoning(Strict):
    """Whether the model thinks."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Name | None = None


class ResponseRequest(Strict):
    """POST /v1/responses."""

    model: Name
    input: str | Annotated[list[Item], Field(min_length=1, max_length=2000)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    stream_options: JSON | None = None
    tools: Annotated[list[FlatTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    truncation: Literal["disabled", "auto"] | None = None
    previous_response_id: Name | None = None
    user: Name | None = None
    service_tier: Name | None = None
    prompt_cache_key: Name | None = None
    safety_identifier: Name | None = None


def plan_response(served: ServedModel, body: ResponseRequest, limits: Limits, client: str) -> Planned:
    """What the engine has to do for a request."""
    if body.previous_response_id is not None:
        raise ApiError(
            400,
            "responses are not stored here; send the whole conversation as input",
            param="previous_response_id",
        )
    messages: list[JSON] = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    else:
        messages += _messages(body.input)
    form = body.text.format if body.text else None
    schema = None if form is None or form.type == "text" else form.schema_ or {"type": "object"}
    if form is not None and form.type == "json_schema" and form.schema_ is None:
        raise ApiError(400, "text.format json_schema needs a schema", param="text.format.schema")
    effort = body.reasoning.effort if body.reasoning else None
    choice = body.tool_choice
    asked = Conversation(
        messages=messages,
        tools=[
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in body.tools or []
        ],
        tool_choice=choice.name if isinstance(choice, FlatChoice) else choice or "auto",
        schema=schema,
        thinking=None if effort is None else effort != "none",
    )
    fields = SamplingFields(temperature=body.temperature, top_p=body.top_p)
    sampling = sampling_of(served, fields, body.max_output_tokens, limits)
    return plan_chat(served, asked, sampling, row_settings(served, fields, None), limits, client)


def _text(content: str | list[TextPart] | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or [])


def _messages(items: list[Item]) -> list[JSON]:
    """Items as messages; calls that follow each other belong to one message of the assistant."""
    messages: list[JSON] = []
    thought: str | None = None
    for item in items:
        if item.type == "reasoning":
            thought = "\n".join(str(part.get("text", "")) for part in item.summary or []) or None
            continue
        if item.type == "message":
            if item.role is None:
                raise ApiError(400, "a message needs a role", param="input")
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": _text(item.content)})
            if role == "assistant":
                messages[-1]["reasoning_content"], thought = thought, None
        elif item.type == "function_call":
            if item.name is None:
                raise ApiError(400, "a function_call needs a name", param="input")
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": "", "reasoning_content": thought})
                thought = None
            call = {"function": {"name": item.name, "arguments": item.arguments or "{}"}}
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "tool", "content": _text(item.output)})
    return messages


def _dumped(fields: Strict | None) -> JSON | None:
    return None if fields is None else fields.model_dump(by_alias=True, exclude_none=True)


class _Output:
    """The output items of a response while it arrives, and the events that say so."""

    def __init__(self, served: ServedModel, planned: Planned, body: ResponseRequest) -> None:
        self.body, self.planned = body, planned
        self.items: list[JSON] = []
        self.n_events = 0
        self._open: str = ""
        choice = body.tool_choice
        self.response: JSON = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "model": served.name,
            "output": [],
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "store": False,
            "temperature": planned.request.settings.sampling.temperature,
            "top_p": planned.request.settings.sampling.top_p,
            "text": _dumped(body.text) or {"format": {"type": "text"}},
            "tool_choice": choice if isinstance(choice, str) else _dumped(choice) or "auto",
            "tools": [tool.model_dump() for tool in body.tools or []],
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    def event(self, kind: str, **fields: Any) -> bytes:
        self.n_events += 1
        return sse({"type": kind, "sequence_number": self.n_events - 1, **fields}, kind)

    def add(self, part: Part) -> list[bytes]:
        """Take a part; the events that it makes."""
        events = self._close() if part.kind != self._open or part.kind == "call" else []
        if part.kind == "call":
            return [*events, *self._add_call(part)]
        if not self._open:
            events += self._open_item(part.kind)
        index, item = len(self.items) - 1, self.items[-1]
        place = {"item_id": item["id"], "output_index": index}
        if part.kind == "text":
            item["content"][0]["text"] += part.text
            events.append(
                self.event(
                    "response.output_text.delta", **place, content_index=0, delta=part.text, logprobs=[]
                )
            )
        else:
            item["summary"][0]["text"] += part.text
            events.append(
                self.event("response.reasoning_summary_text.delta", **place, summary_index=0, delta=part.text)
            )
        return events

    def _open_item(self, kind: str) -> list[bytes]:
        self._open = kind
        index = len(self.items)
        if kind == "text":
            item: JSON = {
                "type": "message",
                "id": f"msg_{uuid.uuid4().hex}",
                "role": "assistant",
                "content": [],
            }
            part: JSON = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            key, name, number = "content", "response.content_part.added", "content_index"
        else:
            item = {"type": "reasoning", "id": f"rs_{uuid.uuid4().hex}", "summary": []}
            part = {"type": "summary_text", "text": ""}
            key, name, number = "summary", "response.reasoning_summary_part.added", "summary_index"
        item["status"] = "in_progress"
        self.items.append(item)
        added = self.event("response.output_item.added", output_index=index, item=item)
        opened = self.event(name, item_id=item["id"], output_index=index, part=part, **{number: 0})
        item[key] = [dict(part)]
        return [added, opened]

    def _add_call(self, part: Part) -> list[bytes]:
        index = len(self.items)
        item: JSON = {"type": "function_call", "id": f"fc_{uuid.uuid4().hex}", "call_id": part.call_id}
        item |= {"name": part.name, "arguments": "", "status": "in_progress"}
        self.items.append(item)
        place = {"item_id": item["id"], "output_index": index}
        events = [
            self.event("response.output_item.added", output_index=index, item=item),
            self.event("response.function_call_arguments.delta", **place, delta=part.text),
            self.event("response.function_call_arguments.done", **place, name=part.name, arguments=part.text),
        ]
        item |= {"arguments": part.text, "status": "completed"}
        return [*events, self.event("response.output_item.done", output_index=index, item=item)]

    def _close(self) -> list[bytes]:
        if not self._open:
            return []
        kind, self._open = self._open, ""
        index, item = len(self.items) - 1, self.items[-1]
        item["status"] = "completed"
        place = {"item_id": item["id"], "output_index": index}
        if kind == "text":
            part = item["content"][0]
            events = [
                self.event(
                    "response.output_text.done", **place, content_index=0, text=part["text"], logprobs=[]
                ),
                self.event("response.content_part.done", **place, content_index=0, part=part),
            ]
        else:
            part = item["summary"][0]
            events = [
                self.event(
                    "response.reasoning_summary_text.done", **place, summary_index=0, text=part["text"]
                ),
                self.event("response.reasoning_summary_part.done", **place, summary_index=0, part=part),
            ]
        return [*events, self.event("response.output_item.done", output_index=index, item=item)]

    def finish(self, reason: str | None, n_written: int, n_thought: int) -> list[bytes]:
        """The events of the end; `response` is complete then."""
        events = [] if self.items else self._open_item("text")
        events += self._close()
        n_read = self.planned.prompt_tokens
        self.response |= {
            "output": self.items,
            "status": "completed" if reason == "stop" else "incomplete",
            "incomplete_details": None if reason == "stop" else {"reason": "max_output_tokens"},
            "usage": {
                "input_tokens": n_read,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": n_written,
                "output_tokens_details": {"reasoning_tokens": n_thought},
                "total_tokens": n_read + n_written,
            },
        }
        return [*events, self.event(f"response.{self.response['status']}", response=self.response)]


async def response_events(
    served: ServedModel, planned: Planned, body: ResponseRequest
) -> AsyncIterator[bytes]:
    """The events of a request that streams."""
    async for events, _ in _run(served, planned, body):
        for event in events:
            yield event


async def response_answer(served: ServedModel, planned: Planned, body: ResponseRequest) -> JSON:
    """The answer to a request that does not stream."""
    response: JSON = {}
    async for _, output in _run(served, planned, body):
        response = output.response
    return response


async def _run(
    served: ServedModel, planned: Planned, body: ResponseRequest
) -> AsyncIterator[tuple[list[bytes], _Output]]:
    output, parser = _Output(served, planned, body), ReplyParser(served.tokenizer, planned.starts)
    n_written = n_thought = 0
    async for delta in deltas(served, planned.request):
        events: list[bytes] = []
        if not output.n_events:
            events += [
                output.event(f"response.{name}", response=output.response)
                for name in ("created", "in_progress")
            ]
        for part in parser.feed(delta):
            events += output.add(part)
            n_thought += len(delta.tokens) if part.kind == "thought" else 0
        n_written += len(delta.tokens) + (delta.stop_id is not None)
        if delta.finish_reason is not None:
            events += output.finish(delta.finish_reason, n_written, n_thought)
        yield events, output
