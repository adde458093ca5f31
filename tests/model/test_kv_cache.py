"""Contract 10: with a cache, every position has the logits of a full forward pass."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from onesitting.config import ModelConfig
from onesitting.errors import UserError
from onesitting.model.kv_cache import KVCache
from onesitting.model.transformer import Transformer

BASE = ModelConfig(
    n_layers=3, d_model=48, n_heads=6, n_kv_heads=2, head_dim=8, d_ff=64, vocab_size=61, context_length=40
)
GPT2 = replace(BASE, norm="layer", positions="learned", mlp="gelu", bias=True, qk_norm=False, n_kv_heads=6)
LENGTHS = [3, 17, 1, 9]
N_DECODED = 6


def random_model(cfg: ModelConfig) -> Transformer:
    model = Transformer(cfg).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randint(0, 61, (n + N_DECODED,), generator=generator) for n in LENGTHS]


def cached_logits(model: Transformer, rows: list[Tensor], chunk: int) -> list[Tensor]:
    """Each row's logits: prompts of LENGTHS read in chunks, then one token of each row at a time."""
    cache = KVCache(model, len(rows), max(LENGTHS) + N_DECODED)
    padded = torch.full((len(rows), max(LENGTHS)), 60)
    for i, (row, n) in enumerate(zip(rows, LENGTHS, strict=True)):
        padded[i, :n] = row[:n]
    read = torch.cat([model(piece, cache=cache) for piece in padded.split(chunk, dim=1)], dim=1)
    out = [[read[i, :n]] for i, n in enumerate(LENGTHS)]
    cache.lengths = torch.tensor(LENGTHS)
    for step in range(N_DECODED):
        token = torch.stack([row[n + step] for row, n in zip(rows, LENGTHS, strict=True)])
        for i, logits in enumerate(model(token[:, None], cache=cache)):
            out[i].append(logits)
    return [torch.cat(pieces) for pieces in out]


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("cfg", [BASE, replace(BASE, n_kv_heads=6, qk_norm=False), GPT2])
@torch.no_grad()
def test_cached_logits_equal_the_full_forward_pass_at_every_position(cfg: ModelConfig, chunk: int) -> None:
    model = random_model(cfg)
    for row, ours in zip(sequences(), cached_logits(model, sequences(), chunk), strict=True):
        torch.testing.assert_close(ours, model(row[None])[0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_cached_logits_agree_within_the_tolerance_of_a_short_dtype(dtype: torch.dtype) -> None:
    exact = random_model(BASE)
    expected = [exact(row[None])[0] for row in sequences()]
    model = random_model(BASE).to(dtype)
    for ours, full in zip(cached_logits(model, sequences(), 4), expected, strict=True):
        assert (ours - full).norm() < 0.03 * full.norm()


@torch.no_grad()
def test_dropping_rows_leaves_the_others_as_they_were() -> None:
    model, rows = random_model(BASE), torch.stack([row[:6] for row in sequences()])
    cache = KVCache(model, 4, 12)
    model(rows[:, :4], cache=cache)
    cache.lengths = torch.tensor([4, 2, 4, 3])
    cache.keep(torch.tensor([3, 1]))
    assert cache.lengths.tolist() == [3, 2]
    ours = model(torch.stack([rows[3, 3:5], rows[1, 2:4]]), cache=cache)
    torch.testing.assert_close(ours[0], model(rows[3:4, :5])[0, 3:], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1], model(rows[1:2, :4])[0, 2:], atol=2e-5, rtol=1e-5)


def test_cache_that_is_too_small_says_so() -> None:
    model = random_model(GPT2)
    with pytest.raises(UserError, match=r"model\.context_length is 40"):
        KVCache(model, 1, 41)
    cache = KVCache(model, 1, 4)
    with pytest.raises(ValueError, match="5 tokens in a cache of 4"):
        model(torch.zeros(1, 5, dtype=torch.int64), cache=cache)
