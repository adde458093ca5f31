"""From a budget of time or tokens to a number of optimizer steps.

`StepTarget` answers the loop's questions before each step (row length, learning rate) and learns from the
clock after it (`step_done`, `pause`). It reads no clock and no file itself: what it knows came by arguments,
so every process that gives the same arguments gets the same answers, and a test can play any machine.

With tokens, everything is known from the start. With seconds:

    steps 0…        measure: the first steps at a row length (compilation, cold caches) are not counted
    while stable    n_steps is estimated anew after each step; nothing done so far depended on it
    decay begins    as soon as the time left is what the decay needs; n_steps is fixed from here
    if the machine then changes its speed so much that the budget would be missed by TOO_LATE or TOO_EARLY,
                    the rest of the decay is stretched or squeezed, and the move is noted
"""

from dataclasses import asdict
from typing import Any

from onesitting.budgets import parse_end_moves
from onesitting.train import schedule
from onesitting.train.schedule import TargetSettings
from onesitting.train.target_state import N_TIMED, Mean, TargetState

TOO_LATE, LEAST_LATE, LEAST_STEPS_LATE = 0.015, 0.002, 3
"""Predicted overrun above which a fixed end is moved, as a fraction of the time left; and what is always allowed, as a
fraction of the budget and in steps. The promise is 2 %, but an hour's 2 % are what the questions after it need."""
TOO_EARLY = 0.04
"""Predicted unused fraction of the budget above which a fixed end is moved; the promise is 5 %."""
N_UNTIMED = 2
"""Steps at each row length, after each start, that do not count: compilation, first touch of memory."""
LATEST_ESTIMATE = 0.2
"""Fraction of the budget after which the last step's time has to do, from the second step on."""
DEAREST = 0.2
"""Share of a time budget that validations may take, all together; else only the last is made."""


