"""The report card of a run: report.md for people, report.json for programs, curves.svg to look at.

It reads the run folder alone, never a process, and shows what is not there as missing. What it reads:

    config.toml               the resolved configuration
    timing.json               {"budget_s": seconds | null, "phases": [{"phase": name, "seconds": float}, …]}
    <stage>/summary.json      the keys of SUMMARY_KEYS; written when the stage is done. Without
                              real_token_fraction it is tokens / (steps * step_tokens)
    <stage>/metrics.jsonl     lines with step, tokens, elapsed_s, loss, lr_factor; lines with evaluation
    <stage>/evaluation.json   {task: {n, correct, accuracy, ci_low, ci_high, baseline, examples}}
    <stage>/preferences.json  {measure: {before, after: {n, value, ci_low, ci_high} | null}}, of dpo
    <stage>/held_out.json     {measure: {value, n_bytes}}, bits per byte, of a run that started from a model; its
                              folder `start` has that of the model itself, evaluation.json and general.json too
    <stage>/general.json      as evaluation.json: the questions of the start model's world
    <stage>/samples.jsonl     lines with step, prompt, text, seed

report.json holds the fields of `Report`, without the curves. Nothing here imports torch.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from onesitting.config import RunConfig, stage_config, step_tokens
from onesitting.errors import UserError
from onesitting.evaluation.curves import GOALS, Curve, Goal, draw_curves, short_number
from onesitting.evaluation.limits import describe_limits
from onesitting.evaluation.report_text import print_card, to_markdown
from onesitting.recipe import flat_values, load_recipe, resolve
from onesitting.runlog import RunFolder, StageFolder, read_jsonl, write_atomic

SUMMARY_KEYS = (
    "n_parameters",
    "steps",
    "tokens",
    "seconds",
    "seconds_setup",
    "tokens_per_s",
    "flops_per_token",
    "limit_flops_per_s",
    "fraction_of_limit",
    "peak_memory_bytes",
    "final_loss",
    "bits_per_byte",
    "budget_s",
    "real_token_fraction",
    "nonfinite_steps",
    "device",
    "dtype",
    "compiled",
)
POLICIES = ("grpo", "ppo")
CURVES_FILE = "curves.svg"
JSON_FILE = "report.json"
N_SAMPLES = 3  # of the last validation, a stage; more make a report that nobody reads to its end
BUDGET_BELOW, BUDGET_ABOVE = 0.05, 0.02  # a run keeps its budget if it ends within -5 % and +2 %


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """What one training stage left behind."""

    stage: str
    status: Literal["done", "unfinished", "not started"]
    numbers: dict[str, Any]
    """The keys of SUMMARY_KEYS; None where nothing was recorded."""
    suite: dict[str, dict[str, Any]]
    """Task -> n, correct, accuracy, ci_low, ci_high, baseline; empty if not evaluated."""
    samples: list[dict[str, Any]]
    """What the model wrote at its last validation."""
    preferences: dict[str, dict[str, Any]]
    """Measure -> its n, value, ci_low, ci_high `before` and `after` the stage; empty if not compared."""
    held_out: dict[str, dict[str, float]]
    """Measure -> value, in bits per byte, and n_bytes; empty for a run that did not start from a model."""
    general: dict[str, dict[str, Any]]
    """As `suite`: the questions of the world that the start model knew."""


@dataclass(frozen=True, kw_only=True)
class BudgetReport:
    """How far the time budget was kept."""

    setting: str
    """`budget` as given."""
    budget_s: float | None
    """Seconds allowed; None for a budget in tokens, or where it was not recorded."""
    actual_s: float | None
    """Seconds used by all phases together; None where none was recorded."""
    difference: float | None
    """(actual_s - budget_s) / budget_s, once all phases are done."""
    kept: bool | None
    """Whether the difference lies within -5 % and +2 %."""
    reasons: list[str]
    """Settings that may end a stage before its time is up."""
    phases: list[dict[str, Any]]
    """phase and seconds, in the order they ran; sittings of one phase added up."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the report card says."""

    name: str
    path: str
    config: dict[str, Any]
    """Dotted setting -> value."""
    stages: list[StageReport]
    before: StageReport
    """The model that the run started from, as measured before training; without any numbers if there was none."""
    budget: BudgetReport
    limits: list[str]
    """What the model cannot do, in plain words, from the measured scores."""
    missing: list[str]
    """What was not there when the report was written."""
    commands: list[tuple[str, str]]
    """(what it does, command): how to go on."""


