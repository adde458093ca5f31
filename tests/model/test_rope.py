"""Rotary positions and YaRN, with transformers as the independent reference."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hf import QWEN3, shake
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from onesitting.checkpoint import load_model, save_model
from onesitting.config import ModelConfig
from onesitting.errors import UserError
from onesitting.model.hf import config_from_hf, hf_config
from onesitting.model.rope import frequencies, head_scale, rope_tables, stretched
from onesitting.model.transformer import Transformer

ORIGINAL, FACTOR = 32, 4.0
YARN = replace(QWEN3, context_length=128, rope_factor=FACTOR, rope_original=ORIGINAL)
SHAPES = {"qwen3": YARN, "llama": replace(YARN, qk_norm=False, n_heads=4)}
TOKENS = torch.randint(0, 97, (2, 120), generator=torch.Generator().manual_seed(5))
"""Rows that end far beyond the original context."""


def assert_same_logits(ours: Transformer, theirs: Any) -> None:
    with torch.no_grad():
        for n in (ORIGINAL // 2, TOKENS.shape[1]):
            reference = theirs(TOKENS[:, :n]).logits
            torch.testing.assert_close(ours(TOKENS[:, :n]), reference, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_stretched_folder_written_here_gives_the_same_logits_in_transformers(
    shape: str, tmp_path: Path
) -> None:
    ours = Transformer(SHAPES[shape], seed=1).eval()
    shake(ours)
    save_model(tmp_path, ours)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.config.max_position_embeddings == 128
    assert_same_logits(ours, theirs)
    assert_same_logits(load_model(tmp_path), theirs)


@pytest.mark.parametrize("make", [Qwen3Config, LlamaConfig])
def test_stretched_folder_written_by_transformers_gives_the_same_logits_here(
    make: Any, tmp_path: Path
) -> None:
    config = make(
        vocab_size=97, hidden_size=48, intermediate_size=52, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=128,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 5e3, "factor": FACTOR, "original_max_position_embeddings": ORIGINAL
        },
    )  # fmt: skip
    theirs = AutoModelForCausalLM.from_config(config).float().eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(load_model(tmp_path), theirs)


def test_entries_of_older_programs_mean_the_same(tmp_path: Path) -> None:
    config = hf_config(YARN)
    assert config_from_hf(config) == YARN
    older = {k: v for k, v in config.items() if k != "rope_parameters"}
    assert config_from_hf(older) == YARN
    kind = {"type": older["rope_scaling"].pop("rope_type")}
    assert config_from_hf(older | {"rope_scaling": older["rope_scaling"] | kind}) == YARN


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"beta_fast": 16}, "beta_fast is 16; this model's yarn only has 32"),
        ({"attention_factor": 1.5}, "attention_factor is 1.5"),
        ({"mscale_all_dim": 1.0}, "mscale_all_dim is 1.0"),
        ({"factor": 0.5}, "factor is 0.5; yarn needs a number of at least 1"),
        ({"factor": None}, "factor is None"),
        ({"original_max_position_embeddings": "32"}, "original_max_position_embeddings is '32'"),
    ],
)
def test_yarn_of_another_kind_is_refused_by_name(entry: dict[str, object], message: str) -> None:
    config = json.loads(json.dumps(hf_config(YARN)))
    config["rope_parameters"] |= entry
    with pytest.raises(UserError, match=message):
        config_from_hf(config)


def test_fast_pairs_keep_their_frequency_and_slow_ones_are_divided_by_the_factor() -> None:
    cfg = ModelConfig(head_dim=64, context_length=512)
    plain, longer = frequencies(cfg), frequencies(stretched(cfg, 4.0))
    turns = plain * 512 / (2 * torch.pi)
    assert torch.equal(longer[turns > 32], plain[turns > 32])
    slow = turns < 0.8  # the limits are rounded to whole pairs
    torch.testing.assert_close(longer[slow], plain[slow] / 4)
    between = ~slow & (turns <= 32)
    assert bool((longer[between] <= plain[between]).all())
    assert head_scale(cfg) == 1.0
    cos, sin = rope_tables(torch.arange(3), stretched(cfg, 4.0), torch.float32)
    torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, 1.1386294**2))  # (0.1 ln 4 + 1)²


def test_context_is_the_original_one_times_the_factor() -> None:
    cfg = ModelConfig(context_length=512)
    twice = stretched(cfg, 2.0)
    assert (twice.context_length, twice.rope_original, twice.rope_factor) == (1024, 512, 2.0)
    assert stretched(twice, 4.0) == stretched(cfg, 4.0)
    assert stretched(twice, 1.0) == cfg
    model = Transformer(ModelConfig(context_length=2048, rope_factor=4.0, vocab_size=64, n_layers=1))
    assert model.cfg.rope_original == 512


def test_what_cannot_be_stretched_says_so() -> None:
    learned = ModelConfig(positions="learned", vocab_size=64)
    with pytest.raises(UserError, match=r"learned table.*only rotary positions"):
        stretched(learned, 4.0)
    with pytest.raises(UserError, match=r"model\.rope_factor is 2: learned positions"):
        Transformer(replace(learned, rope_factor=2.0))
    with pytest.raises(UserError, match=r"factor is 0\.5; give 1 or more"):
        stretched(ModelConfig(), 0.5)
