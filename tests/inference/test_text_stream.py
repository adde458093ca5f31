"""Contract 21: a stream never breaks a character and never shows a stop string."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesitting.inference.text_stream import TextStream, spelled_bytes

BYTES = [bytes([i]) for i in range(256)]


def streamed(data: bytes, stop: tuple[str, ...] = ()) -> list[str]:
    text = TextStream(BYTES, stop)
    pieces = []
    for byte in data:
        pieces.append(text.add(byte))
        if text.stopped:
            break
    return [*pieces, text.end()]


@given(st.text(max_size=30))
@settings(derandomize=True, max_examples=100)
def test_every_piece_of_a_text_is_whole_characters(text: str) -> None:
    pieces = streamed(text.encode())
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


@given(st.binary(max_size=30))
@settings(derandomize=True, max_examples=100)
def test_any_bytes_end_as_their_decoded_text(data: bytes) -> None:
    assert "".join(streamed(data)) == data.decode("utf-8", errors="replace")


@given(st.text("ab", max_size=14), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
@settings(derandomize=True, max_examples=300)
def test_text_ends_before_the_stop_string_that_is_complete_first(text: str, stop: list[str]) -> None:
    ends = [(text.index(s) + len(s), text.index(s)) for s in stop if s in text]
    expected = text[: min(ends)[1]] if ends else text
    assert "".join(streamed(text.encode(), tuple(stop))) == expected


def test_text_that_cannot_begin_a_stop_string_is_not_held_back() -> None:
    assert streamed(b"abEcEN", ("END",)) == ["a", "b", "", "Ec", "", "", "EN"]


@pytest.mark.parametrize("text", ["😀", "漢", "é"])
def test_character_is_held_back_until_its_last_byte(text: str) -> None:
    data = text.encode()
    assert streamed(data) == [""] * (len(data) - 1) + [text, ""]


def test_special_tokens_are_spelled_out() -> None:
    @dataclass
    class Vocabulary:
        token_bytes: list[bytes] = field(default_factory=lambda: [b"", b"a", b""])
        special_ids: dict[str, int] = field(default_factory=lambda: {"<think>": 0, "<|im_end|>": 2})

    assert spelled_bytes(Vocabulary()) == [b"<think>", b"a", b"<|im_end|>"]  # pyright: ignore
