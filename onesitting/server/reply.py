"""A reply, as it arrives, told apart into text, thought and tool calls.

The parts are told apart by the control tokens that the model wrote, not by their spelling: a model that spells
"<tool_call>" with ordinary tokens, say because a user asked it to, wrote text.
"""

import json
import uuid
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from onesitting.inference.engine import Delta
from onesitting.tokenizer.chat import parse_call

if TYPE_CHECKING:
    from onesitting.tokenizer.bpe import Tokenizer

Kind = Literal["text", "thought", "call"]


_KIND_AFTER: dict[str, Kind] = {
    "<think>": "thought",
    "</think>": "text",
    "<tool_call>": "call",
    "</tool_call>": "text",
}


class Part(NamedTuple):
    """Some more of a reply."""

    kind: Kind
    text: str
    """Text or thought to append; for a call, its arguments as JSON text."""
    name: str = ""
    call_id: str = ""


class _Trim:
    """Text without the white space at both its ends, piece by piece."""

    def __init__(self) -> None:
        self._held, self._begun = "", False

    def add(self, text: str) -> str:
        text = self._held + text
        if not self._begun:
            text = text.lstrip()
        kept = text.rstrip()
        self._held = text[len(kept) :]
        self._begun = self._begun or bool(kept)
        return kept


class ReplyParser:
    """The parts of one reply; `starts` is where the prompt left it."""

    def __init__(self, tokenizer: "Tokenizer", starts: Kind = "text") -> None:
        ids = tokenizer.special_ids
        self._kind_after: dict[int, Kind] = {
            ids[tag]: kind for tag, kind in _KIND_AFTER.items() if tag in ids
        }
        self._call_end = ids.get("</tool_call>")
        self._kind: Kind = starts
        self._at = 0
        self._marks: list[tuple[int, int, int]] = []
        self._trims: dict[Kind, _Trim] = {"text": _Trim(), "thought": _Trim()}
        self._call: list[str] = []

    def feed(self, delta: Delta) -> list[Part]:
        """The parts that one delta adds; at its end, what was left open."""
        self._marks += delta.marks
        parts: list[Part] = []
        text = delta.text
        while self._marks:
            begin, end, token = self._marks[0]
            if self._at < begin:
                head, text = text[: begin - self._at], text[begin - self._at :]
                self._add(parts, head)
            if self._at < begin:  # the rest is held back by the engine
                break
            skipped = min(len(text), end - self._at)
            text = text[skipped:]
            self._at += skipped
            if self._at < end:
                break
            self._marks.pop(0)
            self._switch(parts, self._kind_after.get(token, self._kind), closed=token == self._call_end)
        self._add(parts, text)
        if delta.finish_reason is not None:
            if not "".join(self._call).strip():  # a call that was opened, and nothing more
                self._kind = "text"
            self._switch(parts, "text", closed=False)
        return [part for part in parts if part.text or part.kind == "call"]

    def _add(self, parts: list[Part], text: str) -> None:
        self._at += len(text)
        if self._kind == "call":
            self._call.append(text)
        elif text:
            parts.append(Part(self._kind, self._trims[self._kind].add(text)))

    def _switch(self, parts: list[Part], kind: Kind, closed: bool) -> None:
        if self._kind == "call":
            written = "".join(self._call)
            self._call = []
            parts.append(_call_part(written, closed, self._trims["text"]))
        self._kind = kind


def _call_part(written: str, closed: bool, trim: _Trim) -> Part:
    """A call that can be read is a call; anything else is shown as the text that it is."""
    call = parse_call(written, closed)  # the text as it is: a tag that is spelled in an argument ends nothing
    if call["type"] == "invalid":
        return Part("text", trim.add(f"<tool_call>{written}" + ("</tool_call>" if closed else "")))
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return Part("call", arguments, function["name"], f"call_{uuid.uuid4().hex[:24]}")


class Reply:
    """All parts of one reply together."""

    def __init__(self) -> None:
        self.text = ""
        self.thought = ""
        self.calls: list[Part] = []

    def add(self, part: Part) -> None:
        """Append a part."""
        if part.kind == "text":
            self.text += part.text
        elif part.kind == "thought":
            self.thought += part.text
        else:
            self.calls.append(part)

    def openai_calls(self) -> list[dict[str, Any]]:
        """The calls as OpenAI's messages have them."""
        return [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.text}}
            for call in self.calls
        ]
