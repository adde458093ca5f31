"""The report card: what the run folder says is shown, what it does not say is shown as missing."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onesitting.config import EvaluationConfig, RunConfig
from onesitting.errors import UserError
from onesitting.evaluation.curves import Curve, Goal, draw_curves, short_number
from onesitting.evaluation.report import print_report, read_curve, read_report, write_report
from onesitting.recipe import load_recipe, resolve, write_config
from onesitting.runlog import RunFolder, append_jsonl

SUMMARY: dict[str, Any] = {
    "stage": "pretrain",
    "n_parameters": 2_360_896,
    "steps": 4,
    "tokens": 32_768,
    "seconds": 123.4,
    "seconds_setup": 5.0,
    "tokens_per_s": 265.5,
    "fraction_of_limit": 0.41,
    "peak_memory_bytes": 1_250_000_000,
    "final_loss": 1.25,
    "bits_per_byte": 1.0625,
    "nonfinite_steps": 0,
    "dtype": "bfloat16",
    "device": "cpu",
    "compiled": True,
    "real_token_fraction": 1.0,
}


def result(accuracy: float, low: float, high: float, baseline: float | None = 0.25) -> dict[str, Any]:
    return {
        "n": 100, "correct": round(100 * accuracy), "accuracy": accuracy, "ci_low": low, "ci_high": high,
        "baseline": baseline, "examples": [{"prompt": "p", "reply": "r"}],
    }  # fmt: skip


def add_stage(run: RunFolder, name: str, *, done: bool, suite: dict[str, Any] | None = None) -> None:
    folder = run.stage(name)
    for step in range(1, 5):
        line = {
            "step": step,
            "tokens": 8192 * step,
            "elapsed_s": 30.0 * step,
            "loss": 5.0 / step,
            "lr_factor": 1.0,
        }
        append_jsonl(folder.metrics_path, line)
        bits = {"step": step, "tokens": 8192 * step, "evaluation": {"bits_per_byte": 3.0 / step}}
        append_jsonl(folder.metrics_path, bits)
        append_jsonl(folder.samples_path, {"step": step, "prompt": "Once", "text": f"text {step}", "seed": 0})
    if done:
        (folder.path / "summary.json").write_text(json.dumps(SUMMARY | {"stage": name}))
    if suite is not None:
        (folder.path / "evaluation.json").write_text(json.dumps(suite))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run of two stages."""
    run = RunFolder(tmp_path / "demo")
    run.path.mkdir()
    write_config(replace(RunConfig(), name="demo", out=str(tmp_path), budget="5m"), run.config_path)
    add_stage(run, "pretrain", done=True, suite={"reading": result(0.27, 0.19, 0.36)})
    add_stage(
        run, "sft", done=True, suite={"reading": result(0.84, 0.76, 0.9), "tool_calls": result(0.4, 0.3, 0.5)}
    )
    phases = [("tokenizer", 10.0), ("pretrain", 190.0), ("sft", 90.0), ("sft", 8.5)]
    timing = {"budget_s": 300.0, "phases": [{"phase": name, "seconds": spent} for name, spent in phases]}
    (run.path / "timing.json").write_text(json.dumps(timing))
    return run


def test_a_finished_run_reports_what_its_folder_says(run: RunFolder) -> None:
    text = write_report(run).read_text()
    for fact in ("2,360,896", "32,768", "2 min 3 s", "41 %", "1.25 GB", "1.0625", "bfloat16"):
        assert fact in text
    assert "**Missing:**" not in text


def test_scores_before_and_after_fine_tuning_stand_side_by_side(run: RunFolder) -> None:
    text = write_report(run).read_text()
    assert "| Questions about a passage | 100 | 25 % | 27 % (19–36) | 84 % (76–90) |" in text
    assert "| Tool calls | 100 | 25 % | — | 40 % (30–50) |" in text


def test_the_limits_follow_from_the_measured_scores(run: RunFolder) -> None:
    limits = read_report(run).limits
    assert any(line.startswith("Tool calls: weak") for line in limits)
    assert any(
        line.startswith("Questions about a passage: mostly right, still wrong about one time in 6")
        for line in limits
    )
    assert limits.index(next(x for x in limits if x.startswith("Tool"))) < limits.index(
        next(x for x in limits if x.startswith("Questions"))
    )
    assert any("invented world" in line for line in limits)


def test_a_run_that_started_from_a_model_says_so(run: RunFolder) -> None:
    cfg = replace(resolve(load_recipe(run.path)), stages=("sft",), start_from="runs/qwen", chat=("my.jsonl",))
    write_config(cfg, run.config_path)
    text = write_report(run).read_text()
    assert "It knows what runs/qwen knew, perhaps less well, and what stands in the text" in text
    assert "invented world" not in text
    assert "It was trained here on at most" in text
    assert "| started from | runs/qwen |" in text
    assert "| text | — |" in text


