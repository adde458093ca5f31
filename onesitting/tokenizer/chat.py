r"""Messages to token ids and back: the only chat template of the project.

The format is ChatML, as Qwen's models use it, with nothing added that a small model would have to read each
time (no default system prompt, no tool instructions):

    <|im_start|>system\nBe brief.\n\n# Tools\n{"type": "function", "function": {…}}<|im_end|>\n
    <|im_start|>user\nWhat is 2 + 3?<|im_end|>\n
    <|im_start|>assistant\n<think>I should compute.</think>\nLet me see.\n
        <tool_call>\n{"name": "calculator", "arguments": {"expression": "2 + 3"}}\n</tool_call><|im_end|>\n
    <|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n
    <|im_start|>assistant\nIt is 5.<|im_end|>\n

`render` writes the special tokens as ids and encodes everything else as data, so no text of a user, a tool or
a file becomes a control token. `CHAT_TEMPLATE` is the same format for programs that render with Jinja.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onesitting.errors import UserError

if TYPE_CHECKING:
    from onesitting.tokenizer.bpe import Tokenizer

ROLES = ("system", "user", "assistant", "tool")

CHAT_TEMPLATE = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages and messages[0].role == 'system' and (messages[0].content or '') | trim %}
        {{- messages[0].content | trim + '\n\n' }}
    {%- endif %}
    {{- '# Tools' }}
    {%- for tool in tools %}
        {{- '\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = (message.content or '') | trim %}
    {%- if message.role == 'system' and tools and loop.first %}
    {%- elif message.role == 'system' or message.role == 'user' %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- if message.reasoning_content is string %}
            {{- '<think>' + message.reasoning_content | trim + '</think>\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- if content or not loop.first %}
                {{- '\n' }}
            {%- endif %}
            {{- '<tool_call>\n' }}
            {%- if call.type == 'invalid' %}
                {{- call.text | trim }}
            {%- else %}
                {%- set function = call.function or call %}
                {%- set arguments = function.arguments or {} %}
                {{- '{"name": ' + (function.name | tojson) + ', "arguments": ' }}
                {{- arguments if arguments is string else arguments | tojson }}
                {{- '}' }}
            {%- endif %}
            {{- '\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- else %}
        {{- raise_exception('unknown role: ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is true %}
        {{- '<think>' }}
    {%- elif enable_thinking is defined and enable_thinking is false %}
        {{- '<think></think>\n' }}
    {%- endif %}
{%- endif %}
""".strip()
"""The format in Jinja, stored in tokenizer_config.json; `enable_thinking` is render's `thinking`."""

Message = Mapping[str, Any]


class _Pieces:
    """Control tokens and text of a conversation, in order, each with whether it is trained."""

    def __init__(self) -> None:
        self.items: list[tuple[str, bool, bool]] = []  # (text, is a control token, is trained)

    def control(self, token: str, trained: bool = False) -> None:
        self.items.append((token, True, trained))

    def text(self, text: str, trained: bool = False) -> None:
        """Add text; it is encoded together with text before it, as by a tokenizer that sees the whole."""
        if not text:
            return
        if self.items and self.items[-1][1:] == (False, trained):
            text = self.items.pop()[0] + text
        self.items.append((text, False, trained))

    def encode(self, tokenizer: "Tokenizer") -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        mask: list[bool] = []
        for text, is_control, trained in self.items:
            new = [tokenizer.special_id(text)] if is_control else tokenizer.encode(text)
            ids += new
            mask += [trained] * len(new)
        return ids, mask


