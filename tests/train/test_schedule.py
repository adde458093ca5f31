"""The rate and the row length as functions of the step."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesitting.train.schedule import decay_start, lr_factor, row_length, short_steps

fractions = st.floats(0, 1)
runs = st.tuples(st.integers(1, 3000), st.integers(0, 400), fractions, st.floats(1e-6, 1))


@given(runs)
@settings(derandomize=True, max_examples=300, deadline=None)
def test_first_update_has_a_rate_and_last_has_exactly_the_final_rate(run):
    n_steps, warmup, decay, final = run
    assert lr_factor(0, n_steps, warmup, decay, final) > 0
    assert lr_factor(n_steps - 1, n_steps, warmup, decay, final) == final


@given(runs)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_rate_rises_then_stays_then_falls(run):
    n_steps, warmup, decay, final = run
    factors = [lr_factor(s, n_steps, warmup, decay, final) for s in range(n_steps - 1)]
    assert all(0 < f <= 1 for f in factors)
    top = factors.index(max(factors)) if factors else 0
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


def test_values_by_hand():
    factors = [lr_factor(s, 10, 2, 0.5, 0.1) for s in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28, 0.1])


def test_overlapping_warm_up_and_decay_cut_each_other_off():
    factors = [lr_factor(s, 10, 8, 0.9, 0.1) for s in range(10)]
    rising, falling = [(s + 1) / 8 for s in range(10)], [1 - 0.1 * s for s in range(10)]
    assert factors == pytest.approx([min(pair) for pair in zip(rising, falling, strict=True)])


def test_runs_of_one_to_three_steps():
    assert lr_factor(0, 1, 20, 0.5, 0.02) == 0.02
    assert lr_factor(0, 1, 20, 0.5, 0.0) == 1 / 20  # the only update still changes something
    assert [lr_factor(s, 2, 0, 0.5, 0.0) for s in range(2)] == [1.0, 0.0]
    assert [lr_factor(s, 3, 1, 1.0, 0.1) for s in range(3)] == pytest.approx([0.7, 0.4, 0.1])


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 50), fractions)
@settings(derandomize=True, max_examples=200, deadline=None)
def test_steps_before_the_decay_do_not_depend_on_the_end(n_a, n_b, warmup, decay):
    first = min(decay_start(n_a, decay), decay_start(n_b, decay))
    for step in range(first):
        assert lr_factor(step, n_a, warmup, decay, 0.1) == lr_factor(step, n_b, warmup, decay, 0.1)


@given(fractions)
@settings(derandomize=True, max_examples=200, deadline=None)
def test_decay_start_grows_by_at_most_one_step_a_step(decay):
    starts = [decay_start(n, decay) for n in range(1, 400)]
    assert starts[0] == 0
    assert all(later - start in (0, 1) for start, later in itertools.pairwise(starts))


def test_short_rows_come_first_and_only_where_asked_for():
    lengths = [row_length(s, 10, full=256, short=64, short_fraction=0.3) for s in range(10)]
    assert lengths == [64] * 3 + [256] * 7
    assert row_length(0, 10, full=256, short=0, short_fraction=0.5) == 256
    assert short_steps(7, 1.0) == 7
