"""What a stage brings to the loop: its batches, its loss, its evaluation."""

from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from onesitting.model.transformer import Transformer
from onesitting.train.device import DevicePlan


class TrainBatch(Protocol):
    """What the loop needs to know of a micro-batch."""

    @property
    def n_units(self) -> int:
        """Tokens, pairs or sequences that the loss sums over."""
        ...

    @property
    def n_tokens(self) -> int:
        """Real tokens, without padding."""
        ...

    @property
    def n_rows(self) -> int:
        """Rows in the forward pass."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        ...


class Stage(Protocol):
    """A training stage: data, loss, evaluation. Order and randomness are functions of (seed, step, rank)."""

    name: str
    unit: str
    cycle: int
    """Optimizer steps on one set of data that the model itself makes (rollouts); checkpoints are written between
    sets, so that a set is made anew after a kill. 0: data does not depend on the model, and is read ahead."""
    rate: float
    """Learning rate of the step as a fraction of its peak; the loop sets it before each."""
    replayable: bool
    """Whether `loss_sum` does the same work for all batches of a shape: it neither waits for the device nor uses a
    number of Python's that changes between steps (train/passes.py)."""
    plan: DevicePlan
    """How rows are cut into micro-batches; the loop lowers its `most_rows` where memory runs out."""

    def next_batches(self, model: Transformer, step: int, row_length: int) -> Sequence[TrainBatch]:
        """This process's micro-batches of optimizer step `step`."""
        ...

    def loss_sum(self, model: Transformer, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of losses over the batch's units (scalar, float32), and further named sums over the same units.

        A named sum over something else brings its own count as `name/n`.
        """
        ...

    def evaluate(self, model: Transformer) -> dict[str, float]:
        """Named results on held-out data, units in the names; `bits_per_byte` picks the best checkpoint."""
        ...

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """A few texts that the model writes now, each with its prompt and seed."""
        ...
