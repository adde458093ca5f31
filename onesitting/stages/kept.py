"""What a frozen model said, kept on disk so that it is asked once: files of numbers, and a teacher's likeliest tokens.

Shapes: n trained places of a file of conversations, K kept logits.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onesitting.data.examples import n_chat_rows
from onesitting.data.tokens import ChatFile
from onesitting.runlog import write_atomic
from onesitting.stages.divergence import TopK

CHUNK_NUMBERS = 2**20
"""Numbers that are written at a time into a new file: a few megabytes."""


def open_filled(path: Path, shape: tuple[int, ...], dtype: str, fill: float) -> Any:
    """The file as a memory-mapped array that can be written; made full of `fill` where it is not there.

    Several processes may open it once it is there; one alone should make it (`stages.make.make_stage`).
    """
    kind, n = np.dtype(dtype), int(np.prod(shape))

    def pieces() -> Iterator[bytes]:
        for first in range(0, n, CHUNK_NUMBERS):
            yield np.full(min(CHUNK_NUMBERS, n - first), fill, dtype=kind).tobytes()

    if not path.is_file() or path.stat().st_size != n * kind.itemsize:
        write_atomic(path, pieces())
    return np.memmap(path, dtype=kind, mode="r+", shape=shape) if n else np.zeros(shape, dtype=kind)


def packed_rows(file: ChatFile, row_length: int, seed: int, first_row: int, n_rows: int) -> tuple[int, ...]:
    """The packed rows that `chat_rows` reads for these arguments."""
    per_epoch = n_chat_rows(file, row_length=row_length, seed=seed)
    places = (divmod(first_row + i, per_epoch) for i in range(n_rows))
    return tuple(int(file.epoch_order(per_epoch, seed, epoch)[row]) for epoch, row in places)


class KeptLogits:
    """The teacher's K likeliest tokens at every trained place of a file of conversations, row by row.

    Two memory-mapped files under a hash of teacher, data and rows: ids (n, K) uint32 and logprobs (n, K) float16, in
    the order of the packed rows. A row that was not computed yet has NaN in its first place.
    """

    def __init__(
        self, file: ChatFile, folder: Path, identity: str, *, row_length: int, seed: int, k: int
    ) -> None:
        items, first, n_inputs = file.pack(row_length, seed, False)
        before = np.concatenate([[0], np.cumsum(file.trained, dtype=np.int64)])
        starts = file.starts[items] + 1
        counts = before[starts + n_inputs[items]] - before[starts]  # trained places of each conversation
        ends = np.concatenate([[0], np.cumsum(counts)])
        self.edges, self.k = ends[first], k  # row r has the places edges[r] to edges[r + 1] - 1
        content = hashlib.sha256(np.ascontiguousarray(file.tokens).tobytes()).hexdigest()
        key = hashlib.sha256(f"{identity}/{content}/{row_length}/{seed}/{k}".encode()).hexdigest()[:16]
        shape = (int(self.edges[-1]), k)
        self.ids = open_filled(folder / f"{key}.ids", shape, "<u4", 0)
        self.logprobs = open_filled(folder / f"{key}.logprobs", shape, "<f2", np.nan)

    def read(self, rows: Sequence[int]) -> TopK | None:
        """What is kept of these rows, in their order; None if one of them is missing."""
        parts = [slice(self.edges[row], self.edges[row + 1]) for row in rows]
        if any(part.start < part.stop and np.isnan(self.logprobs[part.start, 0]) for part in parts):
            return None
        ids = np.concatenate([self.ids[part] for part in parts]).astype(np.int64)
        return TopK(
            torch.from_numpy(ids), torch.from_numpy(np.concatenate([self.logprobs[p] for p in parts])).float()
        )

    def write(self, rows: Sequence[int], found: TopK) -> None:
        """Keep what the teacher said in these rows; the place that marks a row as computed is written last."""
        at = 0
        ids, logprobs = found.ids.cpu().numpy(), found.logprobs.float().cpu().numpy()
        for row in rows:
            part = slice(self.edges[row], self.edges[row + 1])
            n = part.stop - part.start
            if n == 0:
                continue
            self.ids[part] = ids[at : at + n]
            values = logprobs[at : at + n].astype("<f2")
            mark, values[0, 0] = float(values[0, 0]), np.nan
            self.logprobs[part] = values
            self.logprobs[part.start, 0] = mark
            at += n
