"""What a terminal shows of a model's reply: styles, and thoughts and tool calls told apart from text."""

import os
import re
from collections.abc import Iterable, Iterator
from typing import TextIO

_STYLE_AFTER = {"<think>": "thought", "</think>": "text", "<tool_call>": "call", "</tool_call>": "text"}
_TAG = re.compile("|".join(map(re.escape, _STYLE_AFTER)))
_LONGEST = max(map(len, _STYLE_AFTER))


class Ink:
    """Writes to a stream, with ANSI styles where it is a terminal and NO_COLOR is unset (no-color.org)."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.styled = stream.isatty() and not os.environ.get("NO_COLOR")
        self._last = "\n"

    def dim(self, text: str) -> str:
        """The text in grey."""
        return f"\x1b[2m{text}\x1b[0m" if self.styled and text else text

    def bold(self, text: str) -> str:
        """The text in bold."""
        return f"\x1b[1m{text}\x1b[0m" if self.styled and text else text

    def write(self, text: str) -> None:
        """Show text at once, without a line's end."""
        self.stream.write(text)
        self.stream.flush()
        self._last = (self._last + re.sub("\x1b\\[\\dm", "", text))[-1]

    def note(self, text: str) -> None:
        """A line that is not the model's, in grey."""
        self.write(self.dim(text) + "\n")

    def end_line(self) -> None:
        """End the line, unless it has just ended."""
        self.write("" if self._last == "\n" else "\n")


def split_reply(pieces: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(style, text) of a reply that arrives in pieces; style is text, thought or call, tags are left out.

    A tag that is cut between pieces is held back until it is whole; other text passes at once.
    """
    style, held, after_tag = "text", "", False
    for piece in pieces:
        held += piece
        while True:
            # The line's end after a tag belongs to the tag; it may arrive in a later piece.
            held = held.lstrip("\n") if after_tag else held
            match = _TAG.search(held)
            if not match:
                break
            if match.start():
                yield style, held[: match.start()]
            # A thought or call stands on lines of its own.
            if match[0] in ("</think>", "<tool_call>"):
                yield style, "\n"
            style, held, after_tag = _STYLE_AFTER[match[0]], held[match.end() :], True
        keep = _unfinished_tag(held)
        if len(held) > keep:
            yield style, held[: len(held) - keep]
            held, after_tag = held[len(held) - keep :], False
    if held:
        yield style, held


def _unfinished_tag(text: str) -> int:
    """Length of the longest end of the text that may become a tag."""
    for length in range(min(_LONGEST - 1, len(text)), 0, -1):
        if any(tag.startswith(text[-length:]) for tag in _STYLE_AFTER):
            return length
    return 0
