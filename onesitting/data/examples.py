"""Rows and conversations as batches of tensors: inputs, targets, and which document each input belongs to.

Shapes: B rows in a batch, T tokens in a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onesitting.data.tokens import PADDING, ChatFile
from onesitting.errors import UserError

IGNORED = -100
"""Target of a place that is not trained."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs and targets of a forward pass.

    tokens: (B, T) int64 inputs.
    targets: (B, T) int64, the token after each input; IGNORED where it is not trained.
    doc_ids: (B, T) int32, number of the document in its row, PADDING at the row's unused end; None: documents
    in a
        row see each other.
    positions: (B, T) int64, from 0 in each document; None with doc_ids None.
    n_units: trained targets, which the loss sums over.
    n_tokens: real inputs, padding not counted.
    contexts: (B, T) int64, which counted context ends at each input (data/ngrams.py); None: nothing was counted.
    """

    tokens: Tensor
    targets: Tensor
    doc_ids: Tensor | None
    positions: Tensor | None
    n_units: int
    n_tokens: int
    contexts: Tensor | None = None

    @property
    def n_rows(self) -> int:
        """B."""
        return len(self.tokens)

    @property
    def fraction_real(self) -> float:
        """Real tokens / places."""
        return self.n_tokens / self.tokens.numel()

    def split(self, rows: int) -> list["Batch"]:
        """Micro-batches of at most `rows` rows; their units add up to this batch's."""
        assert rows > 0
        return [self._rows(slice(i, i + rows)) for i in range(0, len(self.tokens), rows)]

    def reshape_rows(self, row_length: int) -> "Batch":
        """The same tokens in rows of row_length, which divides T; a document goes on in the next row from
        position 0.

        Raises UserError if row_length does not divide T.
        """
        if self.tokens.shape[1] % row_length:
            raise UserError(
                f"rows of {self.tokens.shape[1]} tokens cannot be cut into rows of {row_length}; "
                "choose a pretrain.short_context that divides the context length"
            )
        doc_ids = None if self.doc_ids is None else self.doc_ids.reshape(-1, row_length)
        return _batch(self.tokens.reshape(-1, row_length), self.targets.reshape(-1, row_length), doc_ids)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(
            tokens=move(self.tokens),
            targets=move(self.targets),
            doc_ids=None if self.doc_ids is None else move(self.doc_ids),
            positions=None if self.positions is None else move(self.positions),
            n_units=self.n_units,
            n_tokens=self.n_tokens,
            contexts=None if self.contexts is None else move(self.contexts),
        )

    def _rows(self, part: slice) -> "Batch":
        return _batch(
            self.tokens[part], self.targets[part], None if self.doc_ids is None else self.doc_ids[part]
        )


def concatenate(batches: Sequence[Batch]) -> Batch:
    """One batch of the rows of several, all isolated or none."""
    if len(batches) == 1:
        return batches[0]
    numbers = [b.doc_ids for b in batches if b.doc_ids is not None]
    assert len(numbers) in (0, len(batches)), "isolated and open rows in one batch"
    return _batch(
        torch.cat([b.tokens for b in batches]),
        torch.cat([b.targets for b in batches]),
        torch.cat(numbers) if numbers else None,
    )


def pretrain_batch(ids: npt.NDArray[np.int64], doc_ids: npt.NDArray[np.int32], *, isolate: bool) -> Batch:
    """Rows of `tokens.rows`, each (B, T + 1), as a batch in which every real token is a target.

    isolate: hide the documents of a row from each other.
    """
    numbers = torch.from_numpy(doc_ids)[:, :-1].contiguous()  # (B, T)
    rows = torch.from_numpy(ids)
    targets = rows[:, 1:].masked_fill(numbers == PADDING, IGNORED)
    return _batch(rows[:, :-1].contiguous(), targets, numbers if isolate else None)


def n_chat_rows(chat_file: ChatFile, *, row_length: int, seed: int, train_all: bool = False) -> int:
    """Packed rows that hold each conversation once."""
    return len(chat_file.pack(row_length, seed, train_all)[1]) - 1


def chat_rows(
    chat_file: ChatFile,
    *,
    row_length: int,
    seed: int,
    first_row: int,
    n_rows: int,
    train_all: bool = False,
    isolate: bool = True,
) -> Batch:
    """Rows first_row … first_row + n_rows - 1 of the endless order of `seed`, each of whole conversations.

    A conversation longer than a row is cut at its end: what the cut takes, an end of turn above all, is no
    target.
    train_all: every token is a target (conversations as plain text), not the assistant's alone.
    Raises UserError if no conversation has a target within row_length tokens.
    """
    assert isolate or train_all, "an answer must not depend on another conversation"
    items, first_item, n_inputs = chat_file.pack(row_length, seed, train_all)
    per_epoch = len(first_item) - 1
    if per_epoch == 0:
        raise UserError(
            f"no conversation has a trained token within {row_length} tokens; "
            "give conversations with assistant messages, or raise the context length"
        )
    tokens = np.full((n_rows, row_length), chat_file.eos_id, dtype=np.int64)
    targets = np.full((n_rows, row_length), IGNORED, dtype=np.int64)
    doc_ids = np.full((n_rows, row_length), PADDING, dtype=np.int32)
    for i in range(n_rows):
        epoch, row = divmod(first_row + i, per_epoch)
        packed = chat_file.epoch_order(per_epoch, seed, epoch)[row]
        at = 0
        for number, item in enumerate(items[first_item[packed] : first_item[packed + 1]].tolist()):
            start, length = int(chat_file.starts[item]), int(n_inputs[item])
            here = slice(at, at + length)
            aims = chat_file.tokens[start + 1 : start + 1 + length]  # (length,)
            tokens[i, here] = chat_file.tokens[start : start + length]
            trained = chat_file.trained[start + 1 : start + 1 + length]
            targets[i, here] = aims if train_all else np.where(trained, aims.astype(np.int64), IGNORED)
            doc_ids[i, here] = number
            at += length
    numbers = torch.from_numpy(doc_ids) if isolate else None
    return _batch(torch.from_numpy(tokens), torch.from_numpy(targets), numbers)


def _batch(tokens: Tensor, targets: Tensor, doc_ids: Tensor | None) -> Batch:
    """A batch with its units and real tokens counted; all arguments (B, T)."""
    n_units = int((targets != IGNORED).sum())
    # without document numbers every real input has a target
    n_tokens = n_units if doc_ids is None else int((doc_ids != PADDING).sum())
    positions = None if doc_ids is None else document_positions(doc_ids)
    return Batch(
        tokens=tokens,
        targets=targets,
        doc_ids=doc_ids,
        positions=positions,
        n_units=n_units,
        n_tokens=n_tokens,
    )


def document_positions(doc_ids: Tensor) -> Tensor:
    """(B, T) int64, counted from 0 in each run of equal numbers; doc_ids (B, T)."""
    index = torch.arange(doc_ids.shape[1]).expand(doc_ids.shape)
    changed = torch.ones_like(doc_ids, dtype=torch.bool)
    changed[:, 1:] = doc_ids[:, 1:] != doc_ids[:, :-1]
    return index - torch.where(changed, index, 0).cummax(dim=1).values
