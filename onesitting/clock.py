"""The time budget that a run's phases share, kept in timing.json over all its sittings."""

import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from onesitting.runlog import write_atomic

CLOSING_S = 1.5
"""Seconds kept for the report and the last files."""


class Clock:
    """Seconds used per phase and seconds left.

    Time between sittings does not count: only what a phase did, and the start of this process, are used time.
    """

    def __init__(self, path: Path, budget_s: float | None, *, writes: bool = True) -> None:
        self.path, self.budget_s, self.writes = path, budget_s, writes
        self.phases: dict[str, float] = {}
        if path.exists():
            for entry in json.loads(path.read_text())["phases"]:
                self.phases[entry["phase"]] = float(entry["seconds"])
        # The processor time so far is what Python and its imports took to start; the best portable measure.
        self.add("start", time.process_time())

    @property
    def used_s(self) -> float:
        """Seconds used by all phases so far."""
        return sum(self.phases.values())

    @property
    def left_s(self) -> float | None:
        """Seconds left for work before the closing files; None without a time budget."""
        return None if self.budget_s is None else self.budget_s - self.used_s - CLOSING_S

    def add(self, phase: str, seconds: float) -> None:
        """Add seconds to a phase, and write the file."""
        self.set(phase, self.phases.get(phase, 0.0) + seconds)

    def set(self, phase: str, seconds: float) -> None:
        """Set the seconds of a phase that keeps its own clock, such as training, and write the file."""
        self.phases[phase] = seconds
        if self.writes:
            entries = [{"phase": name, "seconds": round(value, 3)} for name, value in self.phases.items()]
            record = {"budget_s": self.budget_s, "phases": entries}
            write_atomic(self.path, json.dumps(record, indent=1) + "\n")

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Count the seconds of a block, also when it is left by an error."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)
