"""A record of a file -> a preference: a prompt, a reply that was chosen, one that was rejected; or one of the two.

Read are the forms that public data sets have:

    {"prompt": text | messages, "chosen": text | message | messages, "rejected": …}        TRL, Intel's Orca pairs
    {"chosen": whole conversation, "rejected": whole conversation}                          UltraFeedback, binarized
    {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …}                           HH-RLHF
    {"conversations": […], "chosen": {"from", "value"}, "rejected": …}                      LLaMA-Factory
    {"instruction": text, "completions": [{"response", "overall_score"}, …]}                UltraFeedback, its ends
    {"messages": conversation, "label": true | false}, {"prompt", "completion", "label"}    unpaired, for KTO
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onesitting.data.records import Message, Record, RecordError, messages_of, tools_of

PROMPT_FIELDS = (
    "prompt",
    "messages",
    "conversations",
    "conversation",
    "instruction",
    "question",
    "query",
    "input",
)
CHOSEN_FIELDS = ("chosen", "chosen_response", "preferred", "accepted")
REJECTED_FIELDS = ("rejected", "rejected_response", "dispreferred")
LABEL_FIELDS = ("label", "kto_tag", "thumbs_up")
COMPLETION_FIELDS = ("completion", "response", "output", "answer")
SCORE_FIELDS = ("overall_score", "score", "rating")

_TURN = re.compile(r"\n\n(Human|Assistant):")
_NO_WORDS = {"false", "0", "no", "bad", "rejected", "undesirable", "-1"}


class NoPreference(RecordError):
    """Replies that are equal, or equally good: no fault of the file, but nothing to learn from."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A prompt and the replies to it that people (or rules) liked and disliked; one of them may be missing."""

    prompt: list[Message]
    """Messages up to where the reply begins; assistant turns among them are not trained."""
    chosen: list[Message] | None
    """The better reply, beginning with an assistant message."""
    rejected: list[Message] | None
    tools: list[Record] | None
    source: str
    """file:line."""


def preference_of(record: Record, source: str) -> Preference:
    """The preference in a record of any form above. Raises RecordError."""
    tools = tools_of(record.get("tools") or record.get("functions"))
    chosen, rejected = _first(record, CHOSEN_FIELDS), _first(record, REJECTED_FIELDS)
    label = _first(record, LABEL_FIELDS)
    if chosen is None and rejected is None and isinstance(record.get("completions"), list):
        chosen, rejected = _best_and_worst(record["completions"])
    if chosen is not None and rejected is not None:
        prompt, better, worse = _pair(record, chosen, rejected)
        return Preference(prompt=prompt, chosen=better, rejected=worse, tools=tools, source=source)
    if label is None:
        raise RecordError("no chosen and rejected replies, and no reply with a label")
    prompt, reply = _labelled(record)
    good = _is_good(label)
    return Preference(
        prompt=prompt,
        chosen=reply if good else None,
        rejected=None if good else reply,
        tools=tools,
        source=source,
    )


def prompt_of(record: Record) -> tuple[list[Message], list[Record] | None]:
    """(messages, tools) of a record with a prompt or a conversation, up to the reply that is to be written.

    Replies of the assistant at the end are left out. Raises RecordError.
    """
    messages = _prompt(record)
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise RecordError("no prompt")
    return messages, tools_of(record.get("tools") or record.get("functions"))


def _first(record: Record, names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _pair(record: Record, chosen: Any, rejected: Any) -> tuple[list[Message], list[Message], list[Message]]:
    """(prompt, chosen reply, rejected reply), whichever of them hold the prompt too."""
    prompt = _prompt(record)
    better, worse = _reply(chosen), _reply(rejected)
    if better == worse:
        raise NoPreference("chosen and rejected are equal")
    if better[0]["role"] != "assistant" or worse[0]["role"] != "assistant" or not prompt:
        n_shared = 0
        while n_shared < min(len(better), len(worse)) and better[n_shared] == worse[n_shared]:
            n_shared += 1
        # A system message may stand beside whole conversations, in a field of its own.
        system = [m for m in prompt[:1] if m["role"] == "system" and m not in better[:1]]
        prompt, better, worse = [*system, *better[:n_shared]], better[n_shared:], worse[n_shared:]
    for name, reply in (("chosen", better), ("rejected", worse)):
        if not reply or reply[0]["role"] != "assistant":
            raise RecordError(f"{name} does not go on with a reply of the assistant after what both share")
    if not prompt:
        raise RecordError("no prompt")
    return prompt, better, worse


def _prompt(record: Record) -> list[Message]:
    value = _first(record, PROMPT_FIELDS)
    system = record.get("system") or record.get("system_prompt")
    messages = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    if isinstance(value, str):
        extra = record.get("input") if value == record.get("instruction") else None
        text = f"{value.strip()}\n\n{extra.strip()}" if isinstance(extra, str) and extra.strip() else value
        return messages_of([*messages, *(_dialogue(value) or [{"role": "user", "content": text}])])
    return messages_of([*messages, *(value if isinstance(value, list) else [])])


def _reply(value: Any) -> list[Message]:
    """A reply, or a whole conversation that ends with one."""
    if isinstance(value, str):
        value = _dialogue(value) or [{"role": "assistant", "content": value}]
    messages = messages_of([value] if isinstance(value, Mapping) else value)
    if not messages:
        raise RecordError("empty reply")
    return messages


def _dialogue(text: str) -> list[Message] | None:
    """Messages of a text in HH-RLHF's form; None for any other text. An open turn at its end is left out."""
    parts = _TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[name], "content": said.strip()}
        for name, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return turns if turns[-1]["content"] else turns[:-1]


def _best_and_worst(completions: list[Any]) -> tuple[str, str]:
    """Replies with the highest and the lowest score."""
    scored: list[tuple[float, str]] = []
    for completion in completions:
        text = _first(completion, COMPLETION_FIELDS) if isinstance(completion, dict) else None
        score = _first(completion, SCORE_FIELDS) if isinstance(completion, dict) else None
        if isinstance(text, str) and isinstance(score, int | float):
            scored.append((float(score), text))
    if len({score for score, _ in scored}) < 2:
        raise NoPreference("completions without two different scores")
    return max(scored, key=lambda item: item[0])[1], min(scored, key=lambda item: item[0])[1]


def _labelled(record: Record) -> tuple[list[Message], list[Message]]:
    """(prompt, reply) of a record with a label: its completion, or the last turn of its messages."""
    completion = _first(record, COMPLETION_FIELDS)
    if completion is not None:
        prompt, reply = _prompt(record), _reply(completion)
    else:
        messages = _prompt(record)
        prompt, reply = messages[:-1], messages[-1:]
    if not prompt:
        raise RecordError("no prompt")
    if not reply or reply[0]["role"] != "assistant":
        raise RecordError("a label, but no reply of the assistant at the end")
    return prompt, reply


def _is_good(label: Any) -> bool:
    if isinstance(label, str):
        return label.strip().lower() not in _NO_WORDS
    if isinstance(label, int | float):
        return label > 0
    raise RecordError(f"label {label!r} is neither true nor false")
