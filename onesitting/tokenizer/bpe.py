"""Byte-level BPE: trained with Hugging Face `tokenizers`, encoded with tiktoken, stored as tokenizer.json.

Any text can be encoded, since every byte is a token, and the joined bytes of the tokens are the text again.
The text is first cut into words by a regular expression; merges never cross a cut. The expression is Qwen2's,
so that GGUF can name it (`tokenizer.ggml.pre = "qwen2"`), with no Unicode normalisation, so that nothing is
lost.

tiktoken encodes an order of magnitude faster than `tokenizers`, from a table of ranks. The two agree for
every text if and only if the table reproduces each merge (`ranks_reproduce_merges`); otherwise `tokenizers`
encodes.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from onesitting.errors import UserError
from onesitting.runlog import write_atomic
from onesitting.tokenizer.chat import CHAT_TEMPLATE
from onesitting.tokenizer.spec import (
    GPT2_PATTERN,
    N_BYTES,
    SPECIAL_TOKENS,
    bytes_of_ids,
    is_control,
    merges_of,
    ranks_reproduce_merges,
    split_pattern,
)

# Words of the conversation's content: a decoder that drops special tokens keeps these, as Qwen3's does.
_CONTENT_MARKS = frozenset(SPECIAL_TOKENS[3:])

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Cuts text into words; each digit stands alone. Format constant of Qwen2's tokenizer.json."""

VOCAB_MULTIPLE = 64  # matrix products are fastest with row counts that are multiples of this
# tiktoken's regular expressions give up after a million steps of backtracking, which one run of so many
# blanks takes.
_LONG_BLANK = 500_000
_LONG_TEXT = 1_000_000  # characters from which on a Python object per token would be felt in memory


