"""Bits per byte: how many bits the model needs for each byte of text that it has not seen.

Unlike the loss per token it does not depend on the tokenizer, so models with different
vocabularies compare. Shapes: B batch rows, T context, N targets, V vocabulary, d width.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from onesitting.model.logprobs import cross_entropy_sum

if TYPE_CHECKING:
    from onesitting.data.tokens import TokenFile
    from onesitting.model.transformer import Transformer

IGNORED = -100  # target of a position without one; cross_entropy_sum skips it


@dataclass(frozen=True, kw_only=True)
class BitsPerByte:
    """What was measured, and on how much."""

    bits_per_byte: float
    """Cross-entropy sum / (n_bytes * ln 2)."""
    nats_per_token: float
    """Cross-entropy sum / n_tokens."""
    n_tokens: int
    """Targets measured: every token but the first."""
    n_bytes: int
    """UTF-8 bytes those targets stand for; special tokens stand for none."""


def bits_per_byte(
    model: "Transformer",
    token_file: "TokenFile",
    token_bytes: Sequence[bytes],
    *,
    context: int,
    max_tokens: int,
    batch_rows: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    isolate: bool = False,
) -> BitsPerByte:
    """Bits per byte of the first max_tokens tokens, read in consecutive windows of context tokens.

    token_bytes: (V,) the bytes that each id stands for (`Tokenizer.token_bytes`).
    isolate: hide the documents of a window from each other, as the model was trained.
    Each token but the first is a target once, with up to `context` tokens before it in its own
    window; the end of a document costs bits and adds no bytes, so the figure is the length of a code
    from which the documents, their ends included, can be read back.
    Nothing is random, and the batch size changes only the rounding. Raises ValueError if there is
    no target or the targets hold no text.
    """
    ids = np.asarray(token_file.tokens[:max_tokens]).astype(np.int64)  # (n,)
    lengths = np.array([len(piece) for piece in token_bytes], dtype=np.int64)  # (V,)
    n_targets = len(ids) - 1
    n_bytes = int(lengths[ids[1:]].sum()) if n_targets > 0 else 0
    if n_bytes == 0:
        raise ValueError(
            f"no text to measure: {len(ids)} validation tokens hold {n_bytes} bytes after the first"
        )
    starts = np.asarray(token_file.doc_starts) if isolate else None
    device = torch.device(device)
    was_training = model.training
    model.eval()
    total_nats = 0.0  # a Python float is float64: thousands of float32 sums add up without drift
    low_precision = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
    with torch.no_grad(), low_precision:
        for tokens, targets, doc_ids in _windows(ids, starts, context, batch_rows):
            hidden = model.hidden(
                tokens.to(device), doc_ids=None if doc_ids is None else doc_ids.to(device)
            )  # (B, T, d)
            flat = hidden.reshape(-1, hidden.shape[-1])  # (B*T, d)
            total_nats += float(cross_entropy_sum(flat, model.output_weight, targets.reshape(-1).to(device)))
    model.train(was_training)
    return BitsPerByte(
        bits_per_byte=total_nats / (n_bytes * math.log(2)),
        nats_per_token=total_nats / n_targets,
        n_tokens=n_targets,
        n_bytes=n_bytes,
    )


def _windows(
    ids: np.ndarray, starts: np.ndarray | None, context: int, batch_rows: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Batches (tokens, targets, doc_ids), each (B, T); the last window is filled up with ignored targets.

    ids: (n,) token ids. starts: (documents,) positions of their first tokens, or None.
    """
    n_targets = len(ids) - 1
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
