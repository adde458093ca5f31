"""Reinforcement learning through the command line: contracts 4 and 17, and what is said about wrong settings."""

import json
from pathlib import Path

import pytest
from stages.rl_maker import random_model
from test_pipeline import command

from onesitting.checkpoint import load_model, save_model
from onesitting.data.world import World
from onesitting.runlog import read_jsonl
from onesitting.tokenizer.bpe import train_tokenizer

RL = (
    "--rl.prompts", "world:arithmetic", "--rl.prompts_per_batch", "2", "--rl.samples", "4", "--rl.max_tokens", "10",
    "--rl.rewards", "length", "stopped=0.3", "--rl.eval_prompts", "2", "--device.dtype", "float32",
    "--model.context_length", "256", "--evaluation.suite", "none",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained model in it."""
    cwd = tmp_path_factory.mktemp("place")
    tokenizer = train_tokenizer(World(0).documents("train", 0.05), 320)
    save_model(cwd / "start", random_model(tokenizer), tokenizer)
    return cwd


def train(place: Path, stage: str, name: str, *more: str, processes: int = 1) -> list[dict[str, float]]:
    """Two steps of a stage; the lines of its steps come back."""
    done = command(
        stage, "tiny", *RL, "--from", "start", "--name", name, f"--{stage}.steps", "2", *more, cwd=place,
        processes=processes,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [r for r in read_jsonl(place / "runs" / name / stage / "metrics.jsonl") if "loss" in r]


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("grpo", ()),
        ("ppo", ("--rl.epochs", "2")),
        ("ppo", ("--lora.rank", "2", "--rl.samples", "2")),
        ("ppo", ("--device.dtype", "bfloat16")),
        ("grpo", ("--rl.max_turns", "2", "--lora.rank", "2")),
        ("grpo", ("--device.dtype", "bfloat16", "--rl.kl_weight", "0.1")),
    ],
)
def test_a_stage_runs_from_command_line_to_a_model_that_loads(
    place: Path, stage: str, more: tuple[str, ...]
) -> None:
    name = "-".join([stage, *more]).replace("--", "")
    lines = train(place, stage, name, *more)
    assert [line["step"] for line in lines] == [1, 2]
    assert {"reward", "reward_length", "informative", "entropy", "stop_rate", "clip_fraction"} <= set(
        lines[0]
    )
    folder = place / "runs" / name / stage
    assert load_model(folder / "model").value is None
    summary = json.loads((folder / "summary.json").read_text())
    assert "reward" in summary["evaluation"]


def test_a_trained_reward_model_is_a_reward(place: Path) -> None:
    done = command(
        "reward", "tiny", "--from", "start", "--name", "judge", "--reward.max_epochs", "0.1", "--preferences", "world",
        "--corpus.world_pairs", "60", "--corpus.cache", str(place / "cache"), "--device.dtype", "float32",
        "--model.context_length", "256", "--evaluation.suite", "none", cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = train(place, "grpo", "judged", "--rl.rewards", "judge=2", "--rl.judge", "runs/judge")
    for line in lines:
        others = line["reward_length"] + 0.3 * line["reward_stopped"]
        assert line["reward"] == pytest.approx(2 * line["reward_judge"] + others)
        assert line["reward_judge"] != 0


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_two_processes_make_the_attempts_and_the_gradient_of_one(place: Path, stage: str) -> None:
    one = train(place, stage, f"{stage}-one")
    two = train(place, stage, f"{stage}-two", "--device.threads", "1", processes=2)
    same = ["reward", "n_units", "attempt_tokens", "informative"]
    for key in [*same, "value_loss", "return_variance"] if stage == "ppo" else same:
        assert two[0][key] == pytest.approx(one[0][key], rel=1e-5), key
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-4, abs=1e-6)
    assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--rl.minibatches", "3"), "rl.minibatches = 3 does not divide rl.prompts_per_batch = 2"),
        (("--rl.samples", "1"), "give at least 2"),
        (("--rl.rewards", "scorr"), "there is no reward 'scorr'"),
        (("--rl.rewards", "judge"), "this run has no reward model"),
        (("--rl.judge", "runs/nothing"), "add judge=1"),
        (("--rl.prompts", "no.jsonl"), "no such file"),
        (("--rl.max_tokens", "600"), "leaves no room for a prompt"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(place: Path, more: tuple[str, ...], message: str) -> None:
    arguments = [word for word in RL if word not in ("length", "stopped=0.3", "--rl.rewards")]
    done = command("grpo", "tiny", *arguments, "--from", "start", "--name", "wrong", *more, cwd=place)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
