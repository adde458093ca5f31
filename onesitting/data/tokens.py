"""Prepared tokens: memory-mapped files, and rows of them in an order that is a function of (seed, row index).

    documents/                       conversations/, preferences/
      tokens.json                      tokens.json
      train.bin   val.bin              train.bin     val.bin       token ids, little-endian uint16 or uint32
      train.starts val.starts          train.starts  val.starts    int64, first token of each document
                                       train.mask    val.mask      uint8, 1 where a token is trained; for
                                                                   preferences + 2 in the rejected conversation

Shapes: n rows, T tokens in a row, N tokens in a file, D documents in a file.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from onesitting.data.packing import Ints, RowPlan, pack_whole, plan_epoch
from onesitting.errors import UserError

INFO_FILE = "tokens.json"
PADDING = -1
"""Document number of the places at the end of a row that hold no token."""

T = TypeVar("T")


class _Recent:
    """The results of the last two computations; a row may need this epoch's plan and the next one's."""

    def __init__(self) -> None:
        self.items: dict[tuple[Any, ...], Any] = {}

    def get(self, key: tuple[Any, ...], compute: Callable[[], T]) -> T:
        if key not in self.items:
            while len(self.items) > 1:
                del self.items[next(iter(self.items))]
            self.items[key] = compute()
        return self.items[key]


class TokenFile:
    """The documents of one split.

    Attributes:
        tokens: (N,) uint16 or uint32, memory-mapped; each document ends with the end-of-text token.
        doc_starts: (D,) int64, position of each document's first token.
        n_bytes: UTF-8 bytes of the documents' text.
        eos_id: the end-of-text token.
    """

    def __init__(self, folder: Path, name: str, info: dict[str, Any]) -> None:
        split = info["splits"][name]
        self.tokens: npt.NDArray[Any] = _map(folder / f"{name}.bin", info["dtype"])
        self.doc_starts: Ints = _map(folder / f"{name}.starts", "int64")
        self.n_bytes: int = split["n_bytes"]
        self.eos_id: int = info["eos_id"]
        self._plans = _Recent()

    @property
    def n_tokens(self) -> int:
        """Tokens in the file, end-of-text tokens included."""
        return len(self.tokens)

    @property
    def n_documents(self) -> int:
        """Documents in the file."""
        return len(self.doc_starts)

    @cached_property
    def lengths(self) -> Ints:
        """(D,) tokens of each document, its end-of-text token included."""
        return np.diff(self.doc_starts, append=len(self.tokens))

    def epoch_plan(self, row_length: int, seed: int, epoch: int) -> RowPlan:
        """The rows of one epoch; kept for the last two that were asked for."""

        def plan() -> RowPlan:
            rng = np.random.default_rng([seed, epoch])
            return plan_epoch(self.doc_starts, self.lengths, row_length, rng)

        return self._plans.get((row_length, seed, epoch), plan)


def n_epoch_rows(token_file: TokenFile, row_length: int) -> int:
    """Rows that hold all tokens once."""
    return -(-token_file.n_tokens // row_length)


def rows(
    token_file: TokenFile, *, row_length: int, seed: int, first_row: int, n_rows: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Rows first_row … first_row + n_rows - 1 of the endless order of `seed`: (ids, doc_ids), each (n, T +
    1).

    The first T ids are inputs, the last T targets. Over an epoch every token is a target once; the first
    input of a row is the token before its first target, which for the start of a document is an end-of-text
    token.
    doc_ids numbers the pieces of documents in a row from 0: an input belongs to the document of its target,
    so an end-of-text token as input opens the next document. Places with no target are PADDING.
    Ranks that read different rows read different tokens.
    """
    per_epoch = n_epoch_rows(token_file, row_length)
    ids = np.full((n_rows, row_length + 1), token_file.eos_id, dtype=np.int64)
    doc_ids = np.full((n_rows, row_length + 1), PADDING, dtype=np.int32)
    tokens = token_file.tokens
    for i in range(n_rows):
        epoch, row = divmod(first_row + i, per_epoch)
        at = 0
        for number, (start, length) in enumerate(token_file.epoch_plan(row_length, seed, epoch).pieces(row)):
            if at == 0:
                ids[i, 0] = tokens[start - 1]  # for start 0 the file's last token: an end of text as well
            ids[i, at + 1 : at + 1 + length] = tokens[start : start + length]
            doc_ids[i, at : at + length] = number
            at += length
    doc_ids[:, -1] = doc_ids[:, -2]
    return ids, doc_ids


