"""What rates and row lengths follow, as functions of the step; `budget.StepTarget` puts them together.

The learning rate warms up, stays, and falls linearly to its final value ("trapezoid"; Zhai et al. 2022,
arXiv:2106.04560; Hägele et al. 2024, arXiv:2405.18392). It is the lower of two lines:

    rise    (step + 1) / warmup_steps                 1 after the warm-up; never 0
    fall    from 1 before step `decay_start` to final_lr at step n_steps - 1

Where the two overlap they meet below 1. So no step before the decay depends on n_steps: a time budget may
still move the end while the rate rises or stays, and the same n_steps given from the start repeats the run.
Steps count from 0: the rate of step 0 is that of the first update.
"""

from typing import Protocol


class TargetSettings(Protocol):
    """What a stage's configuration says about its steps; PretrainConfig and SFTConfig fit.

    A configuration may also have `short_context` and `short_fraction` (a row-length curriculum).
    """

    @property
    def warmup_steps(self) -> int:
        """Updates until the peak."""
        ...

    @property
    def decay_fraction(self) -> float:
        """Last part of the steps over which the rate falls."""
        ...

    @property
    def final_lr(self) -> float:
        """Rate of the last update, as a fraction of the peak."""
        ...


def decay_start(n_steps: int, decay_fraction: float) -> int:
    """First step of the decay, in [0, n_steps - 1]; the decay has at least one step, the last.

    Never falls, and grows by at most one with each further step of training.
    """
    assert n_steps >= 1, n_steps
    return n_steps - min(n_steps, max(1, round(decay_fraction * n_steps)))


def rise(step: int, warmup_steps: int) -> float:
    """Warm-up line at `step`, in (0, 1]."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def fall(step: int, n_steps: int, first: int, peak: float, final_lr: float) -> float:
    """Line through (first - 1, peak) and (n_steps - 1, final_lr); `peak` before, `final_lr` after.

    first: first step of the decay, < n_steps.
    """
    if step < first:
        return peak
    return final_lr + (peak - final_lr) * max(0, n_steps - 1 - step) / (n_steps - first)


def short_steps(n_steps: int, short_fraction: float) -> int:
    """Number of first steps that use short rows (Li et al. 2022, arXiv:2108.06084)."""
    return min(n_steps, round(short_fraction * n_steps))