def read_report(run: RunFolder, until: str = "") -> Report:
    """Collect a report from a run folder, or of its stages up to one. Raises UserError if it is no run's folder."""
    cfg = resolve(load_recipe(run.path.absolute()), {})
    names: list[str] = list(cfg.stages)
    if until in names:
        cfg = replace(cfg, stages=cfg.stages[: names.index(until) + 1])
    stages = [_read_stage(cfg, stage, run.stage(stage)) for stage in cfg.stages]
    finished = all(stage.status == "done" for stage in stages)
    budget = _read_budget(run, cfg, finished)
    return Report(
        name=cfg.name,
        path=str(run.path),
        config=flat_values(cfg),
        stages=stages,
        before=_read_stage(cfg, "start", run.stage("start")),
        budget=budget,
        limits=describe_limits(cfg, stages),
        missing=_missing(cfg, stages, budget),
        commands=_commands(run, cfg, stages, finished),
    )


def write_report(run: RunFolder) -> Path:
    """Write report.md, report.json and curves.svg into the run folder; the path of report.md comes back."""
    report = read_report(run)
    curves = [read_curve(run.stage(stage.stage)) for stage in report.stages]
    has_curves = any(curve.lr_factor or curve.bits_per_byte for curve in curves)
    if has_curves:
        write_atomic(run.path / CURVES_FILE, draw_curves(curves, picture_title(report)))
    write_atomic(
        run.path / JSON_FILE, json.dumps(_finite(asdict(report)), ensure_ascii=False, indent=1) + "\n"
    )
    write_atomic(run.report, to_markdown(report, CURVES_FILE if has_curves else None))
    return run.report


def print_report(run: RunFolder) -> None:
    """Print a compact report card to the terminal."""
    print_card(read_report(run))


def read_curve(folder: StageFolder) -> Curve:
    """The points that one stage adds to the picture; lines without a finite value are left out."""
    records = read_jsonl(folder.metrics_path)
    validations = [{"tokens": r.get("tokens"), **r["evaluation"]} for r in records if "evaluation" in r]
    name = folder.path.name
    return Curve(
        name=name,
        loss=[] if name in POLICIES else _points(records, "loss"),
        lr_factor=_points(records, "lr_factor"),
        bits_per_byte=_points(validations, "bits_per_byte"),
        goals=[
            Goal(title=title, training=_points(records, key), held_out=_points(validations, key))
            for title, key in GOALS.get(name, ())
            if records
        ],
    )


def picture_title(report: Report) -> str:
    """`demo · 2.4M parameters · budget 5m`."""
    sizes = [stage.numbers["n_parameters"] for stage in report.stages if stage.numbers["n_parameters"]]
    parts = [report.name, *(f"{short_number(size)} parameters" for size in sizes[:1])]
    return " · ".join([*parts, f"budget {report.budget.setting}"])


def is_number(value: object) -> bool:
    """True for a finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _points(records: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(r["tokens"], r[key]) for r in records if is_number(r.get(key)) and is_number(r.get("tokens"))]


def _read_stage(cfg: RunConfig, name: str, folder: StageFolder) -> StageReport:
    summary = _read_json(folder.path / "summary.json") or {}
    metrics = read_jsonl(folder.metrics_path)
    numbers = {key: summary.get(key) for key in SUMMARY_KEYS}
    if not summary and metrics:
        numbers |= _numbers_so_far(metrics)
    unknown = (
        numbers["real_token_fraction"] is None and name not in POLICIES
    )  # whose attempts have any length
    if unknown and numbers["steps"] and numbers["tokens"]:
        numbers["real_token_fraction"] = numbers["tokens"] / (numbers["steps"] * step_tokens(cfg, name))
    samples = read_jsonl(folder.samples_path)
    last_step = max((record.get("step", 0) for record in samples), default=0)
    return StageReport(
        stage=name,
        status="done" if summary else "unfinished" if metrics else "not started",
        numbers=numbers,
        suite=_read_suite(folder.path / "evaluation.json"),
        samples=[record for record in samples if record.get("step", 0) == last_step][:N_SAMPLES],
        preferences=_read_json(folder.path / "preferences.json") or {},
        held_out=_read_json(folder.path / "held_out.json") or {},
        general=_read_suite(folder.path / "general.json"),
    )


def _read_suite(path: Path) -> dict[str, dict[str, Any]]:
    """Task -> its numbers, without the examples."""
    suite = _read_json(path) or {}
    return {task: {k: v for k, v in result.items() if k != "examples"} for task, result in suite.items()}


def _numbers_so_far(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a stage without a summary: what its metrics alone say."""
    steps = [record for record in metrics if "loss" in record]
    bits = [r["evaluation"]["bits_per_byte"] for r in metrics if "bits_per_byte" in r.get("evaluation", {})]
    last = steps[-1] if steps else {}
    return {
        "steps": last.get("step"),
        "tokens": last.get("tokens"),
        "seconds": last.get("elapsed_s"),
        "final_loss": last.get("loss"),
        "bits_per_byte": bits[-1] if bits else None,
    }


