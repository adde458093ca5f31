"""Learning rate and row length as functions of the step. No state, no torch.

The learning rate warms up, stays, and falls linearly to its final value ("trapezoid"; Zhai et al. 2022,
arXiv:2106.04560; Hägele et al. 2024, arXiv:2405.18392). It is the lower of two lines:

    rise    (step + 1) / warmup_steps                 1 after the warm-up; never 0
    fall    from 1 before step `decay_start` to final_lr at step n_steps - 1

Where the two overlap they meet below 1. So no step before the decay depends on n_steps: a time budget may
still move the end while the rate rises or stays, and the same n_steps given from the start repeats the run.
Steps count from 0: `lr_factor(0, …)` is the rate of the first update.
"""


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


def lr_factor(step: int, n_steps: int, warmup_steps: int, decay_fraction: float, final_lr: float) -> float:
    """Learning rate of update `step` as a fraction of its peak, in (0, 1].

    step: in [0, n_steps). warmup_steps: updates until the peak.
    decay_fraction: last part of the steps, in [0, 1].
    final_lr: rate of the last update, exactly. It may be 0, except for a run of one step, which then takes
    its warm-up rate: a run never consists of updates that change nothing.
    """
    if step >= n_steps - 1 and (n_steps > 1 or final_lr > 0):
        return final_lr
    falling = fall(step, n_steps, decay_start(n_steps, decay_fraction), 1.0, final_lr)
    return min(rise(step, warmup_steps), falling) if n_steps > 1 else rise(step, warmup_steps)


def short_steps(n_steps: int, short_fraction: float) -> int:
    """Number of first steps that use short rows."""
    return min(n_steps, round(short_fraction * n_steps))


def row_length(step: int, n_steps: int, *, full: int, short: int, short_fraction: float) -> int:
    """Tokens in a row at `step`: short rows first, full rows after (Li et al. 2022, arXiv:2108.06084).

    full, short: tokens; short = 0: always full. The number of tokens in a step is the same for both.
    """
    return short if short and step < short_steps(n_steps, short_fraction) else full