class Tokenizer:
    """Text to ids and back. Build it with `train_tokenizer` or `Tokenizer.load`.

    Attributes:
        vocab_size: rows that an embedding needs, unused ids included.
        hash: SHA-256 of tokenizer.json, in hex.
        special_ids: text of each special token -> id.
        token_bytes: the bytes that each id stands for; b"" for special and unused ids.
        eos_id: end of a document; the first token that a model sees.
    """

    def __init__(self, tokenizer_json: str, settings: dict[str, Any] | None = None) -> None:
        self.tokenizer_json = tokenizer_json
        self.settings = settings or {}
        self.hash = hashlib.sha256(tokenizer_json.encode()).hexdigest()
        self.spec: dict[str, Any] = json.loads(tokenizer_json)
        added: list[dict[str, Any]] = self.spec.get("added_tokens") or []
        self.special_ids: dict[str, int] = {token["content"]: token["id"] for token in added}
        self.token_bytes, self._shown_bytes = bytes_of_ids(self.spec)
        self.vocab_size = len(self.token_bytes)
        self.eos_id = self._end_of_document()

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read tokenizer.json (and tokenizer_config.json) of a folder, ours or any byte-level BPE of Hugging
        Face.

        Raises UserError if it is missing, damaged, or of another kind.
        """
        path = Path(folder).expanduser()
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"tokenizer.path: cannot read '{file}' ({error}); give a folder that holds tokenizer.json"
            ) from None
        settings_file = file.with_name("tokenizer_config.json")
        try:
            settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.exists() else {}
            return cls(text, settings)
        except UserError as error:
            raise UserError(f"tokenizer.path: '{file}': {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"tokenizer.path: '{file}' is damaged ({error!r}); copy or train it again"
            ) from None

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; `transformers.AutoTokenizer` loads the folder."""
        path = Path(folder)
        settings = {**_default_settings(self), **self.settings, **_chat_settings(self)}
        write_atomic(path / "tokenizer.json", self.tokenizer_json)
        write_atomic(
            path / "tokenizer_config.json", json.dumps(settings, ensure_ascii=False, indent=2) + "\n"
        )

    @property
    def im_start_id(self) -> int:
        """Id of <|im_start|>, which opens a message."""
        return self.special_id("<|im_start|>")

    @property
    def im_end_id(self) -> int:
        """Id of <|im_end|>, which closes a message."""
        return self.special_id("<|im_end|>")

    @property
    def stop_ids(self) -> set[int]:
        """Ids that end a reply or a document."""
        return {self.eos_id} | {self.special_ids[t] for t in ("<|im_end|>",) if t in self.special_ids}

    @property
    def n_unused(self) -> int:
        """Ids that stand for nothing: they fill the vocabulary up to a multiple of 64."""
        return sum(text.startswith("<|unused_") for text in self.special_ids)

    def special_id(self, token: str) -> int:
        """Id of a special token. Raises UserError if the vocabulary lacks it."""
        if token not in self.special_ids:
            raise UserError(
                f"tokenizer.path: this vocabulary has no {token} token, which conversations need; "
                "train a tokenizer (leave tokenizer.path empty), use one with ChatML tokens, or train on documents "
                "alone (pretrain with pretrain.chat_fraction=0)"
            )
        return self.special_ids[token]

    def encode(self, text: str) -> list[int]:
        """Ids of a text. The text is data: special tokens spelled in it are never recognised."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """As `encode`, into a uint32 array."""
        if self._fast is None or _has_long_blank(text):
            encoding = self._backend.encode(_without_surrogates(text), add_special_tokens=False)
            return np.array(encoding.ids, dtype=np.uint32)
        if len(text) > _LONG_TEXT:
            return self._fast.encode_to_numpy(_without_surrogates(text), disallowed_special=())
        # It looks for special tokens all the same, and takes 1.7 times as long as a list of Python's numbers.
        ids = self._fast.encode_ordinary(text)
        return np.fromiter(ids, dtype=np.uint32, count=len(ids))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, on all processors."""
        if self._fast is None or any(map(_has_long_blank, texts)):
            cleaned = [_without_surrogates(text) for text in texts]
            return [e.ids for e in self._backend.encode_batch(cleaned, add_special_tokens=False)]
        return self._fast.encode_ordinary_batch(list(texts), num_threads=os.cpu_count() or 1)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for; special tokens stand for none."""
        return b"".join([self.token_bytes[i] for i in ids])

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 (a cut character) become U+FFFD."""
        if skip_special:
            return self.decode_bytes(ids).decode("utf-8", errors="replace")
        return b"".join([self._shown_bytes[i] for i in ids]).decode("utf-8", errors="replace")

    @cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        added = [{**token, "special": is_control(token)} for token in self.spec.get("added_tokens") or []]
        backend = tokenizers.Tokenizer.from_str(json.dumps({**self.spec, "added_tokens": added}))
        backend.encode_special_tokens = True  # special tokens spelled in a text are text
        return backend

    @cached_property
    def _fast(self) -> tiktoken.Encoding | None:
        """tiktoken with the same result for every text, or None where that cannot be shown."""
        pattern = split_pattern(self.spec)
        if pattern is None or self.spec.get("normalizer") is not None:
            return None
        if not all(map(is_control, self.spec.get("added_tokens") or [])):
            return None  # words that are cut out of the text before everything else
        ranks = {piece: i for i, piece in enumerate(self.token_bytes) if piece}
        if not ranks_reproduce_merges(ranks, merges_of(self.spec)):
            return None
        return tiktoken.Encoding(self.hash, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def _end_of_document(self) -> int:
        named = self.settings.get("eos_token")
        named = named.get("content") if isinstance(named, dict) else named
        for name in ("<|endoftext|>", "<|end_of_text|>", named, "</s>"):
            if name in self.special_ids:
                return self.special_ids[name]
        raise UserError(
            "the vocabulary has no end-of-text token; name it as eos_token in tokenizer_config.json"
        )

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, hash={self.hash[:12]})"

    def __reduce__(
        self,
    ) -> tuple[Any, ...]:  # worker processes receive the text, and build the rest themselves
        return Tokenizer, (self.tokenizer_json, self.settings)


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, pattern: str = QWEN2_PATTERN) -> Tokenizer:
    """A tokenizer learned from texts; the same texts in the same order give the same tokenizer.

    vocab_size: entries, special tokens and the 256 bytes included; rounded up to a multiple of 64. A text too
    small to fill it gives a smaller vocabulary; what is missing to the next multiple of 64 are unused ids.
    Raises UserError if vocab_size cannot hold the special tokens and the bytes, or if there is no text.
    """
    smallest = len(SPECIAL_TOKENS) + N_BYTES
    if vocab_size < smallest:
        raise UserError(
            f"tokenizer.vocab_size is {vocab_size}; {len(SPECIAL_TOKENS)} special tokens and {N_BYTES} bytes "
            f"need at least {smallest}"
        )
    backend: Any = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_round_up(vocab_size),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,  # a merge that occurs once saves nothing
        show_progress=False,
    )
    n_characters = 0

    def counted() -> Iterator[str]:
        nonlocal n_characters
        for text in texts:
            n_characters += len(text)
            yield text

    backend.train_from_iterator(counted(), trainer=trainer)
    if n_characters == 0:
        raise UserError("the tokenizer has no text to learn from; check data and tokenizer.train_mb")
    return Tokenizer(_finished_json(backend.to_str()))