def _read_budget(run: RunFolder, cfg: RunConfig, finished: bool) -> BudgetReport:
    timing = _read_json(run.path / "timing.json") or {}
    seconds: dict[str, float] = {}
    for entry in timing.get("phases", []):
        seconds[entry["phase"]] = seconds.get(entry["phase"], 0.0) + entry["seconds"]
    budget_s = timing.get("budget_s")
    actual_s = sum(seconds.values()) if seconds else None
    difference = None
    if finished and budget_s and actual_s is not None:
        difference = actual_s / budget_s - 1
    return BudgetReport(
        setting=cfg.budget,
        budget_s=budget_s,
        actual_s=actual_s,
        difference=difference,
        kept=None if difference is None else -BUDGET_BELOW <= difference <= BUDGET_ABOVE,
        reasons=_reasons_to_end_early(cfg),
        phases=[{"phase": phase, "seconds": spent} for phase, spent in seconds.items()],
    )


def _reasons_to_end_early(cfg: RunConfig) -> list[str]:
    tokens = {stage: stage_config(cfg, stage).tokens for stage in cfg.stages}
    given = [f"{stage}.tokens = {n}" for stage, n in tokens.items() if n]
    steps = {stage: getattr(stage_config(cfg, stage), "steps", 0) for stage in cfg.stages}
    given += [f"{stage}.steps = {n}" for stage, n in steps.items() if n]
    for stage in cfg.stages:
        epochs: float = 0.0 if stage in POLICIES else getattr(stage_config(cfg, stage), "max_epochs", 0.0)
        if epochs and not tokens[stage]:
            given.append(f"{stage}.max_epochs = {epochs:g}")
    return given


def _missing(cfg: RunConfig, stages: list[StageReport], budget: BudgetReport) -> list[str]:
    missing: list[str] = []
    for stage in stages:
        if stage.status != "done":
            missing.append(f"{stage.stage} is {stage.status}")
            continue
        asked = stage.suite or any(other.general for other in stages)
        if not asked and cfg.evaluation.suite != "none" and stage.stage != "reward":
            missing.append(f"no question suite was run on the model after {stage.stage}")
        if left_out := sum(result.get("left_out", 0) for result in stage.suite.values()):
            missing.append(
                f"no time for {left_out} questions after {stage.stage} (onesitting evaluate asks all)"
            )
        if stage.numbers["bits_per_byte"] is None and stage.stage in ("pretrain", "sft"):
            missing.append(f"no bits per byte were measured for {stage.stage}")
        if not stage.samples and stage.stage != "reward":
            missing.append(f"no samples were written during {stage.stage}")
    if budget.actual_s is None:
        missing.append("no timing was recorded")
    return missing


def _commands(
    run: RunFolder, cfg: RunConfig, stages: list[StageReport], finished: bool
) -> list[tuple[str, str]]:
    commands: list[tuple[str, str]] = []
    if not finished:
        commands.append(("Go on where it stopped", f"onesitting run {run.path}"))
    if stages and stages[-1].stage != "pretrain" and stages[-1].status == "done":
        commands.append(("Talk to it", f"onesitting chat {run.path}"))
    if any(stage.status == "done" for stage in stages):
        commands.append(("Let it continue a text", f'onesitting generate {run.path} --prompt "Once"'))
    if finished and cfg.budget.startswith("tokens="):
        commands.append(
            ("Train on more", f"onesitting run {run.path} --name {cfg.name}-more --budget tokens=…")
        )
    elif finished:
        commands.append(("Train longer", f"onesitting run {run.path} --name {cfg.name}-long --budget 1h"))
    commands.append(("See what it was trained on", f"onesitting inspect batch {run.path}"))
    return commands


def _read_json(path: Path) -> Any:
    """Content of a JSON file, None if there is none. Raises UserError if it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it and run the stage's evaluation again"
        ) from None


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as None: JSON has no words for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
