"""How large a model the budget trains best on this machine: `size = "auto"`."""

import os
from pathlib import Path

from onesitting.config import RunConfig
from onesitting.dial import best_shape, parse_size, size_text
from onesitting.errors import UserError
from onesitting.plan import make_plan, text_bytes
from onesitting.recipe import load_recipe
from onesitting.runlog import RunFolder

BYTES_PER_TOKEN = 3.5
"""Of prose and a vocabulary of some thousand entries."""
USEFUL_PASSES = 4.0
"""Over the text; later ones teach little (Muennighoff et al. 2023, arXiv:2305.16264)."""


def chosen_size(cfg: RunConfig) -> str:
    """The size, as a setting; a run that was begun keeps its own.

    Raises UserError where no pretraining is to be done, whose time the size depends on.
    """
    run = RunFolder(Path(cfg.out).expanduser() / cfg.name)
    if run.config_path.exists():
        return str(load_recipe(run.path.absolute()).get("size") or "auto")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "size = auto is measured by one process: run `onesitting plan` with the same settings, "
            "and give the size that it names"
        )
    if "pretrain" not in cfg.stages or cfg.start_from:
        raise UserError("size = auto needs a pretraining to divide the budget by; give a size such as 5M")
    plan = make_plan(cfg)  # at the nominal size
    stage = next(stage for stage in plan.stages if stage.name == "pretrain")
    nominal = parse_size("auto")
    work = stage.tokens * plan.flops_per_token / nominal.flops * nominal.work
    n_bytes = text_bytes(cfg, "pretrain")
    tokens = float("inf") if n_bytes is None else USEFUL_PASSES * n_bytes / BYTES_PER_TOKEN
    return size_text(best_shape(work, tokens))
