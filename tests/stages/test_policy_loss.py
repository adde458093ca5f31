"""Losses of GRPO, its variants and PPO against values worked out by hand: contracts 14 and 15."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from onesitting.stages.policy_loss import (
    Aggregation,
    Clip,
    KLEstimator,
    Ratio,
    generalised_advantages,
    group_advantages,
    kl_estimate,
    log_ratios,
    policy_loss,
    token_weights,
    value_loss,
)

LOG2, LOG3 = math.log(2), math.log(3)


def t(*values: float) -> Tensor:
    return torch.tensor(values)


def test_advantages_are_rewards_less_the_group_mean_divided_by_its_deviation():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 4.0]])
    # means 0.5 and 1, population deviations 0.5 and sqrt(3)
    plain = group_advantages(rewards, normalise=False)
    assert plain.tolist() == [[0.5, -0.5, -0.5, 0.5], [-1.0, -1.0, -1.0, 3.0]]
    divided = group_advantages(rewards, normalise=True)
    assert divided[0].tolist() == [1.0, -1.0, -1.0, 1.0]
    assert divided[1].tolist() == pytest.approx([-1 / math.sqrt(3)] * 3 + [math.sqrt(3)])


@given(value=st.floats(-1e6, 1e6, allow_nan=False), size=st.integers(1, 9), normalise=st.booleans())
def test_a_group_of_equal_rewards_has_advantages_of_exactly_zero(value: float, size: int, normalise: bool):
    rewards = torch.full((1, size), value, dtype=torch.float64)
    assert group_advantages(rewards, normalise=normalise).tolist() == [[0.0] * size]


# Token probabilities doubled, halved, and times 1.1; advantages 1, 1, -2; clip to [0.8, 1.28].
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        (2.0, 1.0, -1.28, True, 0.0),  # it rose beyond the clip and is wanted: no gradient any more
        (2.0, -2.0, 4.0, False, 4.0),  # it rose and is not wanted: the whole ratio counts
        (0.5, 1.0, -0.5, False, -0.5),
        (0.5, -2.0, 1.6, True, 0.0),
        (1.1, 1.0, -1.1, False, -1.1),
        (1.0, 3.0, -3.0, False, -3.0),
    ],
)
def test_ppo_clip_equals_values_worked_out_by_hand(
    ratio: float, advantage: float, loss: float, clipped: bool, gradient: float
):
    logp = t(math.log(ratio) - 1.0).requires_grad_()
    old = t(-1.0)
    part = policy_loss(logp, logp - old, t(advantage), low=0.2, high=0.28, clip="ppo")
    assert float(part.loss) == pytest.approx(loss)
    assert bool(part.clipped) is clipped
    part.loss.sum().backward()
    assert logp.grad is not None
    assert float(logp.grad) == pytest.approx(gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight", "clipped"),
    [(2.0, 1.0, 1.28, True), (0.5, -2.0, 0.8, True), (1.1, 1.0, 1.1, False)],
)
def test_cispo_bounds_the_weight_and_keeps_every_gradient(
    ratio: float, advantage: float, weight: float, clipped: bool
):
    logp = t(math.log(ratio) - 1.0).requires_grad_()
    part = policy_loss(logp, logp - t(-1.0), t(advantage), low=0.2, high=0.28, clip="cispo")
    assert float(part.loss) == pytest.approx(-weight * advantage * (math.log(ratio) - 1.0))
    assert bool(part.clipped) is clipped
    part.loss.sum().backward()
    assert float(logp.grad) == pytest.approx(-weight * advantage)  # pyright: ignore


def test_sequence_ratio_is_the_geometric_mean_of_its_tokens_ratios():
    # Row 0: ratios 2 and 8, geometric mean 4. Row 1: 3, alone.
    old = t(-1.0, -2.0, -1.0)
    logp = old + t(LOG2, 3 * LOG2, LOG3)
    rows = torch.tensor([0, 0, 1])
    assert log_ratios(logp, old, rows, 2, "sequence").exp().tolist() == pytest.approx([4.0, 4.0, 3.0])
    assert log_ratios(logp, old, rows, 2, "token").exp().tolist() == pytest.approx([2.0, 8.0, 3.0])


def test_gspo_loss_and_gradient_equal_the_sequence_objective():
    # GSPO's objective for one sequence is min(s A, clip(s) A); given to its tokens with weight 1 / length it is that.
    old, rows = t(-1.0, -2.0), torch.tensor([0, 0])
    logp = (old + t(0.1, 0.05)).requires_grad_()
    log_ratio = log_ratios(logp, old, rows, 1, "sequence")
    part = policy_loss(logp, log_ratio, t(2.0, 2.0), low=0.2, high=0.28, clip="ppo")
    weights = token_weights(torch.tensor([2]), "sequence", 10)[rows]
    total = (part.loss * weights).sum()
    s = math.exp(0.075)
    assert float(total) == pytest.approx(-2.0 * s)
    total.backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([-2.0 * s / 2] * 2)  # d s / d logp_t = s / length


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token", (1 + 2 + 3 + 10) / 4),  # units are tokens
        ("sequence", ((1 + 2 + 3) / 3 + 10) / 2),  # units are sequences
        ("constant", ((1 + 2 + 3) / 5 + 10 / 5) / 2),  # five tokens were allowed
    ],
)
def test_aggregations_equal_values_worked_out_by_hand(aggregation: Aggregation, expected: float):
    losses, rows = t(1.0, 2.0, 3.0, 10.0), torch.tensor([0, 0, 0, 1])
    weights = token_weights(torch.tensor([3, 1]), aggregation, 5)[rows]
    units = 4 if aggregation == "token" else 2
    assert float((losses * weights).sum() / units) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("estimator", "expected"), [("k1", LOG2), ("k2", LOG2**2 / 2), ("k3", 0.5 - 1 + LOG2)]
)
def test_kl_estimators_equal_values_worked_out_by_hand(estimator: KLEstimator, expected: float):
    assert float(kl_estimate(t(LOG2 - 3), t(-3.0), estimator)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_are_unbiased(estimator: KLEstimator):
    generator = torch.Generator().manual_seed(0)
    p, q = t(0.5, 0.3, 0.2), t(0.2, 0.3, 0.5)
    drawn = torch.multinomial(p, 200_000, replacement=True, generator=generator)
    estimate = kl_estimate(p.log()[drawn], q.log()[drawn], estimator).mean()
    assert float(estimate) == pytest.approx(float((p * (p / q).log()).sum()), abs=0.01)


@pytest.mark.parametrize("clip", ["ppo", "cispo"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_at_ratio_one_every_variant_has_the_plain_policy_gradient(clip: Clip, ratio: Ratio):
    logp = t(-1.0, -2.0, -0.5).requires_grad_()
    rows = torch.tensor([0, 0, 1])
    log_ratio = log_ratios(logp, logp.detach(), rows, 2, ratio)
    assert log_ratio.exp().tolist() == [1.0, 1.0, 1.0]
    advantages = t(1.5, 1.5, -0.5)
    weights = token_weights(torch.tensor([2, 1]), "sequence", 9)[rows]
    part = policy_loss(logp, log_ratio, advantages, low=0.2, high=0.2, clip=clip)
    (part.loss * weights).sum().backward()
    assert not part.clipped.any()
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx((-advantages * weights).tolist())


def test_gae_equals_values_worked_out_by_hand():
    # rewards 0, 0, 1; values 0.5, 0.4, 0.6; gamma 0.9, lambda 0.8.
    # deltas: 0.9*0.4-0.5 = -0.14; 0.9*0.6-0.4 = 0.14; 1-0.6 = 0.4
    # advantages, last first: 0.4; 0.14 + 0.72*0.4 = 0.428; -0.14 + 0.72*0.428 = 0.16816
    advantages, returns = generalised_advantages(t(0, 0, 1), t(0.5, 0.4, 0.6), gamma=0.9, lam=0.8)
    assert advantages.tolist() == pytest.approx([0.16816, 0.428, 0.4])
    assert returns.tolist() == pytest.approx([0.66816, 0.828, 1.0])


def test_gae_with_lambda_one_is_the_discounted_return_and_with_zero_the_one_step_error():
    rewards, values = t(1.0, 2.0, 3.0), t(0.3, -0.2, 0.7)
    _, returns = generalised_advantages(rewards, values, gamma=0.5, lam=1.0)
    assert returns.tolist() == pytest.approx([1 + 1 + 0.75, 2 + 1.5, 3.0])
    advantages, _ = generalised_advantages(rewards, values, gamma=0.5, lam=0.0)
    assert advantages.tolist() == pytest.approx([1 - 0.1 - 0.3, 2 + 0.35 + 0.2, 3 - 0.7])


def test_value_loss_takes_the_larger_of_plain_and_clipped_error():
    # old 0, return 1. Value 0.5 is clipped to 0.2: errors 0.25 and 0.64. Value 0.1 is not: 0.81.
    losses = value_loss(t(0.5, 0.1), t(0.0, 0.0), t(1.0, 1.0), clip=0.2)
    assert losses.tolist() == pytest.approx([0.32, 0.405])
    assert value_loss(t(0.5), t(0.0), t(1.0), clip=0.0).tolist() == pytest.approx([0.125])