class StepTarget:
    """Steps, learning rate and row length of one stage, from seconds or tokens.

    settings: warm-up, decay, final rate, and the curriculum where there is one.
    seconds: time for the whole stage from the start of its clock, set-up, validation and saving included.
    tokens: tokens to train on; wins over seconds. One of the two is needed.
    max_steps: never more steps than this (the data ends).
    row_length, n_rows: tokens in a full row, and full rows in a step over all processes.
    evaluate_every: fraction of the steps between validations; the last one is at the end. 0: none. In a time budget of
        which all of them would take more than DEAREST, that last one is the only one.
    evaluation_tokens: tokens of a validation; a third of their training time is its, until one was timed.
    save_every_s: seconds between checkpoints; one more is written at the end. 0: that one only.
    saves_best: whether validations are followed by a checkpoint too, as each is the best so far.
    step_cost: row length -> relative cost of a step (from FLOPs), used until that length has been timed.
    """

    def __init__(
        self,
        settings: TargetSettings,
        *,
        row_length: int,
        n_rows: int,
        seconds: float | None = None,
        tokens: int | None = None,
        max_steps: int | None = None,
        evaluate_every: float = 0.1,
        evaluation_tokens: int = 0,
        save_every_s: float = 60.0,
        saves_best: bool = False,
        step_cost: dict[int, float] | None = None,
    ) -> None:
        assert seconds is not None or tokens is not None
        self.warmup_steps, self.decay_fraction = settings.warmup_steps, settings.decay_fraction
        self.final_lr = settings.final_lr
        self.short: int = getattr(settings, "short_context", 0)
        self.short_fraction: float = getattr(settings, "short_fraction", 0.0) if self.short else 0.0
        self.full, self.step_tokens = row_length, row_length * n_rows
        self.max_steps = max_steps or 10**12
        self.evaluate_every, self.save_every_s, self.saves_best = evaluate_every, save_every_s, saves_best
        self.evaluation_steps = evaluation_tokens / self.step_tokens / 3
        self.step_cost = step_cost or {}
        self.seconds = None if tokens is not None else seconds
        self.given_moves = parse_end_moves(getattr(settings, "end_moves", ())) if tokens is not None else {}
        self.state = TargetState()
        if tokens is not None:
            n_steps = min(max(1, tokens // self.step_tokens), self.max_steps)
            self.state.short_steps = schedule.short_steps(n_steps, self.short_fraction)
            self._fix_end(n_steps, schedule.decay_start(n_steps, self.decay_fraction))

    # ---- what the loop asks -------------------------------------------------------------------------------

    @property
    def n_steps(self) -> int | None:
        """Steps of the whole stage as known now; None until the first estimate. Always above the steps done,
        until the last one is done."""
        return self.state.n_steps

    @property
    def fixed(self) -> bool:
        """Whether the number of steps no longer changes with the clock."""
        return self.state.decay_start is not None

    def lr_factor(self, step: int) -> float:
        """Learning rate of update `step` as a fraction of its peak."""
        state, rising = self.state, schedule.rise(step, self.warmup_steps)
        if state.decay_start is None or state.n_steps is None:
            return rising
        last = state.n_steps - 1
        if step >= last and (last > 0 or self.final_lr > 0):
            return self.final_lr
        if last == 0:
            return rising
        return min(
            rising, schedule.fall(step, state.n_steps, state.decay_start, state.decay_peak, self.final_lr)
        )

    def row_length(self, step: int) -> int:
        """Tokens in a row at `step`."""
        short_steps = self.state.short_steps
        is_short = self.short_fraction > 0 and (short_steps is None or step < short_steps)
        return self.short if is_short else self.full

    def evaluation_due(self, step: int) -> bool:
        """Whether to validate after `step` steps: at each `evaluate_every` of the stage, and at its end."""
        n_steps = self.state.n_steps
        if n_steps is None or self.evaluate_every <= 0:
            return False
        due = step >= (self.state.n_evaluations + 1) * self.evaluate_every * n_steps
        return step >= n_steps or (due and not self._evaluations_are_dear())

    def progress(self, step: int, elapsed_s: float) -> float:
        """Part of the stage that is done, in [0, 1]."""
        if self.state.n_steps is not None:
            return min(1.0, step / self.state.n_steps)
        assert self.seconds is not None
        return min(1.0, elapsed_s / self.seconds)

    def eta_s(self, step: int, elapsed_s: float) -> float | None:
        """Seconds until the stage's end, its last validation and save included; None while unknown."""
        if self.state.n_steps is not None and any(mean.n for mean in self.state.step_s.values()):
            return self._seconds_for(self.state.n_steps, step)
        return None if self.seconds is None else max(0.0, self.seconds - elapsed_s)

    def describe(self) -> str:
        """`2m30s`, or `1,200 steps of 8,192 tokens`: the target in words."""
        if self.seconds is not None:
            minutes, seconds = divmod(round(self.seconds), 60)
            return f"{minutes}m{seconds:02d}s in steps of {self.step_tokens:,} tokens"
        return f"{self.state.n_steps:,} steps of {self.step_tokens:,} tokens"

    def explicit(self) -> dict[str, int | float | list[str]]:
        """Stage settings that repeat this schedule step for step (`pretrain.tokens`, …), once it is fixed.

        `tokens` alone where the rest follows from it; the exact fractions too where it does not (a curriculum
        switched at a step that was right by the estimate of that moment), and where the end was moved.
        """
        state = self.state
        assert self.fixed
        n_steps, decay_start = state.planned
        found: dict[str, int | float | list[str]] = {"tokens": n_steps * self.step_tokens}
        if schedule.decay_start(n_steps, self.decay_fraction) != decay_start:
            found["decay_fraction"] = (n_steps - decay_start) / n_steps
        short_steps = state.short_steps or 0
        if schedule.short_steps(n_steps, self.short_fraction) != short_steps:
            found["short_fraction"] = short_steps / n_steps
        if state.end_moves:
            found["end_moves"] = [f"{step}:{n}" for step, n in state.end_moves]
        return found

    # ---- what the loop tells ------------------------------------------------------------------------------

    def step_done(self, step: int, elapsed_s: float, row_length: int, seconds: float) -> None:
        """`step` steps are done, the last took `seconds` at `row_length`; the stage's clock shows elapsed_s.

        Every process must give the same values (those of rank 0).
        """
        state = self.state
        state.step, state.elapsed_s, state.last_step_s = step, elapsed_s, seconds
        mean = state.step_s.setdefault(row_length, Mean())
        if mean.n_skipped < N_UNTIMED:
            mean.n_skipped += 1
        else:
            mean.add(seconds)
        if step in self.given_moves:
            self._move_end(self.given_moves[step])
        if self.seconds is None or (state.n_steps is not None and step >= state.n_steps):
            return
        timed = any(mean.n >= N_TIMED for mean in state.step_s.values())
        # On a slow machine five steps may be half of the budget. The very first says nothing: it compiles.
        hurry = step > 1 and elapsed_s >= LATEST_ESTIMATE * self.seconds
        if not timed and not hurry:
            return
        if self.fixed:
            self._hold_budget()
        else:
            self._estimate()

    def pause(self, kind: str, seconds: float) -> None:
        """An `evaluation` or a `save` after the last step took this long; the same on every process."""
        state = self.state
        mean = state.pause_s.setdefault(
            kind, Mean(seconds)
        )  # the first warms up: the next one takes its place
        if mean.n or mean.n_skipped:
            mean.add(seconds)
        mean.n_skipped = 1
        state.elapsed_s += seconds
        if kind == "evaluation" and state.n_steps:
            passed = state.step / state.n_steps / self.evaluate_every if self.evaluate_every else 0
            state.n_evaluations = max(state.n_evaluations + 1, int(passed + 1e-9))

    def resumed(self) -> None:
        """After a restart the first steps at each row length compile again: leave them out once more."""
        for mean in self.state.step_s.values():
            mean.n_skipped = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self.state)

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Continue from `state_dict()`; JSON's text keys are turned back into numbers.

        A given number of steps stays as given now: tokens may have been raised since.
        """
        given = self.state
        state = TargetState(**values)
        state.planned = (state.planned[0], state.planned[1])
        state.end_moves = [(step, n_steps) for step, n_steps in state.end_moves]
        state.step_s = {int(length): Mean(**mean) for length, mean in values["step_s"].items()}
        state.pause_s = {kind: Mean(**mean) for kind, mean in values["pause_s"].items()}
        self.state = state
        if self.seconds is None:
            state.short_steps, state.decay_peak, state.end_moves = given.short_steps, 1.0, []
            self._fix_end(*given.planned)
            done = state.step
            for state.step, n_steps in sorted(self.given_moves.items()):
                if state.step <= done:
                    self._move_end(n_steps)
            state.step = done
        self.resumed()

    # ---- estimates ----------------------------------------------------------------------------------------

    def _step_seconds(self, length: int) -> float:
        """Seconds of a step at a row length: measured, else in proportion to its cost from another length."""
        mean = self.state.step_s.get(length)
        if mean is not None and mean.n:
            return mean.value
        timed = {other: m for other, m in self.state.step_s.items() if m.n}
        if not timed:
            return self.state.last_step_s
        nearest = min(timed, key=lambda other: abs(other - length))
        return timed[nearest].value * self.step_cost.get(length, 1.0) / self.step_cost.get(nearest, 1.0)

    def _evaluation_seconds(self) -> float:
        """Of one validation: measured, else from its tokens; the first one says it where only the last is left."""
        measured = self.state.pause_s.get("evaluation", Mean())
        is_last = (self.state.n_evaluations + 1.5) * self.evaluate_every > 1
        if measured.n or (measured.n_skipped and (is_last or not self.evaluation_steps)):
            return measured.value
        return self.evaluation_steps * self._step_seconds(self.full)

    def _evaluations_are_dear(self) -> bool:
        """Whether a time budget can afford no more than the last one."""
        if self.seconds is None or not self.evaluate_every:
            return False
        return self._evaluation_seconds() / self.evaluate_every > DEAREST * self.seconds

    def _seconds_for(self, n_steps: int, step: int) -> float:
        """Predicted seconds from `step` steps done to the end of a stage of `n_steps`."""
        state = self.state
        short_steps = state.short_steps
        if short_steps is None:
            short_steps = max(step, schedule.short_steps(n_steps, self.short_fraction))
        n_short = max(0, min(n_steps, short_steps) - step) if self.short_fraction else 0
        n_full = max(0, n_steps - step - n_short)
        steps_s = n_full * self._step_seconds(self.full) if n_full else 0.0
        steps_s += n_short * self._step_seconds(self.short) if n_short else 0.0
        n_evaluations = round(1 / self.evaluate_every) - state.n_evaluations if self.evaluate_every else 0
        n_evaluations = 1 if self._evaluations_are_dear() else max(0, n_evaluations)
        n_saves = steps_s / self.save_every_s if self.save_every_s else 0.0
        n_saves = max(n_saves, n_evaluations - 1 if self.saves_best else 0) + 1
        saves_s = n_saves * state.pause_s.get("save", Mean()).value
        return steps_s + saves_s + n_evaluations * self._evaluation_seconds()

    def _fitting_steps(self) -> int:
        """Largest n_steps that is predicted to fit; at least one step more than are done."""
        assert self.seconds is not None
        state = self.state
        left_s = self.seconds - state.elapsed_s
        low, high = state.step + 1, state.step + 2
        while low < self.max_steps and self._seconds_for(high, state.step) <= left_s:
            low, high = high, state.step + 2 * (high - state.step)
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._seconds_for(middle, state.step) <= left_s
            low, high = (middle, high) if fits else (low, middle)
        return min(low, max(self.max_steps, state.step + 1))

    def _estimate(self) -> None:
        """Before the decay: estimate the end anew; lengthen the rows or start the decay when it is time."""
        state = self.state
        n_steps = self._fitting_steps()
        if state.short_steps is None and state.step >= schedule.short_steps(n_steps, self.short_fraction):
            state.short_steps = state.step if self.short_fraction else 0
            n_steps = self._fitting_steps()
        state.n_steps = n_steps
        if schedule.decay_start(n_steps, self.decay_fraction) > state.step:
            return
        # The nearest number of steps whose decay starts right here: that number alone repeats the run.
        near = range(max(state.step + 1, n_steps - 2), min(n_steps + 3, self.max_steps + 1))
        same = [n for n in near if schedule.decay_start(n, self.decay_fraction) == state.step] or [n_steps]
        n_steps = min(same, key=lambda n: abs(n - n_steps))
        if state.short_steps is None:  # the decay begins within the short rows
            state.short_steps = max(state.step, schedule.short_steps(n_steps, self.short_fraction))
        self._fix_end(n_steps, state.step)

    def _fix_end(self, n_steps: int, decay_start: int) -> None:
        self.state.n_steps, self.state.decay_start = self.state.planned = n_steps, decay_start

    def _move_end(self, n_steps: int) -> None:
        """During the decay: the falling line goes on from where it is, to another end."""
        state = self.state
        state.decay_peak = self.lr_factor(state.step - 1)
        state.n_steps, state.decay_start = n_steps, state.step
        state.end_moves.append((state.step, n_steps))

    def _hold_budget(self) -> None:
        """During the decay: keep the end, unless the speed changed so much that the promise would break."""
        state = self.state
        assert self.seconds is not None
        assert state.n_steps is not None
        left_s = self._seconds_for(state.n_steps, state.step)
        late = state.elapsed_s + left_s - self.seconds
        least = max(LEAST_LATE * self.seconds, LEAST_STEPS_LATE * self._step_seconds(self.full))
        if -TOO_EARLY * self.seconds <= late <= min(TOO_LATE * self.seconds, max(least, TOO_LATE * left_s)):
            return
        n_steps = self._fitting_steps()
        if n_steps != state.n_steps:
            self._move_end(n_steps)
