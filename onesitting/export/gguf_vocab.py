"""The tokenizer in GGUF's words: tokens, their types, merges, special ids, and the name of the splitting rule."""

from typing import Any

from onesitting.errors import UserError
from onesitting.tokenizer.bpe import QWEN2_PATTERN, Tokenizer
from onesitting.tokenizer.spec import GPT2_PATTERN, is_control, split_pattern

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""llama.cpp's token types. Control tokens are recognised in a prompt's template only, never in a user's text
that is tokenized as data; user-defined ones everywhere."""

LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

PRE_TOKENIZERS = {QWEN2_PATTERN: "qwen2", GPT2_PATTERN: "gpt-2", LLAMA3_PATTERN: "llama-bpe"}
"""The expression that cuts text into words -> llama.cpp's name of the same (`tokenizer.ggml.pre`)."""


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """`tokenizer.ggml.pre`. Raises UserError when llama.cpp has no name for this tokenizer's splitting rule."""
    spec = tokenizer.spec
    pattern = split_pattern(spec)
    if pattern in PRE_TOKENIZERS:
        name = PRE_TOKENIZERS[pattern]
        if bool(spec["model"].get("ignore_merges")) == (name == "llama-bpe"):
            return name
    if _digits_then_gpt2(spec):
        return "smollm"
    raise UserError(
        "GGUF has no name that is known here for the way this tokenizer cuts text into words; "
        f"known are {', '.join([*PRE_TOKENIZERS.values(), 'smollm'])}. Export to hf or onnx instead"
    )


def _digits_then_gpt2(spec: dict[str, Any]) -> bool:
    """Single digits first, then GPT-2's expression, as SmolLM cuts."""
    steps = (spec.get("pre_tokenizer") or {}).get("pretokenizers", [])
    kinds = [(s.get("type"), s.get("individual_digits"), s.get("use_regex")) for s in steps]
    prefixed = any(step.get("add_prefix_space") for step in steps)
    return kinds == [("Digits", True, None), ("ByteLevel", None, True)] and not prefixed


def tokens_and_types(tokenizer: Tokenizer, n_rows: int) -> tuple[list[str], list[int]]:
    """The text of each of n_rows ids, bytes as GPT-2's characters, and its type. Ids without a token are unused."""
    spec = tokenizer.spec
    tokens = [f"<|row_{i}|>" for i in range(n_rows)]
    types = [UNUSED] * n_rows
    for text, i in spec["model"]["vocab"].items():
        tokens[i], types[i] = text, NORMAL
    for added in spec.get("added_tokens") or []:
        kind = CONTROL if is_control(added) else USER_DEFINED
        unused = added["content"].startswith("<|unused_")
        tokens[added["id"]], types[added["id"]] = added["content"], UNUSED if unused else kind
    return tokens, types


def merge_lines(tokenizer: Tokenizer) -> list[str]:
    """The merges, best first, each as two tokens with a blank between them."""
    return [m if isinstance(m, str) else " ".join(m) for m in tokenizer.spec["model"]["merges"]]


def adds_bos(tokenizer: Tokenizer) -> str | None:
    """The token that the folder's tokenizer puts before every text; None for ours, which puts none."""
    processor = tokenizer.spec.get("post_processor") or {}
    steps = processor.get("processors", [processor])
    for step in steps:
        single = step.get("single") or []
        if step.get("type") == "TemplateProcessing" and single and "SpecialToken" in single[0]:
            return single[0]["SpecialToken"]["id"]
    return None


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """GGUF's key -> id, for bos, eos, eot and padding.

    llama.cpp assumes id 11 for a beginning and an end that are not named, so both always are.
    """
    ids = tokenizer.special_ids
    settings = {key: _text(tokenizer.settings.get(key)) for key in ("bos_token", "eos_token", "pad_token")}
    bos = adds_bos(tokenizer) or settings["bos_token"]
    chat_end = ids.get("<|im_end|>")
    named_eos = ids.get(settings["eos_token"] or "", tokenizer.eos_id)
    out = {
        "bos_token_id": ids.get(bos or "", tokenizer.eos_id),
        "eos_token_id": named_eos if chat_end is None else chat_end,
        "padding_token_id": ids.get(settings["pad_token"] or "", tokenizer.eos_id),
    }
    return out if chat_end is None else out | {"eot_token_id": chat_end}


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
