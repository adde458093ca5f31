"""A conversation under construction, in OpenAI message form, with the turn that can be scored.

One generator serves training and evaluation: a training conversation is a `Talk`'s messages; a test item
is the same kind of talk, from the test split, cut before the scored turn.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from onesitting.tools.protocol import JSON

Message = dict[str, Any]


@dataclass
class Talk:
    """Messages, and how the reply at index `scored` is judged."""

    kind: str
    key: str = ""
    """The facts and the wording that are asked: what the split depends on; empty: nothing to hold out."""
    messages: list[Message] = field(default_factory=list[Message])
    tools: list[JSON] | None = None
    scored: int = -1
    """Index of the assistant message that an evaluation asks for; -1: none."""
    scorer: str = ""
    """Name of the scorer in scoring.SCORERS."""
    reference: JSON = field(default_factory=dict[str, Any])
    baseline: Message = field(default_factory=lambda: assistant_message("I don't know."))
    """What a reply without understanding would be; scored like any other."""

    def system(self, content: str) -> "Talk":
        """Add a system message."""
        self.messages.append({"role": "system", "content": content})
        return self

    def user(self, content: str) -> "Talk":
        """Add a user message."""
        self.messages.append({"role": "user", "content": content})
        return self

    def assistant(self, content: str, *, thinking: str = "") -> "Talk":
        """Add an assistant message, with its thinking trace if there is one."""
        self.messages.append(assistant_message(content, thinking))
        return self

    def call(self, name: str, arguments: Mapping[str, Any], result: str) -> "Talk":
        """Add an assistant message that calls a tool, and the tool's result."""
        number = sum(len(message.get("tool_calls", ())) for message in self.messages) + 1
        message = call_message(name, arguments, f"call_{number}")
        self.messages += [message, {"role": "tool", "tool_call_id": f"call_{number}", "content": result}]
        return self

    def after(self, earlier: "Talk") -> "Talk":
        """Put the turns of another conversation before this one's."""
        self.messages = [*earlier.messages, *self.messages]
        self.scored += len(earlier.messages) if self.scored >= 0 else 0
        return self

    def expect(self, scorer: str, reference: JSON, baseline: str | Message = "") -> "Talk":
        """Score the message added last (or the call before it, if that is a tool's result)."""
        self.scored = len(self.messages) - (2 if self.messages[-1]["role"] == "tool" else 1)
        self.scorer, self.reference = scorer, reference
        if baseline:
            self.baseline = assistant_message(baseline) if isinstance(baseline, str) else baseline
        return self


def assistant_message(content: str, thinking: str = "") -> Message:
    """An assistant message; `thinking` becomes its reasoning_content."""
    message: Message = {"role": "assistant", "content": content}
    return message | {"reasoning_content": thinking} if thinking else message


def call_message(name: str, arguments: Mapping[str, Any], call_id: str = "call_1") -> Message:
    """An assistant message that calls one tool."""
    function = {"name": name, "arguments": json.dumps(dict(arguments), ensure_ascii=False)}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


_OPENINGS = (
    "Hi! {}",
    "Hello. {}",
    "Please help me. {}",
    "Good day! {}",
    "Hey, a question: {}",
    "Tell me: {}",
    "I was wondering: {}",
)
_ENDINGS = ("{} Thanks!", "{} Thank you.", "{} Please tell me.")


def politely(rng: Random, request: str) -> str:
    """The request, in about a quarter of the cases with an opening or an ending around it."""
    chance = rng.random()
    if chance > 0.25:
        return request
    frames = _OPENINGS if chance > 0.08 else _ENDINGS
    # "Tell me: List three colours." is no English; only a question takes every frame.
    return rng.choice(frames if request.endswith("?") else frames[: (len(frames) + 1) // 2]).format(request)


def capitalised(text: str) -> str:
    """The text with a capital first letter (the rest unchanged)."""
    return text[:1].upper() + text[1:]
