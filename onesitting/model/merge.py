"""One set of weights from several of one shape: average, SLERP, TIES.

Merging costs no training and no time at inference. It works where the models come from one base, for then a path of
low loss joins them; two models trained from different random weights do not merge.

A state is a dict of tensors under one set of names; N numbers of one tensor, M models.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from onesitting.errors import UserError

Method = Literal["average", "slerp", "ties"]
State = Mapping[str, Tensor]

PARALLEL = 1e-4
"""Angle in radians below which two tensors are mixed along the straight line: sin(angle) would only add rounding."""


def merge_states(
    states: Sequence[State],
    method: Method,
    weights: Sequence[float] = (),
    *,
    base: State | None = None,
    density: float = 0.2,
) -> dict[str, Tensor]:
    """The merged state, tensor by tensor, computed in float32 and kept in the first state's dtypes.

    weights: one a model, not all zero; () is equal weights. base, density: see `ties`, which needs a base.
    Raises UserError for a number of models or weights that the method does not take.
    """
    weights = tuple(weights) or (1.0,) * len(states)
    _check(states, method, weights, base, density)
    merged: dict[str, Tensor] = {}
    for name, first in states[0].items():
        tensors = [state[name].float() for state in states]
        if method == "average":
            tensor = average(tensors, weights)
        elif method == "slerp":
            tensor = slerp(tensors[0], tensors[1], weights[1] / sum(weights))
        else:
            assert base is not None
            tensor = ties(base[name].float(), tensors, weights, density)
        merged[name] = tensor.to(first.dtype)
    return merged


def _check(
    states: Sequence[State], method: Method, weights: Sequence[float], base: State | None, density: float
) -> None:
    if len(states) < 2:
        raise UserError(f"merge: {len(states)} model given; name at least two")
    if len(weights) != len(states):
        raise UserError(f"--weights: {len(weights)} given for {len(states)} models; give one a model")
    if any(weight < 0 for weight in weights) or sum(weights) <= 0:
        raise UserError(f"--weights {' '.join(map(str, weights))}: give numbers of at least 0, not all 0")
    if method == "slerp" and len(states) != 2:
        raise UserError(f"--method slerp joins two models, not {len(states)}; use average or ties")
    if method == "ties" and base is None:
        raise UserError("--method ties needs --base: the model that all of these were trained from")
    if not 0 < density <= 1:
        raise UserError(f"--density {density}: the fraction of changes that is kept, above 0 and at most 1")


def average(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted mean: a "model soup" (Wortsman et al. 2022, arXiv:2203.05482)."""
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total += tensor * (weight / sum(weights))
    return total


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """The point a fraction t along the great circle from one tensor to the other (Shoemake 1985, SIGGRAPH).

    A straight line between two directions passes nearer to zero than either; the arc keeps the length. Each tensor
    is taken as one vector; lengths that differ are passed through evenly.
    """
    cosine = torch.dot(first.flatten(), second.flatten()) / (first.norm() * second.norm()).clamp_min(1e-12)
    angle = torch.acos(cosine.clamp(-1.0, 1.0))
    if angle < PARALLEL or angle > torch.pi - PARALLEL:
        return first.lerp(second, t)
    return (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / torch.sin(angle)


def ties(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """base + the changes that models agree on: trim, elect a sign, mean of those that have it.

    density: the fraction of each model's changes, the largest ones, that are kept. Weights count in the election and
    in the mean. Source: Yadav et al. 2023, arXiv:2306.01708, algorithm 1, with its scaling λ = 1.
    """
    changes = torch.stack([trim(tensor - base, density) for tensor in tensors])  # (M, ...)
    weight = torch.tensor(list(weights)).view(-1, *(1,) * base.ndim)
    elected = (changes * weight).sum(dim=0).sign()
    agrees = (changes.sign() == elected) & (changes != 0)
    total = (changes * weight * agrees).sum(dim=0)
    return base + total / (weight * agrees).sum(dim=0).clamp_min(1e-12)


def trim(change: Tensor, density: float) -> Tensor:
    """The change with all but its largest `density · N` numbers set to zero."""
    n_kept = max(1, round(density * change.numel()))
    if n_kept >= change.numel():
        return change
    smallest_kept = change.abs().flatten().kthvalue(change.numel() - n_kept + 1).values
    return torch.where(change.abs() >= smallest_kept, change, 0.0)