@pytest.mark.parametrize(
    ("score", "says"),
    [
        (result(0.0, 0.0, 0.04, 0.0), "not at all"),
        (result(0.3, 0.22, 0.4, 0.25), "cannot be told from guessing"),
        (result(0.45, 0.35, 0.55), "weak"),
        (result(0.7, 0.6, 0.8), "unreliable, wrong about one time in 3"),
        (result(0.99, 0.95, 1.0), "reliable on questions like those"),
        (result(1.0, 0.96, 1.0), "reliable on questions like those"),
    ],
)
def test_each_score_has_its_plain_sentence(run: RunFolder, score: dict[str, Any], says: str) -> None:
    (run.stage("sft").path / "evaluation.json").write_text(json.dumps({"tea_making": score}))
    assert any(line.startswith("Tea making: ") and says in line for line in read_report(run).limits)


def test_the_budget_is_compared_with_all_phases_together(run: RunFolder) -> None:
    budget = read_report(run).budget
    assert budget.actual_s == 298.5
    assert budget.difference == pytest.approx(-0.005)
    assert budget.kept
    assert [phase["phase"] for phase in budget.phases] == ["tokenizer", "pretrain", "sft"]
    assert "−5 %" not in write_report(run).read_text()


@pytest.mark.parametrize(("seconds", "kept"), [(284.0, False), (286.0, True), (305.0, True), (307.0, False)])
def test_the_budget_is_kept_within_minus_five_and_plus_two_percent(
    run: RunFolder, seconds: float, kept: bool
) -> None:
    timing = {"budget_s": 300.0, "phases": [{"phase": "pretrain", "seconds": seconds}]}
    (run.path / "timing.json").write_text(json.dumps(timing))
    assert read_report(run).budget.kept is kept


def test_a_run_that_ended_early_names_the_settings_that_may_have_ended_it(run: RunFolder) -> None:
    timing: dict[str, Any] = {"budget_s": 300.0, "phases": [{"phase": "pretrain", "seconds": 200.0}]}
    (run.path / "timing.json").write_text(json.dumps(timing))
    assert "ended it early: sft.max_epochs = 3" in write_report(run).read_text()
    timing["phases"] = [{"phase": "pretrain", "seconds": 400.0}]
    (run.path / "timing.json").write_text(json.dumps(timing))
    assert "ended it early" not in write_report(run).read_text()


def test_an_unfinished_stage_shows_what_its_metrics_say_and_nothing_else(run: RunFolder) -> None:
    (run.stage("sft").path / "summary.json").unlink()
    report = read_report(run)
    numbers = report.stages[1].numbers
    assert report.stages[1].status == "unfinished"
    assert (numbers["steps"], numbers["tokens"], numbers["bits_per_byte"]) == (4, 32_768, 0.75)
    assert numbers["n_parameters"] is None
    assert numbers["fraction_of_limit"] is None
    assert report.budget.difference is None
    assert "sft is unfinished" in report.missing
    assert any(command.startswith("onesitting run ") for _, command in report.commands)
    assert not any(command.startswith("onesitting chat") for _, command in report.commands)


