"""Reading ahead: the next step's batches are built while the current step computes."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol


class BatchSource(Protocol):
    """What reading ahead needs of a stage."""

    def next_batches(self, step: int, row_length: int) -> list[Any]:
        """The micro-batches of a step; a function of its arguments alone."""
        ...


class Prefetch:
    """Builds the next step's batches in a thread while the current step computes."""

    def __init__(self, stage: BatchSource) -> None:
        self.stage = stage
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.pending: dict[tuple[int, int], Future[list[Any]]] = {}

    def start(self, step: int, row_length: int) -> None:
        """Begin to build the batches of `step`."""
        self.pending[step, row_length] = self.pool.submit(self.stage.next_batches, step, row_length)

    def take(self, step: int, row_length: int) -> list[Any]:
        """The batches of `step`: those begun, if they were for this row length, else built now."""
        future = self.pending.pop((step, row_length), None)
        self.pending.clear()
        return future.result() if future else self.stage.next_batches(step, row_length)

    def forget(self) -> None:
        """Drop what was begun."""
        self.pending.clear()

    def close(self) -> None:
        """End the thread."""
        self.pool.shutdown(wait=True)
