"""Preferences as batches of tensors: packed rows in which every target knows whose reply it belongs to.

Shapes: B rows, T tokens in a row, N sides (conversations) in a batch, P = N / 2 pairs.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onesitting.data.examples import IGNORED, document_positions
from onesitting.data.packing import Ints, pack_whole
from onesitting.data.tokens import PADDING, PreferenceFile
from onesitting.errors import UserError

Example = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]
"""(ids, trained) of one conversation."""


@dataclass(frozen=True, kw_only=True)
class PreferenceBatch:
    """Inputs and targets of a forward pass over replies that were judged.

    tokens, targets, doc_ids, positions: (B, T) as in `examples.Batch`; rows are packed and isolated.
    owner: (B, T) int64, the place in `sides` of the side that a target belongs to; -1 where nothing is trained.
    sides: (N,) int64, numbers of the sides in their file: even chosen, odd rejected. In paired batches the places
        2 p and 2 p + 1 hold the chosen and the rejected side of pair p.
    lengths: (N,) int64, trained tokens of each side.
    n_units: pairs, or sides of unpaired batches. n_tokens: real inputs.
    baseline: KTO's estimate of KL(policy, reference) in nats at this step.
    """

    tokens: Tensor
    targets: Tensor
    doc_ids: Tensor
    positions: Tensor
    owner: Tensor
    sides: Tensor
    lengths: Tensor
    n_units: int
    n_tokens: int
    baseline: float = 0.0

    @property
    def n_rows(self) -> int:
        """B."""
        return len(self.tokens)

    def to(self, device: torch.device | str) -> "PreferenceBatch":
        """The batch on a device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("tokens", "targets", "doc_ids", "positions", "owner", "sides", "lengths")
        }
        return replace(self, **moved)


def n_preference_rows(
    file: PreferenceFile, *, row_length: int, seed: int, paired: bool, whole: bool = False
) -> int:
    """Packed rows that hold each preference once; a row of pairs is two rows of tokens.

    Raises UserError if there is none.
    """
    n_rows = len(file.pack(row_length, seed, paired, whole)[1]) - 1
    if n_rows == 0 and whole:
        raise UserError(f"no pair of conversations fits into {row_length} tokens; raise the context length")
    if n_rows == 0:
        what = "pair of replies" if paired else "reply"
        raise UserError(
            f"no {what} has a trained token within {row_length} tokens; raise the context length"
            + (", or use --dpo.loss kto for replies that come one by one" if paired else "")
        )
    return n_rows


def epoch_rows(
    file: PreferenceFile,
    *,
    row_length: int,
    seed: int,
    first_row: int,
    n_rows: int,
    paired: bool,
    whole: bool = False,
) -> list[int]:
    """The packed rows that are read as first_row … first_row + n_rows - 1 of the endless order of `seed`."""
    per_epoch = n_preference_rows(file, row_length=row_length, seed=seed, paired=paired, whole=whole)
    places = (divmod(first_row + i, per_epoch) for i in range(n_rows))
    return [int(file.epoch_order(per_epoch, seed, epoch)[row]) for epoch, row in places]


def preference_rows(
    file: PreferenceFile,
    rows: Sequence[int],
    *,
    row_length: int,
    seed: int,
    paired: bool,
    whole: bool = False,
) -> PreferenceBatch:
    """A batch of the given packed rows: a function of its arguments alone.

    A conversation that is longer than a row is cut at its end: what the cut takes is no target.
    whole: conversations are read to their last token, and that place alone has an owner (the target there means
    nothing); those that are longer than a row are left out.
    """
    members, first, n_inputs = file.pack(row_length, seed, paired, whole)
    sides: list[int] = []
    layout: list[list[tuple[int, int]]] = []  # of each row of tokens: (place in sides, slot's length)
    for row in rows:
        here = members[first[row] : first[row + 1]].tolist()
        if not paired:
            layout.append([(len(sides) + i, int(n_inputs[s])) for i, s in enumerate(here)])
            sides += here
            continue
        slots = [int(n_inputs[2 * p : 2 * p + 2].max()) for p in here]
        for which in (0, 1):
            layout.append([(len(sides) + 2 * i + which, slot) for i, slot in enumerate(slots)])
        sides += [side for p in here for side in (2 * p, 2 * p + 1)]
    examples = [file.side(side) for side in sides]
    if whole:
        examples = [(np.append(ids, file.eos_id), np.arange(len(ids) + 1) == len(ids)) for ids, _ in examples]
    return _batch(examples, n_inputs[sides], layout, sides, row_length, file.eos_id, paired)