def test_the_fraction_of_real_tokens_follows_from_tokens_and_steps(run: RunFolder) -> None:
    summary = {key: value for key, value in SUMMARY.items() if key != "real_token_fraction"}
    (run.stage("sft").path / "summary.json").write_text(json.dumps(summary | {"tokens": 4 * 8192 * 3 // 4}))
    assert read_report(run).stages[1].numbers["real_token_fraction"] == 0.75


def test_a_suite_that_was_not_asked_for_is_not_missing(run: RunFolder) -> None:
    for stage in ("pretrain", "sft"):
        (run.stage(stage).path / "evaluation.json").unlink()
    assert any("question suite" in line for line in read_report(run).missing)
    cfg = RunConfig(name="demo", out=str(run.path.parent), evaluation=EvaluationConfig(suite="none"))
    write_config(cfg, run.config_path)
    assert not read_report(run).missing


def test_questions_for_which_there_was_no_time_are_missing(run: RunFolder) -> None:
    shorter = result(0.84, 0.76, 0.9) | {"n": 80, "left_out": 20}
    add_stage(run, "sft", done=True, suite={"reading": shorter, "stops": shorter | {"left_out": 0}})
    assert "no time for 20 questions after sft (onesitting evaluate asks all)" in read_report(run).missing
    assert "| 80–100 |" in write_report(run).read_text()


def test_an_empty_run_is_reported_as_not_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "empty")
    run.path.mkdir()
    write_config(replace(RunConfig(), name="empty", out=str(tmp_path)), run.config_path)
    text = write_report(run).read_text()
    assert "pretrain is not started; sft is not started" in text
    assert "nothing is known" in text
    assert not (run.path / "curves.svg").exists()
    assert "curves.svg" not in text
    print_report(run)
    assert "not started" in capsys.readouterr().out


def test_a_run_of_one_stage_has_no_column_for_the_other(run: RunFolder, tmp_path: Path) -> None:
    cfg = replace(RunConfig(), name="demo", out=str(tmp_path), stages=("pretrain",))
    write_config(cfg, run.config_path)
    report = read_report(run)
    assert [stage.stage for stage in report.stages] == ["pretrain"]
    assert any("does not answer questions" in line for line in report.limits)


def test_report_json_holds_the_same_numbers_and_no_nan(run: RunFolder) -> None:
    path = run.stage("sft").path / "summary.json"
    path.write_text(json.dumps(SUMMARY | {"final_loss": float("nan")}))
    write_report(run)
    data = json.loads((run.path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert data["stages"][0]["numbers"]["tokens"] == 32_768
    assert data["stages"][1]["suite"]["reading"]["ci_low"] == 0.76
    assert "examples" not in data["stages"][1]["suite"]["reading"]


def test_only_the_samples_of_the_last_validation_are_shown(run: RunFolder) -> None:
    text = write_report(run).read_text()
    assert "text 4" in text
    assert "text 3" not in text


def test_a_sample_cannot_break_out_of_its_block(run: RunFolder) -> None:
    append_jsonl(
        run.stage("sft").samples_path, {"step": 9, "prompt": "p", "text": "```\n# Not a heading", "seed": 0}
    )
    assert "````text\np ⟶ ```\n# Not a heading\n````" in write_report(run).read_text()


def test_a_damaged_file_is_named(run: RunFolder) -> None:
    (run.stage("sft").path / "evaluation.json").write_text("{half")
    with pytest.raises(UserError, match=r"evaluation\.json is damaged"):
        write_report(run)


def test_the_card_names_the_stages_and_the_next_command(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    print_report(run)
    shown = capsys.readouterr().out
    assert "after sft" in shown
    assert "onesitting chat" in shown


def test_the_picture_is_xml_with_a_curve_for_each_stage(run: RunFolder) -> None:
    write_report(run)
    root = ElementTree.fromstring((run.path / "curves.svg").read_text())
    lines = root.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2 * (2 + 1 + 1)  # for each stage: loss raw and smooth, bits per byte, learning rate


def test_points_without_a_finite_value_are_left_out(run: RunFolder) -> None:
    append_jsonl(run.stage("sft").metrics_path, {"step": 5, "tokens": 40_960, "loss": None, "lr_factor": 1.0})
    curve = read_curve(run.stage("sft"))
    assert len(curve.loss) == 4
    assert len(curve.lr_factor) == 5


def test_a_stage_with_another_goal_has_a_row_of_its_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).stage("grpo")
    for step in (1, 2, 3):
        line = {"step": step, "tokens": 100 * step, "loss": -0.001, "lr_factor": 0.1, "reward": 0.2 * step}
        append_jsonl(folder.metrics_path, line)
    append_jsonl(folder.metrics_path, {"step": 3, "tokens": 300, "evaluation": {"reward": 0.9}})
    curve = read_curve(folder)
    assert not curve.loss  # a policy's loss is near 0 whatever it learns
    reward = curve.goals[0]
    assert reward.training == [(100, 0.2), (200, 0.4), (300, pytest.approx(0.6))]
    assert reward.held_out == [(300, 0.9)]
    root = ElementTree.fromstring(draw_curves([curve], "t"))
    assert len(root.findall(".//{http://www.w3.org/2000/svg}circle")) == 1
    assert "grpo: reward" in "".join(root.itertext())


def test_every_point_lies_inside_the_picture() -> None:
    """Also for one point, a constant, and values over many orders of magnitude."""
    for values in ([2.0], [1.0, 1.0], [1e-6, 1e6], [0.0, 3.0], [5.0, 4.0, 3.0]):
        points = [(1000.0 * (i + 1), value) for i, value in enumerate(values)]
        goals = [
            Goal(title="x", training=points, held_out=points),
            Goal(title="y", training=[], held_out=points),
        ]
        curve = Curve(name="a<b", loss=points, bits_per_byte=points, lr_factor=points, goals=goals)
        svg = draw_curves([curve], "t & u")
        for line in ElementTree.fromstring(svg).findall(".//{http://www.w3.org/2000/svg}polyline"):
            for place in line.attrib["points"].split():
                x, y = map(float, place.split(","))
                assert 0 <= x <= 1080
                assert 0 <= y <= 630


@pytest.mark.parametrize(
    ("value", "shown"),
    [(999, "999"), (1000, "1k"), (999_999, "1M"), (2_360_896, "2.36M"), (1.5e9, "1.5B"), (0, "0")],
)
def test_large_numbers_are_shortened(value: float, shown: str) -> None:
    assert short_number(value) == shown
