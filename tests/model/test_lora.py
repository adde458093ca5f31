"""Adapters: contract 11, and what they promise to every stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onesitting.config import LoraConfig, ModelConfig, OptimConfig
from onesitting.errors import UserError
from onesitting.model.flops import count_matrix_parameters, flops_per_token
from onesitting.model.lora import (
    LoraLinear,
    adapter_in_use,
    adapter_names,
    adapter_parameters,
    add_adapter,
    disabled,
    lora_layers,
    matching_layers,
    merge,
    n_adapter_parameters,
    remove,
    scale_of,
    skeleton,
    use,
    using,
    weights_hash,
)
from onesitting.model.transformer import Linear, Transformer
from onesitting.train.optim import build_optimizer

SHAPE: dict[str, Any] = {
    "n_layers": 2, "d_model": 32, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 48, "vocab_size": 64,
    "context_length": 32,
}  # fmt: skip
SHAPES = {
    "qwen3": ModelConfig(**SHAPE),
    "untied": ModelConfig(**SHAPE, tie_embeddings=False),
    "gpt2": ModelConfig(
        **{**SHAPE, "n_kv_heads": 2},
        norm="layer",
        positions="learned",
        mlp="gelu",
        bias=True,
        qk_norm=False,
    ),
}
TOKENS = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(1))


def model(kind: str = "qwen3") -> Transformer:
    """A model none of whose matrices is zero, as a trained one."""
    made, generator = Transformer(SHAPES[kind], seed=1), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made.eval()


@torch.no_grad()
def fill(it: Transformer, name: str = "default", seed: int = 3) -> Transformer:
    """Give an adapter's zero matrices values, as training does."""
    generator = torch.Generator().manual_seed(seed)
    for at, parameter in adapter_parameters(it, name).items():
        if ".lora_B." in at:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return it


def logits(it: Transformer) -> Tensor:
    with torch.no_grad():
        return it(TOKENS)


def test_a_new_adapter_changes_nothing() -> None:
    it = model()
    before = logits(it)
    add_adapter(it, LoraConfig(rank=4))
    assert torch.equal(logits(it), before)


@pytest.mark.parametrize("kind", SHAPES)
def test_merged_equals_adapter_and_differs_from_the_base(kind: str) -> None:
    it = model(kind)
    base = logits(it)
    add_adapter(it, LoraConfig(rank=4, targets=("*_proj", "lm_head") if kind == "untied" else ("*_proj",)))
    adapted = logits(fill(it))
    assert (adapted - base).abs().max() > 0.1
    merge(it)
    assert torch.allclose(logits(it), adapted, atol=1e-4)
    assert not lora_layers(it), "a plain model again"
    assert all(parameter.requires_grad for parameter in it.parameters())