def compression_report(
    tokenizer: Tokenizer, texts: Sequence[str], baseline_texts: Sequence[str] | None = None
) -> dict[str, float]:
    """Bytes per token of texts, beside a BPE with GPT-2's expression and a vocabulary of the same size.

    baseline_texts: what that BPE learns from; the texts that `tokenizer` was trained on make it a fair
    comparison.
    Returns n_bytes, bytes_per_token, gpt2_bytes_per_token, and ratio (above 1: ours needs fewer tokens).
    """
    size = tokenizer.vocab_size - tokenizer.n_unused
    baseline = train_tokenizer(
        baseline_texts or texts, max(size, len(SPECIAL_TOKENS) + N_BYTES), pattern=GPT2_PATTERN
    )
    n_bytes = sum(len(text.encode()) for text in texts)
    ours = sum(map(len, tokenizer.encode_batch(texts)))
    theirs = sum(map(len, baseline.encode_batch(texts)))
    return {
        "n_bytes": float(n_bytes),
        "bytes_per_token": n_bytes / max(1, ours),
        "gpt2_bytes_per_token": n_bytes / max(1, theirs),
        "ratio": theirs / max(1, ours),
    }


def _round_up(size: int) -> int:
    return -(-size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def _finished_json(trained: str) -> str:
    """tokenizer.json as saved: content marks not special, the vocabulary filled up with unused ids."""
    spec = json.loads(trained)
    for token in spec["added_tokens"]:
        token["special"] = token["content"] not in _CONTENT_MARKS
    size = len(spec["model"]["vocab"])
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for number, token_id in enumerate(range(size, _round_up(size))):
        spec["added_tokens"].append(
            {"id": token_id, "content": f"<|unused_{number}|>", **plain, "special": True}
        )
    return json.dumps(spec, ensure_ascii=False, indent=1) + "\n"


def _default_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json of a tokenizer trained here."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>" if "<|endoftext|>" in tokenizer.special_ids else None,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
    }


def _chat_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """What conversations need: our template, also in place of another model's, and a reply's end."""
    if not {"<|im_start|>", "<|im_end|>"} <= tokenizer.special_ids.keys():
        return {}
    return {"chat_template": CHAT_TEMPLATE, "eos_token": "<|im_end|>"}


def _has_long_blank(text: str) -> bool:
    return len(text) >= _LONG_BLANK and re.search(rf"\s{{{_LONG_BLANK}}}", text) is not None


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
