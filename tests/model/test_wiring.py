import pytest
import torch
from torch import Tensor

from onesitting.config import ModelConfig
from onesitting.model import kernels, transformer
from onesitting.model.transformer import Transformer

SHAPES = {
    "demo": ModelConfig(
        n_layers=2, d_model=192, n_heads=3, n_kv_heads=1, head_dim=64, d_ff=512, vocab_size=2048, tie_embeddings=False
    ),
    "tied": ModelConfig(n_layers=3, d_model=192, n_heads=3, n_kv_heads=3, head_dim=64, d_ff=384, vocab_size=1024),
    "wide, narrow heads": ModelConfig(n_layers=2, d_model=256, n_heads=8, n_kv_heads=2, head_dim=32, vocab_size=512),
    "Llama": ModelConfig(n_layers=2, d_model=128, n_heads=4, n_kv_heads=2, head_dim=64, vocab_size=512, qk_norm=False),
}  # fmt: skip


def attention_of_first_heads(
    model: Transformer, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> list[Tensor]:
    """(B, T, T) probabilities of query head 0 of each layer."""
    seen: list[Tensor] = []
    original = transformer.attention

    def spy(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, route: kernels.Route) -> Tensor:
        scores = q[:, :, 0] @ k[:, :, 0].transpose(1, 2) * q.shape[-1] ** -0.5
        future = torch.full(scores.shape[-2:], -torch.inf).triu(1)
        seen.append((scores + future).softmax(-1))
        return original(q, k, v, bias, route)

    monkeypatch.setattr(transformer, "attention", spy)
    with torch.no_grad():
        model(tokens)
    return seen


def repeated(cfg: ModelConfig, length: int) -> Tensor:
    """(4, 2 length) random tokens, the second half equal to the first."""
    half = torch.randint(0, cfg.vocab_size, (4, length), generator=torch.Generator().manual_seed(1))
    return torch.cat((half, half), dim=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_model_attends_to_the_token_before(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = SHAPES[shape]
    first = attention_of_first_heads(Transformer(cfg), repeated(cfg, 40), monkeypatch)[0]
    assert first.diagonal(-1, 1, 2)[:, 5:].mean() > 0.35
    assert first.diagonal(0, 1, 2)[:, 5:].mean() < 0.25
    assert first.diagonal(-2, 1, 2)[:, 5:].mean() < 0.25


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_model_finds_what_followed_an_earlier_copy(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, length = SHAPES[shape], 40
    second = attention_of_first_heads(Transformer(cfg), repeated(cfg, length), monkeypatch)[1]
    by_chance = 1 / (1.5 * length)
    found = second.diagonal(1 - length, 1, 2)[:, 5:].mean()
    assert found > 5 * by_chance
    assert second.diagonal(-length, 1, 2)[:, 5:].mean() < found / 2


def test_plain_weights_find_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = ModelConfig(**{**vars(SHAPES["demo"]), "initial_weights": "plain"})
    first, second, *_ = attention_of_first_heads(Transformer(cfg), repeated(cfg, 40), monkeypatch)
    assert first.diagonal(-1, 1, 2)[:, 5:].mean() < 0.1
    assert second.diagonal(-39, 1, 2)[:, 5:].mean() < 0.1


def test_only_the_first_two_layers_and_the_embedding_differ_from_plain_weights() -> None:
    wired = Transformer(SHAPES["demo"], seed=3).state_dict()
    plain = Transformer(
        ModelConfig(**{**vars(SHAPES["demo"]), "initial_weights": "plain"}), seed=3
    ).state_dict()
    changed = {name for name in wired if not torch.equal(wired[name], plain[name])}
    part = "model.layers.{}.self_attn.{}.weight"
    first = {part.format(0, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm")}
    second = {part.format(1, name) for name in ("q_proj", "k_proj")}
    assert changed == {"model.embed_tokens.weight"} | first | second


@pytest.mark.parametrize(
    "changed", [{"n_layers": 1}, {"positions": "learned"}, {"head_dim": 8}, {"d_model": 32}, {"bias": True}]
)
def test_shapes_that_cannot_be_wired_get_plain_weights(changed: dict[str, object]) -> None:
    values = {**vars(SHAPES["demo"]), **changed}
    wired, plain = (
        Transformer(ModelConfig(**{**values, "initial_weights": init})) for init in ("lookup", "plain")
    )
    for name, weight in plain.state_dict().items():
        assert torch.equal(wired.state_dict()[name], weight), name
