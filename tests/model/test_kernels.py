"""The hand-written backward passes against autograd on the plain formulas, in float64 and in short dtypes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onesitting.config import ModelConfig
from onesitting.model import kernels
from onesitting.model.documents import SHARED, document_bias, document_blocks
from onesitting.model.kernels import attention, attention_route, fits_flex, rms_norm, rotate
from onesitting.model.rope import rope_tables


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


def plain_rotate(x: Tensor, angles: Tensor) -> Tensor:
    """As complex numbers: pair i is x[i] + i·x[i + D/2], turned by its angle."""
    left, right = x.chunk(2, dim=-1)
    turned = torch.complex(left, right) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
    probs = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", probs, v).flatten(2)


def assert_same_values_and_gradients(ours, plain, inputs: list[Tensor], dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    exact = [x.to(dtype).double().requires_grad_() for x in inputs]
    mine = [x.to(dtype).requires_grad_() for x in inputs]
    expected, got = plain(*exact), ours(*mine)
    assert got.dtype == dtype
    upstream = randn(*expected.shape, seed=9)
    expected.backward(upstream), got.backward(upstream.to(dtype))
    pairs = [(got, expected), *((a.grad, b.grad) for a, b in zip(mine, exact, strict=True))]
    for a, b in pairs:
        assert (a.double() - b).norm() <= tolerance * b.norm()


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_has_the_values_and_gradients_of_its_formula(dtype: torch.dtype) -> None:
    inputs = [randn(3, 5, 4, 24) * 3 + 1, randn(24, seed=1)]
    assert_same_values_and_gradients(lambda x, w: rms_norm(x, w, 1e-6), plain_rms_norm, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_turns_complex_pairs_by_position_times_frequency(dtype: torch.dtype) -> None:
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 7]])
    cos, sin = rope_tables(positions, ModelConfig(head_dim=8, rope_theta=100.0), dtype)
    angles = positions[..., None, None].double() * 100.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    inputs = [randn(2, 7, 3, 8)]
    assert_same_values_and_gradients(
        lambda x: rotate(x, cos, sin), lambda x: plain_rotate(x, angles), inputs, dtype
    )


@pytest.mark.parametrize("length", [1, 64, 77, 150])  # one block, a whole block, unequal blocks
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("isolated", [False, True])
def test_attention_has_the_values_and_gradients_of_its_formula(
    length: int, kv_heads: int, isolated: bool
) -> None:
    inputs = [
        randn(2, length, 4, 6),
        randn(2, length, kv_heads, 6, seed=1),
        randn(2, length, kv_heads, 6, seed=2),
    ]
    doc_ids = torch.arange(length).div(20, rounding_mode="floor").expand(2, -1) if isolated else None
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    if doc_ids is not None:
        visible = visible & (doc_ids[0][:, None] == doc_ids[0])
    bias = None if doc_ids is None else document_bias(doc_ids, torch.float32)
    assert_same_values_and_gradients(
        lambda q, k, v: attention(q, k, v, bias),
        lambda q, k, v: plain_attention(q, k, v, visible),
        inputs,
        torch.float32,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_is_right_within_the_tolerance_of_a_short_dtype(dtype: torch.dtype) -> None:
    inputs = [randn(2, 70, 4, 8), randn(2, 70, 2, 8, seed=1), randn(2, 70, 2, 8, seed=2)]
    visible = torch.ones(70, 70, dtype=torch.bool).tril()
    assert_same_values_and_gradients(
        lambda q, k, v: attention(q, k, v, None),
        lambda q, k, v: plain_attention(q, k, v, visible),
        inputs,
        dtype,
    )


def test_attention_of_long_rows_goes_another_way_to_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (randn(1, 96, heads, 8, seed=heads).float() for heads in (4, 2, 1))
    v = v.expand(1, 96, 2, 8)
    blocked = attention(q, k, v, None)
    monkeypatch.setattr(kernels, "LONGEST_BLOCKED", 95)
    torch.testing.assert_close(attention(q, k, v, None), blocked, atol=1e-5, rtol=1e-5)


def test_norm_without_gradients_is_the_same_norm() -> None:
    x, weight = randn(4, 16).float(), randn(16).float()
    with torch.no_grad():
        plain = rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), plain, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(plain, F.rms_norm(x, (16,), weight, 1e-6))


ROUTES = {  # kind, capability, masked, gqa, compiled: how attention is computed
    ("cpu", (0, 0), False, False, False): "blocked",
    ("cpu", (0, 0), True, True, True): "blocked",
    ("cuda", (9, 0), False, True, True): "sdpa",  # flash attention reads a key head for several query heads
    ("cuda", (8, 0), False, False, False): "sdpa",
    ("cuda", (9, 0), True, True, True): "flex",
    ("cuda", (8, 0), True, False, True): "flex",
    ("cuda", (8, 0), True, True, False): "sdpa_expanded",
    ("cuda", (8, 0), True, False, False): "sdpa",
    ("cuda", (7, 5), False, True, True): "sdpa_expanded",
    ("cuda", (7, 5), True, True, True): "sdpa_expanded",
    ("cuda", (7, 0), False, False, True): "sdpa",
    ("cuda", (7, 0), True, False, True): "sdpa",
    ("rocm", (9, 4), True, True, True): "sdpa_expanded",
    ("xpu", (0, 0), True, True, True): "sdpa_expanded",
    ("mps", (0, 0), False, True, False): "sdpa_expanded",
    ("mps", (0, 0), True, False, False): "sdpa",
}


@pytest.mark.parametrize("case", ROUTES, ids=str)
def test_no_route_keeps_the_probabilities_of_a_long_row(
    case: tuple[str, tuple[int, int], bool, bool, bool],
) -> None:
    route = attention_route(*case)
    assert route == ROUTES[case]
    kind, capability, masked, gqa, _ = case
    takes_groups = kind == "cpu" or route in ("flex", "sdpa_expanded")
    assert not gqa or takes_groups or (capability >= (8, 0) and not masked)


def document_example(length: int) -> tuple[list[Tensor], Tensor]:
    """q, k, v with grouped queries, and documents of unequal lengths, of which the first is shared by a row."""
    inputs = [randn(2, length, heads, 16, seed=seed).float() for seed, heads in enumerate((4, 2, 2))]
    doc_ids = (torch.arange(length) // 50).int().expand(2, -1).clone()
    doc_ids[1, :50] = SHARED
    return inputs, doc_ids


@pytest.mark.parametrize("masked", [False, True])
def test_keys_repeated_for_each_query_head_give_the_same_attention_and_gradients(masked: bool) -> None:
    inputs, doc_ids = document_example(160)
    bias = document_bias(doc_ids, torch.float32) if masked else None
    results = []
    for route in ("blocked", "sdpa_expanded"):
        q, k, v = (x.clone().requires_grad_() for x in inputs)
        y = attention(q, k, v, bias, route)
        results.append([y, *torch.autograd.grad(y.square().sum(), (q, k, v))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_attention_over_blocks_of_documents_is_that_over_the_whole_mask() -> None:
    (q, k, v), doc_ids = document_example(
        256
    )  # its backward pass needs a GPU: benchmarks/gpu.py compares that
    dense = attention(q, k, v, document_bias(doc_ids, torch.float32), "blocked")
    sparse = attention(q, k, v, document_blocks(doc_ids), "flex")
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("length", "width", "fits"), [(256, 64, True), (200, 64, False), (256, 48, False)])
def test_rows_and_heads_of_other_sizes_take_another_route(length: int, width: int, fits: bool) -> None:
    assert fits_flex(length, width) == fits
