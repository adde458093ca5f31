"""Which pieces of which documents share a row: two pure functions of lengths and a random generator.

Shapes: D documents, P pieces, R rows, T tokens in a row.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

LOOKAHEAD = 2048
"""Documents that wait to fill a gap; enough of them, and nearly every gap is filled exactly."""


@dataclass(frozen=True)
class RowPlan:
    """The pieces of every row of one epoch.

    starts, lengths: (P,) first token and number of tokens of each piece, as targets.
    first_piece: (R + 1,) row r holds the pieces first_piece[r] to first_piece[r + 1] - 1.
    order: (R,) the packed row that is read as the r-th.
    """

    starts: Ints
    lengths: Ints
    first_piece: Ints
    order: Ints

    def pieces(self, row: int) -> Iterator[tuple[int, int]]:
        """(start, length) of the pieces of the row that is read as number `row`."""
        packed = self.order[row]
        part = slice(self.first_piece[packed], self.first_piece[packed + 1])
        return zip(self.starts[part].tolist(), self.lengths[part].tolist(), strict=True)


class _Waiting:
    """Documents that wait for a gap; the short ones by length, the ones longer than a row in a queue."""

    def __init__(self, row_length: int) -> None:
        self.by_length: list[list[int]] = [[] for _ in range(row_length + 1)]
        self.has = np.zeros(row_length + 1, dtype=bool)
        self.long: deque[tuple[int, int]] = deque()
        self.count = 0

    def add(self, start: int, length: int) -> None:
        self.count += 1
        if length < len(self.by_length):
            self.by_length[length].append(start)
            self.has[length] = True
        else:
            self.long.append((start, length))

    def take(self, length: int) -> tuple[int, int]:
        self.count -= 1
        start = self.by_length[length].pop()
        self.has[length] = bool(self.by_length[length])
        return start, length

    def take_for(self, space: int) -> tuple[int, int]:
        """The document for a gap: one or two that fill it, else the longest that fits, else one to cut."""
        if self.has[space]:
            return self.take(space)
        fitting = np.flatnonzero(self.has[:space])
        if len(fitting):
            completed = fitting[self.has[space - fitting]]
            return self.take(int(completed[-1] if len(completed) else fitting[-1]))
        if self.long:
            self.count -= 1
            return self.long.popleft()
        # the shortest one loses the fewest tokens from its context
        return self.take(int(np.argmax(self.has)))


def plan_epoch(starts: Ints, lengths: Ints, row_length: int, rng: np.random.Generator) -> RowPlan:
    """Rows that hold every token of the documents once, each full but the last.

    starts, lengths: (D,) where each document lies. rng decides the order of documents and of rows.
    A row begins with the rest of a document that was cut, if one is left, else with the start of a document;
    gaps are filled with whole documents (best fit), and only a gap that none fits cuts one.
    """
    order = rng.permutation(len(lengths))
    stream = zip(starts[order].tolist(), lengths[order].tolist(), strict=True)
    waiting = _Waiting(row_length)
    tails: deque[tuple[int, int]] = deque()
    pieces: list[tuple[int, int]] = []
    first_piece = [0]
    while True:
        while waiting.count < LOOKAHEAD and (document := next(stream, None)):
            waiting.add(*document)
        piece = tails.popleft() if tails else next(stream, None)
        space = row_length
        while space:
            if piece is None:
                piece = waiting.take_for(space) if waiting.count else tails.popleft() if tails else None
            if piece is None:
                break
            start, length = piece
            used = min(length, space)
            pieces.append((start, used))
            space -= used
            if used < length:
                tails.appendleft((start + used, length - used))
            piece = None
        if space == row_length:
            break
        first_piece.append(len(pieces))
    table = np.array(pieces, dtype=np.int64).reshape(-1, 2)
    n_rows = len(first_piece) - 1
    return RowPlan(
        np.ascontiguousarray(table[:, 0]),
        np.ascontiguousarray(table[:, 1]),
        np.array(first_piece, dtype=np.int64),
        rng.permutation(n_rows),
    )


def pack_whole(lengths: Ints, row_length: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Rows of whole items, best fit with the longest first: (items (D,), first_item (R + 1,)).

    Row r holds items[first_item[r]:first_item[r + 1]], indices into lengths.
    lengths: (D,), each from 1 to row_length. rng breaks ties.
    """
    order = np.lexsort((rng.random(len(lengths)), -lengths))
    rows_with_space: list[list[int]] = [[] for _ in range(row_length + 1)]
    has = np.zeros(row_length + 1, dtype=bool)
    rows: list[list[int]] = []
    for item, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        space = length + int(np.argmax(has[length:]))
        if has[space]:
            row = rows_with_space[space].pop()
            has[space] = bool(rows_with_space[space])
        else:
            row, space = len(rows), row_length
            rows.append([])
        rows[row].append(item)
        if space > length:
            rows_with_space[space - length].append(row)
            has[space - length] = True
    first_item = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return np.array([item for row in rows for item in row], dtype=np.int64), first_item
