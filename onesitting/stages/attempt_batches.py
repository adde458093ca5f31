"""Attempts as tensors: the attempts at one prompt stand in one row behind it, and the prompt is computed once.

A prompt with the schemas of tools is often ten times as long as a reply, and a group of eight attempts would read it
eight times. Here a row is the prompt, then a branch for each attempt:

    prompt            p0 p1 p2         seen by all of the row
    branch 1                   p3 a1 a2 a3
    branch 2                   p3 b1 b2         sees the prompt and itself, at positions 3, 4, 5

The prompt's last token opens each branch, since each predicts a first token of its own from it.

Shapes: A attempts, B rows, T tokens in a row, N sampled tokens of a batch, row after row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from onesitting.data.examples import IGNORED
from onesitting.data.tokens import PADDING
from onesitting.model.documents import SHARED
from onesitting.model.logprobs import token_logprobs
from onesitting.model.transformer import Transformer
from onesitting.stages.policy_loss import Aggregation, token_weights
from onesitting.stages.rollout import Trajectory

LONGEST_SHARED_ROW = 1024
"""Tokens that a row of several attempts may have: attention costs their square, and on a CPU longer ones are slow."""


class Rows(NamedTuple):
    """Attempts laid out for one forward pass."""

    tokens: Tensor
    """(B, T) int64 inputs, padded at the right."""
    targets: Tensor
    """(B, T) int64, the next token where the model sampled it, else IGNORED."""
    doc_ids: Tensor | None
    """(B, T) int64, SHARED for a prompt, then the number of the branch; None where each row is one attempt."""
    positions: Tensor | None
    """(B, T) int64, as if each attempt stood alone; None as above."""
    real: Tensor
    """(B, T) bool, False where a row is padded."""


@dataclass(frozen=True, kw_only=True)
class RLBatch:
    """A micro-batch of attempts.

    tokens, targets, doc_ids, positions, real: those of `Rows`; of a stand-in nothing is real. attempts: (N,) int64,
    whose each sampled token is. All others are (N,) float32 over the sampled tokens: advantages, weights in the loss;
    old, reference: log-probabilities of the policy that sampled (None: the present one) and of the model at the start
    (None: not needed); values and returns (PPO).
    """

    tokens: Tensor
    targets: Tensor
    doc_ids: Tensor | None
    positions: Tensor | None
    real: Tensor
    attempts: Tensor
    advantages: Tensor
    weights: Tensor
    rewards: Tensor
    """(A,) float32, the reward of each attempt."""
    old: Tensor | None = None
    reference: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None
    n_units: int
    n_tokens: int
    statistics: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    """Name -> (sum, count): facts about the whole batch of attempts, on the first micro-batch of its first step."""

    @property
    def n_attempts(self) -> int:
        """A."""
        return len(self.rewards)

    @property
    def n_rows(self) -> int:
        """B."""
        return len(self.tokens)

    def to(self, device: torch.device) -> Self:
        """The batch on a device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return replace(self, **moved)


