"""Merging weights: the three formulas against values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from onesitting.errors import UserError
from onesitting.model.merge import Method, average, merge_states, slerp, ties, trim


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_the_average_is_weighted() -> None:
    assert torch.allclose(average([vector(1, 2), vector(3, 6)], (1, 1)), vector(2, 4))
    assert torch.allclose(average([vector(1, 2), vector(3, 6)], (3, 1)), vector(1.5, 3))


def test_slerp_keeps_the_length_and_halves_the_angle() -> None:
    half = slerp(vector(1, 0), vector(0, 1), 0.5)
    assert torch.allclose(half, vector(math.sqrt(0.5), math.sqrt(0.5)))
    third = slerp(vector(2, 0), vector(0, 2), 1 / 3)
    assert torch.allclose(third, vector(2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)))
    assert torch.allclose(slerp(vector(1, 0), vector(0, 1), 0.0), vector(1, 0))
    assert torch.allclose(slerp(vector(1, 0), vector(0, 1), 1.0), vector(0, 1), atol=1e-7)


@pytest.mark.parametrize("other", [(2.0, 4.0), (1.0, 2.0), (-1.0, -2.0), (0.0, 0.0)])
def test_slerp_between_parallel_or_zero_tensors_is_finite(other: tuple[float, float]) -> None:
    mixed = slerp(vector(1, 2), vector(*other), 0.5)
    assert torch.isfinite(mixed).all()
    if other[0] > 0:
        assert torch.allclose(mixed, (vector(1, 2) + vector(*other)) / 2)


def test_trim_keeps_the_largest_changes() -> None:
    assert torch.equal(trim(vector(0.1, -3, 2, 0.5), 0.5), vector(0, -3, 2, 0))
    assert torch.equal(trim(vector(1, 2), 1.0), vector(1, 2))


def test_ties_means_the_changes_that_agree_with_the_majority() -> None:
    base = vector(1, 1, 1, 1)
    models = [base + vector(2, -1, 0, 3), base + vector(4, 3, 0, -1), base + vector(6, 1, 0, -1)]
    # All agree; then 3 + 1 outvote -1; nobody moves; 3 outvotes two times -1.
    wanted = base + vector(4, 2, 0, 3)
    assert torch.allclose(ties(base, models, (1, 1, 1), 1.0), wanted)
    # Only each model's largest change is left: 3, 4, 6, of which the first is alone at its place.
    assert torch.allclose(ties(base, models, (1, 1, 1), 0.25), base + vector(5, 0, 0, 3))


def test_equal_models_merge_to_themselves() -> None:
    state = {"a": torch.randn(4, 3), "b": torch.randn(5).bfloat16()}
    methods: tuple[Method, ...] = ("average", "slerp", "ties")
    base = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for method in methods:
        merged = merge_states([state, state], method, base=base, density=1.0)
        for name, tensor in state.items():
            assert merged[name].dtype == tensor.dtype
            assert torch.allclose(merged[name], tensor, atol=1e-6), (method, name)


@pytest.mark.parametrize(
    ("method", "n", "weights", "density", "says"),
    [
        ("average", 1, (), 0.2, "at least two"),
        ("average", 2, (1.0,), 0.2, "--weights: 1 given for 2"),
        ("average", 2, (0.0, 0.0), 0.2, "not all 0"),
        ("average", 2, (-1.0, 2.0), 0.2, "at least 0"),
        ("slerp", 3, (), 0.2, "joins two models"),
        ("ties", 2, (), 0.2, "needs --base"),
        ("average", 2, (), 0.0, "--density"),
    ],
)
def test_impossible_merges_are_refused(
    method: Method, n: int, weights: tuple[float, ...], density: float, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        merge_states([{"a": torch.ones(2)}] * n, method, weights, density=density)
