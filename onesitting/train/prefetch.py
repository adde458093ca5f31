"""Reading ahead: the next step's batches are built while the current step computes."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from onesitting.model.transformer import Transformer


class BatchSource(Protocol):
    """What reading ahead needs of a stage."""

    cycle: int
    """0 where the data does not depend on the model."""

    def next_batches(self, model: Transformer, step: int, row_length: int) -> list[Any]:
        """The micro-batches of a step; a function of its arguments alone."""
        ...


class Prefetch:
    """Builds the next step's batches in a thread while the current step computes.

    Where the model makes the data, they are built when they are asked for: the current step changes the model.
    """

    def __init__(self, stage: BatchSource, model: Transformer) -> None:
        self.stage, self.model = stage, model
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.pending: dict[tuple[int, int], Future[list[Any]]] = {}

    def start(self, step: int, row_length: int) -> None:
        """Begin to build the batches of `step`."""
        if self.stage.cycle == 0:
            self.pending[step, row_length] = self.pool.submit(
                self.stage.next_batches, self.model, step, row_length
            )

    def take(self, step: int, row_length: int) -> list[Any]:
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
