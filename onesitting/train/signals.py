"""SIGINT and SIGTERM as a request to save and stop after the current step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupted(Exception):
    """Training stopped on request; its state is saved and the same command goes on from there."""


class StopSignals:
    """While entered, the first SIGINT or SIGTERM sets `received`; a second SIGINT stops at once.

    Outside the main thread, where Python allows no handlers, it only never fires.
    """

    def __init__(self) -> None:
        self.received = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
