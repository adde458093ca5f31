"""Seconds for each stage: a budget of its own, or its share of what the run has left.

The shares are those of all stages that are still to come, whether one command trains them or each is given alone:
`onesitting pretrain`, `onesitting sft` and `onesitting evaluate` take the time that `onesitting run` would.
"""

import math
import time
from collections.abc import Callable

from onesitting import budgets
from onesitting.clock import CLOSING_S, Clock
from onesitting.config import RunConfig, stage_config
from onesitting.errors import UserError
from onesitting.run_evaluation import START
from onesitting.run_settings import has_suite, n_passes, own_budget

REHEARSING = ("pretrain", "sft")
"""Stages whose models, before they are trained, write as those that will be asked."""
MOST_OF_SUITE = 0.15
"""Of the budget, kept for a pass of the suite: a run of half a minute must train, too, and asks once alone."""
LEAST_SHARE = 0.05
"""Of the budget, for a later stage that others left too little for."""


def stage_seconds(
    cfg: RunConfig,
    name: str,
    clock: Clock,
    rehearse: Callable[[], float],
    *,
    start_s: float,
    say: Callable[[str], None],
) -> float | None:
    """Seconds for the stage `name`; None without a time budget.

    rehearse: measures about how many seconds a pass of the question suite takes, without asking it. start_s: what
    this process took to start. say: shows a line.
    Raises UserError when nothing is left for the first stage.
    """
    own = own_budget(cfg, name)
    if own is not None:
        if own.seconds is None:
            return None
        pass_s = suite_seconds(cfg, name, clock, rehearse)
        seconds = own.seconds - start_s - CLOSING_S - pass_s * n_passes([name])
    elif clock.left_s is None:
        return None
    else:
        pass_s = suite_seconds(cfg, name, clock, rehearse)
        seconds = _shared_seconds(cfg, name, clock, clock.left_s, pass_s)
    # The first stage needs time; a later one is not given up because the machine stalled before it.
    is_first = name == cfg.stages[0]
    least = 1.0 if is_first else max(1.0, LEAST_SHARE * (clock.budget_s or 0.0))
    if seconds < least:
        used = f"budget = {cfg.budget!r}: {clock.used_s:.0f} s were used before {name}"
        if is_first:
            raise UserError(f"{used} and nothing is left to train in; give a larger budget")
        say(f"{used}, more than planned: it gets {least:.0f} s all the same, and the run ends late")
    return max(seconds, least)


def _shared_seconds(cfg: RunConfig, name: str, clock: Clock, left: float, pass_s: float) -> float:
    """The share of a stage of what is left after the suites and the stages with budgets of their own."""
    later = cfg.stages[cfg.stages.index(name) :]
    left += clock.phases.get(name, 0.0)  # a resumed stage counts its earlier sittings itself
    left -= pass_s * n_passes(later)
    left -= _measure_seconds(clock)
    owned = [budget.seconds for stage in later if (budget := own_budget(cfg, stage)) is not None]
    shares = {stage: stage_config(cfg, stage).share for stage in later if own_budget(cfg, stage) is None}
    return (left - sum(seconds or 0.0 for seconds in owned)) * shares[name] / sum(shares.values())


def suite_seconds(cfg: RunConfig, name: str, clock: Clock, rehearse: Callable[[], float]) -> float:
    """Expected seconds of one pass of the question suite: as the last one took, else as rehearsed, else a guess.

    A model that was pretrained completes texts; in a conversation it is asked more, and answers at greater length.
    """
    if not has_suite(cfg):
        return 0.0
    timed = [(phase, seconds) for phase, seconds in clock.phases.items() if phase.startswith("evaluate")]
    last, last_s = timed[-1] if timed else ("", 0.0)
    can_rehearse = (
        name in REHEARSING and cfg.device.shard != "fsdp"
    )  # sharded, it speaks with all its processes
    if can_rehearse and (not last or last == "evaluate pretrain"):
        with clock.phase("rehearsal"):
            return max(last_s, min(rehearse(), MOST_OF_SUITE * (clock.budget_s or math.inf)))
    return last_s * 1.1 if last else budgets.suite_seconds(clock.budget_s)


def questions_end_at(cfg: RunConfig, name: str, clock: Clock) -> float | None:
    """By time.monotonic(), when the questions to the model of the stage `name` must end for the budget to be kept.

    None: they may take what they take, for there is no budget, or later stages can make up for it.
    """
    if clock.left_s is None or name != cfg.stages[-1] or own_budget(cfg, name) is not None:
        return None
    return time.monotonic() + (clock.left_s - _measure_seconds(clock)) / n_passes([name])


def _measure_seconds(clock: Clock) -> float:
    """Seconds kept for measuring the last stage's model as the one that the run started from."""
    return clock.phases.get(f"measure {START}", 0.0) * 1.1
