"""A plan adds up, follows the settings, and warns of what would not work."""

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console

from onesitting import plan as planning
from onesitting.config import (
    CorpusConfig,
    EvaluationConfig,
    GRPOConfig,
    ModelConfig,
    PretrainConfig,
    RLConfig,
    RunConfig,
    SFTConfig,
)
from onesitting.errors import UserError
from onesitting.model.flops import count_parameters
from onesitting.plan import Plan, find_warnings, make_plan
from onesitting.plan_speed import EXPECTED_FRACTION, speed_of_similar_run
from onesitting.plan_text import show_plan
from onesitting.recipe import write_config
from onesitting.runlog import RunFolder
from onesitting.train.device import plan_device
from onesitting.train.hardware import detect

MODEL = ModelConfig(n_layers=2, d_model=64, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=128, context_length=64)


@pytest.fixture
def cfg(tmp_path: Path) -> RunConfig:
    return RunConfig(
        name="small",
        out=str(tmp_path),
        budget="2m",
        model=MODEL,
        corpus=CorpusConfig(world_mb=1.0),
        pretrain=PretrainConfig(step_tokens=1024),
        sft=SFTConfig(step_tokens=1024),
    )


@pytest.fixture
def plan(cfg: RunConfig) -> Plan:
    return make_plan(cfg)


def test_phases_fill_the_time_budget_and_no_more(plan: Plan) -> None:
    assert plan.seconds <= 120
    names = [name for name, _ in plan.phases]
    assert names == [
        "start", "tokenizer", "prepare", "n-grams", "pretrain", "evaluate pretrain", "sft", "evaluate sft", "report",
    ]  # fmt: skip


def test_pretraining_gets_its_share_of_what_is_left(cfg: RunConfig) -> None:
    cfg = replace(cfg, sft=replace(cfg.sft, max_epochs=0.0))
    plan = make_plan(cfg)
    pretrain, sft = plan.stages
    assert pretrain.seconds / (pretrain.seconds + sft.seconds) == pytest.approx(0.7, abs=0.02)
    assert plan.seconds == pytest.approx(120, rel=0.05)


def test_fine_tuning_ends_after_its_epochs(plan: Plan) -> None:
    assert plan.stages[1].passes is not None
    assert plan.stages[1].passes <= 3.0


def test_parameters_are_those_of_the_model_with_its_vocabulary(plan: Plan) -> None:
    assert plan.vocab_size == 4096
    assert plan.n_parameters == count_parameters(replace(MODEL, vocab_size=4096))


def test_few_tokens_are_taken_in_smaller_steps_where_that_is_asked_for(cfg: RunConfig) -> None:
    few = replace(cfg.pretrain, tokens=10 * 1024, smaller_steps=True)
    stages = make_plan(replace(cfg, pretrain=few)).stages
    assert [(s.step_tokens, s.tokens) for s in stages] == [(512, 10 * 1024), (1024, stages[1].tokens)]
    many = make_plan(replace(cfg, pretrain=replace(few, tokens=10**7))).stages
    assert many[0].step_tokens == 1024


def test_given_tokens_are_exact(cfg: RunConfig) -> None:
    plan = make_plan(replace(cfg, pretrain=replace(cfg.pretrain, tokens=10 * 1024)))
    assert (plan.stages[0].tokens, plan.stages[0].steps) == (10 * 1024, 10)


def test_a_budget_in_tokens_plans_those_tokens(cfg: RunConfig) -> None:
    plan = make_plan(replace(cfg, budget="tokens=2M", stages=("pretrain",)))
    assert plan.budget_s is None
    assert plan.stages[0].tokens == 2_000_000 // 1024 * 1024


def test_a_budget_that_leaves_nothing_to_train_in_is_refused(cfg: RunConfig) -> None:
    with pytest.raises(UserError, match=r"budget = '5s'.*larger budget"):
        make_plan(replace(cfg, budget="5s"))


def test_the_plan_refuses_what_the_run_refuses(cfg: RunConfig) -> None:
    with pytest.raises(UserError, match=r"model\.n_kv_heads"):
        make_plan(replace(cfg, model=replace(MODEL, n_heads=3, n_kv_heads=2)))


def test_nothing_is_written(cfg: RunConfig, plan: Plan) -> None:
    assert not any(Path(cfg.out).iterdir())


def test_without_a_suite_nothing_is_evaluated(cfg: RunConfig) -> None:
    plan = make_plan(replace(cfg, evaluation=EvaluationConfig(suite="none")))
    assert not any(name.startswith("evaluate") for name, _ in plan.phases)


def test_the_size_of_text_files_is_counted_and_that_of_hubs_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 1000)
    (tmp_path / "b.txt.gz").write_bytes(b"x" * 100)
    assert planning.text_bytes(RunConfig(data=(str(tmp_path),)), "pretrain") == 1300
    assert planning.text_bytes(RunConfig(data=("hub:owner/name",)), "pretrain") is None


