"""Tokens to text, piece by piece: whole characters only, and nothing that a stop string may still take back."""

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onesitting.tokenizer.bpe import Tokenizer


def spelled_bytes(tokenizer: "Tokenizer") -> list[bytes]:
    """The bytes of each id, special tokens spelled out."""
    spelled = list(tokenizer.token_bytes)
    for text, token in tokenizer.special_ids.items():
        spelled[token] = text.encode()
    return spelled


class TextStream:
    """The text of one growing sequence of tokens.

    spelled: bytes of each id. stop: strings that end the text; the first to be complete does, and is cut off.
    Bytes that are no UTF-8 become U+FFFD, as in `Tokenizer.decode`.
    """

    def __init__(self, spelled: Sequence[bytes], stop: Sequence[str] = ()) -> None:
        self.stopped = False
        """A stop string was met; nothing more comes."""
        self.stop_string: str | None = None
        """The one that was met."""
        self.n_decoded = 0
        """Characters of all tokens so far, those that are held back included."""
        self._spelled, self._stop = spelled, tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def add(self, token: int) -> str:
        """The text that is certain after one more token; often empty."""
        new = self._decoder.decode(self._spelled[token])
        self.n_decoded += len(new)
        return self._release(new)

    def end(self) -> str:
        """What was held back, when no more tokens come."""
        piece = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return "" if self.stopped and not piece else piece

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        ends = [(text.index(s) + len(s), text.index(s)) for s in self._stop if s in text]
        if ends:  # the string that is complete first, and of those the longest
            self.stopped, self._held = True, ""
            end, begin = min(ends)
            self.stop_string = text[begin:end]
            return text[:begin]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
