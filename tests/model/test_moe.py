"""Mixture of experts: contract 23, the router, the grouped products, balancing, and Qwen3-MoE's format both ways."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onesitting.checkpoint import load_model, save_model
from onesitting.config import ModelConfig, OptimConfig
from onesitting.data.examples import IGNORED
from onesitting.data.tokens import PADDING
from onesitting.errors import UserError
from onesitting.model import moe
from onesitting.model.documents import UNUSED
from onesitting.model.flops import count_active_parameters, count_matrix_parameters, count_parameters
from onesitting.model.hf import hf_format
from onesitting.model.kv_cache import KVCache, Next, Piece
from onesitting.model.logprobs import IGNORE as UNTRAINED
from onesitting.model.transformer import Transformer
from onesitting.train.optim import MuonAdamW

CFG = ModelConfig(
    n_layers=2, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=24, vocab_size=64, context_length=32,
    n_experts=4, n_active_experts=2,
)  # fmt: skip
TOKENS = torch.randint(64, (3, 10), generator=torch.Generator().manual_seed(1))


def model(cfg: ModelConfig = CFG) -> Transformer:
    made, generator = Transformer(cfg, seed=1), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made.eval()


def logits(it: Transformer) -> Tensor:
    with torch.no_grad():
        return it(TOKENS)


def one_by_one(layer: moe.MoE, x: Tensor) -> Tensor:
    """The formula, token by token and expert by expert."""
    out = torch.zeros_like(x)
    for n, token in enumerate(x):
        probabilities = (layer.gate.weight @ token).softmax(0)
        scores = probabilities + (layer.choice_bias if layer.bias_rate else 0)
        chosen = scores.argsort(descending=True)[: layer.n_active]
        weights = probabilities[chosen]
        for e, weight in zip(chosen, weights / weights.sum() if layer.normalise else weights, strict=True):
            it = layer.experts
            hidden = F.silu(it.gate_proj[e] @ token) * (it.up_proj[e] @ token)
            out[n] += weight * (it.down_proj[e] @ hidden)
    return out


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_top_k_weights_are_normalised_as_the_config_says(normalise: bool, k: int) -> None:
    layer = model(replace(CFG, norm_top_k=normalise, n_active_experts=k)).model.layers[0].mlp
    assert isinstance(layer, moe.MoE)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(layer(x).flatten(0, 1), one_by_one(layer, x.flatten(0, 1)), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_grouped_product_equals_one_product_an_expert_and_so_do_its_gradients(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(9, 16, generator=generator).to(dtype).requires_grad_()
    weights = torch.randn(4, 8, 16, generator=generator).to(dtype).requires_grad_()
    ends = torch.tensor([3, 3, 8, 9])  # the second expert has nothing to do
    upstream = torch.randn(9, 8, generator=generator).to(dtype)
    results: list[tuple[Tensor, ...]] = []
    for grouped in (True, False):
        monkeypatch.setattr(moe, "_has_grouped", lambda *_, it=grouped: it and hasattr(F, "grouped_mm"))
        y = moe.grouped_product(rows, weights, ends)
        results.append((y, *torch.autograd.grad(y, (rows, weights), upstream)))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-5 if dtype == torch.float32 else 0.05)
    first = 0
    for e, end in enumerate(ends.tolist()):
        wanted = rows[first:end].float() @ weights[e].float().T
        assert torch.allclose(
            results[0][0][first:end].float(), wanted, atol=1e-4 if dtype == torch.float32 else 0.1
        )
        first = end


def test_widths_that_are_no_whole_16_bytes_are_computed_too() -> None:
    rows, weights = torch.randn(5, 6), torch.randn(2, 3, 6)
    y = moe.grouped_product(rows, weights, torch.tensor([2, 5]))
    assert torch.allclose(y, torch.cat([rows[:2] @ weights[0].T, rows[2:] @ weights[1].T]), atol=1e-6)


def test_the_balance_loss_reaches_the_total_with_its_gradient() -> None:
    it = model(replace(CFG, router_aux_loss=0.5)).train()
    loss = it(TOKENS, targets=TOKENS)
    layers = moe.moe_layers(it)
    for layer in layers:
        layer.load = torch.tensor([0.7, 0.1, 0.1, 0.1])
    sums = [layer.probability_sum for layer in layers]
    total, named = moe.add_balance_loss(it, loss, {}, 2.0)
    wanted = sum(0.5 * 4 * (layer.load * s).sum() for layer, s in zip(layers, sums, strict=True)) * 2.0  # pyright: ignore
    assert torch.allclose(total - loss, wanted, rtol=1e-4)  # pyright: ignore
    assert torch.allclose(named["balance_loss"], wanted)  # pyright: ignore
    gate = layers[1].gate.weight
    with_balance = torch.autograd.grad(total, gate, retain_graph=True)[0]
    alone = torch.autograd.grad(loss, gate, retain_graph=True)[0]
    assert torch.allclose(with_balance - alone, torch.autograd.grad(wanted, gate)[0], atol=1e-4)  # pyright: ignore
    assert not torch.allclose(with_balance, alone)
    assert moe.take_balance_loss(it) is None, "taken once"


def test_the_balance_loss_of_even_routing_is_its_weight_for_each_token_and_layer() -> None:
    it = model(replace(CFG, router_aux_loss=0.25)).train()
    it(TOKENS, targets=TOKENS)
    for layer in moe.moe_layers(it):
        layer.load = torch.full((4,), 0.25)
    balance = moe.take_balance_loss(it)
    assert balance is not None
    assert float(balance.detach()) == pytest.approx(0.25 * TOKENS.numel() * 2, rel=1e-5)


def test_a_step_split_into_micro_batches_has_the_same_gradients_balance_included() -> None:
    gradients: list[dict[str, Tensor]] = []
    for rows in (3, 1):
        it = model(replace(CFG, router_aux_loss=0.5)).train()
        for layer in moe.moe_layers(it):
            layer.load = torch.tensor([0.4, 0.3, 0.2, 0.1])
        for part in TOKENS.split(rows):
            total, _ = moe.add_balance_loss(it, it(part, targets=part), {}, 1.0)
            (total / TOKENS.numel()).backward()
        counts = moe.update_routers(it, lambda counts: counts)
        gradients.append({n: p.grad for n, p in it.named_parameters() if p.grad is not None})
        assert counts["expert_load_max"] >= 1 >= counts["expert_load_min"]
    for name, grad in gradients[0].items():
        assert torch.allclose(grad, gradients[1][name], atol=1e-6), name


def test_loads_are_shares_over_all_processes_and_metrics_are_multiples_of_an_even_share() -> None:
    it = model().train()
    it(TOKENS, targets=TOKENS)
    mine = [layer.counts for layer in moe.moe_layers(it)]
    assert all(int(row.sum()) == TOKENS.numel() * 2 for row in mine if row is not None)
    metrics = moe.update_routers(it, lambda counts: [c + 60 * (i % 4 == 0) for i, c in enumerate(counts)])
    first = moe.moe_layers(it)[0]
    assert mine[0] is not None
    assert first.load is not None
    wanted = (mine[0] + torch.tensor([60, 0, 0, 0])) / 120
    assert torch.allclose(first.load, wanted)
    assert first.counts is None
    loads = torch.stack([layer.load for layer in moe.moe_layers(it) if layer.load is not None])
    assert metrics["expert_load_max"] == pytest.approx(float(loads.max()) * 4)


def test_nothing_is_recorded_outside_of_training() -> None:
    it = model()
    it(TOKENS, targets=TOKENS)
    it.train()
    logits(it)
    assert all(layer.counts is None and layer.probability_sum is None for layer in moe.moe_layers(it))
    assert moe.take_balance_loss(it) is None
    assert moe.add_balance_loss(it, TOKENS.sum(), {}, 1.0) == (TOKENS.sum(), {})


def test_padding_is_neither_balanced_nor_counted() -> None:
    it = model(replace(CFG, router_aux_loss=0.5)).train()
    doc_ids = torch.zeros_like(TOKENS)
    doc_ids[0, 4:] = UNUSED
    targets = TOKENS.masked_fill(doc_ids == UNUSED, -100)
    found: list[tuple[Tensor, Tensor]] = []
    for given in ({"doc_ids": doc_ids}, {}, {"whole": True}):
        tokens = TOKENS.clone()
        if "whole" not in given:
            tokens[0, 4:] = 7  # what pads does not matter
            it(tokens, targets=targets, **given)
        else:
            it(tokens[:1, :4], targets=tokens[:1, :4])
            it(tokens[1:], targets=tokens[1:])
        layer = moe.moe_layers(it)[1]
        assert layer.counts is not None
        assert layer.probability_sum is not None
        found.append((layer.counts, layer.probability_sum.detach()))
        moe.take_balance_loss(it)
        moe.update_routers(it, lambda counts: counts)
    for counts, probabilities in found[:2]:
        assert torch.equal(counts, found[2][0])
        assert torch.allclose(probabilities, found[2][1], atol=1e-5)
    assert int(found[0][0].sum()) == 24 * 2


def test_a_step_without_a_real_token_leaves_loads_and_biases() -> None:
    it = model(replace(CFG, router_bias_rate=0.01)).train()
    it(TOKENS, targets=TOKENS)
    moe.update_routers(it, lambda counts: counts)
    layer = moe.moe_layers(it)[0]
    before, bias = layer.load, layer.choice_bias.clone()
    it(TOKENS, targets=torch.full_like(TOKENS, -100))
    assert moe.update_routers(it, lambda counts: counts) == {}
    assert layer.load is before
    assert torch.equal(layer.choice_bias, bias)


def test_the_marks_of_padding_are_those_of_the_data() -> None:
    assert (UNUSED, UNTRAINED) == (PADDING, IGNORED)


def test_the_choice_bias_moves_tokens_to_idle_experts_without_touching_their_weights() -> None:
    layer = moe.moe_layers(model(replace(CFG, router_bias_rate=0.01, router_aux_loss=0.0)))[0].train()
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(5)) + 1
    with torch.no_grad():
        layer.gate.weight[0] += 0.03  # the first expert is the choice of most
    loads: list[float] = []
    for _ in range(60):
        layer(x[None])
        loads.append(moe.update_routers(layer, lambda counts: counts)["expert_load_max"])
    assert sum(loads[-10:]) / 10 < loads[0] - 0.3, "2 would be an expert that every token has among its two"
    assert torch.allclose(layer.eval()(x[None])[0], one_by_one(layer, x), atol=1e-4)


def test_the_balance_loss_evens_out_a_router_that_training_starts_uneven() -> None:
    it = model(replace(CFG, router_aux_loss=0.1)).train()
    with torch.no_grad():
        for layer in moe.moe_layers(it):
            layer.gate.weight[:2] *= 3
    optimizer = MuonAdamW(list(it.named_parameters()), OptimConfig(), dtype=torch.float32)
    loads: list[float] = []
    for _ in range(40):
        total, _ = moe.add_balance_loss(it, it(TOKENS, targets=TOKENS), {}, 1.0)
        (total / TOKENS.numel()).backward()
        loads.append(moe.update_routers(it, lambda counts: counts)["expert_load_max"])
        optimizer.step(1.0)
        optimizer.zero_grad()
    assert sum(loads[-5:]) < sum(loads[:5])


@pytest.mark.parametrize("normalise", [True, False])
def test_transformers_loads_our_model_and_gives_the_same_logits(normalise: bool, tmp_path: Path) -> None:
    from transformers import Qwen3MoeForCausalLM

    it = model(replace(CFG, norm_top_k=normalise))
    save_model(tmp_path / "ours", it)
    theirs = Qwen3MoeForCausalLM.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert torch.allclose(theirs(TOKENS).logits, logits(it), atol=1e-4)
    assert torch.equal(logits(load_model(tmp_path / "ours")), logits(it))


@pytest.mark.parametrize("tied", [True, False])
def test_what_transformers_saves_gives_the_same_logits_here(tied: bool, tmp_path: Path) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    theirs = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=64, hidden_size=32, intermediate_size=80, moe_intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_experts=4, num_experts_per_tok=2,
            max_position_embeddings=32, tie_word_embeddings=tied, norm_topk_prob=True, router_aux_loss_coef=0.02,
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path / "theirs")
    it = load_model(tmp_path / "theirs")
    assert (it.cfg.n_experts, it.cfg.d_ff, it.cfg.router_aux_loss) == (4, 24, 0.02)
    with torch.no_grad():
        assert torch.allclose(logits(it), theirs(TOKENS).logits, atol=1e-4)
    save_model(tmp_path / "back", it)
    again = Qwen3MoeForCausalLM.from_pretrained(tmp_path / "back").eval()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_model_with_choice_biases_has_no_standard_format_but_is_saved_and_read(tmp_path: Path) -> None:
    it = model(replace(CFG, router_bias_rate=0.01))
    with pytest.raises(UserError, match=r"model\.router_bias_rate=0\.0"):
        hf_format(it.cfg)
    moe.moe_layers(it)[0].choice_bias += torch.tensor([0.5, 0.0, -0.5, 0.0])
    save_model(tmp_path / "m", it)
    assert torch.equal(logits(load_model(tmp_path / "m")), logits(it))


def test_an_expert_that_is_missing_on_disk_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_model(tmp_path / "m", model())
    path = tmp_path / "m/model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.experts\.up_proj"):
        load_model(tmp_path / "m")


def test_parameters_are_counted_in_all_and_for_one_token() -> None:
    it = model()
    assert count_parameters(CFG) == sum(p.numel() for p in it.parameters())
    idle = 2 * 2 * 3 * 32 * 24  # layers, idle experts, matrices
    assert count_active_parameters(CFG) == count_parameters(CFG) - idle
    dense = replace(CFG, n_experts=0, d_ff=2 * CFG.d_ff)
    assert count_matrix_parameters(CFG) == count_matrix_parameters(dense) + 2 * 4 * 32  # and the routers


def test_cached_decoding_equals_the_full_pass() -> None:
    it = model()
    cache = KVCache(it, 3, 10)
    rows = TOKENS.tolist()
    with torch.no_grad():
        full = it.hidden(TOKENS)
        first = cache.read(it, [Piece(slot, 0, row[:4]) for slot, row in enumerate(rows)], [])
        assert torch.allclose(first, full[:, 3], atol=1e-5)
        for t in range(4, 10):
            one = cache.read(it, [], [Next(slot, t, row[t]) for slot, row in enumerate(rows)])
            assert torch.allclose(one, full[:, t], atol=1e-5), t


def test_muon_orthogonalises_each_expert_by_itself() -> None:
    generator = torch.Generator().manual_seed(6)
    weights = [torch.randn(24, 32, generator=generator) for _ in range(4)]
    grads = [torch.randn(24, 32, generator=generator) * 10.0**i for i in range(4)]
    stacked = torch.nn.Parameter(torch.stack(weights))
    alone = [torch.nn.Parameter(weight.clone()) for weight in weights]
    together = MuonAdamW([("m.layers.0.up_proj", stacked)], OptimConfig(), dtype=torch.float32)
    apart = MuonAdamW(
        [(f"m.layers.{i}.up_proj", p) for i, p in enumerate(alone)], OptimConfig(), dtype=torch.float32
    )
    stacked.grad = torch.stack(grads)
    for parameter, grad in zip(alone, grads, strict=True):
        parameter.grad = grad.clone()
    together.step(1.0)
    apart.step(1.0)
    for index, parameter in enumerate(alone):
        assert torch.allclose(stacked[index], parameter, atol=1e-5)
    state = together.state_tensors()
    assert state["momentum.m.layers.0.up_proj"].shape == (4, 24, 32)
    tall = MuonAdamW([("m.layers.0.down_proj", stacked)], OptimConfig(), dtype=torch.float32)
    stacked.grad = torch.stack(grads)
    tall.step(1.0)
    assert torch.isfinite(stacked).all()


def test_the_forward_pass_compiles_and_records() -> None:
    it = model(replace(CFG, router_aux_loss=0.5)).to(torch.bfloat16).train()  # the grouped product's own type
    plain = it(TOKENS, targets=TOKENS)
    wanted = [layer.counts for layer in moe.moe_layers(it)]
    balance = moe.take_balance_loss(it)
    moe.update_routers(it, lambda counts: counts)
    for layer in moe.moe_layers(it):
        layer.load = None
    compiled = torch.compile(it, backend="aot_eager", dynamic=False)
    loss = compiled(TOKENS, targets=TOKENS)
    again = moe.take_balance_loss(it)
    assert torch.allclose(loss, plain, rtol=1e-2)
    for layer, counts in zip(moe.moe_layers(it), wanted, strict=True):
        assert layer.counts is not None
        assert counts is not None
        assert layer.counts.sum() == counts.sum()
        assert (layer.counts - counts).abs().max() <= 2, "rounding in bfloat16 may flip a choice"
    assert balance is not None
    assert again is not None
    assert torch.allclose(again, balance, rtol=1e-2)
    again.backward()
    assert moe.moe_layers(it)[0].gate.weight.grad is not None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_active_experts": 5}, "n_active_experts is 5 of 4"),
        ({"mlp": "gelu"}, "SwiGLU"),
        ({"bias": True}, "SwiGLU"),
    ],
)
def test_impossible_mixtures_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Transformer(replace(CFG, **change))
