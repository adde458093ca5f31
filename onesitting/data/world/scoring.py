"""Scorers of the world's evaluation items: a reply in, right or wrong and why out.

A reply is what the assistant said: its content and its tool calls. Scorers forgive phrasing (case,
articles, "The answer is …") and are strict on content: a wrong name beside the right one is wrong.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onesitting.tools.protocol import JSON, parsed_arguments, validate_call


@dataclass(frozen=True)
class Reply:
    """What the assistant answered."""

    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """Calls as {"name", "arguments"} or in OpenAI form; one that could not be parsed has no name."""


@dataclass(frozen=True)
class Score:
    """A verdict; `parts` are sub-verdicts that are reported on their own (valid, grammatical, …)."""

    correct: bool
    detail: str
    parts: dict[str, bool] = field(default_factory=dict[str, bool])


def normalised(text: str) -> str:
    """Lower case, words and numbers only, without articles: what two phrasings of one answer share."""
    words = re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower())
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def contains(text: str, phrase: str) -> bool:
    """Whether the phrase occurs in the text as whole words, in any phrasing that `normalised` forgives."""
    return f" {normalised(phrase)} " in f" {normalised(text)} "


def score_answer(reply: Reply, reference: JSON) -> Score:
    """Right if the reply has an accepted answer and none of the rejected ones.

    reference: {"accepted": [...], "rejected": [...]}; a rejected phrase inside an accepted one is ignored.
    """
    accepted: list[str] = reference["accepted"]
    found = next((answer for answer in accepted if contains(reply.content, answer)), None)
    if found is None:
        return Score(False, f"expected '{accepted[0]}'")
    for wrong in reference.get("rejected", ()):
        if contains(reply.content, wrong) and not contains(found, wrong):
            return Score(False, f"'{wrong}' beside '{found}'")
    return Score(True, f"has '{found}'")


def score_number(reply: Reply, reference: JSON) -> Score:
    """Right if the last number in the reply is the reference. reference: {"answer": "85"}."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", reply.content.replace(",", ""))
    if not numbers:
        return Score(False, "no number")
    return Score(numbers[-1] == reference["answer"], f"{numbers[-1]}, expected {reference['answer']}")


def score_last_word(reply: Reply, reference: JSON) -> Score:
    """Right if the reply's last word is the reference. reference: {"answer": "Thursday"}."""
    words = normalised(reply.content).split()
    if not words:
        return Score(False, "no words")
    return Score(words[-1] == reference["answer"].lower(), f"{words[-1]}, expected {reference['answer']}")


_SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["”]))\s+(?=["“]?[A-Z0-9])""")


def sentences(text: str) -> list[str]:
    """The sentences of a text: pieces that end in . ! or ?, before a capital, a digit or a quote."""
    pieces = [piece.strip() for piece in _SENTENCE_END.split(text)]
    return [piece for piece in pieces if piece.rstrip('"”')[-1:] in (".", "!", "?") and piece.strip('."”!?')]


def list_items(text: str) -> list[str] | None:
    """The items of a bullet list (`- item`), or None if a line is no item."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines or not all(line.startswith("- ") for line in lines):
        return None
    return [line[2:].strip() for line in lines]


def _format_sentences(text: str, n: int) -> str | None:
    found = sentences(text)
    clean = text.strip() == " ".join(text.split()) and text.strip()[-1:] in '.!?"”'
    return None if clean and len(found) == n else f"{len(found)} sentences, expected {n}"


def _format_list(text: str, n: int) -> str | None:
    items = list_items(text)
    if items is None:
        return "not a list"
    if len({normalised(item) for item in items}) != len(items):
        return "an item twice"
    return None if len(items) == n else f"{len(items)} items, expected {n}"


def _format_words(text: str, n: int) -> str | None:
    return None if len(text.split()) == n else f"{len(text.split())} words, expected {n}"


def score_instruction(reply: Reply, reference: JSON) -> Score:
    """Right if the format is kept and the content is there.

    reference: any of "sentences", "items", "words" (exact counts), "upper", "yes_no",
        "json" (an object that
    must be equal), "exact" (the text itself), "mentions" (phrases that must occur), "starts", "ends",
    "allowed" (each list item must be one of these), "accepted" and "rejected" as in score_answer.
    """
    problem = _format_problem(reply.content, reference) or _content_problem(reply.content, reference)
    return Score(problem is None, problem or "as asked")