class ChatFile:
    """The conversations of one split.

    Attributes:
        tokens: (N,) uint16 or uint32, memory-mapped.
        trained: (N,) uint8, 1 where a token is trained.
        starts: (D,) int64, position of each conversation's first token.
        n_bytes: UTF-8 bytes that the tokens stand for.
        eos_id: the end-of-text token, which fills rows up.
    """

    def __init__(self, folder: Path, name: str, info: dict[str, Any]) -> None:
        self.tokens: npt.NDArray[Any] = _map(folder / f"{name}.bin", info["dtype"])
        self.trained: npt.NDArray[np.uint8] = _map(folder / f"{name}.mask", "uint8")
        self.starts: Ints = _map(folder / f"{name}.starts", "int64")
        self.n_bytes: int = info["splits"][name]["n_bytes"]
        self.eos_id: int = info["eos_id"]
        self._packs = _Recent()
        self._orders = _Recent()

    @property
    def n_conversations(self) -> int:
        """Conversations in the file."""
        return len(self.starts)

    @property
    def n_tokens(self) -> int:
        """Tokens in the file, trained or not."""
        return len(self.tokens)

    @cached_property
    def lengths(self) -> Ints:
        """(D,) tokens of each conversation."""
        return np.diff(self.starts, append=len(self.tokens))

    def prompt(self, index: int) -> list[int]:
        """Ids of a conversation up to where the assistant's first reply begins."""
        part = slice(self.starts[index], self.starts[index] + self.lengths[index])
        return self.tokens[part][: int(np.argmax(self.trained[part]))].tolist()

    def pack(self, row_length: int, seed: int, train_all: bool) -> tuple[Ints, Ints, Ints]:
        """Rows of whole conversations: (conversations, first (R + 1,), n_inputs (D,)); see `pack_whole`.

        n_inputs: inputs of each conversation that are read; 0: it has no target within a row and is left out.
        """

        def compute() -> tuple[Ints, Ints, Ints]:
            n_inputs = self._n_inputs(row_length, train_all)
            used = np.flatnonzero(n_inputs)
            items, first = pack_whole(n_inputs[used], row_length, np.random.default_rng([seed]))
            return used[items], first, n_inputs

        return self._packs.get((row_length, seed, train_all), compute)

    def epoch_order(self, n_rows: int, seed: int, epoch: int) -> Ints:
        """(R,) the packed row that is read as the r-th of an epoch."""
        return self._orders.get(
            (n_rows, seed, epoch), lambda: np.random.default_rng([seed, epoch, 1]).permutation(n_rows)
        )

    def _n_inputs(self, row_length: int, train_all: bool) -> Ints:
        """(D,) inputs up to the last target of each conversation, which is cut at the end of a row."""
        n_read = np.minimum(self.lengths, row_length + 1)
        if train_all:
            return n_read - 1
        places = np.flatnonzero(self.trained)  # positions of trained tokens in the file
        last = np.searchsorted(places, self.starts + n_read) - 1
        offset = np.where(last >= 0, places[np.maximum(last, 0)] if len(places) else -1, -1) - self.starts
        return np.maximum(offset, 0)  # input i has target i + 1


