"""The rate and the row length as functions of the step."""

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesitting.train.budget import StepTarget
from onesitting.train.schedule import decay_start, short_steps

fractions = st.floats(0, 1)
runs = st.tuples(st.integers(1, 3000), st.integers(0, 400), fractions, st.floats(1e-6, 1))


def target(
    n_steps: int, warmup: int, decay: float, final: float, short: int = 0, part: float = 0.0
) -> StepTarget:
    settings = SimpleNamespace(
        warmup_steps=warmup, decay_fraction=decay, final_lr=final, short_context=short, short_fraction=part
    )
    return StepTarget(settings, row_length=256, n_rows=1, tokens=256 * n_steps)


def rates(n_steps: int, warmup: int, decay: float, final: float) -> list[float]:
    it = target(n_steps, warmup, decay, final)
    return [it.lr_factor(step) for step in range(n_steps)]


@given(runs)
@settings(derandomize=True, max_examples=300, deadline=None)
def test_first_update_has_a_rate_and_last_has_exactly_the_final_rate(run):
    found = rates(*run)
    assert found[0] > 0
    assert found[-1] == run[-1]


@given(runs)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_rate_rises_then_stays_then_falls(run):
    factors = rates(*run)[:-1]
    assert all(0 < f <= 1 for f in factors)
    top = factors.index(max(factors)) if factors else 0
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


def test_values_by_hand():
    factors = rates(10, 2, 0.5, 0.1)
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28, 0.1])


def test_overlapping_warm_up_and_decay_cut_each_other_off():
    factors = rates(10, 8, 0.9, 0.1)
    rising, falling = [(s + 1) / 8 for s in range(10)], [1 - 0.1 * s for s in range(10)]
    assert factors == pytest.approx([min(pair) for pair in zip(rising, falling, strict=True)])


def test_runs_of_one_to_three_steps():
    assert rates(1, 20, 0.5, 0.02) == [0.02]
    assert rates(1, 20, 0.5, 0.0) == [1 / 20]  # the only update still changes something
    assert rates(2, 0, 0.5, 0.0) == [1.0, 0.0]
    assert rates(3, 1, 1.0, 0.1) == pytest.approx([0.7, 0.4, 0.1])


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 50), fractions)
@settings(derandomize=True, max_examples=200, deadline=None)
def test_steps_before_the_decay_do_not_depend_on_the_end(n_a, n_b, warmup, decay):
    first = min(decay_start(n_a, decay), decay_start(n_b, decay))
    assert rates(n_a, warmup, decay, 0.1)[:first] == rates(n_b, warmup, decay, 0.1)[:first]


@given(fractions)
@settings(derandomize=True, max_examples=200, deadline=None)
def test_decay_start_grows_by_at_most_one_step_a_step(decay):
    starts = [decay_start(n, decay) for n in range(1, 400)]
    assert starts[0] == 0
    assert all(later - start in (0, 1) for start, later in itertools.pairwise(starts))


def test_short_rows_come_first_and_only_where_asked_for():
    it = target(10, 0, 0.5, 0.1, short=64, part=0.3)
    assert [it.row_length(step) for step in range(10)] == [64] * 3 + [256] * 7
    assert target(10, 0, 0.5, 0.1, part=0.5).row_length(0) == 256
    assert short_steps(7, 1.0) == 7
