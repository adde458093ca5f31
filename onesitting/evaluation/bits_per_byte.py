"""Bits per byte: how many bits the model needs for each byte of text that it has not seen.

Unlike the loss per token it does not depend on the tokenizer, so models with different
vocabularies compare. Shapes: B batch rows, T context, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from onesitting.errors import UserError

if TYPE_CHECKING:
    from onesitting.data.tokens import ChatFile, TokenFile

IGNORED = -100  # target of a position without one; the model skips it
BATCH_TOKENS = 8192  # tokens in a forward pass unless told: large enough for full speed on two cores


@dataclass(frozen=True, kw_only=True)
class BitsPerByte:
    """What was measured, and on how much."""

    bits_per_byte: float
    """Cross-entropy sum / (n_bytes * ln 2)."""
    nats_per_token: float
    """Cross-entropy sum / n_tokens."""
    n_tokens: int
    """Targets measured."""
    n_bytes: int
    """UTF-8 bytes those targets stand for; special tokens stand for none."""


def bits_per_byte(
    model: nn.Module,
    token_file: "TokenFile",
    token_bytes: Sequence[bytes],
    *,
    context: int,
    max_tokens: int,
    batch_rows: int = 0,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    isolate: bool = False,
) -> BitsPerByte:
    """Bits per byte of the first max_tokens tokens, read in consecutive windows of context tokens.

    token_bytes: (V,) the bytes that each id stands for (`Tokenizer.token_bytes`).
    batch_rows: windows in a forward pass; 0: as many as make BATCH_TOKENS. Changes only the rounding.
    dtype: of the matrix products; None: as the surrounding autocast says.
    isolate: hide the documents of a window from each other, as the model was trained.
    Each token is a target once, with up to `context` inputs before it in its own window; the first
    input of the file is an end-of-text token, as for every document. The end of a document costs bits
    and adds no bytes, so the figure is the length of a code from which the documents, their ends
    included, can be read back. Nothing is random.
    Raises UserError if the tokens hold no text.
    """
    ids = np.append(token_file.eos_id, token_file.tokens[:max_tokens]).astype(np.int64)  # (n + 1,)
    starts = np.asarray(token_file.doc_starts) if isolate else None
    windows = _windows(ids, starts, context, batch_rows or max(1, BATCH_TOKENS // context))
    return _measure(model, windows, token_bytes, torch.device(device), dtype)


def chat_bits_per_byte(
    model: nn.Module,
    chat_file: "ChatFile",
    token_bytes: Sequence[bytes],
    *,
    row_length: int,
    max_tokens: int,
    batch_rows: int = 0,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
) -> BitsPerByte:
    """Bits per byte of the assistant's words in the first packed rows that hold max_tokens tokens.

    The targets are those of fine-tuning: the assistant's tokens and its end-of-turn token.
    Raises UserError if there are none.
    """
    from onesitting.data.examples import chat_rows, n_chat_rows

    wanted = math.ceil(max_tokens / row_length)
    n_rows = min(wanted, n_chat_rows(chat_file, row_length=row_length, seed=0))
    batch_rows = batch_rows or max(1, BATCH_TOKENS // row_length)

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        for first in range(0, n_rows, batch_rows):
            count = min(batch_rows, n_rows - first)
            batch = chat_rows(chat_file, row_length=row_length, seed=0, first_row=first, n_rows=count)
            yield batch.tokens, batch.targets, batch.doc_ids

    return _measure(model, batches(), token_bytes, torch.device(device), dtype)


def _measure(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor | None]],
    token_bytes: Sequence[bytes],
    device: torch.device,
    dtype: torch.dtype | None,
) -> BitsPerByte:
    """Sum nats, targets and bytes over batches of (tokens, targets, doc_ids), each (B, T)."""
    lengths = torch.tensor([len(piece) for piece in token_bytes])  # (V,)
    nats, n_tokens, n_bytes = 0.0, 0, 0  # a Python float is float64: many float32 sums add up without drift
    was_training = model.training
    model.eval()
    with torch.no_grad(), _precision(device, dtype):
        for tokens, targets, doc_ids in batches:
            aims = targets[targets != IGNORED]  # (n,)
            n_tokens += aims.numel()
            n_bytes += int(lengths[aims].sum())
            numbers = None if doc_ids is None else doc_ids.to(device)
            nats += float(model(tokens.to(device), targets=targets.to(device), doc_ids=numbers))
    model.train(was_training)
    if n_bytes == 0:
        raise UserError(
            f"the validation data holds {n_tokens} tokens to predict and no text: "
            "raise corpus.val_fraction, or give corpus.val_data"
        )
    return BitsPerByte(
        bits_per_byte=nats / (n_bytes * math.log(2)),
        nats_per_token=nats / n_tokens,
        n_tokens=n_tokens,
        n_bytes=n_bytes,
    )


def _precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def _windows(
    ids: np.ndarray, starts: np.ndarray | None, context: int, batch_rows: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Batches (tokens, targets, doc_ids), each (B, T); the last window is filled up with ignored targets.

    ids: (n + 1,) the end-of-text token, then the file's tokens. starts: (documents,) positions of their
    first tokens in the file, or None. An input belongs to the document of its target, as in training.
    """
    n_targets = len(ids) - 1
    if n_targets < 1:
        return
    context = min(context, n_targets)  # a short file is one short window, not a mostly empty one
    n_rows = math.ceil(n_targets / context)
    tokens = np.zeros(n_rows * context, dtype=np.int64)
    targets = np.full(n_rows * context, IGNORED, dtype=np.int64)
    tokens[:n_targets], targets[:n_targets] = ids[:-1], ids[1:]
    rows = torch.from_numpy(tokens).view(n_rows, context)
    aims = torch.from_numpy(targets).view(n_rows, context)
    docs = None
    if starts is not None:
        # the filling belongs to the last document; causal attention hides it from all real tokens
        numbers = np.searchsorted(starts, np.arange(n_rows * context), side="right")
        docs = torch.from_numpy(numbers.astype(np.int32)).view(n_rows, context)
    for first in range(0, n_rows, batch_rows):
        part = slice(first, first + batch_rows)
        yield rows[part], aims[part], None if docs is None else docs[part]
