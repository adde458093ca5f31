"""Where the time of a training step goes: a stopwatch that the loop carries, off unless a benchmark turns it on."""

import time
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch.profiler import record_function


class StepParts:
    """Seconds of each part of the steps: `with parts("forward"): …`.

    Off, it does nothing. On, it waits for the device at both ends of a part, so that work is charged where it was
    asked for; steps are then a little slower than without. The parts carry their names into profiler traces.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_on = False
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Generator[None]:
        """Count the seconds of a block under `name`; blocks are not nested."""
        if not self.is_on:
            yield
            return
        self.wait()
        began = time.perf_counter()
        with record_function(name):
            yield
            self.wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def wait(self) -> None:
        """Until the device has done all that was asked for."""
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()