def test_measured_speed_is_positive_and_says_that_it_was_measured(cfg: RunConfig) -> None:
    plan = make_plan(cfg, measure=True)
    assert plan.stages[0].tokens_per_s > 0
    assert plan.speed_source.startswith("measured")


def test_an_earlier_run_on_this_device_says_which_fraction_of_the_limit_is_reached(tmp_path: Path) -> None:
    device = plan_device(RunConfig().device, detect())
    here = {"device": device.name, "dtype": device.dtype}
    for name, n_parameters, fraction in (("small", 1_000_000, 0.2), ("large", 100_000_000, 0.6)):
        run = RunFolder(tmp_path / name)
        run.stage("pretrain").path.mkdir(parents=True)
        write_config(RunConfig(name=name, out=str(tmp_path)), run.config_path)
        summary = {**here, "n_parameters": n_parameters, "fraction_of_limit": fraction}
        (run.stage("pretrain").path / "summary.json").write_text(json.dumps(summary))
    near_large, near_small, between = (
        speed_of_similar_run(tmp_path, device, limit=1e12, flops=1e6, n_parameters=size)
        for size in (60_000_000, 2_000_000, 10_000_000)
    )
    assert near_large is not None
    assert near_small is not None
    assert between is None
    assert near_large.tokens_per_s == pytest.approx(0.6e6)
    assert "as run large reached" in near_large.source
    assert near_small.tokens_per_s == pytest.approx(0.2e6)


def test_without_an_earlier_run_steps_are_timed(plan: Plan) -> None:
    assert plan.speed_source.startswith("measured: the median of")


def test_what_would_have_to_be_compiled_is_an_assumption_and_says_so(cfg: RunConfig) -> None:
    plan = make_plan(replace(cfg, device=replace(cfg.device, compile="on")))
    assert "assumption" in plan.speed_source
    used = plan.stages[0].tokens_per_s * plan.flops_per_token / plan.limit_flops_per_s
    assert used == pytest.approx(EXPECTED_FRACTION)
    assert make_plan(cfg, measure=False).speed_source == plan.speed_source


def test_bits_per_byte_are_not_known_without_a_measured_run(cfg: RunConfig, plan: Plan) -> None:
    assert plan.bits_per_byte.startswith("not known")
    assert planning.expected_bits_per_byte(cfg, 1, plan.stages).startswith("not known")


def test_too_little_memory_and_disk_are_warned_of(plan: Plan) -> None:
    assert not any(line.startswith(("memory", "disk")) for line in plan.warnings)
    poor = replace(plan, memory_available_bytes=1000, disk_free_bytes=1000)
    warnings = find_warnings(poor)
    assert any("pretrain.micro_batch_rows" in line for line in warnings)
    assert any("checkpoint.keep_last" in line for line in warnings)


def test_time_that_is_left_over_is_warned_of(cfg: RunConfig) -> None:
    plan = make_plan(replace(cfg, sft=replace(cfg.sft, tokens=2048)))
    assert any("sft.max_epochs end a stage early" in line for line in plan.warnings)


def test_many_passes_and_few_steps_are_warned_of(plan: Plan) -> None:
    stage = replace(plan.stages[0], passes=9.0, tokens=10 * 1024)
    warnings = find_warnings(replace(plan, stages=[stage]))
    assert any("9 times" in line for line in warnings)
    assert any("only 10 steps" in line for line in warnings)


def test_the_plan_shows_when_each_phase_ends(plan: Plan) -> None:
    console = Console(record=True, width=200, force_terminal=False)
    known = replace(plan, phases=[("start", 5.0), ("pretrain", 60.0), ("sft", 30.0)])
    show_plan(known, "demo", console, datetime(2026, 1, 1, 23, 58, 30))
    shown = console.export_text()
    assert "23:59:35" in shown
    assert "2026-01-02 00:00" in shown
    assert "onesitting run demo" in shown
    assert f"{plan.n_parameters:,}" in shown


def test_attempts_are_counted_and_not_their_unknown_tokens(cfg: RunConfig) -> None:
    short = replace(cfg, rl=RLConfig(max_tokens=16), grpo=GRPOConfig(steps=12))
    plan = make_plan(replace(short, stages=("pretrain", "sft", "grpo")))
    console = Console(record=True, width=200, force_terminal=False)
    show_plan(plan, "demo", console)
    assert "at least 12 steps of 128 attempts" in console.export_text()


def test_memory_of_this_machine_is_known() -> None:
    device = plan_device(RunConfig().device, detect())
    assert 0 < planning.available_memory_bytes(device) <= 64 * 2**40
