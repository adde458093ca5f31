"""Documents that share a row without seeing each other: their positions, and what each token may attend to.

Shapes: B batch, T time. doc_ids (B, T): integers, constant over a document's run of tokens.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

SHARED = -2
"""Number of the "document" that all documents behind it in its row see: a prompt before several replies."""
UNUSED = -1
"""Number of the "document" that pads a row; `data.tokens.PADDING`, which this layer does not know."""


def document_positions(doc_ids: Tensor) -> Tensor:
    """(B, T) int64 positions that restart at 0 with each document of a row; doc_ids (B, T) integers."""
    index = torch.arange(doc_ids.shape[1], device=doc_ids.device).expand(doc_ids.shape)
    is_start = F.pad(doc_ids[:, 1:] != doc_ids[:, :-1], (1, 0), value=True)
    return index - torch.where(is_start, index, 0).cummax(dim=1).values


def document_bias(doc_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, T), 0 where a query (row) may see a key (column): same document or SHARED, not later; else -inf."""
    same = doc_ids[:, :, None] == doc_ids[:, None, :]
    visible = same.logical_or_((doc_ids == SHARED)[:, None, :]).tril_()
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, -torch.inf)[:, None]


def document_blocks(doc_ids: Tensor) -> "BlockMask":
    """What `document_bias` says, as FlexAttention reads it: blocks of keys that none of a block's queries sees are
    skipped."""
    # Here and not above: older versions of PyTorch load their compiler with it.
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & ((doc_ids[b, q] == doc_ids[b, k]) | (doc_ids[b, k] == SHARED))

    B, T = doc_ids.shape
    return create_block_mask(visible, B, None, T, T, device=str(doc_ids.device))