def test_the_formula_is_the_papers() -> None:
    layer = LoraLinear(Linear(5, 3, bias=False))
    with torch.no_grad():
        layer.weight = torch.nn.Parameter(torch.randn(3, 5))
    layer.add(LoraConfig(rank=2, alpha=7.0, name="a"), torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.lora_B["a"].copy_(torch.randn(3, 2))
    x = torch.randn(4, 5)
    assert torch.equal(layer(x), x @ layer.weight.T), "not in use"
    layer.in_use = "a"
    wanted = x @ (layer.weight + 7.0 / 2 * layer.lora_B["a"] @ layer.lora_A["a"]).T
    assert torch.allclose(layer(x), wanted, atol=1e-5)
    assert layer.lora_A["a"].abs().max() <= 5**-0.5


def test_rank_stabilised_scaling_divides_by_the_root() -> None:
    assert scale_of(LoraConfig(rank=16, alpha=8)) == 0.5
    assert scale_of(LoraConfig(rank=16, alpha=8, rslora=True)) == 2.0
    assert scale_of(LoraConfig(rank=16)) == 2.0


def test_a_second_merge_is_refused() -> None:
    it = model()
    add_adapter(it, LoraConfig(rank=2))
    merge(fill(it))
    with pytest.raises(UserError, match="once merged"):
        merge(it)


def test_a_merge_beside_another_adapter_is_refused_and_changes_nothing() -> None:
    it = model()
    add_adapter(it, LoraConfig(rank=2, name="a"), base=Path("some/where"))
    add_adapter(it, LoraConfig(rank=2, name="b"))
    before, base = logits(fill(it)), it.frozen_base
    with pytest.raises(UserError, match=r"adapter 'b' stands on; take that away with remove"):
        merge(it, "a")
    assert torch.equal(logits(it), before)
    assert it.frozen_base == base
    remove(it, "a")
    merge(it, "b")
    assert it.frozen_base is None


def test_a_merge_that_would_change_the_logits_is_undone_and_refused() -> None:
    it = model()
    add_adapter(it, LoraConfig(rank=2))
    fill(it)
    before = logits(it)
    layer = lora_layers(it)["model.layers.0.mlp.up_proj"]
    layer.update = lambda name: torch.ones_like(layer.weight)  # pyright: ignore, a fault in the merge
    with pytest.raises(UserError, match="would change the model's logits"):
        merge(it)
    assert torch.equal(logits(it), before)


def test_every_layer_that_is_asked_for_gets_an_adapter_square_or_not() -> None:
    it = model("untied")
    named = add_adapter(it, LoraConfig(rank=2, targets=("*",)))
    linears = [name for name, module in it.named_modules() if isinstance(module, Linear)]
    assert named == linears
    assert len(named) == 2 * 7 + 1
    shapes = {tuple(it.get_submodule(name).weight.shape) for name in named}  # pyright: ignore
    assert (32, 32) in shapes
    assert (48, 32) in shapes


@pytest.mark.parametrize(
    ("pattern", "n"),
    [("q_proj", 2), ("*_proj", 14), ("*.0.self_attn.*", 4), (r"re:.*\.1\.mlp\.(up|down)_proj", 2)],
)
def test_patterns_choose_layers_by_name(pattern: str, n: int) -> None:
    assert len(matching_layers(model(), (pattern,))) == n


@pytest.mark.parametrize("pattern", ["qproj", "embed_tokens", "re:(", "lm_head"])
def test_a_pattern_that_fits_nothing_is_refused_with_the_names_there_are(pattern: str) -> None:
    with pytest.raises(UserError, match=r"lora\.targets"):
        add_adapter(model(), LoraConfig(rank=2, targets=("q_proj", pattern)))


def test_only_the_adapter_is_trained_and_the_base_stays_bit_for_bit() -> None:
    it = model()
    before = {name: p.clone() for name, p in it.named_parameters()}
    add_adapter(it, LoraConfig(rank=4))
    optimizer = build_optimizer(it, OptimConfig())
    for _ in range(2):
        it(TOKENS, targets=TOKENS).backward()
        optimizer.step(1.0)
        optimizer.zero_grad()
    assert all(torch.equal(it.get_parameter(name), p) for name, p in before.items())
    trained = adapter_parameters(it, "default")
    assert all(p.abs().sum() > 0 for p in trained.values()), "B too has moved"
    assert set(optimizer.state_tensors()) == {
        "n_steps", *(f"exp_avg.{n}" for n in trained), *(f"exp_avg_sq.{n}" for n in trained)
    }  # fmt: skip


def test_gradients_of_the_adapter_are_those_of_the_merged_weight() -> None:
    it = fill_added(model(), LoraConfig(rank=3, targets=("up_proj",)))
    it(TOKENS, targets=TOKENS).backward()
    layer = lora_layers(it)["model.layers.1.mlp.up_proj"]
    plain = model()
    with torch.no_grad():
        for at, other in lora_layers(it).items():
            plain.get_submodule(at).weight += other.update("default")  # pyright: ignore
    plain(TOKENS, targets=TOKENS).backward()
    d_weight = plain.get_parameter("model.layers.1.mlp.up_proj.weight").grad
    assert d_weight is not None
    wanted = scale_of(LoraConfig(rank=3)) * layer.lora_B["default"].T @ d_weight
    grad = layer.lora_A["default"].grad
    assert grad is not None
    assert torch.allclose(grad, wanted, atol=1e-3, rtol=1e-3)


def fill_added(it: Transformer, cfg: LoraConfig) -> Transformer:
    add_adapter(it, cfg)
    return fill(it, cfg.name)


def test_the_disabled_adapter_is_the_base_and_comes_back_also_after_an_error() -> None:
    it = model()
    base = logits(it)
    adapted = logits(fill_added(it, LoraConfig(rank=4)))
    with disabled(it):
        assert torch.equal(logits(it), base)
        assert adapter_in_use(it) is None
    assert torch.equal(logits(it), adapted)
    with pytest.raises(ZeroDivisionError), disabled(it):
        raise ZeroDivisionError
    assert torch.equal(logits(it), adapted)
    with pytest.raises(UserError, match="no adapter to disable"):
        disabled(model())


def test_several_adapters_live_on_one_base() -> None:
    it = model()
    base = logits(it)
    first = logits(fill_added(it, LoraConfig(rank=4, name="first")))
    second = logits(fill_added(it, LoraConfig(rank=2, name="second", targets=("q_proj",))))
    assert adapter_names(it) == ["first", "second"]
    assert not torch.allclose(first, second)
    with using(it, "first"):
        assert torch.equal(logits(it), first)
        with disabled(it):
            assert torch.equal(logits(it), base)
        assert torch.equal(logits(it), first)
    assert torch.equal(logits(it), second)
    assert {n for n, p in it.named_parameters() if p.requires_grad} == set(adapter_parameters(it, "second"))
    remove(it, "first")
    assert torch.equal(logits(it), second)
    remove(it, "second")
    assert torch.equal(logits(it), base)
    with pytest.raises(UserError, match="no adapter 'first'"):
        use(it, "first")
    with pytest.raises(UserError, match="of that name"):
        add_adapter(fill_added(it, LoraConfig(rank=1)), LoraConfig(rank=1))


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        (LoraConfig(), "lora.rank = 0"),
        (LoraConfig(rank=1, dropout=1.0), "lora.dropout = 1.0"),
        (LoraConfig(rank=1, name="a.b"), "lora.name = 'a.b'"),
    ],
)
def test_impossible_adapters_are_refused(cfg: LoraConfig, says: str) -> None:
    with pytest.raises(UserError, match=says):
        add_adapter(model(), cfg)


