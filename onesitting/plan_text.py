"""A plan on the terminal."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from onesitting.config import SHARED_SECTIONS
from onesitting.evaluation.curves import short_number
from onesitting.evaluation.report_text import duration, percent

if TYPE_CHECKING:
    from onesitting.plan import Plan, StagePlan


def show_plan(plan: "Plan", recipe: str, console: Console | None = None, now: datetime | None = None) -> None:
    """Print a plan. recipe: as it was given; now: when the run would start."""
    console = console or Console(highlight=False, soft_wrap=True)
    now = now or datetime.now()
    console.print(Text(f"plan for {plan.name}", style="bold"))
    _rows(console, _facts(plan))
    console.print()
    width = max(len(phase) for phase, _ in plan.phases)
    end = now
    stages = {stage.name: stage for stage in plan.stages}
    console.print(Text(f"{'phase':<{width}}   takes about   ends", style="bold"))
    for phase, seconds in plan.phases:
        end += timedelta(seconds=seconds)
        detail = _detail(stages[phase]) if phase in stages else ""
        line = f"{phase:<{width}}  {duration(seconds):>12}   {_clock(end, now)}   {detail}"
        console.print(Text(line.rstrip()))
    line = f"{'all':<{width}}  {duration(plan.seconds):>12}   {_clock(end, now)}   {_promise(plan)}"
    console.print(Text(line, style="bold"))
    for warning in plan.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))
    console.print(
        f"Nothing was started. Start it with [bold]onesitting run {recipe}[/bold] and the same settings."
    )


def _facts(plan: "Plan") -> list[tuple[str, str]]:
    speed = plan.stages[0].tokens_per_s
    used = speed * plan.flops_per_token / plan.limit_flops_per_s if plan.limit_flops_per_s else None
    mixture = plan.n_active_parameters < plan.n_parameters
    active = f" ({plan.n_active_parameters:,} work on a token)" if mixture else ""
    share = "" if used is None else f", {percent(used)} of the limit"
    memory = (
        f"about {plan.memory_bytes / 1e9:.1f} GB of {plan.memory_available_bytes / 1e9:.1f} GB that are free"
    )
    disk = f"about {plan.disk_bytes / 1e9:.2g} GB of {plan.disk_free_bytes / 1e9:.0f} GB that are free"
    return [
        ("folder", str(plan.folder)),
        ("device", plan.device),
        *(("", reason) for reason in plan.reasons),
        ("model", f"{plan.n_parameters:,} parameters{active}, vocabulary {plan.vocab_size:,}"),
        ("", f"{plan.flops_per_token / 1e6:,.1f} MFLOP a token, forward and backward"),
        ("speed", f"{speed:,.0f} tokens a second{share}"),
        ("", plan.speed_source),
        ("memory", memory),
        ("disk", disk),
        ("bits per byte", plan.bits_per_byte),
    ]


def _detail(stage: "StagePlan") -> str:
    """Tokens, steps and passes of a stage; how long a model's own attempts will be is not known before."""
    if stage.name in SHARED_SECTIONS["rl"]:
        attempts = stage.step_tokens // stage.row_length
        return f"at least {stage.steps:,} steps of {attempts} attempts: so many if each filled the context"
    passes = "" if stage.passes is None else f" · {stage.passes:.1f} passes"
    rows = f"{stage.step_tokens // stage.row_length} rows of {stage.row_length}"
    return f"{short_number(stage.tokens)} tokens · {stage.steps:,} steps of {rows}{passes}"


def _promise(plan: "Plan") -> str:
    if plan.budget_s is None:
        return "no time budget: it ends when the tokens are done"
    return f"of a budget of {duration(plan.budget_s)}"


def _clock(end: datetime, now: datetime) -> str:
    """Hours and minutes, with the date where it is another day."""
    return end.strftime("%H:%M:%S" if end.date() == now.date() else "%Y-%m-%d %H:%M")


def _rows(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.print(Text.assemble((f"{name:<{width}}  ", "bold"), value))
