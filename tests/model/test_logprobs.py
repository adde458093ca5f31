"""Losses against a float64 reference, in every dtype, chunked and whole, masked and empty."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from onesitting.model import logprobs
from onesitting.model.logprobs import IGNORE, cross_entropy_sum, token_logprobs


def example(n: int = 200, d: int = 24, v: int = 130) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=generator)
    weight = torch.randn(v, d, generator=generator)
    targets = torch.randint(0, v, (n,), generator=generator)
    targets[::3] = IGNORE
    return hidden, weight, targets


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("chunk_logits", "chunks_of_a_group"), [(1, 1), (1, 2), (1, 16), (2**20, 16)])
def test_loss_and_gradients_equal_float64_ones(
    dtype: torch.dtype,
    tolerance: float,
    chunk_logits: int,
    chunks_of_a_group: int,
    masked: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", chunk_logits)  # 1: three chunks
    monkeypatch.setattr(logprobs, "CHUNKS_OF_A_GROUP", chunks_of_a_group)
    if masked:  # as on other devices
        monkeypatch.setattr(logprobs, "_gathers", lambda hidden: False)
    hidden, weight, targets = example()
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    exact = [t.double().requires_grad_() for t in (hidden, weight)]
    expected = F.cross_entropy(exact[0] @ exact[1].t(), targets, ignore_index=IGNORE, reduction="sum")
    (expected / 133).backward()
    h, w = hidden.clone().requires_grad_(), weight.float().requires_grad_()
    loss = cross_entropy_sum(h, w, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, atol=0, rtol=tolerance)
    (loss / 133).backward()
    assert h.grad is not None
    assert w.grad is not None
    assert w.grad.dtype == torch.float32
    for ours, theirs in ((h.grad, exact[0].grad), (w.grad, exact[1].grad)):
        assert theirs is not None
        assert (ours.double() - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("masked", [False, True])
def test_a_target_less_likely_than_any_float32_still_has_a_loss(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if masked:
        monkeypatch.setattr(logprobs, "_gathers", lambda hidden: False)
    hidden, weight, targets = example()
    hidden *= 50
    exact = F.linear(hidden.double(), weight.double()).log_softmax(1).gather(1, targets.clamp_min(0)[:, None])
    assert exact.exp().float().eq(0).any()
    expected = -exact[:, 0][targets != IGNORE].sum()
    loss = cross_entropy_sum(hidden, weight.requires_grad_(), targets)
    torch.testing.assert_close(loss.double(), expected, atol=0, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_batch_with_nothing_to_learn_gives_exactly_zero_and_finite_gradients(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if masked:
        monkeypatch.setattr(logprobs, "_gathers", lambda hidden: False)
    hidden, weight, targets = example()
    hidden.requires_grad_(), weight.requires_grad_()
    loss = cross_entropy_sum(hidden, weight, torch.full_like(targets, IGNORE))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None
    assert weight.grad is not None
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_the_loss_off_a_processor_is_one_graph_and_equals_the_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 1)  # four chunks
    compiled = torch.compile(cross_entropy_sum, backend="aot_eager", fullgraph=True, dynamic=False)
    hidden, weight, targets = example()
    results = []
    for function in (cross_entropy_sum, compiled):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = function(h * 1.0, w * 1.0, targets)
        results.append([loss, *torch.autograd.grad(loss, (h, w))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_loss_off_a_processor_reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert "nonzero" not in str(func)
            assert "_local_scalar_dense" not in str(func)
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(logprobs, "_gathers", lambda hidden: False)
    hidden, weight, targets = example()
    with Refusing():
        cross_entropy_sum(hidden.requires_grad_(), weight.requires_grad_(), targets).backward()


def test_the_output_matrixs_gradient_does_not_overflow_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "_gathers", lambda hidden: False)
    hidden = torch.full((4096, 2), 60.0, dtype=torch.float16)  # half a probability each: sums of 122,880
    weight = torch.zeros(2, 2, dtype=torch.float16).float().requires_grad_()
    cross_entropy_sum(hidden, weight, torch.zeros(4096, dtype=torch.int64)).backward()
    assert weight.grad is not None
    expected = torch.tensor([[-122_880.0] * 2, [122_880.0] * 2])
    torch.testing.assert_close(weight.grad, expected)


def test_loss_without_gradients_is_the_same_loss() -> None:
    hidden, weight, targets = example()
    with torch.no_grad():
        plain = cross_entropy_sum(hidden, weight, targets)
    assert plain.item() == cross_entropy_sum(hidden.requires_grad_(), weight, targets).item()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_are_those_of_the_tempered_softmax(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 130 * 64)
    hidden, weight, targets = example()
    hidden.requires_grad_()
    exact = hidden.detach().double().requires_grad_()
    logp = ((exact @ weight.double().t()) / temperature).log_softmax(-1)
    trained = targets != IGNORE
    expected = torch.where(trained, logp.gather(1, targets.clamp(min=0)[:, None])[:, 0], 0.0)
    ours = token_logprobs(hidden, weight, targets, temperature)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)
    ours.sum().backward(), expected.sum().backward()
    assert hidden.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(hidden.grad.double(), exact.grad, atol=1e-4, rtol=1e-4)


def test_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        token_logprobs(*example(), temperature=0)


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_of_soft_targets_is_that_of_the_mixed_cross_entropy(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if masked:
        monkeypatch.setattr(logprobs, "_gathers", lambda hidden: False)
    generator = torch.Generator().manual_seed(0)
    N, d, V, L = 300, 16, 50, 5
    hidden = torch.randn(N, d, generator=generator, requires_grad=True)
    weight = torch.randn(V, d, generator=generator, requires_grad=True)
    targets = torch.randint(V, (N,), generator=generator)
    targets[::7] = logprobs.IGNORE
    keep = targets != logprobs.IGNORE
    ids = torch.randint(V, (N, L), generator=generator)  # some twice, some the target itself
    ids[:, 0] = torch.where(torch.rand(N, generator=generator) < 0.5, targets.clamp_min(0), ids[:, 0])
    advice = torch.rand(N, L, generator=generator) * 0.2 * keep[:, None]
    known = SimpleNamespace(likely=lambda tokens, contexts: (ids[contexts], advice[contexts]))
    soft = logprobs.SoftTargets(known, torch.zeros(N), torch.arange(N), 0.7)
    loss = logprobs.cross_entropy_sum(hidden, weight, targets, soft=soft)
    found = torch.autograd.grad(loss, (hidden, weight))
    logp = (hidden @ weight.T).log_softmax(1)
    hard = -logp[keep].gather(1, targets[keep, None]).sum()
    assert loss.item() == pytest.approx(hard.item(), rel=1e-5)
    # Advice is followed by a² / (a² + m²), with what it and the model gave the token that came.
    m = logp.detach().exp().gather(1, targets.clamp_min(0)[:, None])
    a = (advice * (ids == targets[:, None])).sum(1, keepdim=True)
    parts = advice * 0.7 * a**2 / (a**2 + m**2)
    assert 0.1 < float((parts[keep].sum(1) > 0).float().mean()) < 0.9
    wanted = torch.zeros(N, V).scatter_add_(1, ids, parts)
    wanted.scatter_add_(1, targets.clamp_min(0)[:, None], 1 - parts.sum(1, keepdim=True))
    mixed = -(wanted[keep] * logp[keep]).sum()
    for x, y in zip(found, torch.autograd.grad(mixed, (hidden, weight)), strict=True):
        assert torch.allclose(x, y, atol=1e-4)