def test_dropout_works_in_training_alone_and_is_drawn_from_the_seed() -> None:
    it = fill_added(model(), LoraConfig(rank=4, dropout=0.5))
    calm = logits(it)
    it.train()
    torch.manual_seed(1)
    first = logits(it)
    torch.manual_seed(1)
    assert torch.equal(logits(it), first)
    assert not torch.allclose(first, calm)
    it.eval()
    assert torch.equal(logits(it), calm)


def test_cached_decoding_applies_the_adapter() -> None:
    from onesitting.model.kv_cache import KVCache, Next, Piece

    it = fill_added(model(), LoraConfig(rank=4))
    cache = KVCache(it, len(TOKENS), 12)
    rows = TOKENS.tolist()
    with torch.no_grad():
        cache.read(it, [Piece(slot, 0, row[:5]) for slot, row in enumerate(rows)], [])
        last = cache.read(it, [], [Next(slot, 5, row[5]) for slot, row in enumerate(rows)])
    assert torch.allclose(last @ it.output_weight.T, logits(it)[:, 5], atol=1e-5)


def test_a_skeleton_takes_the_state_of_a_model_with_adapters() -> None:
    it = fill_added(model(), LoraConfig(rank=4))
    twin = skeleton(it)
    twin.load_state_dict(it.state_dict())
    assert torch.equal(logits(twin.eval()), logits(it))
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in it.named_parameters()]


def test_the_hash_is_of_the_base_alone_whatever_its_dtype() -> None:
    it = model().to(torch.bfloat16)
    before = weights_hash(it)
    assert weights_hash(it.float()) == before
    add_adapter(it, LoraConfig(rank=2), base=Path("some/where"))
    assert it.frozen_base == ("some/where", before)
    with torch.no_grad():
        it.model.norm.weight[0] += 1  # pyright: ignore
    assert weights_hash(it) != before


def test_frozen_weights_cost_no_gradient_of_their_own() -> None:
    cfg = SHAPES["qwen3"]
    it = model()
    add_adapter(it, LoraConfig(rank=4))
    n = n_adapter_parameters(it)
    assert n == sum(4 * (layer.in_features + layer.out_features) for layer in lora_layers(it).values())
    saved = flops_per_token(cfg, 32) - flops_per_token(cfg, 32, n)
    assert saved == 2 * count_matrix_parameters(cfg) - 6 * n


def test_the_adapter_learns_with_its_own_rate_and_adam() -> None:
    it = model()
    add_adapter(it, LoraConfig(rank=2, targets=("q_proj",)))
    before = {n: p.clone() for n, p in adapter_parameters(it, "default").items()}
    optimizer = build_optimizer(it, OptimConfig(adapter_lr=0.003))
    it(TOKENS, targets=TOKENS).backward()
    optimizer.step(1.0)
    for name, old in before.items():
        change = (adapter_parameters(it, "default")[name] - old).abs()
        wanted = 0.003 if ".lora_B." in name else 0.0  # Adam's first step; A has no gradient while B is zero
        assert torch.allclose(change, torch.full_like(change, wanted), atol=2e-5), name
