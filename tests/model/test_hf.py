"""Contracts 12 and 13 with transformers as the independent reference: same logits, tied weights, both directions."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3Config

from onesitting.checkpoint import load_model, save_model
from onesitting.config import ModelConfig
from onesitting.errors import UserError
from onesitting.model.hf import config_from_hf, from_hf_state, hf_config, to_hf_state
from onesitting.model.transformer import Transformer

TOKENS = torch.randint(0, 97, (2, 19), generator=torch.Generator().manual_seed(5))

QWEN3 = ModelConfig(
    n_layers=3, d_model=40, n_heads=6, n_kv_heads=2, head_dim=14, d_ff=52, vocab_size=97, context_length=32
)
SHAPES = {
    "qwen3": QWEN3,
    "qwen3_untied": replace(QWEN3, tie_embeddings=False, rope_theta=1e6),
    "llama": replace(QWEN3, qk_norm=False, n_heads=4, tie_embeddings=False),
    "llama_tied_bias": replace(QWEN3, qk_norm=False, n_heads=4, n_kv_heads=1, bias=True, norm_eps=1e-5),
    "gpt2": replace(
        QWEN3, norm="layer", positions="learned", mlp="gelu", bias=True, qk_norm=False,
        n_heads=4, n_kv_heads=4, head_dim=10,
    ),
}  # fmt: skip
SHAPES["gpt2_untied"] = replace(SHAPES["gpt2"], tie_embeddings=False)


def shake(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter (also zero-initialised ones and norms) values that a swapped tensor would betray."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def hf_reference(config: PreTrainedConfig) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_config(config).float().eval()
    shake(model)
    return model


REFERENCES = {
    "qwen3": lambda tied: Qwen3Config(
        vocab_size=97, hidden_size=40, intermediate_size=52, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=14, max_position_embeddings=32, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    ),
    "llama": lambda tied: LlamaConfig(
        vocab_size=97, hidden_size=40, intermediate_size=52, num_hidden_layers=2, num_attention_heads=5,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=tied,
    ),
    "gpt2": lambda tied: GPT2Config(
        vocab_size=97, n_embd=40, n_layer=2, n_head=5, n_positions=32, tie_word_embeddings=tied,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", REFERENCES)
def test_model_written_by_transformers_gives_the_same_logits_here(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    reference = hf_reference(REFERENCES[kind](tied))
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()  # several shards
    ours = load_model(tmp_path)
    assert ours.cfg.tie_embeddings is tied
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS), reference(TOKENS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_folder_written_here_gives_the_same_logits_and_text_in_transformers(
    shape: str, tmp_path: Path
) -> None:
    ours = Transformer(SHAPES[shape], seed=1).eval()
    shake(ours)
    save_model(tmp_path / "model", ours)
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    with torch.no_grad():
        logits = ours(TOKENS)
        torch.testing.assert_close(theirs(TOKENS).logits, logits, atol=1e-5, rtol=1e-5)
        ids = TOKENS[:1, :5]
        text = theirs.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        for _ in range(12):
            ids = torch.cat([ids, ours(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert text.tolist() == ids.tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_tied_weights_stay_tied_in_both_directions(shape: str, tmp_path: Path) -> None:
    ours = Transformer(SHAPES[shape], seed=1)
    save_model(tmp_path / "ours", ours)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    is_tied = (
        theirs.get_input_embeddings().weight.data_ptr() == theirs.get_output_embeddings().weight.data_ptr()
    )
    assert is_tied is SHAPES[shape].tie_embeddings
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs")
    assert (again.output_weight is again.model.embed_tokens.weight) is SHAPES[shape].tie_embeddings
    torch.testing.assert_close(again.output_weight, ours.output_weight, atol=0, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_names_and_configuration_survive_the_round_trip_bit_for_bit(shape: str) -> None:
    cfg = SHAPES[shape]
    state = dict(Transformer(cfg, seed=3).named_parameters())
    assert config_from_hf(hf_config(cfg)) == (replace(cfg, rope_theta=10_000.0) if "gpt2" in shape else cfg)
    back = from_hf_state(cfg, to_hf_state(cfg, state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_combination_that_no_format_has_is_refused_with_the_switches_to_change() -> None:
    with pytest.raises(UserError, match=r"nearest is qwen3.*model\.bias=false"):
        hf_config(replace(QWEN3, bias=True))
    with pytest.raises(UserError, match=r"nearest is llama.*model\.d_model=42"):  # 40 is no multiple of 6
        hf_config(replace(QWEN3, qk_norm=False, bias=True))
    with pytest.raises(UserError, match=r"nearest is gpt2.*model\.n_kv_heads=4"):
        hf_config(replace(SHAPES["gpt2"], n_kv_heads=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, "rope_type is 'llama3'"),
        ({"hidden_size": "40"}, "hidden_size is '40'"),
    ],
)
def test_feature_that_our_model_lacks_is_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_hf(hf_config(QWEN3) | change)


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    save_model(tmp_path / "m", Transformer(QWEN3))
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(
        json.dumps(config | {"intermediate_size": 60, "num_hidden_layers": 2})
    )
    with pytest.raises(UserError, match=r"down_proj\.weight has shape \(40, 52\), not \(40, 60\)"):
        load_model(tmp_path / "m")


def test_lm_head_that_differs_from_a_tied_embedding_is_refused() -> None:
    state = dict(Transformer(QWEN3).named_parameters())
    with pytest.raises(UserError, match="tie_word_embeddings"):
        from_hf_state(QWEN3, state | {"lm_head.weight": torch.zeros(97, 40)})
