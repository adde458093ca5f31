"""What follows from budget and machine together: the size of `size = "auto"`, and smaller steps for few tokens."""

import os
from pathlib import Path
from typing import Any

from onesitting.budgets import parse_budget
from onesitting.config import RunConfig, stage_config
from onesitting.dial import best_shape, parse_size, size_text
from onesitting.errors import UserError
from onesitting.plan import make_plan, text_bytes
from onesitting.recipe import flat_values, load_recipe, resolve
from onesitting.runlog import RunFolder

N_LOOKS = 2
"""At the machine: with a usual size, then with the one that this makes best, as no rule says how speeds differ."""
BYTES_PER_TOKEN = 3.5
"""Of prose and a vocabulary of some thousand entries."""
USEFUL_PASSES = 4.0
"""Over the text; later ones teach little (Muennighoff et al. 2023, arXiv:2305.16264)."""


def chosen_size(cfg: RunConfig) -> str:
    """The size, as a setting; a run that was begun keeps its own.

    Raises UserError where no pretraining is to be done, whose time the size depends on.
    """
    run = _begun_run(cfg)
    if run.config_path.exists():
        return str(load_recipe(run.path.absolute()).get("size") or "auto")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "size = auto is measured by one process: run `onesitting plan` with the same settings, "
            "and give the size that it names"
        )
    if "pretrain" not in cfg.stages or cfg.start_from:
        raise UserError("size = auto needs a pretraining to divide the budget by; give a size such as 5M")
    n_bytes = text_bytes(cfg, "pretrain")
    tokens = float("inf") if n_bytes is None else USEFUL_PASSES * n_bytes / BYTES_PER_TOKEN
    shape = parse_size("auto")
    for _ in range(N_LOOKS):  # shapes given beside the size are left out: this is about its speed
        plan = make_plan(resolve(flat_values(cfg) | shape.settings()))
        stage = next(stage for stage in plan.stages if stage.name == "pretrain")
        work = stage.tokens * plan.flops_per_token / shape.flops * shape.work
        shape = best_shape(work, tokens)
    return size_text(shape)


def with_fitting_steps(cfg: RunConfig) -> RunConfig:
    """The configuration whose stages with `smaller_steps` have steps that suit their tokens; a run that was begun
    keeps its own. With several processes, each of which would measure for itself, steps stay as they are."""
    shrinks = _stages_that_shrink(cfg)
    if not shrinks or _begun_run(cfg).config_path.exists():
        return with_kept_steps(cfg)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return cfg
    chosen: dict[str, Any] = {}
    measure = False if parse_budget(cfg.budget).tokens else None  # given tokens need no speed
    plan = make_plan(cfg, measure=measure, must_fit=False)  # an estimate refuses nothing
    for stage in plan.stages:
        if stage.name in shrinks:
            chosen |= {f"{stage.name}.step_tokens": stage.step_tokens, f"{stage.name}.smaller_steps": False}
    return resolve(flat_values(cfg) | chosen)


def with_kept_steps(cfg: RunConfig) -> RunConfig:
    """The configuration with the steps that a begun run of this name has; as it is where there is none."""
    shrinks, run = _stages_that_shrink(cfg), _begun_run(cfg)
    if not shrinks or not run.config_path.exists():
        return cfg
    there = flat_values(resolve(load_recipe(run.path.absolute())))
    names = [f"{stage}.{name}" for stage in shrinks for name in ("step_tokens", "smaller_steps")]
    return resolve(flat_values(cfg) | {name: there[name] for name in names})


def _begun_run(cfg: RunConfig) -> RunFolder:
    return RunFolder(Path(cfg.out).expanduser() / cfg.name)


def _stages_that_shrink(cfg: RunConfig) -> list[str]:
    return [stage for stage in cfg.stages if getattr(stage_config(cfg, stage), "smaller_steps", False)]
