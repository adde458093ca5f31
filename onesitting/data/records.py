"""A record of a file -> its text, or its conversation in OpenAI's form; field names are guessed or given."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from onesitting.tokenizer.chat import parse_assistant

Record = dict[str, Any]
Message = dict[str, Any]

TEXT_FIELDS = (
    "text", "content", "document", "body", "article", "story", "passage", "markdown", "code", "raw_content",
)  # fmt: skip
CHAT_FIELDS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
PROMPT_FIELDS = ("instruction", "prompt", "question", "query", "problem", "input", "user")
REPLY_FIELDS = ("output", "response", "completion", "answer", "reply", "solution", "assistant")

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model":
    "assistant", "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
    "ipython": "tool", "function_call": "call", "tool_call": "call",
}  # fmt: skip


class RecordError(ValueError):
    """What is wrong with a record, in a few words."""


def guess_text_field(records: Sequence[Record]) -> str | None:
    """The field that holds the text: one with a usual name, else the one with the most text, or None."""
    # text in half of the records is enough: some of them may be bad ones
    names = dict.fromkeys(name for record in records for name in record)
    n_texts = {name: sum(_is_text(record.get(name)) for record in records) for name in names}
    texts = [name for name, n in n_texts.items() if 2 * n >= len(records)]
    lowered = {name.lower(): name for name in reversed(texts)}
    for usual in TEXT_FIELDS:
        if usual in lowered:
            return lowered[usual]
    # a conversation's question or answer alone is no document
    if any(guess_chat_form(record) for record in records):
        return None
    return max(texts, key=lambda name: sum(len(str(r.get(name, ""))) for r in records), default=None)


def _is_text(value: object) -> bool:
    """Whether a value could be a document: a string with a letter in it, not a number or a date in quotes."""
    return isinstance(value, str) and any(character.isalpha() for character in value)


def guess_chat_form(record: Record) -> str | None:
    """Where a record holds a conversation: the field of its messages, or "PROMPT -> REPLY" of two fields."""
    for name in CHAT_FIELDS:
        if isinstance(_parsed(record.get(name)), list):
            return name
    prompt = next((name for name in PROMPT_FIELDS if record.get(name)), None)
    reply = next((name for name in REPLY_FIELDS if name != prompt and record.get(name)), None)
    return f"{prompt} -> {reply}" if prompt and reply else None


def conversation_of(record: Record, form: str) -> tuple[list[Message], list[Record] | None]:
    """(messages, tools) of a record in a form of `guess_chat_form`. Raises RecordError."""
    tools = tools_of(record.get("tools") or record.get("functions"))
    if " -> " in form:
        prompt, reply = form.split(" -> ")
        messages = _pair(record, prompt, reply)
    else:
        messages = _parsed(record.get(form))
    if not isinstance(messages, list):
        raise RecordError(f"field {form!r} is no list of messages")
    cleaned = messages_of(messages)
    for message in messages:
        tools = tools or tools_of(message.get("tools"))
    if not any(m["role"] == "assistant" for m in cleaned):
        raise RecordError("no assistant message")
    return cleaned, tools


def messages_of(messages: Any) -> list[Message]:
    """A list of messages of any known form, in OpenAI's form. Raises RecordError."""
    if not isinstance(messages, list):
        raise RecordError(f"messages are {type(messages).__name__}, not a list")
    cleaned: list[Message] = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise RecordError("a message is not an object")
        cleaned += _message(message)
    return cleaned


def _pair(record: Record, prompt: str, reply: str) -> list[Any]:
    """Messages of alpaca's instruction/input/output, or of a prompt and its reply."""
    question, answer = record.get(prompt), record.get(reply)
    if isinstance(question, list) or isinstance(answer, list):  # lists of messages
        first = question if isinstance(question, list) else [{"role": "user", "content": question}]
        return first + (answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}])
    if not isinstance(question, str) or not isinstance(answer, str):
        raise RecordError(f"{prompt!r} and {reply!r} must be text")
    extra = record.get("input") if prompt == "instruction" else None
    if isinstance(extra, str) and extra.strip():
        question = f"{question.strip()}\n\n{extra.strip()}"
    messages: list[Any] = []
    if isinstance(record.get("system"), str) and record["system"].strip():
        messages.append({"role": "system", "content": record["system"]})
    for turn in record.get("history") or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise RecordError("history is no list of pairs")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _message(message: Mapping[str, Any]) -> list[Message]:
    """A message in OpenAI's form; none for an empty system message. Raises RecordError."""
    name = message.get("role") or message.get("from") or message.get("speaker")
    role = ROLES.get(str(name).lower())
    if role is None:
        raise RecordError(f"unknown role {name!r}")
    content = _content(message)
    if role == "call":
        return [{"role": "assistant", "content": "", "tool_calls": [_call(_parsed(content))]}]
    if role == "assistant":
        return [_assistant(message, content)]
    if role == "tool":
        content = content.strip().removeprefix("<tool_response>").removesuffix("</tool_response>")
    if not content.strip():
        if role == "system":
            return []
        if role == "user":
            raise RecordError("empty user message")
    return [{"role": role, "content": content}]


def _assistant(message: Mapping[str, Any], content: str) -> Message:
    """An assistant's message; thoughts and calls written into its text as Qwen does are taken out of it."""
    reasoning = message.get("reasoning_content") or message.get("reasoning") or message.get("thinking")
    calls = _parsed(message.get("tool_calls")) or []
    if not isinstance(calls, list):
        raise RecordError("tool_calls is no list")
    if message.get("function_call"):
        calls = [*calls, _parsed(message["function_call"])]
    calls = [_call(call) for call in calls]
    if not calls and not reasoning and ("</think>" in content or "<tool_call>" in content):
        parsed = parse_assistant(content)
        if all(call["type"] == "function" for call in parsed["tool_calls"]):
            content, calls, reasoning = parsed["content"], parsed["tool_calls"], parsed["reasoning_content"]
    result: Message = {"role": "assistant", "content": content}
    if isinstance(reasoning, str) and reasoning.strip():
        result["reasoning_content"] = reasoning
    if calls:
        result["tool_calls"] = calls
    if not content.strip() and len(result) == 2:
        raise RecordError("empty assistant message")
    return result


def _content(message: Mapping[str, Any]) -> str:
    content = next((message[key] for key in ("content", "value", "text") if message.get(key) is not None), "")
    if isinstance(content, list):
        if any(not isinstance(part, Mapping) or part.get("type", "text") != "text" for part in content):
            raise RecordError("message content that is not text")
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise RecordError(f"message content is {type(content).__name__}, not text")
    return content


def _call(call: Any) -> Record:
    """A tool call with its arguments as a dict, or one that cannot be read as it was written. Raises RecordError.

    The second is how a model's own reply is kept that is rejected for just that (own_pairs.py).
    """
    if isinstance(call, Mapping) and call.get("type") == "invalid" and isinstance(call.get("text"), str):
        return {"type": "invalid", "text": call["text"]}
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RecordError("tool call without a name")
    arguments = _parsed(function.get("arguments", function.get("parameters"))) or {}
    if not isinstance(arguments, dict):
        raise RecordError("tool call whose arguments are no object")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def tools_of(tools: Any) -> list[Record] | None:
    """Schemas of tools in OpenAI's form, None without any. Raises RecordError."""
    tools = _parsed(tools)
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RecordError("tools is no list of objects")
    return [
        tool if "function" in tool or "type" in tool else {"type": "function", "function": tool}
        for tool in tools
    ]


def _parsed(value: Any) -> Any:
    """JSON text as the value that it stands for; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