def mismatched(file: PreferenceFile, sides: Sequence[int], *, row_length: int, seed: int) -> PreferenceBatch:
    """The prompts of unpaired sides, each with a reply to another prompt, for KTO's estimate of a divergence.

    The partner of a side stands in the next packed row or behind it, so that it depends on the file alone.
    """
    members, first, _ = file.pack(row_length, seed, False)
    place_of = np.zeros(2 * file.n_preferences, dtype=np.int64)
    place_of[members] = np.arange(len(members))
    examples: list[Example] = []
    for side in sides:
        place = int(place_of[side])
        row = int(np.searchsorted(first, place, side="right")) - 1
        begin, end = first[(row + 1) % (len(first) - 1)], first[(row + 1) % (len(first) - 1) + 1]
        wanted = int(begin + (place - first[row]) % (end - begin))
        later = (int(members[(wanted + i) % len(members)]) for i in range(len(members)))
        # A file of one preference has no other prompt: then the reply itself.
        partner = next((other for other in later if other // 2 != side // 2), side)
        (prompt, begins), (reply, trained) = file.side(side), file.side(partner)
        n_prompt, n_other = int(np.argmax(begins)), int(np.argmax(trained))
        mask = np.concatenate([np.zeros(n_prompt, dtype=bool), trained[n_other:]])
        examples.append((np.concatenate([prompt[:n_prompt], reply[n_other:]]), mask))
    return packed(examples, sides, row_length=row_length, eos_id=file.eos_id)


def packed(
    examples: Sequence[Example], sides: Sequence[int], *, row_length: int, eos_id: int
) -> PreferenceBatch:
    """A batch of conversations that stand in no file, packed into rows of row_length; unpaired.

    sides: what the batch calls them.
    """
    n_inputs = np.array([_inputs(trained, row_length) for _, trained in examples], dtype=np.int64)
    members, first = pack_whole(np.maximum(n_inputs, 1), row_length, np.random.default_rng(0))
    layout = [
        [(int(i), max(1, int(n_inputs[i]))) for i in members[a:b]] for a, b in itertools.pairwise(first)
    ]
    return _batch(examples, n_inputs, layout, list(sides), row_length, eos_id, paired=False)


def whole_conversations(
    conversations: Sequence[Sequence[int]], *, row_length: int, eos_id: int
) -> PreferenceBatch:
    """Conversations of at most row_length tokens, packed; the last token of each has an owner (see preference_rows)."""
    examples = [
        (np.append(np.array(ids, dtype=np.int64), eos_id), np.arange(len(ids) + 1) == len(ids))
        for ids in conversations
    ]
    return packed(examples, range(len(examples)), row_length=row_length, eos_id=eos_id)


def _inputs(trained: npt.NDArray[np.bool_], row_length: int) -> int:
    """Inputs up to the last target within a row."""
    places = np.flatnonzero(trained[: row_length + 1])
    return int(places[-1]) if len(places) else 0


def _batch(
    examples: Sequence[Example],
    n_inputs: Ints,
    layout: list[list[tuple[int, int]]],
    sides: list[int],
    row_length: int,
    eos_id: int,
    paired: bool,
) -> PreferenceBatch:
    """Write each example into its slot."""
    shape = (len(layout), row_length)
    tokens = np.full(shape, eos_id, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    doc_ids = np.full(shape, PADDING, dtype=np.int32)
    owner = np.full(shape, -1, dtype=np.int64)
    lengths = np.zeros(len(sides), dtype=np.int64)
    for i, row in enumerate(layout):
        at = 0
        for number, (place, slot) in enumerate(row):
            n = int(n_inputs[place])
            ids, trained = examples[place]
            here, is_target = slice(at, at + n), trained[1 : n + 1]
            tokens[i, here] = ids[:n]
            targets[i, here] = np.where(is_target, ids[1 : n + 1], IGNORED)
            owner[i, here] = np.where(is_target, place, -1)
            doc_ids[i, here] = number
            lengths[place] = is_target.sum()
            at += slot
    numbers = torch.from_numpy(doc_ids)
    return PreferenceBatch(
        tokens=torch.from_numpy(tokens),
        targets=torch.from_numpy(targets),
        doc_ids=numbers,
        positions=document_positions(numbers),
        owner=torch.from_numpy(owner),
        sides=torch.tensor(sides, dtype=torch.int64),
        lengths=torch.from_numpy(lengths),
        n_units=len(sides) // 2 if paired else len(sides),
        n_tokens=int((doc_ids != PADDING).sum()),
    )
