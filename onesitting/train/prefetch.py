"""Reading ahead: the next step's batches are built while the current step computes."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from onesitting.model.transformer import Transformer
from onesitting.train.stage import TrainBatch
from onesitting.train.teams import worker_without_team


class BatchSource(Protocol):
    """What reading ahead needs of a stage."""

    cycle: int
    """0 where the data does not depend on the model."""

    def next_batches(self, model: Transformer, step: int, row_length: int) -> Sequence[TrainBatch]:
        """The micro-batches of a step; a function of its arguments alone."""
        ...


class Prefetch:
    """Builds the next step's batches in a thread while the current step computes.

    Where the model makes the data, they are built when they are asked for: the current step changes the model.
    device: that computes; for a CUDA device, batches lie in memory that it copies from while it computes.
    """

    def __init__(self, stage: BatchSource, model: Transformer, device: torch.device) -> None:
        self.stage, self.model, self.pins = stage, model, device.type == "cuda"
        # A thread begins with the first device, where pinning would open a context of its own.
        begin = partial(torch.cuda.set_device, torch.cuda.current_device()) if self.pins else int
        self.pool = worker_without_team("batches", begin)
        self.pending: dict[tuple[int, int], Future[Sequence[TrainBatch]]] = {}

    def start(self, step: int, row_length: int) -> None:
        """Begin to build the batches of `step`."""
        if self.stage.cycle == 0:
            self.pending[step, row_length] = self.pool.submit(self.build, step, row_length)

    def build(self, step: int, row_length: int) -> Sequence[TrainBatch]:
        """The batches of `step`, ready to be copied to the device."""
        batches = self.stage.next_batches(self.model, step, row_length)
        return [pinned(batch) for batch in batches] if self.pins else batches

    def take(self, step: int, row_length: int) -> Sequence[TrainBatch]:
        """The batches of `step`: those begun, if they were for this row length, else built now."""
        future = self.pending.pop((step, row_length), None)
        self.pending.clear()
        return future.result() if future else self.stage.next_batches(self.model, step, row_length)

    def forget(self) -> None:
        """Drop what was begun."""
        self.pending.clear()

    def close(self) -> None:
        """End the thread."""
        self.pool.shutdown(wait=True)


def pinned(batch: Any) -> Any:
    """The same batch, a dataclass, with its tensors, and those of dataclasses within, in page-locked memory."""
    found = {field.name: getattr(batch, field.name) for field in fields(batch)}
    locked = {name: value.pin_memory() for name, value in found.items() if isinstance(value, Tensor)}
    inner = {name: pinned(value) for name, value in found.items() if is_dataclass(value)}
    return replace(batch, **locked, **inner)
