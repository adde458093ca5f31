"""Losses of policy-gradient methods as functions of log-probabilities: GRPO and its variants, PPO, GAE.

Shapes: N sampled tokens of a batch, B rows (attempts), P prompts, G attempts at each, T tokens of one attempt. Values
with (N,) are those of all sampled tokens, row after row; `rows` says to which row each belongs.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Ratio = Literal["token", "sequence"]
Clip = Literal["ppo", "cispo"]
Aggregation = Literal["token", "sequence", "constant"]
KLEstimator = Literal["k1", "k2", "k3"]


class PolicyLoss(NamedTuple):
    """Loss of each sampled token, and where the clip took its gradient."""

    loss: Tensor
    """(N,) float32."""
    clipped: Tensor
    """(N,) bool."""


def group_advantages(rewards: Tensor, *, normalise: bool) -> Tensor:
    """(P, G) float32: each reward less the mean of its group, divided by the group's standard deviation or not.

    rewards: (P, G). A group of equal rewards gives exactly 0.
    Sources: with division GRPO, Shao et al. 2024, arXiv:2402.03300, eq. 3 (its 4.1.2); without it Dr. GRPO, Liu et
    al. 2025, arXiv:2503.20783, which shows that the division favours prompts that are nearly solved or hopeless.
    """
    rewards = rewards.double()
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    equal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    if normalise:
        centred = centred / rewards.std(dim=1, correction=0, keepdim=True).clamp(min=1e-8)
    return centred.masked_fill(equal, 0.0).float()


def log_ratios(logp: Tensor, old: Tensor, rows: Tensor, n_rows: int, level: Ratio) -> Tensor:
    """(N,) log of new to old probability: of each token, or the mean over its sequence, given to each of its tokens.

    Source of the second: GSPO, Zheng et al. 2025, arXiv:2507.18071, eq. 7.
    """
    change = logp - old
    return change if level == "token" else row_means(change, rows, n_rows)[rows]


def row_means(values: Tensor, rows: Tensor, n_rows: int) -> Tensor:
    """(B,) mean of the values (N,) of each row; 0 for a row without any."""
    zero = values.new_zeros(n_rows)
    counts = zero.index_add(0, rows, torch.ones_like(values))
    return zero.index_add(0, rows, values) / counts.clamp(min=1)


def policy_loss(
    logp: Tensor, log_ratio: Tensor, advantages: Tensor, *, low: float, high: float, clip: Clip
) -> PolicyLoss:
    """Loss of each sampled token; all arguments (N,).

    ppo: -min(r A, clip(r, 1 - low, 1 + high) A). Beyond the clip, in the direction that A wants, no gradient flows.
        Schulman et al. 2017, arXiv:1707.06347, eq. 7; high above low is clip-higher of DAPO, arXiv:2503.14476.
    cispo: -stop_gradient(clip(r, 1 - low, 1 + high)) A log p. The weight is clipped, every token keeps a gradient.
        MiniMax-M1, arXiv:2506.13585, eq. 4.
    """
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1.0 - low, 1.0 + high)
    if clip == "cispo":
        return PolicyLoss(-bounded.detach() * advantages * logp, (bounded != ratio).detach())
    plain, cut = ratio * advantages, bounded * advantages
    return PolicyLoss(-torch.minimum(plain, cut), (cut < plain).detach())


def kl_estimate(logp: Tensor, reference: Tensor, estimator: KLEstimator) -> Tensor:
    """(N,) estimate of KL(policy || reference) at each token that the policy sampled.

    k1: log p - log q, unbiased; as a loss its expected gradient is zero. k2: half its square. k3: q/p - 1 - log(q/p),
    unbiased and never negative, GRPO's choice.
    Source: Schulman 2020, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html.
    """
    change = logp - reference
    if estimator == "k1":
        return change
    if estimator == "k2":
        return change.square() / 2
    return torch.expm1(-change) + change


def token_weights(lengths: Tensor, aggregation: Aggregation, max_tokens: int) -> Tensor:
    """(B,) weight of each token of a row; the sum over tokens is then divided by the number of units.

    lengths: (B,) sampled tokens of each row. token: every token counts the same, and units are tokens (DAPO,
    arXiv:2503.14476, eq. 8). sequence: 1 / length, units are sequences (GRPO, arXiv:2402.03300, eq. 3). constant:
    1 / max_tokens, units are sequences (Dr. GRPO, arXiv:2503.20783: no shorter right nor longer wrong answers).
    """
    if aggregation == "token":
        return torch.ones(len(lengths))
    if aggregation == "sequence":
        return 1.0 / lengths.clamp(min=1).float()
    return torch.full((len(lengths),), 1.0 / max_tokens)


def generalised_advantages(
    rewards: Tensor, values: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """(advantages, returns), both as values, of attempts whose ends are terminal.

    rewards, values: (..., T), values[..., t] is the estimate before token t; behind an attempt's end both are 0. With
    δ_t = r_t + γ v_{t+1} - v_t the advantage is the sum of (γλ)^k δ_{t+k}, and the return advantage + value.
    Source: GAE, Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[..., 0])
    following = running
    for t in range(values.shape[-1] - 1, -1, -1):
        error = rewards[..., t] + gamma * following - values[..., t]
        running = error + gamma * lam * running
        advantages[..., t], following = running, values[..., t]
    return advantages, advantages + values


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """(N,) half the squared error of each value, or that of the value clipped to old ± clip if it is larger.

    clip: 0 for none. Source: the PPO implementation of Dhariwal et al. 2017 (OpenAI Baselines), described by Huang
    et al. 2022, "The 37 implementation details of PPO", detail 9.
    """
    error = (values - returns).square()
    if clip > 0:
        bounded = old + (values - old).clamp(-clip, clip)
        error = torch.maximum(error, (bounded - returns).square())
    return error / 2
