"""Formulas of size against the module itself."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from onesitting.config import ModelConfig
from onesitting.model.flops import (
    count_parameters,
    flops_per_token,
    kv_cache_bytes,
    training_memory_bytes,
)
from onesitting.model.kv_cache import CHUNK, KVCache
from onesitting.model.transformer import Transformer

BASE = ModelConfig(n_layers=2, d_model=48, n_heads=6, n_kv_heads=2, head_dim=16, d_ff=80, vocab_size=96)
SHAPES = [
    BASE,
    replace(BASE, tie_embeddings=False),
    replace(BASE, qk_norm=False, bias=True),
    replace(BASE, norm="layer", positions="learned", mlp="gelu", bias=True, qk_norm=False, n_kv_heads=6),
    replace(BASE, norm="layer", mlp="gelu", tie_embeddings=False),
]


@pytest.mark.parametrize("cfg", SHAPES)
def test_parameter_count_is_exactly_the_modules(cfg: ModelConfig) -> None:
    assert count_parameters(cfg) == sum(p.numel() for p in Transformer(cfg).parameters())


@pytest.mark.parametrize("cfg", SHAPES)
def test_flops_are_those_that_torch_counts_beside_the_causal_half(cfg: ModelConfig) -> None:
    model, tokens = Transformer(cfg), torch.zeros(2, 32, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(tokens, targets=tokens).backward()
    # One block of 32 queries computes the whole square, of which half is the formula's.
    whole_square = 3 * cfg.n_layers * 4 * cfg.n_heads * cfg.head_dim * 32
    counted = counter.get_total_flops() / tokens.numel() - whole_square / 2
    # The two sums of a hand-written norm's backward pass run as matrix products too: under 2 %.
    assert counted == pytest.approx(flops_per_token(cfg, 32), rel=0.05)


def test_memory_estimate_is_near_what_a_step_keeps() -> None:
    cfg = replace(BASE, n_layers=3, d_model=96, d_ff=256, head_dim=32, vocab_size=512)
    model, tokens = Transformer(cfg), torch.zeros(8, 128, dtype=torch.int64)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.hidden(tokens)
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    estimate = training_memory_bytes(cfg, 8, 128) - training_memory_bytes(cfg, 0, 128)
    assert sum(kept.values()) + hidden.nbytes == pytest.approx(estimate, rel=0.2)


def test_cache_size_is_exactly_the_caches() -> None:
    cache = KVCache(Transformer(BASE), 3, 20)
    # One slot more takes the padding of passes; slots are whole pieces long.
    assert kv_cache_bytes(BASE, 4, CHUNK) == cache.keys.nbytes + cache.values.nbytes
