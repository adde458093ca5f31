"""What the model promises: isolation, positions, precision, initial weights, and messages about its shape."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onesitting.config import ModelConfig
from onesitting.errors import UserError
from onesitting.model import transformer
from onesitting.model.documents import document_positions
from onesitting.model.transformer import Transformer

BASE = ModelConfig(
    n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48, vocab_size=53, context_length=96
)
GPT2 = replace(BASE, norm="layer", positions="learned", mlp="gelu", bias=True, qk_norm=False, n_kv_heads=4)
LLAMA = replace(BASE, qk_norm=False, tie_embeddings=False)


def random_model(cfg: ModelConfig = BASE) -> Transformer:
    model = Transformer(cfg)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def tokens_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 53, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cfg", [BASE, GPT2, LLAMA])
@torch.no_grad()
def test_document_in_a_packed_row_has_the_logits_that_it_has_alone(cfg: ModelConfig) -> None:
    model, row = random_model(cfg), tokens_of(1, 90)
    cuts = [0, 1, 30, 77, 90]
    doc_ids = torch.cat([torch.full((b - a,), i) for i, (a, b) in enumerate(pairwise(cuts))])
    packed = model(row, doc_ids=doc_ids[None])
    for start, end in pairwise(cuts):
        torch.testing.assert_close(packed[:, start:end], model(row[:, start:end]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_changing_one_document_leaves_the_logits_of_its_neighbours_bit_for_bit() -> None:
    model, row = random_model(), tokens_of(1, 60)
    doc_ids = torch.tensor([[5] * 20 + [3] * 20 + [9] * 20])
    before = model(row, doc_ids=doc_ids)
    row[:, 20:40] = tokens_of(1, 20, seed=1)
    after = model(row, doc_ids=doc_ids)
    assert torch.equal(before[:, :20], after[:, :20])
    assert torch.equal(before[:, 40:], after[:, 40:])
    assert not torch.allclose(before[:, 20:40], after[:, 20:40])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_positions_restart_with_each_document(lengths: list[int]) -> None:
    doc_ids = torch.cat([torch.full((n,), i % 2) for i, n in enumerate(lengths)])[None]
    assert document_positions(doc_ids)[0].tolist() == [p for n in lengths for p in range(n)]


@torch.no_grad()
def test_future_tokens_do_not_change_the_past() -> None:
    model, row = random_model(), tokens_of(1, 70)
    before = model(row)
    row[:, 50:] = tokens_of(1, 20, seed=1)
    assert torch.equal(before[:, :50], model(row)[:, :50])


@pytest.mark.parametrize("cfg", [BASE, GPT2, LLAMA])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_step_in_a_short_dtype_has_the_loss_and_gradients_of_float32(
    cfg: ModelConfig, dtype: torch.dtype, tolerance: float
) -> None:
    model, tokens = random_model(cfg), tokens_of(2, 24)
    targets = tokens_of(2, 24, seed=1)
    exact = torch.autograd.grad(loss := model(tokens, targets=targets), list(model.parameters()))
    with torch.autocast("cpu", dtype):
        short_loss = model(tokens, targets=targets)
    assert short_loss.dtype == torch.float32
    assert short_loss.item() == pytest.approx(loss.item(), rel=tolerance / 10)
    short = torch.autograd.grad(short_loss, list(model.parameters()))
    total = torch.stack([g.norm() for g in exact]).norm()
    for (name, _), a, b in zip(model.named_parameters(), exact, short, strict=True):
        assert b.dtype == torch.float32, name
        # A small part of the whole gradient may be all rounding: that of a key's bias is 0 in exact arithmetic.
        assert (a - b).norm() <= tolerance * a.norm() + tolerance / 10 * total, name


def test_autocast_and_short_weights_are_the_same_computation() -> None:
    model, tokens = random_model(), tokens_of(2, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        autocast = model(tokens)
    with torch.no_grad():
        assert torch.equal(model.to(torch.bfloat16)(tokens), autocast)


def test_a_norm_that_autocast_would_make_float32_stays_in_the_compute_dtype(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.dtype] = []

    def as_on_cuda(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """From PyTorch 2.12 on, autocast runs a GPU's norm in float32."""
        x = x.float() if torch.is_autocast_enabled("cpu") else x
        seen.append(x.dtype)
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)

    monkeypatch.setattr(transformer, "rms_norm", as_on_cuda)
    model, tokens = random_model(), tokens_of(2, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.hidden(tokens).dtype == torch.bfloat16
        model(tokens, targets=tokens).backward()
        assert torch.is_autocast_enabled("cpu")
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("cfg", [BASE, GPT2, LLAMA])
def test_initial_loss_is_that_of_a_uniform_guess_and_one_step_lowers_it(cfg: ModelConfig) -> None:
    model, tokens = Transformer(cfg, seed=1), tokens_of(4, 40)
    loss = model(tokens[:, :-1], targets=tokens[:, 1:]) / tokens[:, 1:].numel()
    assert loss.item() == pytest.approx(torch.tensor(53.0).log().item(), abs=0.1)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.01 * parameter.grad
    assert model(tokens[:, :-1], targets=tokens[:, 1:]).item() < loss.item() * tokens[:, 1:].numel()


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second, other = Transformer(BASE, seed=4), Transformer(BASE, seed=4), Transformer(BASE, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.output_weight, other.output_weight)


def test_batch_with_nothing_to_learn_gives_exactly_zero_and_finite_gradients_everywhere() -> None:
    model, tokens = random_model(), tokens_of(2, 8)
    loss = model(tokens, targets=torch.full_like(tokens, -100))
    loss.backward()
    assert loss.item() == 0.0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_kv_heads": 3}, r"model\.n_kv_heads is 3, which does not divide model\.n_heads \(4\)"),
        ({"head_dim": 7}, r"model\.head_dim is 7; rotary positions need an even number"),
        ({"n_layers": 0}, r"model\.n_layers is 0"),
        ({"norm_eps": 0.0}, r"model\.norm_eps is 0\.0"),
    ],
)
def test_impossible_shape_is_refused_by_the_setting(change: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Transformer(replace(BASE, **change))
