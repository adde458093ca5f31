"""Parts -> train and val files: duplicates dropped, the split decided by content, everything hashed.

Shapes: D items (documents or conversations) in all parts, N tokens in a part.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from onesitting.data.packing import Ints
from onesitting.errors import UserError
from onesitting.runlog import storage_error
from onesitting.tokenizer.bpe import Tokenizer

# A document with more than this share of all tokens is cut in two, instead of held out whole.
_LARGE_SHARE = 0.2
# Validation tokens of a corpus whose split would be empty: this share, and at least as many as fill a few
# rows.
_SMALL_CORPUS_SHARE = 0.02
_SMALL_CORPUS_TOKENS = 2048

TRAIN, VAL, DROPPED, CUT = 0, 1, 2, 3


@dataclass
class _Split:
    """Files of one split while they are written."""

    name: str
    folder: Path
    n_tokens: int = 0
    n_items: int = 0
    n_bytes: int = 0
    n_trained: int = 0
    hashes: dict[str, Any] = field(default_factory=dict)
    open_files: dict[str, BinaryIO] = field(default_factory=dict)

    def write(self, suffix: str, array: npt.NDArray[Any]) -> None:
        name = f"{self.name}.{suffix}"
        if name not in self.open_files:
            self.open_files[name] = open(self.folder / name, "wb")  # noqa: SIM115 (closed by `finish`)
            self.hashes[name] = hashlib.sha256()
        data = np.ascontiguousarray(array).tobytes()
        self.open_files[name].write(data)
        self.hashes[name].update(data)

    def add(
        self, tokens: npt.NDArray[Any], lengths: Ints, n_bytes: int, trained: npt.NDArray[Any] | None
    ) -> None:
        self.write("bin", tokens)
        self.write("starts", (self.n_tokens + np.cumsum(lengths) - lengths).astype("<i8"))
        if trained is not None:
            self.write("mask", trained)
            self.n_trained += int((trained & 1).sum())
        self.n_tokens += int(lengths.sum())
        self.n_items += len(lengths)
        self.n_bytes += n_bytes

    def counts(self) -> dict[str, int]:
        """For tokens.json."""
        names = ("n_items", "n_tokens", "n_bytes", "n_trained")
        return {name: getattr(self, name) for name in names}

    def finish(self) -> dict[str, dict[str, Any]]:
        """Close the files: name -> size and hash."""
        sizes: dict[str, int] = {}
        for name, file in self.open_files.items():
            sizes[name] = file.tell()
            file.close()
        return {name: {"bytes": sizes[name], "sha256": h.hexdigest()} for name, h in self.hashes.items()}


def assemble(
    train_parts: Sequence[Path],
    val_parts: Sequence[Path],
    out: Path,
    tokenizer: Tokenizer,
    val_fraction: float,
) -> dict[str, Any]:
    """Write the files of both splits into `out`; returns what tokens.json says about them.

    val_parts: validation data of its own; if there is none, val_fraction of the items is held out.
    Raises UserError if duplicates leave nothing to train or to validate on, or for a full disk.
    """
    parts = [*train_parts, *val_parts]
    columns = [_columns(part) for part in parts]
    lengths = np.concatenate([c["lengths"] for c in columns])  # (D,)
    hashes = np.concatenate([c["hashes"] for c in columns])  # (D,)
    n_train_items = sum(len(c["lengths"]) for c in columns[: len(train_parts)])
    place, cut = _places(lengths, hashes, n_train_items, val_fraction)
    train, val = _Split("train", out), _Split("val", out)
    try:
        first = 0
        for part, column in zip(parts, columns, strict=True):
            n_items = len(column["lengths"])
            _add_part(part, place[first : first + n_items], (train, val))
            if first <= cut < first + n_items:
                _add_cut(part, cut - first, (train, val), tokenizer, val_fraction)
            first += n_items
        files = train.finish() | val.finish()
    except OSError as error:
        raise storage_error(error, out) from None
    if not train.n_items or not val.n_items:
        raise UserError(
            f"without duplicates {train.n_items} items are left to train on and {val.n_items} to validate on; "
            "give more data"
        )
    return {
        "n_duplicates": int((place == DROPPED).sum()),
        "splits": {split.name: split.counts() for split in (train, val)},
        "files": files,
    }


def _places(
    lengths: Ints, hashes: npt.NDArray[np.uint64], n_train_items: int, val_fraction: float
) -> tuple[npt.NDArray[np.uint8], int]:
    """(TRAIN, VAL, DROPPED or CUT of each item (D,), the item that is CUT or -1).

    An item is held out if its hash, as a fraction of 2^64, is below val_fraction: no other item has a say in
    it. Of equal items the first is kept, those of the validation data before those of the training data. If
    none is held out, the one with the smallest hash is, or a part of it where it is a large part of the
    corpus.
    """
    order = np.r_[n_train_items : len(hashes), 0:n_train_items]  # validation data first
    _, first = np.unique(hashes[order], return_index=True)
    place = np.full(len(hashes), DROPPED, dtype=np.uint8)
    kept = order[first]
    if n_train_items < len(hashes):
        place[kept] = np.where(kept >= n_train_items, VAL, TRAIN)
        return place, -1
    is_val = hashes[kept] < np.uint64(min(val_fraction * 2.0**64, 2.0**64 - 2048))
    place[kept] = np.where(is_val, VAL, TRAIN)
    if is_val.any() and not is_val.all():
        return place, -1
    smallest = int(kept[np.argmin(hashes[kept])])
    place[kept] = TRAIN
    is_large = len(kept) == 1 or lengths[smallest] > _LARGE_SHARE * lengths[kept].sum()
    place[smallest] = CUT if is_large else VAL
    return place, smallest if is_large else -1


def _add_part(path: Path, place: npt.NDArray[np.uint8], splits: Sequence[_Split]) -> None:
    """Append the items of a part to their splits; place: (items,)."""
    with np.load(path) as part:
        tokens, lengths, n_bytes = part["tokens"], part["lengths"], part["n_bytes"]
        trained = part.get("trained", None)
    for number, split in enumerate(splits):
        mine = place == number
        if mine.any():
            of_token = np.repeat(mine, lengths)  # (N,)
            mask = None if trained is None else trained[of_token]
            split.add(tokens[of_token], lengths[mine], int(n_bytes[mine].sum()), mask)


def _add_cut(
    path: Path, item: int, splits: Sequence[_Split], tokenizer: Tokenizer, val_fraction: float
) -> None:
    """Append an item that is much of the corpus: most of it to train on, its end to validate on.

    A conversation or a preference cannot be cut; it is in both splits.
    """
    with np.load(path) as part:
        lengths = part["lengths"]
        here = slice(int(lengths[:item].sum()), int(lengths[: item + 1].sum()))
        tokens = part["tokens"][here]  # (length,)
        trained = part["trained"][here] if "trained" in part else None
    pieces = (tokens, tokens)
    if trained is None:
        share = max(val_fraction, _SMALL_CORPUS_SHARE)
        n_val = min(len(tokens) // 2, max(int(len(tokens) * share), _SMALL_CORPUS_TOKENS))
        end = np.array([tokenizer.eos_id], dtype=tokens.dtype)
        pieces = (np.append(tokens[:-n_val], end), tokens[-n_val:])
    for split, piece in zip(splits, pieces, strict=True):
        n_bytes = sum(len(tokenizer.token_bytes[i]) for i in piece.tolist())
        split.add(piece, np.array([len(piece)]), n_bytes, trained)


def _columns(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a part that have an entry an item."""
    with np.load(path) as part:
        return {name: part[name] for name in ("lengths", "hashes")}