class PreferenceFile:
    """The preferences of one split: of each, the conversation with the chosen reply, then that with the rejected one.

    Attributes:
        tokens: (N,) uint16 or uint32, memory-mapped.
        mask: (N,) uint8; bit 1: the token is trained, bit 2: it belongs to the rejected conversation.
        starts: (D,) int64, position of each preference's first token.
        eos_id: the end-of-text token, which fills rows up.

    A *side* is one of the two conversations, numbered 2 * preference for the chosen and + 1 for the rejected; a side
    that is missing (unpaired data) has no tokens.
    """

    def __init__(self, folder: Path, name: str, info: dict[str, Any]) -> None:
        self.tokens: npt.NDArray[Any] = _map(folder / f"{name}.bin", info["dtype"])
        self.mask: npt.NDArray[np.uint8] = _map(folder / f"{name}.mask", "uint8")
        self.starts: Ints = _map(folder / f"{name}.starts", "int64")
        self.eos_id: int = info["eos_id"]
        self.hash: str = info["files"][f"{name}.bin"]["sha256"] + info["files"][f"{name}.mask"]["sha256"]
        self._packs = _Recent()
        self._orders = _Recent()

    @property
    def n_preferences(self) -> int:
        """Preferences in the file, paired or not."""
        return len(self.starts)

    @cached_property
    def edges(self) -> Ints:
        """(2 D + 1,) side s holds the tokens edges[s] to edges[s + 1] - 1."""
        n_chosen_before = np.concatenate([[0], np.cumsum((self.mask & 2) == 0)])  # (N + 1,)
        ends = np.append(self.starts[1:], len(self.tokens))
        middles = self.starts + n_chosen_before[ends] - n_chosen_before[self.starts]
        return np.append(np.stack([self.starts, middles], axis=1).reshape(-1), len(self.tokens))

    def side(self, number: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """(ids, trained) of a side."""
        here = slice(self.edges[number], self.edges[number + 1])
        return self.tokens[here].astype(np.int64), (self.mask[here] & 1).astype(bool)

    def prompt(self, index: int) -> list[int]:
        """Ids of a preference up to where the reply begins."""
        ids, trained = self.side(2 * index)
        if not len(ids):
            ids, trained = self.side(2 * index + 1)
        return ids[: int(np.argmax(trained))].tolist()

    def n_inputs(self, row_length: int, whole: bool = False) -> Ints:
        """(2 D,) inputs up to each side's last target, which is cut at the end of a row; 0: nothing is trained.

        whole: all tokens of a side, 0 for one that is longer than a row: what a reward model reads.
        """
        if whole:
            lengths = np.diff(self.edges)
            return np.where(lengths <= row_length, lengths, 0)
        places = np.append(np.flatnonzero(self.mask & 1), len(self.tokens))  # positions of trained tokens
        first, after = self.edges[:-1], np.minimum(self.edges[1:], self.edges[:-1] + row_length + 1)
        last = np.searchsorted(places, after) - 1
        return np.where(last >= 0, np.maximum(places[np.maximum(last, 0)] - first, 0), 0)

    def pack(self, row_length: int, seed: int, paired: bool, whole: bool = False) -> tuple[Ints, Ints, Ints]:
        """Rows of whole preferences: (members, first (R + 1,), n_inputs (2 D,)); see `pack_whole`.

        paired: the members are preferences with both sides, each as long as the longer one; else they are sides.
        """

        def compute() -> tuple[Ints, Ints, Ints]:
            n_inputs = self.n_inputs(row_length, whole)
            sides = n_inputs.reshape(-1, 2)
            length = np.where(sides.min(axis=1) > 0, sides.max(axis=1), 0) if paired else n_inputs
            used = np.flatnonzero(length)
            members, first = pack_whole(length[used], row_length, np.random.default_rng([seed]))
            return used[members], first, n_inputs

        return self._packs.get((row_length, seed, paired, whole), compute)

    def epoch_order(self, n_rows: int, seed: int, epoch: int) -> Ints:
        """(R,) the packed row that is read as the r-th of an epoch."""
        return self._orders.get(
            (n_rows, seed, epoch), lambda: np.random.default_rng([seed, epoch, 2]).permutation(n_rows)
        )


class _Folder:
    """tokens.json of a folder of prepared data, with every file checked against it."""

    kind = ""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info: dict[str, Any] = _read_info(self.path, self.kind)
        _verify(self.path, self.info)


class TokenFolder(_Folder):
    """Prepared documents. Raises UserError for files that are missing, cut short or changed."""

    kind = "documents"

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.train = TokenFile(self.path, "train", self.info)
        self.val = TokenFile(self.path, "val", self.info)


class ChatFolder(_Folder):
    """Prepared conversations. Raises UserError for files that are missing, cut short or changed."""

    kind = "conversations"

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.train = ChatFile(self.path, "train", self.info)
        self.val = ChatFile(self.path, "val", self.info)


class Material(NamedTuple):
    """Prepared text and conversations that belong together; None where there is none or no stage asks for it."""

    text: TokenFolder | None = None
    chat: ChatFolder | None = None


class PreferenceFolder(_Folder):
    """Prepared preferences. Raises UserError for files that are missing, cut short or changed."""

    kind = "preferences"

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.train = PreferenceFile(self.path, "train", self.info)
        self.val = PreferenceFile(self.path, "val", self.info)


_AGAIN = "delete the folder and prepare the data again"


def _map(path: Path, dtype: str) -> npt.NDArray[Any]:
    """A file as a read-only array; an empty file cannot be mapped."""
    kind = np.dtype(dtype).newbyteorder("<")
    if path.stat().st_size == 0:
        return np.zeros(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r")


def _read_info(folder: Path, kind: str) -> dict[str, Any]:
    path = folder / INFO_FILE
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); {_AGAIN}") from None
    found = info.get("kind") if isinstance(info, dict) else None
    if found != kind:
        raise UserError(f"'{path}' describes {found}, not {kind}; give the folder of the prepared {kind}")
    return info


def _verify(folder: Path, info: dict[str, Any]) -> None:
    """Compare size and hash of each file with tokens.json."""
    for name, expected in info["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise UserError(f"'{path}' has {size} bytes, {expected['bytes']} were written; {_AGAIN}")
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"'{path}' cannot be read ({error}); {_AGAIN}") from None
        if digest != expected["sha256"]:
            raise UserError(f"'{path}' has changed since it was written (its hash differs); {_AGAIN}")
