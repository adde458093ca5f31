"""From a request's fields to the engine, and the engine's deltas to the event loop."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from onesitting.errors import UserError
from onesitting.inference.engine import Closed, Delta, QueueFull, Request
from onesitting.inference.row import Constraint, RowSettings, Thought
from onesitting.inference.sampling import Sampling
from onesitting.server.errors import ApiError
from onesitting.server.models import ServedModel
from onesitting.server.reply import Kind
from onesitting.server.schemas import SamplingFields
from onesitting.tokenizer.chat import render

JSON = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for."""

    max_tokens: int = 0
    """Longest reply; 0: what the model's context leaves."""
    deadline_s: float = 600.0
    """Seconds after which a request ends, waiting included."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A prompt of messages, with what the reply has to be."""

    messages: Sequence[JSON]
    tools: Sequence[JSON] = ()
    tool_choice: str = "auto"
    """none, auto, required, or the name of a tool."""
    schema: JSON | None = None
    """JSON schema of the reply's text."""
    thinking: bool | None = None
    thinking_budget: int | None = None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A request for the engine, and where in a reply its text begins."""

    request: Request
    starts: Kind = "text"
    prompt_tokens: int = field(default=0)


def plan_chat(
    served: ServedModel,
    asked: Conversation,
    sampling: Sampling,
    settings: Mapping[str, Any],
    limits: Limits,
    client: str,
) -> Planned:
    """The request of a conversation. Raises ApiError when it cannot be served."""
    tokenizer = served.tokenizer
    ids_of = tokenizer.special_ids
    prompt = prompt_of(served, asked)
    schema, more = asked.schema, dict(settings)
    if prompt.starts == "call":
        schema = _call_schema(prompt.tools, asked.tool_choice)
        more["forced_end"] = (*tokenizer.encode("\n"), ids_of["</tool_call>"])
    thinking = prompt.starts == "thought"
    if "<think>" in ids_of and (asked.thinking_budget is not None or (schema is not None and thinking)):
        budget = served.context_length if asked.thinking_budget is None else asked.thinking_budget
        more["thought"] = Thought(
            open_id=ids_of["<think>"],
            close_ids=(ids_of["</think>"], *tokenizer.encode("\n")),
            budget_tokens=budget,
            is_open=thinking,
        )
    if asked.tool_choice == "none" and asked.tools and "<tool_call>" in ids_of:
        more["logit_bias"] = {**more.get("logit_bias", {}), ids_of["<tool_call>"]: -math.inf}
    request = plan(served, prompt.ids, sampling, more, limits, client, schema)
    return Planned(request=request, starts=prompt.starts, prompt_tokens=len(prompt.ids))


class Prompt(NamedTuple):
    """A conversation as the model reads it."""

    ids: list[int]
    starts: Kind
    """What the reply begins with, as the prompt leaves it open."""
    tools: list[JSON]
    """Those that are offered."""


def prompt_of(served: ServedModel, asked: Conversation) -> Prompt:
    """The tokens of a conversation, what opens the reply included. Raises ApiError when it cannot be written."""
    tokenizer = served.tokenizer
    ids_of = tokenizer.special_ids
    forced = asked.tool_choice not in ("none", "auto")
    tools = [] if asked.tool_choice == "none" else list(asked.tools)
    if forced and not tools:
        raise ApiError(
            400, "tool_choice asks for a call, but the request has no such tool", param="tool_choice"
        )
    if forced and not {"<tool_call>", "</tool_call>"} <= ids_of.keys():
        raise ApiError(
            400, "this model has no <tool_call>, so no call can be asked of it", param="tool_choice"
        )
    thinking = False if forced or asked.thinking_budget == 0 else asked.thinking
    if thinking is False and "<think>" not in ids_of:
        thinking = None  # there is nothing to leave out
    try:
        ids, _ = render(tokenizer, asked.messages, tools, add_generation_prompt=True, thinking=thinking)
    except UserError as error:
        raise ApiError(400, str(error), param="messages") from None
    if forced:
        return Prompt([*ids, ids_of["<tool_call>"], *tokenizer.encode("\n")], "call", tools)
    return Prompt(ids, "thought" if thinking else "text", tools)


def plan(
    served: ServedModel,
    ids: Sequence[int],
    sampling: Sampling,
    settings: Mapping[str, Any],
    limits: Limits,
    client: str,
    schema: JSON | None = None,
) -> Request:
    """A request for texts after ids; settings are more fields of RowSettings, and `n`."""
    constrain: Callable[[], Constraint] | None = None
    if schema is not None:
        wanted = schema
        try:
            served.grammars.follow(wanted)
        except UserError as error:
            raise ApiError(400, str(error), param="response_format") from None
        constrain = lambda: served.grammars.follow(wanted)  # noqa: E731  # one for each text: it has a state
    more = dict(settings)
    return Request(
        prompt=ids,
        n=more.pop("n", 1),
        settings=RowSettings(sampling=sampling, stop_ids=served.tokenizer.stop_ids, **more),
        constrain=constrain,
        client=client,
        deadline_s=limits.deadline_s,
    )


def _call_schema(tools: Sequence[JSON], choice: str) -> JSON:
    """JSON schema of a call of one of the tools, or of the one that is chosen."""
    functions = [tool["function"] for tool in tools]
    chosen = functions if choice == "required" else [it for it in functions if it["name"] == choice]
    if not chosen:
        raise ApiError(
            400, f"tool_choice names '{choice}', which is not among the tools", param="tool_choice"
        )
    calls: list[JSON] = []
    definitions: JSON = {}
    for number, function in enumerate(chosen):
        parameters = dict(function.get("parameters") or {})
        # References are looked up from the root: each tool's definitions go there, under names of its own.
        own = {**parameters.pop("definitions", {}), **parameters.pop("$defs", {})}
        definitions |= {f"{number}.{name}": _renamed(part, number) for name, part in own.items()}
        properties = {
            "name": {"const": function["name"]},
            "arguments": {"type": "object", **_renamed(parameters, number)},
        }
        required = ["name", "arguments"]
        calls.append(
            {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        )
    schema = {"anyOf": calls} if len(calls) > 1 else calls[0]
    return {**schema, "$defs": definitions} if definitions else schema


def _renamed(part: Any, number: int) -> Any:
    """A part of a tool's schema with references to the tool's definitions as `_call_schema` names them."""
    if isinstance(part, list):
        return [_renamed(it, number) for it in part]
    if not isinstance(part, dict):
        return part
    found = {key: _renamed(it, number) for key, it in part.items()}
    if isinstance(part.get("$ref"), str):
        found["$ref"] = re.sub(r"^#/(\$defs|definitions)/", f"#/$defs/{number}.", part["$ref"])
    return found


def sampling_of(
    served: ServedModel, fields: SamplingFields, max_tokens: int | None, limits: Limits
) -> Sampling:
    """What a request says, then the model's generation_config.json, then the defaults."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
    given = {name: getattr(fields, name) for name in names if getattr(fields, name) is not None}
    stop = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ())
    most = limits.max_tokens or served.context_length
    wanted = most if max_tokens is None else min(max_tokens, most)
    values: JSON = {**served.defaults, **given, "stop": stop, "max_tokens": wanted}
    return Sampling(**values)


