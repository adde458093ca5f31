"""A model laid out for decoding is the same model."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_kv_cache import BASE, GPT2, LENGTHS, alone, random_model, sequences, skip_with_tiles
from torch import Tensor

from onesitting.config import LoraConfig, ModelConfig
from onesitting.model import packed as packing
from onesitting.model.kv_cache import KVCache
from onesitting.model.lora import add_adapter
from onesitting.model.moe import MoE
from onesitting.model.packed import PACKED_ROWS, PackedAttention, PackedLinear, can_pack, packed
from onesitting.model.transformer import Attention, Transformer

LLAMA = replace(BASE, n_kv_heads=6, qk_norm=False)
needs_packing = pytest.mark.skipif(not can_pack("cpu", torch.float32), reason="no oneDNN here")


def states(model: Transformer) -> list[Tensor]:
    cache = KVCache(model, 1, 200)
    return [alone(model, row, n, cache, 0) for row, n in zip(sequences(), LENGTHS, strict=True)]


@pytest.mark.parametrize("oneDNN", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cfg", [BASE, LLAMA, GPT2, replace(BASE, tie_embeddings=False)])
@torch.inference_mode()
def test_packed_model_has_the_states_and_logits_of_the_model(
    cfg: ModelConfig, dtype: torch.dtype, oneDNN: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not oneDNN:
        monkeypatch.setattr(packing, "can_pack", lambda *_: False)
    model = random_model(cfg)
    ours = packed(model, dtype)
    assert type(ours.model.layers[0].self_attn) is PackedAttention
    assert (ours.row_multiple == PACKED_ROWS) == (oneDNN and can_pack("cpu", dtype))
    error = 2e-5 if dtype == torch.float32 else 0.05
    for found, expected in zip(states(ours), states(model), strict=True):
        assert (found.float() - expected).norm() < error * expected.norm()
        logits, wanted = ours.logits(found), model.logits(expected)
        assert logits.dtype == torch.float32
        assert (logits - wanted).norm() < error * wanted.norm()


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_packed_product_do_not_depend_on_how_many_there_are(dtype: torch.dtype) -> None:
    skip_with_tiles(dtype)
    generator = torch.Generator().manual_seed(0)
    for n_in, n_out in [(48, 64), (128, 384), (384, 128), (1408, 512), (128, 2048), (768, 768)]:
        x = torch.randn(256, n_in, generator=generator).to(dtype)
        weight = torch.randn(n_out, n_in, generator=generator).to(dtype)
        layer = PackedLinear(weight, None)
        whole = layer(x)
        torch.testing.assert_close(whole, F.linear(x, weight), atol=1e-3, rtol=2e-2)
        for n in range(PACKED_ROWS, len(x), PACKED_ROWS):
            assert torch.equal(layer(x[:n]), whole[:n])


@needs_packing
def test_a_text_alone_reads_no_more_rows_than_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(BASE)
    assert packed(model, torch.float32).alike_rows == 16
    asked: set[tuple[int, int]] = set()

    def differ(shape: tuple[int, int], dtype: torch.dtype, most: int) -> bool:
        assert (dtype, most) == (torch.float32, 16)
        asked.add(shape)
        return False

    monkeypatch.setattr(packing, "rows_are_alike", differ)
    ours = packed(model, torch.float32)
    assert ours.alike_rows == ours.row_multiple == PACKED_ROWS
    monkeypatch.setattr(packing, "rows_are_alike", lambda shape, *_: asked.add(shape) is None)
    packed(model, torch.float32)
    layers = [layer for layer in ours.modules() if isinstance(layer, PackedLinear)]
    assert asked == {(layer(torch.zeros(4, layer.shape[1])).shape[1], layer.shape[1]) for layer in layers}


@torch.inference_mode()
def test_the_copy_does_not_follow_the_model_nor_change_it() -> None:
    model = random_model(BASE)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ours = packed(model, torch.float32)
    expected = states(ours)
    for parameter in model.parameters():
        parameter.add_(1.0)
    for found, one in zip(states(ours), expected, strict=True):
        assert torch.equal(found, one)
    assert all(torch.equal(model.state_dict()[name], tensor + 1.0) for name, tensor in before.items())
    assert type(model.model.layers[0].self_attn) is Attention


@torch.inference_mode()
def test_adapters_and_experts_stay_as_they_are_and_rows_wide() -> None:
    adapted = random_model(BASE)
    add_adapter(adapted, LoraConfig(rank=2))
    experts = random_model(replace(BASE, n_experts=4, n_active_experts=2))
    for model in (adapted, experts):
        ours = packed(model, torch.float32)
        assert ours.row_multiple == model.row_multiple
        for found, expected in zip(states(ours), states(model), strict=True):
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert type(packed(experts, torch.float32).model.layers[0].mlp) is MoE
