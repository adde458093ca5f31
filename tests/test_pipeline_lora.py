"""LoRA through the command line: a finished run, an adapter on it, what the folder holds, chatting with it."""

import json
from pathlib import Path

import pytest
import torch
from test_pipeline import TINY, command

from onesitting.checkpoint import load_model
from onesitting.model.peft import load_adapter
from onesitting.runlog import read_jsonl


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretrained tiny run and, started from it, an adapter trained on conversations."""
    cwd = tmp_path_factory.mktemp("place")
    cache = ("--corpus.cache", str(cwd / "cache"))
    for arguments in (
        ("pretrain", *TINY, *cache, "--budget", "tokens=40k", "--name", "base"),
        ("sft", *TINY, *cache, "--budget", "tokens=20k", "--name", "lora", "--stages", "sft",
         "--from", "runs/base", "--lora.rank", "4", "--lora.dropout", "0.1"),
    ):  # fmt: skip
        done = command(*arguments, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
    return cwd


def test_the_stage_leaves_the_adapter_and_the_merged_model(place: Path) -> None:
    stage = place / "runs/lora/sft"
    assert not list(stage.glob("checkpoints/*/model.safetensors")), "checkpoints refer to the base"
    summary = json.loads((stage / "summary.json").read_text())
    assert 0 < summary["n_adapter_parameters"] < summary["n_parameters"] / 4
    assert summary["lora"]["rank"] == 4
    merged, adapted = load_model(stage / "model"), load_model(place / "runs/base/pretrain/model")
    before = adapted(torch.arange(8)[None])
    load_adapter(stage / "adapter", adapted)
    after = adapted(torch.arange(8)[None])
    assert (after - before).abs().max() > 1e-3
    assert torch.allclose(merged(torch.arange(8)[None]), after, atol=1e-4)


@pytest.mark.parametrize("what", ["runs/lora", "runs/lora/sft/adapter"])
def test_run_and_adapter_both_chat(place: Path, what: str) -> None:
    chat = command("chat", what, "--temperature", "0", "--max-tokens", "4", cwd=place, stdin="Hello!\n")
    assert chat.returncode == 0, chat.stderr


def test_a_stage_starts_from_an_adapter(place: Path) -> None:
    done = command(
        "sft", *TINY, "--corpus.cache", str(place / "cache"), "--budget", "tokens=10k", "--name", "next",
        "--stages", "sft", "--from", "runs/lora/sft/adapter", cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting from runs/lora/sft/adapter" in done.stdout


@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
def test_two_processes_train_an_adapter_as_one(place: Path, shard: str) -> None:
    done = command(
        "sft", *TINY, "--corpus.cache", str(place / "cache"), "--budget", "tokens=20k", "--name", shard,
        "--stages", "sft", "--from", "runs/base", "--lora.rank", "4", "--device.shard", shard,
        "--device.threads", "1", cwd=place, processes=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (
        [r for r in read_jsonl(place / "runs" / name / "sft/metrics.jsonl") if "loss" in r]
        for name in ("lora", shard)
    )
    assert [r["tokens"] for r in one] == [r["tokens"] for r in two]
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-5), (
        "before the first update dropout does nothing"
    )
    assert two[-1]["loss"] == pytest.approx(one[-1]["loss"], rel=5e-2)
    assert (place / "runs" / shard / "sft/adapter/adapter_model.safetensors").is_file()