def row_settings(served: ServedModel, fields: SamplingFields, n_top: int | None) -> JSON:
    """The fields of RowSettings, and `n`, that a request names."""
    bias = {int(token): value for token, value in (fields.logit_bias or {}).items()}
    unknown = [token for token in bias if token >= served.tokenizer.vocab_size]
    if unknown:
        raise ApiError(400, f"logit_bias names token {unknown[0]}, beyond the vocabulary", param="logit_bias")
    return {
        "n": fields.n or 1,
        "frequency_penalty": fields.frequency_penalty or 0.0,
        "presence_penalty": fields.presence_penalty or 0.0,
        "logit_bias": bias,
        "n_top": None if n_top is None else min(n_top, served.tokenizer.vocab_size),
    }


async def deltas(served: ServedModel, request: Request) -> AsyncIterator[Delta]:
    """The deltas of all texts of a request, in the order of their making; leaving early cancels the request.

    Raises ApiError when the request is refused or the engine fails.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Delta] = asyncio.Queue()

    def deliver(delta: Delta) -> None:
        loop.call_soon_threadsafe(arrived.put_nowait, delta)

    try:
        job = served.engine.submit(request, deliver)
    except UserError as error:
        raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from None
    except QueueFull as error:
        raise ApiError(429, str(error), code="queue_full", retry_after_s=error.retry_after_s) from None
    except Closed:
        raise ApiError(503, "the server is shutting down", retry_after_s=5) from None
    n_left = request.n
    try:
        while n_left:
            delta = await arrived.get()
            if delta.error:
                raise ApiError(500, delta.error)
            n_left -= delta.finish_reason is not None
            yield delta
    finally:
        if n_left:
            served.engine.cancel(job)