def render(
    tokenizer: "Tokenizer",
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = False,
    thinking: bool | None = None,
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and for each whether it is trained.

    Trained are the assistant's words, its reasoning, its tool calls and the <|im_end|> that ends them;
    system, user and tool messages are not, nor is what opens a message. White space around a message's
    content is dropped.
    messages: role (system, user, assistant, tool), content, and for the assistant reasoning_content and
    tool_calls, as in OpenAI's API; arguments of a call are a dict, or JSON text, which is then written as it
    is.
    tools: JSON schemas, written one a line into the system message.
    add_generation_prompt: end where the assistant's reply begins.
    thinking: True opens a thought in the reply, False closes an empty one, None leaves it to the model.
    Raises UserError for a message of another form, or a tokenizer without ChatML tokens.
    """
    pieces = _conversation(messages, tools)
    if add_generation_prompt:
        _open(pieces, "assistant")
        if thinking is not None:
            pieces.control("<think>")
        if thinking is False:
            pieces.control("</think>")
            pieces.text("\n")
    return pieces.encode(tokenizer)


def conversation_text(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
    """What `render` encodes as text, without the control tokens: what a tokenizer is to learn of conversations."""
    return "\n".join(text for text, is_control, _ in _conversation(messages, tools).items if not is_control)


def _conversation(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> _Pieces:
    pieces = _Pieces()
    first_is_system = bool(messages) and messages[0].get("role") == "system"
    if tools:
        _add_system_with_tools(pieces, _content(messages[0]) if first_is_system else "", tools)
    rest = messages[1:] if tools and first_is_system else messages
    for index, message in enumerate(rest):
        role = message.get("role")
        if role == "system" or role == "user":
            _open(pieces, role)
            pieces.text(_content(message))
            _close(pieces)
        elif role == "assistant":
            _add_assistant(pieces, message)
        elif role == "tool":
            is_first = index == 0 or rest[index - 1].get("role") != "tool"
            is_last = index + 1 == len(rest) or rest[index + 1].get("role") != "tool"
            _add_tool_result(pieces, _content(message), is_first, is_last)
        else:
            raise UserError(f"message with role {role!r}; known roles are {', '.join(ROLES)}")
    return pieces


def _open(pieces: _Pieces, role: str) -> None:
    pieces.control("<|im_start|>")
    pieces.text(role + "\n")


def _close(pieces: _Pieces, trained: bool = False) -> None:
    pieces.control("<|im_end|>", trained)
    pieces.text("\n")


def _add_system_with_tools(pieces: _Pieces, content: str, tools: Sequence[Mapping[str, Any]]) -> None:
    _open(pieces, "system")
    pieces.text(f"{content}\n\n" if content else "")
    pieces.text("\n".join(["# Tools", *map(_to_json, tools)]))
    _close(pieces)


def _add_assistant(pieces: _Pieces, message: Message) -> None:
    _open(pieces, "assistant")
    reasoning = message.get("reasoning_content")
    if isinstance(reasoning, str):
        pieces.control("<think>", trained=True)
        pieces.text(reasoning.strip(), trained=True)
        pieces.control("</think>", trained=True)
        pieces.text("\n", trained=True)
    content = _content(message)
    pieces.text(content, trained=True)
    for number, call in enumerate(message.get("tool_calls") or []):
        pieces.text("\n" if content or number else "", trained=True)
        pieces.control("<tool_call>", trained=True)
        pieces.text(f"\n{_call_text(call)}\n", trained=True)
        pieces.control("</tool_call>", trained=True)
    _close(pieces, trained=True)


def _add_tool_result(pieces: _Pieces, content: str, is_first: bool, is_last: bool) -> None:
    """Results that follow each other share one message."""
    if is_first:
        pieces.control("<|im_start|>")
        pieces.text("user")
    pieces.text("\n")
    pieces.control("<tool_response>")
    pieces.text(f"\n{content}\n")
    pieces.control("</tool_response>")
    if is_last:
        _close(pieces)


def _content(message: Message) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if not isinstance(content, str):
        raise UserError(f"message content is {type(content).__name__}; it must be text")
    return content.strip()


def _call_text(call: Any) -> str:
    """The JSON text of a call; an invalid call (see `parse_assistant`) is written as it was."""
    if not isinstance(call, Mapping):
        raise UserError(f"tool call is {type(call).__name__}; it must be an object with name and arguments")
    if call.get("type") == "invalid":
        return str(call.get("text", "")).strip()
    function = call.get("function") or call
    if not isinstance(function.get("name"), str):
        raise UserError(f"tool call without a name: {_to_json(call)[:200]}")
    arguments = function.get("arguments") or {}
    arguments = arguments if isinstance(arguments, str) else _to_json(arguments)
    return f'{{"name": {_to_json(function["name"])}, "arguments": {arguments}}}'


def _to_json(value: Any) -> str:
    """As Jinja's tojson in transformers writes it."""
    return json.dumps(value, ensure_ascii=False)


_THOUGHT = re.compile(r"^\s*(?:<think>)?(.*?)</think>", re.DOTALL)
_CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|(?=<tool_call>)|$)", re.DOTALL)
_END = re.compile(r"<\|im_end\|>|<\|endoftext\|>")


def parse_assistant(text: str) -> dict[str, Any]:
    """The message that a reply's text (special tokens spelled out) stands for; `render` writes it back.

    Returns role "assistant", content, reasoning_content (None without a thought) and tool_calls. A call is
    {"type": "function", "function": {"name", "arguments": dict}}, or, where the model wrote something else,
    {"type": "invalid", "text", "error"}. A thought or call that is not closed ends with the text.
    """
    text = _END.split(text, maxsplit=1)[0]
    reasoning = None
    thought = _THOUGHT.match(text)
    if thought:
        reasoning, text = thought[1].strip(), text[thought.end() :]
    elif text.lstrip().startswith("<think>"):
        reasoning, text = text.lstrip().removeprefix("<think>").strip(), ""
    calls = [parse_call(m[1], closed=m[2] == "</tool_call>") for m in _CALL.finditer(text)]
    content = _CALL.sub("", text).strip()
    return {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": calls}


def parse_call(text: str, closed: bool = True) -> dict[str, Any]:
    """One tool call, the text between its tags; what is wrong with it stands in "error"."""
    text = text.strip()
    try:
        call = json.loads(text)
        # Python also reads numbers beyond the largest and halves of characters, which no other program takes back.
        json.dumps(call, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        problem = f"not JSON: {error}"
    else:
        name = call.get("name") if isinstance(call, dict) else None
        arguments = call.get("arguments", {}) if isinstance(call, dict) else None
        if not isinstance(name, str) or not name:
            problem = "no name"
        elif not isinstance(arguments, dict):
            problem = "arguments are not an object"
        elif not closed:
            problem = "not closed by </tool_call>"
        else:
            return {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"type": "invalid", "text": text, "error": problem}
