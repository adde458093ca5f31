"""What a tokenizer.json says: the bytes of each id, the merges, the rule that cuts text into words."""

import itertools
from typing import Any

from onesitting.errors import UserError

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
"""The first ids of every vocabulary trained here, in this order."""

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's expression, which `ByteLevel(use_regex=true)` stands for."""

N_BYTES = 256


def _byte_characters() -> dict[str, int]:
    """The character that stands for each byte in tokenizer.json (GPT-2's table) -> the byte."""
    printable = [b for b in range(N_BYTES) if 0x21 <= b <= 0x7E or (0xA1 <= b <= 0xFF and b != 0xAD)]
    others = [b for b in range(N_BYTES) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(N_BYTES + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_characters()


def merges_of(spec: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """The merges in order; older files write a pair as one string with a blank."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in spec["model"]["merges"])
    return [(_token_bytes(left), _token_bytes(right)) for left, right in pairs]


def _token_bytes(token: str) -> bytes:
    return bytes([_BYTE_OF[character] for character in token])


def bytes_of_ids(spec: dict[str, Any]) -> tuple[list[bytes], list[bytes]]:
    """Bytes of each id: as text, and with special tokens spelled out. Raises UserError if not byte-level."""
    model = spec.get("model") or {}
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") or "merges" not in model:
        raise UserError(
            "not a byte-level BPE (GPT-2's, Llama 3's and Qwen's are); train one, or take another"
        )
    added: dict[int, dict[str, Any]] = {token["id"]: token for token in spec.get("added_tokens") or []}
    by_id = {i: token for token, i in model["vocab"].items() if i not in added}
    size = 1 + max([*by_id, *added])
    data, shown = [b""] * size, [b""] * size
    for i, token in by_id.items():
        if any(character not in _BYTE_OF for character in token):
            raise UserError(f"not a byte-level BPE: entry {i} is {token!r}; train one, or take another")
        data[i] = shown[i] = _token_bytes(token)
    missing = N_BYTES - len({piece for piece in data if len(piece) == 1})
    if missing:
        raise UserError(
            f"not a byte-level BPE: {missing} of the 256 bytes are no tokens; train one, or take another"
        )
    for i, token in added.items():
        shown[i] = token["content"].encode()
        if not is_control(token):
            data[i] = shown[i]
    return data, shown


def is_control(added_token: dict[str, Any]) -> bool:
    """Whether an entry of added_tokens stands for no text: it is special, or a mark of our chat format."""
    return bool(added_token.get("special")) or added_token["content"] in SPECIAL_TOKENS


def split_pattern(spec: dict[str, Any]) -> str | None:
    """The expression that cuts text into words, if it is the only rule before the merges; else None."""
    steps = spec.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    if any(step.get("add_prefix_space") for step in steps):
        return None
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return GPT2_PATTERN
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        pattern = steps[0]["pattern"].get("Regex")
        return pattern if steps[0].get("behavior") == "Isolated" and not steps[0].get("invert") else None
    return None


def ranks_reproduce_merges(ranks: dict[bytes, int], merges: list[tuple[bytes, bytes]]) -> bool:
    """Whether always joining the neighbours whose union has the lowest id does what the list of merges does.

    It does if ids rise along the list and each union, cut with lower ids alone, is the pair of its merge: two
    tokens stand side by side at that moment of some text's encoding only if they do in the encoding of their
    own union.
    """
    last = -1
    for left, right in merges:
        rank = ranks.get(left + right)
        if rank is None or rank <= last or _pieces_below(left + right, ranks, rank) != [left, right]:
            return False
        last = rank
    return True


def _pieces_below(word: bytes, ranks: dict[bytes, int], limit: int) -> list[bytes]:
    """BPE of a word with the ids below limit."""
    pieces = [word[i : i + 1] for i in range(len(word))]
    while True:
        unions = [ranks.get(a + b, limit) for a, b in itertools.pairwise(pieces)]
        lowest = min(unions, default=limit)
        if lowest >= limit:
            return pieces
        at = unions.index(lowest)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