def _format_problem(text: str, reference: JSON) -> str | None:
    checks: tuple[tuple[str, Callable[[str, int], str | None]], ...] = (
        ("sentences", _format_sentences),
        ("items", _format_list),
        ("words", _format_words),
    )
    for name, check in checks:
        problem = check(text, reference[name]) if name in reference else None
        if problem:
            return problem
    if reference.get("upper") and (text != text.upper() or not any(c.isalpha() for c in text)):
        return "not in upper case"
    if reference.get("lower") and (text != text.lower() or not any(c.isalpha() for c in text)):
        return "not in lower case"
    if "yes_no" in reference and normalised(text) != reference["yes_no"]:
        return f"expected '{reference['yes_no']}' alone"
    if "json" in reference:
        try:
            value = json.loads(text)
        except ValueError:
            return "not JSON"
        if value != reference["json"]:
            return f"expected {json.dumps(reference['json'])}"
    return None


def _content_problem(text: str, reference: JSON) -> str | None:
    if "exact" in reference and text.strip() != reference["exact"]:
        return f"expected '{reference['exact']}'"
    for phrase in reference.get("mentions", ()):
        if not contains(text, phrase):
            return f"does not mention '{phrase}'"
    if "starts" in reference and not text.strip().startswith(reference["starts"]):
        return f"does not begin with '{reference['starts']}'"
    if "ends" in reference and not text.strip().endswith(reference["ends"]):
        return f"does not end with '{reference['ends']}'"
    if "allowed" in reference:
        allowed = {normalised(word) for word in reference["allowed"]}
        strange = [item for item in list_items(text) or [] if normalised(item) not in allowed]
        if strange:
            return f"'{strange[0]}' does not belong here"
    if "accepted" in reference:
        score = score_answer(Reply(text), reference)
        return None if score.correct else score.detail
    return None


def score_tool(reply: Reply, reference: JSON) -> Score:
    """Right if the one call has the right tool and arguments; the part `valid` asks for the schema alone.

    reference: {"tools": schemas offered, "name", "arguments": accepted arguments, a list of dicts}, or
    {"tools", "name": None, "accepted", "rejected"} where the right thing is to answer without a tool.
    """
    problems = [validate_call(call, reference["tools"]) for call in reply.tool_calls]
    problem = next((found for found in problems if found), None)
    if reference["name"] is None:
        if reply.tool_calls:
            return Score(False, problem or "called a tool without need", {"valid": problem is None})
        answer = score_answer(reply, reference)
        return Score(answer.correct, answer.detail, {"valid": bool(reply.content.strip())})
    if len(reply.tool_calls) != 1:
        return Score(False, f"{len(reply.tool_calls)} calls, expected 1", {"valid": False})
    if problem:
        return Score(False, problem, {"valid": False})
    call: Mapping[str, Any] = reply.tool_calls[0].get("function", reply.tool_calls[0])
    if call["name"] != reference["name"]:
        return Score(False, f"called {call['name']}, expected {reference['name']}", {"valid": True})
    arguments = parsed_arguments(call["arguments"])
    right = isinstance(arguments, dict) and any(_same(arguments, wanted) for wanted in reference["arguments"])
    return Score(right, f"{call['name']}({json.dumps(arguments)})", {"valid": True})


def _same(arguments: JSON, wanted: JSON) -> bool:
    """Equal, up to case and spaces in strings (`3*4` is `3 * 4`)."""

    def plain(value: object) -> object:
        return re.sub(r"\s+", "", value).lower() if isinstance(value, str) else value

    return arguments.keys() == wanted.keys() and all(
        plain(arguments[key]) == plain(wanted[key]) for key in wanted
    )


Scorer = Callable[[Reply, JSON], Score]


def accuracy(scores: Sequence[Score]) -> float:
    """Fraction of right scores; 0 for none."""
    return sum(score.correct for score in scores) / len(scores) if scores else 0.0