def make_batches(
    trajectories: Sequence[Trajectory],
    rewards: Sequence[float],
    advantages: Sequence[float],
    *,
    aggregation: Aggregation,
    max_tokens: int,
    micro_tokens: int,
    micro_rows: int = 0,
    keep_zero: bool,
    pad_id: int,
) -> list[RLBatch]:
    """Micro-batches of rows of similar length: `micro_rows` rows, or (0) as many as have `micro_tokens` tokens.

    advantages: one an attempt, given to each of its sampled tokens. max_tokens: of an attempt, for `constant`.
    keep_zero: also compute attempts whose advantage is zero; without a divergence or a value to learn they have no
    gradient, so that leaving them out saves time. They count as units in any case; where none is left, one of them
    stands in to carry the units, and no token of it is counted.
    """
    lengths = torch.tensor([attempt.n_sampled for attempt in trajectories])
    weights = token_weights(lengths, aggregation, max_tokens)
    written = [i for i, length in enumerate(lengths.tolist()) if length]
    n_units = int(lengths.sum()) if aggregation == "token" else len(written)
    kept = [i for i in written if keep_zero or advantages[i] != 0]
    rows = shared_rows(trajectories, kept or written[:1])
    batches: list[RLBatch] = []
    while rows:
        # The next row is the longest: the others are padded to it.
        n_rows = micro_rows or max(1, micro_tokens // row_inputs(trajectories, rows[0]))
        part, rows = rows[:n_rows], rows[n_rows:]
        members = torch.tensor([i for row in part for i in row])
        laid = lay_out([[trajectories[i] for i in row] for row in part], pad_id)
        laid = laid if kept else laid._replace(real=torch.zeros_like(laid.real))
        owners = torch.arange(len(members)).repeat_interleave(lengths[members])
        batches.append(
            RLBatch(
                **laid._asdict(),
                attempts=owners,
                advantages=torch.tensor(advantages)[members][owners],
                weights=weights[members][owners],
                rewards=torch.tensor(rewards)[members],
                n_units=0 if batches else n_units,
                n_tokens=sum(row_inputs(trajectories, row) for row in part) if kept else 0,
            )
        )
    return batches


def shared_rows(trajectories: Sequence[Trajectory], kept: Sequence[int]) -> list[list[int]]:
    """The attempts `kept` row by row, the longest row first: those at one prompt together, as far as they fit."""
    groups: dict[tuple[int, ...], list[list[int]]] = {}
    for i in kept:
        attempt = trajectories[i]
        rows = groups.setdefault(tuple(attempt.ids[: attempt.n_prompt]), [])
        if rows and row_inputs(trajectories, [*rows[-1], i]) <= LONGEST_SHARED_ROW:
            rows[-1].append(i)
        else:
            rows.append([i])
    every = [row for rows in groups.values() for row in rows]
    return sorted(every, key=lambda row: -row_inputs(trajectories, row))


def row_inputs(trajectories: Sequence[Trajectory], row: Sequence[int]) -> int:
    """Inputs of a row: the prompt but for its last token, then for each attempt that token and all but its last."""
    n_prompt = trajectories[row[0]].n_prompt
    return n_prompt - 1 + sum(len(trajectories[i].ids) - n_prompt for i in row)


def lay_out(rows: Sequence[Sequence[Trajectory]], pad_id: int) -> Rows:
    """Rows of attempts at one prompt each, padded at the right where nothing sees it."""
    shape = (len(rows), max(row_inputs(row, range(len(row))) for row in rows))
    tokens = torch.full(shape, pad_id, dtype=torch.int64)
    targets = torch.full(shape, IGNORED, dtype=torch.int64)
    doc_ids = torch.full(shape, PADDING, dtype=torch.int64)
    positions = torch.zeros(shape, dtype=torch.int64)
    for r, row in enumerate(rows):
        shared = row[0].n_prompt - 1
        tokens[r, :shared] = torch.tensor(row[0].ids[:shared])
        doc_ids[r, :shared] = SHARED
        positions[r, :shared] = torch.arange(shared)
        at = shared
        for number, attempt in enumerate(row):
            ids, sampled = torch.tensor(attempt.ids[shared:]), torch.tensor(attempt.sampled[shared + 1 :])
            branch = slice(at, at + len(sampled))
            tokens[r, branch] = ids[:-1]
            targets[r, branch] = torch.where(sampled, ids[1:], IGNORED)
            doc_ids[r, branch] = number
            positions[r, branch] = shared + torch.arange(len(sampled))
            at = branch.stop
    real = doc_ids != PADDING
    if all(len(row) == 1 for row in rows):
        return Rows(tokens, targets, None, None, real)
    return Rows(tokens, targets, doc_ids, positions, real)


def sampled_hidden(model: Transformer, batch: RLBatch) -> Tensor:
    """(N, d_model) hidden states from which the sampled tokens were predicted."""
    hidden = model.hidden(batch.tokens, doc_ids=batch.doc_ids, positions=batch.positions, real=batch.real)
    return hidden[batch.targets != IGNORED]


def sampled_logprobs(model: Transformer, batch: RLBatch, hidden: Tensor, temperature: float) -> Tensor:
    """(N,) float32 log-probabilities of the sampled tokens at the temperature that they were sampled with."""
    targets = batch.targets[batch.targets != IGNORED]
    return token_logprobs(hidden, model.output_weight, targets, temperature)
