"""`onesitting merge`: a run that chats, from runs of one shape and tokenizer."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from onesitting.checkpoint import load_model, save_model
from onesitting.cli import main
from onesitting.config import ModelConfig, RunConfig
from onesitting.merge_runs import merge_runs
from onesitting.model.transformer import Transformer
from onesitting.recipe import load_recipe, resolve, write_config
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer

SHAPE = ModelConfig(
    n_layers=1, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32, vocab_size=320, context_length=64
)


def tokenizer_of(text: str) -> Tokenizer:
    return train_tokenizer([text * 20], 320)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Runs a and b, trained from base by a small change, in tmp_path."""
    tokenizer, generator = tokenizer_of("a small text of a few words "), torch.Generator().manual_seed(1)
    for name in ("base", "a", "b"):
        model = Transformer(SHAPE, seed=1)
        with torch.no_grad():
            for parameter in model.parameters() if name != "base" else ():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        write_config(RunConfig(name=name, out=str(tmp_path), model=SHAPE), tmp_path / name / "config.toml")
        tokenizer.save(tmp_path / name / "tokenizer")
        save_model(tmp_path / name / "sft/model", model, tokenizer)
    return tmp_path


@pytest.mark.parametrize("method", ["average", "slerp", "ties"])
def test_the_merged_run_chats_and_can_be_started_from(
    runs: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--base", str(runs / "base")] if method == "ties" else []
    out = runs / "ab"
    command = ["merge", str(runs / "a"), str(runs / "b"), "--out", str(out), "--method", method, *base]
    assert main([*command, "--weights", "3", "1"]) == 0, capsys.readouterr().err
    a, b, ab = (load_model(runs / name / "sft/model") for name in ("a", "b", "ab"))
    if method == "average":
        for name, weight in ab.named_parameters():
            wanted = 0.75 * a.get_parameter(name) + 0.25 * b.get_parameter(name)
            assert torch.allclose(weight, wanted, atol=1e-6), name
    assert resolve(load_recipe(out)).stages == ("sft",)
    summary = json.loads((out / "sft/summary.json").read_text())["merged"]
    assert summary["method"] == method
    assert summary["weights"] == [3.0, 1.0]
    assert len({model["sha256"] for model in summary["models"]}) == 2
    assert main(["generate", str(out), "--prompt", "a small", "--max-tokens", "3"]) == 0
    assert main(["report", str(out)]) == 0
    assert "a small" in capsys.readouterr().out


def test_the_first_models_dtype_is_kept(runs: Path) -> None:
    for name in ("a", "b"):
        folder = runs / name / "sft/model"
        save_model(
            folder, load_model(folder), Tokenizer.load(runs / name / "tokenizer"), dtype=torch.bfloat16
        )
    merged = merge_runs([runs / "a", runs / "b"], runs / "ab", "average")
    assert {parameter.dtype for parameter in load_model(merged).parameters()} == {torch.bfloat16}


def refused(runs: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert main(["merge", str(runs / "a"), str(runs / "b"), "--out", str(runs / "ab"), *more]) == 2
    assert not (runs / "ab").exists()
    return capsys.readouterr().err


def test_another_shape_is_refused_with_what_differs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Transformer(replace(SHAPE, d_ff=48), seed=1)
    save_model(runs / "b/sft/model", other, Tokenizer.load(runs / "a/tokenizer"))
    assert "model.d_ff is 48 there and 32 here" in refused(runs, capsys)


def test_another_tokenizer_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(
        runs / "b/sft/model", Transformer(SHAPE, seed=1), tokenizer_of("quite other words in this one ")
    )
    assert "another tokenizer" in refused(runs, capsys)


def test_a_run_that_is_not_there_and_a_folder_that_is_full_are_refused(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "does not exist" in refused(runs, capsys, "--method", "ties", "--base", str(runs / "none"))
    assert main(["merge", str(runs / "a"), str(runs / "b"), "--out", str(runs / "a")]) == 2
    assert "not empty" in capsys.readouterr().err


def test_mixtures_are_merged_with_the_biases_of_their_routers(tmp_path: Path) -> None:
    shape = replace(SHAPE, n_experts=4, n_active_experts=2, router_bias_rate=0.01)
    tokenizer = tokenizer_of("a small text of a few words ")
    for seed in (1, 2):
        model = Transformer(shape, seed=seed)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name.endswith("choice_bias"):
                    buffer.fill_(float(seed))
        save_model(tmp_path / str(seed), model, tokenizer)
    merged = load_model(merge_runs([tmp_path / "1", tmp_path / "2"], tmp_path / "both", "average"))
    biases = [value for name, value in merged.named_buffers() if name.endswith("choice_bias")]
    assert biases
    assert all(torch.equal(bias, torch.full_like(bias, 1.5)) for bias in biases)
