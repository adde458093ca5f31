"""Budgets: what people write, and simulated machines of many kinds."""

import json
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesitting.budgets import Budget, parse_budget, parse_end_moves
from onesitting.errors import UserError
from onesitting.train.budget import StepTarget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("90s", Budget(seconds=90)),
        ("5m", Budget(seconds=300)),
        ("2h", Budget(seconds=7200)),
        ("1h30m", Budget(seconds=5400)),
        ("1.5h", Budget(seconds=5400)),
        ("1d 2h", Budget(seconds=93_600)),
        ("tokens=20M", Budget(tokens=20_000_000)),
        ("tokens=20_000", Budget(tokens=20_000)),
        ("tokens=1.5b", Budget(tokens=1_500_000_000)),
    ],
)
def test_budgets_are_read(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text", ["", "5", "5 minutes", "m", "-5m", "30m1h", "0s", "tokens=", "tokens=0", "20M"]
)
def test_other_budgets_are_refused_with_the_value(text):
    with pytest.raises(UserError, match="budget") as refused:
        parse_budget(text)
    assert repr(text) in str(refused.value)


def test_a_number_without_a_unit_and_a_bare_number_of_tokens_are_asked_back_about():
    with pytest.raises(UserError, match="did you mean '300s' or '300m'"):
        parse_budget("300")
    with pytest.raises(UserError, match="did you mean 'tokens=20M'"):
        parse_budget("20M")


@dataclass(frozen=True)
class Settings:
    """A stage's settings, as far as the target reads them."""

    warmup_steps: int = 20
    decay_fraction: float = 0.5
    final_lr: float = 0.02
    short_context: int = 0
    short_fraction: float = 0.0
    end_moves: tuple[str, ...] = ()


@dataclass
class Simulated:
    """What a simulated stage did."""

    target: StepTarget
    steps: int
    seconds: float
    factors: list[float]
    lengths: list[int]
    evaluations: list[int]


def simulate(
    settings, step_s, *, seconds=None, tokens=None, max_steps=None, jitter=0.2, compile_s=0.0, evaluation_s=0.0,
    save_s=0.0, save_every_s=60.0, seed=0, step_cost=None, restart_at=None,
    evaluate_every=0.1, evaluation_tokens=0, saves_best=False, warmup_s=0.0,
):  # fmt: skip
    """Drive a target as the loop does, on a machine whose step takes step_s(step, now_s, row_length) seconds."""
    noise = random.Random(seed)

    def new_target():
        return StepTarget(
            settings, row_length=256, n_rows=32, seconds=seconds, tokens=tokens, max_steps=max_steps,
            save_every_s=save_every_s, step_cost=step_cost, evaluate_every=evaluate_every,
            evaluation_tokens=evaluation_tokens, saves_best=saves_best,
        )  # fmt: skip

    target, step, now, saved_at = new_target(), 0, 0.0, 0.0
    factors, lengths, evaluations, compiled = [], [], [], set()
    while target.n_steps is None or step < target.n_steps:
        length = target.row_length(step)
        lengths.append(length)
        factors.append(target.lr_factor(step))
        took = step_s(step, now, length) * noise.uniform(1 - jitter, 1 + jitter)
        took += 0 if length in compiled else compile_s
        compiled.add(length)
        step, now = step + 1, now + took
        target.step_done(step, now, length, took)
        if target.evaluation_due(step):
            took = evaluation_s + (0.0 if evaluations else warmup_s)
            evaluations.append(step)
            now += took
            target.pause("evaluation", took)
        is_best = saves_best and evaluations[-1:] == [step] and step < (target.n_steps or 0)
        if is_best or now - saved_at >= save_every_s:
            now += save_s
            saved_at = now
            target.pause("save", save_s)
        if step == restart_at:
            state = json.loads(json.dumps(target.state_dict()))
            target = new_target()
            target.load_state_dict(state)
            compiled.clear()
    return Simulated(target, step, now + save_s, factors, lengths, evaluations)


def steady(seconds):
    return lambda step, now, length: seconds


