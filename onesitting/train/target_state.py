"""What `budget.StepTarget` remembers: how long steps and pauses took, and where the end was put."""

from dataclasses import dataclass, field

N_TIMED = 3
"""Timed steps before the first estimate."""
OUTLIER = 3.0
"""A step longer than this many times the mean counts as that many: a stall is not a speed."""


@dataclass
class Mean:
    """Running mean of seconds that follows a change of speed."""

    value: float = 0.0
    n: int = 0
    n_skipped: int = 0

    def add(self, seconds: float) -> None:
        """Take one more value in; its weight is 1/n at first, then that of a window."""
        self.n += 1
        # 64 steps: jitter of 20 % averages to 1 %. A quarter of a long run: its slow drifts average out too.
        window = min(self.n, max(64, self.n // 4))
        if self.n > N_TIMED:
            seconds = min(seconds, OUTLIER * self.value)
        self.value += (seconds - self.value) / window


@dataclass
class TargetState:
    """All that changes; plain values, written into checkpoints."""

    n_steps: int | None = None
    """Steps of the whole stage: given, estimated, or fixed once decay_start is known."""
    decay_start: int | None = None
    """First step of the decay, once fixed."""
    decay_peak: float = 1.0
    """Factor that the falling line starts from: 1, or less after the end was moved during the decay."""
    short_steps: int | None = None
    """First steps with short rows, once fixed."""
    planned: tuple[int, int] = (0, 0)
    """n_steps and decay_start as they were first fixed."""
    end_moves: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """(steps done, new n_steps) of each time that the end was moved during the decay."""
    elapsed_s: float = 0.0
    """Clock of the stage at the last event."""
    step: int = 0
    """Steps done."""
    last_step_s: float = 0.0
    """Seconds of the last step."""
    n_evaluations: int = 0
    """Validations passed, out of 1 / evaluate_every."""
    step_s: dict[int, Mean] = field(default_factory=dict)
    """Row length -> seconds of a step."""
    pause_s: dict[str, Mean] = field(default_factory=dict)
    """Kind of pause (`evaluation`, `save`) -> seconds of one."""
