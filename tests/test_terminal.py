import io
import itertools

from hypothesis import given
from hypothesis import strategies as some

from onesitting.terminal import Ink, split_reply

REPLY = "<think>Twelve and thirty.</think>\nLet me see.\n<tool_call>\n{}\n</tool_call>"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def joined(pieces: list[str]) -> list[tuple[str, str]]:
    """Neighbours of one style together, however they were cut."""
    parts: list[tuple[str, str]] = []
    for style, text in split_reply(pieces):
        if parts and parts[-1][0] == style:
            parts[-1] = (style, parts[-1][1] + text)
        else:
            parts.append((style, text))
    return parts


def test_thoughts_and_calls_are_told_apart_from_text():
    assert joined([REPLY]) == [
        ("thought", "Twelve and thirty.\n"),
        ("text", "Let me see.\n\n"),
        ("call", "{}\n"),
    ]


@given(some.lists(some.integers(0, len(REPLY)), max_size=8))
def test_where_a_reply_is_cut_changes_nothing(cuts: list[int]):
    places = [0, *sorted(cuts), len(REPLY)]
    pieces = [REPLY[a:b] for a, b in itertools.pairwise(places)]
    assert joined(pieces) == joined([REPLY])


@given(some.lists(some.text("<>/thinkab \n", max_size=6), max_size=6))
def test_text_without_tags_passes_unchanged(pieces: list[str]):
    text = "".join(pieces)
    if not any(tag in text for tag in ("<think>", "</think>")):
        assert "".join(shown for _, shown in split_reply(pieces)) == text


def test_text_passes_before_the_reply_has_ended():
    seen: list[str] = []

    def pieces():
        for piece in ("One ", "two ", "<thi", "ef>"):
            yield piece
            seen.append(piece)

    arrived = [(text, len(seen)) for _, text in split_reply(pieces())]
    assert arrived == [("One ", 0), ("two ", 1), ("<thief>", 3)]


def test_styles_reach_terminals_alone(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Ink(Terminal()).dim("x") == "\x1b[2mx\x1b[0m"
    assert Ink(io.StringIO()).dim("x") == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Ink(Terminal()).bold("x") == "x"


def test_a_line_is_ended_once():
    for text in ("reply", "reply\n"):
        stream = io.StringIO()
        ink = Ink(stream)
        ink.write(text)
        ink.end_line()
        assert stream.getvalue() == "reply\n"