MACHINES = {
    "steady": ({}, steady(0.35), {}),
    "slow first steps": ({}, steady(0.35), {"compile_s": 25}),
    "validation and saving": ({}, steady(0.35), {"evaluation_s": 2.0, "save_s": 1.0}),
    "a save after each validation": (
        {},
        steady(0.35),
        {"evaluation_s": 1.0, "save_s": 2.0, "saves_best": True},
    ),
    "slower before the decay": ({}, lambda s, now, n: 0.35 if now < 50 else 0.6, {"evaluation_s": 1.0}),
    "slower during the decay": ({}, lambda s, now, n: 0.35 if now < 110 else 0.6, {"evaluation_s": 1.0}),
    "faster during the decay": ({}, lambda s, now, n: 0.6 if now < 110 else 0.35, {"evaluation_s": 1.0}),
    "short rows first": (
        {"short_context": 64, "short_fraction": 0.4},
        lambda s, now, n: 0.3 if n == 64 else 0.45,
        {"evaluation_s": 1.0, "compile_s": 5.0, "step_cost": {64: 0.7, 256: 1.0}},
    ),
    "decay from the start": ({"decay_fraction": 0.9, "warmup_steps": 10}, steady(0.3), {"evaluation_s": 1.0}),
    "steps of seconds": ({}, steady(1.5), {"evaluation_s": 2.0}),
    "thousands of steps": ({}, steady(0.02), {"evaluation_s": 1.0}),
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("seed", range(5))
def test_run_ends_within_the_promise_and_the_schedule_is_complete(machine, seed):
    changed, step_s, more = MACHINES[machine]
    done = simulate(Settings(**changed), step_s, seconds=150, seed=seed, **more)
    assert -0.05 <= done.seconds / 150 - 1 <= 0.02
    assert done.factors[-1] == 0.02
    assert max(done.factors) == 1.0
    after_top = done.factors[len(done.factors) - done.factors[::-1].index(1.0) :]
    assert after_top == sorted(after_top, reverse=True)
    assert done.evaluations[-1] == done.steps
    assert 9 <= len(done.evaluations) <= 11


@pytest.mark.parametrize("seed", range(3))
def test_a_machine_that_slows_down_a_little_does_not_take_the_time_of_what_comes_after(seed):
    def step_s(step, now, length):
        return 0.2 if now < 300 else 0.2025

    done = simulate(Settings(decay_fraction=0.95), step_s, seconds=1500, jitter=0.1, seed=seed)
    assert abs(done.seconds - 1500) <= 4
    assert len(done.target.state.end_moves) <= 3


@given(st.floats(0.05, 1.5), st.floats(0, 0.95), st.integers(0, 40), st.floats(0, 3), st.integers(0, 10**6))
@settings(derandomize=True, max_examples=25, deadline=None)
def test_any_steady_machine_keeps_the_promise(step_s, decay, warmup, evaluation_s, seed):
    stage = Settings(decay_fraction=decay, warmup_steps=warmup)
    done = simulate(stage, steady(step_s), seconds=200, evaluation_s=evaluation_s, save_s=0.5, seed=seed)
    assert -0.05 <= done.seconds / 200 - 1 <= 0.02
    assert done.factors[-1] == 0.02


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("seed", range(5))
def test_explicit_tokens_repeat_the_schedule_step_for_step(machine, seed):
    changed, step_s, more = MACHINES[machine]
    done = simulate(Settings(**changed), step_s, seconds=150, seed=seed, **more)
    found = done.target.explicit()
    repeated = {key: value for key, value in found.items() if key != "tokens"}
    again = simulate(Settings(**{**changed, **repeated}), steady(1.0), tokens=found["tokens"])
    assert again.factors == done.factors
    assert again.lengths == done.lengths


@pytest.mark.parametrize("restart", [-3, 0, 5])
def test_a_run_whose_end_moved_is_repeated_also_across_a_restart(restart):
    changed, step_s, more = MACHINES["slower during the decay"]
    done = simulate(Settings(**changed), step_s, seconds=150, **more)
    moves = done.target.state.end_moves
    assert moves  # this machine does move its end
    found = done.target.explicit()
    assert found["end_moves"] == [f"{step}:{n}" for step, n in moves]
    repeated = {
        key: tuple(value) if key == "end_moves" else value for key, value in found.items() if key != "tokens"
    }
    again = simulate(
        Settings(**{**changed, **repeated}),
        steady(1.0),
        tokens=found["tokens"],
        restart_at=moves[0][0] + restart,
    )
    assert again.factors == done.factors
    assert again.target.explicit() == found


@pytest.mark.parametrize("text", ["1200", "1200-1310", "1310:1200", "a:b", "5:5"])
def test_a_wrong_end_move_is_refused_with_its_text(text):
    with pytest.raises(UserError, match=f"'{text}'"):
        parse_end_moves([text])


@pytest.mark.parametrize("machine", ["steady", "slow first steps", "short rows first", "thousands of steps"])
@pytest.mark.parametrize("seed", range(5))
def test_on_a_quiet_machine_the_end_is_never_moved(machine, seed):
    changed, step_s, more = MACHINES[machine]
    assert (
        simulate(
            Settings(**changed), step_s, seconds=150, jitter=0.05, seed=seed, **more
        ).target.state.end_moves
        == []
    )


def test_tokens_alone_repeat_a_run_without_a_curriculum():
    done = simulate(Settings(), steady(0.35), seconds=150, jitter=0.05)
    assert not done.target.state.end_moves
    assert done.target.explicit() == {"tokens": done.steps * 256 * 32}


def test_tokens_fix_the_number_of_steps():
    done = simulate(Settings(), steady(9.0), tokens=100 * 8192 + 5)
    assert done.steps == 100
    assert done.target.fixed


def test_a_machine_too_slow_for_the_budget_still_completes_its_schedule():
    done = simulate(Settings(), steady(10.0), seconds=5)
    assert done.steps <= 4
    assert done.factors[-1] == 0.02


def test_compilation_longer_than_the_first_fifth_is_not_taken_for_the_speed():
    done = simulate(Settings(), steady(0.2), seconds=60, compile_s=20, jitter=0.05)
    assert -0.05 <= done.seconds / 60 - 1 <= 0.02


def test_data_that_ends_bounds_the_steps_and_the_decay_ends_with_it():
    done = simulate(Settings(), steady(0.1), seconds=600, max_steps=300)
    assert done.steps == 300
    assert done.factors[149] == 1.0
    assert done.factors[-1] == 0.02


def test_a_restart_keeps_schedule_and_budget():
    done = simulate(Settings(), steady(0.35), seconds=150, restart_at=100, compile_s=4.0)
    assert -0.05 <= done.seconds / 150 - 1 <= 0.02
    fixed = simulate(Settings(), steady(0.35), tokens=200 * 8192, restart_at=77)
    assert fixed.factors == simulate(Settings(), steady(0.35), tokens=200 * 8192).factors


def test_time_left_counts_validation_and_saving():
    target = StepTarget(Settings(), row_length=256, n_rows=32, tokens=100 * 8192, save_every_s=0)
    assert target.eta_s(0, 0.0) is None
    for step in range(1, 11):
        target.step_done(step, step * 2.0, 256, 2.0)
    target.pause("evaluation", 3.0)
    target.pause("save", 1.0)
    assert target.eta_s(10, 24.0) == pytest.approx(90 * 2.0 + 9 * 3.0 + 1.0)


def test_a_validation_that_was_never_timed_is_allowed_for():
    # 8,192 tokens a step of 0.4 s: 65,536 tokens read without gradients take about 1.1 s.
    run = simulate(
        Settings(), steady(0.4), seconds=20, evaluate_every=1.0, evaluation_tokens=65_536, evaluation_s=1.1
    )
    assert run.evaluations == [run.steps]
    assert 19 <= run.seconds <= 20.4
    blind = simulate(Settings(), steady(0.4), seconds=20, evaluate_every=1.0, evaluation_s=1.1)
    assert blind.seconds > 20.4  # what it is for


@pytest.mark.parametrize(("seconds", "n_evaluations"), [(30, 1), (300, 10)])
def test_validations_that_a_short_budget_cannot_afford_are_left_to_the_last(seconds, n_evaluations):
    run = simulate(Settings(), steady(0.4), seconds=seconds, evaluation_tokens=327_680, evaluation_s=5.0)
    assert len(run.evaluations) == n_evaluations
    assert run.evaluations[-1] == run.steps
    assert 0.95 * seconds <= run.seconds <= 1.02 * seconds


@pytest.mark.parametrize("seconds", [150, 300])
def test_a_first_validation_that_warms_up_is_not_taken_for_the_price_of_the_others(seconds):
    run = simulate(
        Settings(), steady(0.05), seconds=seconds, evaluation_tokens=65_536, evaluation_s=0.5, warmup_s=20.0
    )
    assert 0.95 * seconds <= run.seconds <= 1.02 * seconds
    assert len(run.evaluations) == 10


def test_before_anything_is_timed_the_budget_tells_the_time_left_and_the_progress():
    target = StepTarget(Settings(), row_length=256, n_rows=32, seconds=100)
    assert target.n_steps is None
    assert target.eta_s(0, 10.0) == 90
    assert target.progress(0, 10.0) == 0.1
    assert not target.evaluation_due(3)
