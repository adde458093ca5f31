"""Starting from another model: its shape, its tokenizer, its weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from onesitting.checkpoint import load_model, save_model
from onesitting.config import LoraConfig, ModelConfig, RunConfig, TokenizerConfig
from onesitting.errors import UserError
from onesitting.model.rope import stretched
from onesitting.model.transformer import Transformer
from onesitting.pipeline import Run
from onesitting.recipe import load_recipe, resolve
from onesitting.start import start_folder, with_start_model
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer
from onesitting.train.distributed import Ranks

SHAPE = ModelConfig(
    n_layers=1, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32, vocab_size=320, context_length=64
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a small text of a few words " * 20], 320)


@pytest.fixture
def base(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A run whose SFT model is finished."""
    run = tmp_path / "base"
    for stage, seed in (("pretrain", 1), ("sft", 2)):
        save_model(run / stage / "model", Transformer(SHAPE, seed=seed), tokenizer)
    return run


def config(base: Path, **more: object) -> RunConfig:
    return RunConfig(name="next", out=str(base.parent / "runs"), start_from=str(base), **more)  # pyright: ignore


def test_a_run_a_stage_and_a_model_folder_can_be_started_from(base: Path) -> None:
    for given, found in (
        (base, "sft"),
        (base / "pretrain", "pretrain"),
        (base / "pretrain/model", "pretrain"),
    ):
        assert start_folder(RunConfig(start_from=str(given))) == base / found / "model"


def test_shape_and_tokenizer_are_those_of_the_model(base: Path) -> None:
    cfg = with_start_model(config(base, model=ModelConfig(d_model=999, context_length=32)))
    assert cfg.model == ModelConfig(**{**vars(SHAPE), "context_length": 32}), "rows as short as the run wants"
    assert with_start_model(config(base, model=ModelConfig(context_length=512))).model == SHAPE
    assert cfg.tokenizer.path == str(base / "sft/model")
    given = with_start_model(config(base, tokenizer=TokenizerConfig(path="mine")))
    assert given.tokenizer.path == "mine"


def test_a_configuration_without_it_is_left_alone() -> None:
    cfg = RunConfig()
    assert with_start_model(cfg) is cfg


def test_every_stage_begins_with_the_weights_of_that_model_or_of_the_stage_before(base: Path) -> None:
    cfg = with_start_model(config(base))
    run = Run(cfg, (), Ranks())
    run.tokenizer = run.make_tokenizer()
    theirs = load_model(base / "sft/model")
    for stage in cfg.stages:
        for name, weight in run.initial_model(stage).named_parameters():
            assert torch.equal(weight, theirs.get_parameter(name)), (stage, name)
    mine = Transformer(SHAPE, seed=5)
    save_model(run.folder.stage("pretrain").model, mine, run.tokenizer)
    started = run.initial_model("sft")
    assert torch.equal(started.output_weight, mine.output_weight)


def test_a_missing_model_and_a_missing_tokenizer_are_said(base: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        with_start_model(config(base / "none"))
    (base / "sft/model/tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.path"):
        with_start_model(config(base))


def test_the_settings_of_a_run_made_with_the_older_name_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[model]\ninit = "some/model"\n')
    assert resolve(load_recipe(tmp_path)).start_from == "some/model"


def test_rope_factor_stretches_the_model_that_is_started_from(base: Path) -> None:
    longer = ModelConfig(rope_factor=4.0, context_length=256)
    cfg = with_start_model(config(base, model=longer))
    assert cfg.model == replace(SHAPE, rope_factor=4.0, rope_original=64, context_length=256)
    assert with_start_model(cfg) == cfg, "a run that goes on has what it began with"
    run = Run(cfg, (), Ranks())
    run.tokenizer = run.make_tokenizer()
    assert run.initial_model("sft").cfg == cfg.model, "what is trained, and written, is the stretched one"
    shorter = with_start_model(config(base, model=replace(longer, context_length=128)))
    assert (shorter.model.context_length, shorter.model.rope_original) == (128, 64)
    with pytest.raises(UserError, match=r"rope_factor = 4, but rows have .* = 64 .*context_length=256"):
        with_start_model(config(base, model=replace(longer, context_length=64)))
    with pytest.raises(UserError, match=r"lora\.rank = 2: an adapter's folder leaves the shape"):
        with_start_model(config(base, model=longer, lora=LoraConfig(rank=2)))


def test_a_stretched_model_keeps_its_stretch_in_shorter_rows(base: Path, tokenizer: Tokenizer) -> None:
    save_model(base / "sft/model", Transformer(stretched(SHAPE, 4.0)), tokenizer)
    cfg = with_start_model(config(base, model=ModelConfig(context_length=128)))
    assert (cfg.model.context_length, cfg.model.rope_factor, cfg.model.rope_original) == (128, 4.0, 64)
