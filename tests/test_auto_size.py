"""Steps that suit the tokens of a budget: chosen once, written into the run, kept."""

from dataclasses import replace
from pathlib import Path

import pytest
from user_command import Cli

from onesitting.auto_size import with_fitting_steps
from onesitting.config import PretrainConfig, RunConfig
from onesitting.errors import UserError
from onesitting.plan import make_plan
from onesitting.recipe import load_recipe, resolve, write_config


def config(out: Path, **settings: object) -> RunConfig:
    """The toy, whose width is 64 and whose rows have 128 tokens, with steps of 8,192 that may be smaller."""
    own = {
        "out": str(out), "name": "mine", "budget": "tokens=40k", "stages": ("pretrain", "sft"),
        "pretrain.step_tokens": 8192, "sft.step_tokens": 8192, "model.context_length": 128,
    }  # fmt: skip
    return resolve(load_recipe("tiny") | own | settings)


def test_only_stages_that_ask_for_it_get_smaller_steps(tmp_path: Path) -> None:
    plain = config(tmp_path)
    assert with_fitting_steps(plain) is plain
    asked = config(tmp_path, **{"pretrain.smaller_steps": True})
    fitted = with_fitting_steps(asked)
    assert fitted.pretrain == replace(asked.pretrain, step_tokens=512, smaller_steps=False)
    assert replace(fitted, pretrain=asked.pretrain) == asked


def test_a_budget_in_which_little_is_expected_to_fit_gets_the_smallest_steps(tmp_path: Path) -> None:
    asked = config(tmp_path, budget="3s", **{"pretrain.smaller_steps": True})
    with pytest.raises(UserError, match="nothing is left to train in"):
        make_plan(asked)
    assert with_fitting_steps(asked).pretrain.step_tokens < 8192


def test_a_run_that_was_begun_keeps_its_steps(tmp_path: Path) -> None:
    begun = with_fitting_steps(config(tmp_path, **{"pretrain.smaller_steps": True}))
    (tmp_path / "mine").mkdir()
    write_config(begun, tmp_path / "mine" / "config.toml")
    again = config(tmp_path, budget="tokens=100m", **{"pretrain.smaller_steps": True})
    assert with_fitting_steps(again).pretrain == begun.pretrain


def test_the_plan_of_a_run_that_was_begun_shows_its_steps(tmp_path: Path, cli: Cli) -> None:
    def planned() -> str:
        own = (
            "--pretrain.step_tokens",
            "8192",
            "--pretrain.smaller_steps",
            "true",
            "--model.context_length",
            "128",
        )
        done = cli("plan", "tiny", *own, "--out", str(tmp_path), "--name", "mine", "--budget", "tokens=100m")
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "steps of 4 rows of 128" not in planned()
    begun = with_fitting_steps(config(tmp_path, **{"pretrain.smaller_steps": True}))
    assert begun.pretrain.step_tokens == 4 * 128
    (tmp_path / "mine").mkdir()
    write_config(begun, tmp_path / "mine" / "config.toml")
    assert "steps of 4 rows of 128" in planned()


def test_steps_of_several_processes_stay_when_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(tmp_path, **{"pretrain.smaller_steps": True})
    monkeypatch.setenv("WORLD_SIZE", "2")
    begun = with_fitting_steps(asked)
    (tmp_path / "mine").mkdir()
    write_config(begun, tmp_path / "mine" / "config.toml")
    monkeypatch.delenv("WORLD_SIZE")
    assert with_fitting_steps(asked).pretrain == begun.pretrain


def test_several_processes_take_the_steps_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = config(tmp_path, **{"pretrain.smaller_steps": True})
    assert with_fitting_steps(asked) is asked


@pytest.mark.parametrize("name", ["26m", "64m", "104m", "26m-moe", "auto"])
def test_the_larger_recipes_take_smaller_steps_in_short_budgets(name: str) -> None:
    cfg = resolve(load_recipe(name), {"size": "5M"} if name == "auto" else {})
    assert cfg.pretrain.smaller_steps
    assert cfg.sft.smaller_steps
    assert not PretrainConfig().smaller_steps


def test_a_command_writes_the_steps_it_chose_and_goes_on_with_them(cli: Cli, tmp_path: Path) -> None:
    command = (
        "pretrain", "tiny", "--budget", "tokens=20k", "--pretrain.step_tokens", "8192", "--corpus.world_mb", "0.3",
        "--pretrain.smaller_steps", "true", "--out", str(tmp_path), "--name", "mine", "--evaluation.suite", "none",
    )  # fmt: skip
    first = cli(*command)
    assert first.returncode == 0, first.stderr
    there = load_recipe(tmp_path / "mine")
    assert there["pretrain.step_tokens"] < 2048
    assert not there["pretrain.smaller_steps"]
    again = cli(*command)
    assert again.returncode == 0, again.stderr
    assert "done before" in again.stdout
    rows = there["pretrain.step_tokens"] // there["model.context_length"]
    seen = cli("inspect", "batch", *command[1:])
    assert f"pretrain, step 0: {rows} rows" in seen.stdout, seen.stdout + seen.stderr
