"""Preferences, reward model and distillation through the command line, alone and in two processes: contracts 4, 17."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onesitting.runlog import read_jsonl

TINY = (
    "--corpus.world_mb", "0.4", "--corpus.world_pairs", "120", "--model.context_length", "256",
    "--tokenizer.train_mb", "0.2", "--device.dtype", "float32",
    "--evaluation.suite", "world", "--evaluation.suite_items", "2", "--device.threads", "1",
)  # fmt: skip
STEPS = (
    "--dpo.tokens",
    "2048",
    "--reward.tokens",
    "2048",
    "--dpo.step_tokens",
    "1024",
    "--reward.step_tokens",
    "1024",
)
DISTILL = ("--distill.tokens", "2048", "--distill.step_tokens", "1024")


def command(*argv: str, cwd: Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run onesitting as a user would, in `cwd`."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, "onesitting", *argv], cwd=cwd, capture_output=True, text=True, timeout=600, check=False,
        env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished tiny run of four stages."""
    cwd = tmp_path_factory.mktemp("place")
    done = command(
        "run", "tiny", *TINY, *STEPS, "--corpus.cache", str(cwd / "cache"), "--budget", "tokens=20k",
        "--stages", "pretrain", "sft", "dpo", "reward", cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd


def test_one_command_goes_from_text_through_preferences_to_the_report(place: Path) -> None:
    run = place / "runs/tiny"
    for stage in ("pretrain", "sft", "dpo", "reward"):
        assert (run / stage / "model/model.safetensors").is_file(), stage
    evaluation = json.loads((run / "dpo/summary.json").read_text())["evaluation"]
    assert {"preference_accuracy", "ranking_accuracy", "reward_margin"} <= evaluation.keys()
    compared = json.loads((run / "dpo/preferences.json").read_text())
    assert compared["ranking_accuracy"]["before"]["n"] == compared["ranking_accuracy"]["after"]["n"] > 0
    assert compared["win_rate"]["after"]["n"] == 3 * 2
    report = (run / "report.md").read_text()
    assert "## Preferences: dpo" in report
    assert "after dpo" in report
    assert json.loads((run / "report.json").read_text())["missing"] == []
    assert json.loads((run / "reward/model/config.json").read_text())["architectures"] == [
        "Qwen3ForSequenceClassification"
    ]


def test_a_student_learns_from_the_run(place: Path) -> None:
    done = command(
        "distill", "tiny", *TINY, *DISTILL, "--corpus.cache", str(place / "cache"), "--name", "student",
        "--distill.teacher", "runs/tiny", "--model.n_layers", "1", "--distill.top_k", "8", "--budget", "tokens=2048",
        cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    evaluation = json.loads((place / "runs/student/distill/summary.json").read_text())["evaluation"]
    assert {"bits_per_byte", "teacher_kl_nats", "agreement"} <= evaluation.keys()
    words = command(
        "distill-data",
        "--teacher",
        "runs/tiny",
        "--n",
        "2",
        "--max-tokens",
        "8",
        "--out",
        "lessons.jsonl",
        cwd=place,
    )
    assert words.returncode == 0, words.stderr
    assert "lessons.jsonl:" in words.stdout


def test_two_processes_train_as_one(place: Path) -> None:
    done = command(
        "run", "tiny", *TINY, *STEPS, *DISTILL, "--corpus.cache", str(place / "cache"), "--budget", "tokens=2048",
        "--name", "two", "--from", "runs/tiny/sft", "--stages", "distill", "dpo", "reward",
        "--distill.teacher", "runs/tiny/sft", cwd=place, processes=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    one = command(
        "run", "tiny", *TINY, *STEPS, *DISTILL, "--corpus.cache", str(place / "cache"), "--budget", "tokens=2048",
        "--name", "one", "--from", "runs/tiny/sft", "--stages", "distill", "dpo", "reward",
        "--distill.teacher", "runs/tiny/sft", cwd=place,
    )  # fmt: skip
    assert one.returncode == 0, one.stdout + one.stderr
    for stage in ("distill", "dpo", "reward"):
        alone, together = (
            [r for r in read_jsonl(place / f"runs/{name}/{stage}/metrics.jsonl") if "loss" in r]
            for name in ("one", "two")
        )
        assert [r["tokens"] for r in alone] == [r["tokens"] for r in together], stage
        assert together[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-4), stage
        if stage == "distill":  # the stages after it start from weights that differ in their last digits
            assert together[0]["grad_norm"] == pytest.approx(alone[0]["grad_norm"], rel=1e-3)
