"""With which settings a run folder may be continued, and how a stage is added to a finished run."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from onesitting.budgets import Budget, parse_budget
from onesitting.config import SHARED_SECTIONS, RunConfig, StageName, stage_config
from onesitting.errors import UserError
from onesitting.recipe import flat_values, load_recipe, resolve, write_config
from onesitting.runlog import RunFolder

MAY_CHANGE = (
    "log.",
    "checkpoint.",
    "evaluation.",
    "device.",
    "corpus.cache",
    "corpus.workers",
    "out",
    "name",
)
"""Settings with which a run can be continued although they differ from its config.toml."""

ADAPTER_SETTINGS = ("lora.", "optim.adapter_lr")
"""Settings that belong to the stage that is about to begin: stages before it may have trained all weights."""

ADDED_DATA: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("preferences", "corpus.world_pairs"), ("dpo", "reward")),
    (("chat",), ("pretrain", "sft", "distill")),
)
"""Settings of data and the stages that read it: a stage that is added to a run may learn from other data."""


def own_budget(cfg: RunConfig, stage: str) -> Budget | None:
    """The budget of a stage that was added to a run; None for one that shares the run's."""
    text = stage_config(cfg, stage).budget if stage in get_args(StageName) else ""
    return parse_budget(text) if text else None


def total_seconds(cfg: RunConfig) -> float | None:
    """Seconds of the run and of the stages added to it; None where one of them has none."""
    budgets = [parse_budget(cfg.budget), *(own_budget(cfg, stage) for stage in cfg.stages)]
    seconds = [budget.seconds for budget in budgets if budget is not None]
    return None if None in seconds else sum(s or 0.0 for s in seconds)


def stage_tokens(cfg: RunConfig, name: str) -> int | None:
    """Tokens for one stage, where they are given: its own setting, else its share of `tokens=…`."""
    settings, own, budget = stage_config(cfg, name), own_budget(cfg, name), parse_budget(cfg.budget)
    if settings.tokens:
        return settings.tokens
    if own is not None or budget.tokens is None:
        return own.tokens if own else None
    first = cfg.stages[0]  # the budget is that of the first stage; the others follow by their shares
    return (
        budget.tokens
        if name == first
        else round(budget.tokens * settings.share / stage_config(cfg, first).share)
    )


def has_suite(cfg: RunConfig) -> bool:
    """Whether the world's question suite is asked."""
    suite = cfg.evaluation.suite
    return suite == "world" or (suite == "auto" and "world" in (*cfg.data, *cfg.chat))


def check_enough(cfg: RunConfig, n_tokens: int) -> None:
    """Refuse to go on from a model with so little text that not one row can be filled."""
    row = cfg.pretrain.context_length or cfg.model.context_length
    if cfg.start_from and n_tokens < row:
        raise UserError(
            f"data = {', '.join(cfg.data)}: {n_tokens} tokens to train on, less than one row of {row}: a model learns "
            "nothing from so little; give more text, or fine-tune alone with --stages sft"
        )


def n_passes(stages: Sequence[str]) -> float:
    """Evaluations of these stages, in passes of the suite: dpo's comparison is 0.8 of one, a reward model has none."""
    return sum({"dpo": 1.8, "reward": 0.0}.get(stage, 1.0) for stage in stages)


def check_adapters(cfg: RunConfig, stages: Sequence[str], folder: RunFolder) -> None:
    """Refuse to train a reward model where an adapter is asked for: it trains all weights, a new layer among them."""
    done = (folder.stage("reward").path / "summary.json").is_file()
    if cfg.lora.rank and "reward" in stages and not done:
        raise UserError(
            f"lora.rank = {cfg.lora.rank}: a reward model trains all weights. Train it with `onesitting reward … "
            "--lora.rank 0`; a run with adapters asks it with --rl.judge"
        )


def remarks(cfg: RunConfig, name: str, n_experts: int) -> list[str]:
    """What may surprise in a stage with these settings, a sentence each. n_experts: of its model."""
    found: list[str] = []
    if cfg.lora.rank and n_experts:
        found.append(
            f"lora.rank = {cfg.lora.rank}: experts and routers get no adapter and stay as they are (docs/moe.md)"
        )
    if name == "grpo" and cfg.grpo.ratio == "sequence" and cfg.grpo.aggregation == "token":
        found.append(
            "grpo.ratio = sequence with grpo.aggregation = token: longer attempts weigh more than in GSPO, which is "
            "grpo.aggregation=sequence"
        )
    return found


def with_stage(cfg: RunConfig, only: tuple[str, ...]) -> RunConfig:
    """The configuration for the command of one stage, which adds the stage to a run that does not have it.

    A stage that is added has a budget of its own: `--budget`, or else as much as the run had.
    """
    name = only[0] if only else ""
    if name not in get_args(StageName):
        return cfg
    folder = RunFolder(Path(cfg.out).expanduser() / cfg.name)
    if not folder.config_path.exists():
        if name in cfg.stages:
            return cfg
        if not cfg.start_from and name != "distill":  # a student may begin with random weights
            raise UserError(
                f"{folder.path} holds no run whose model {name} could start from: train one with "
                "`onesitting run …` first, or name a model with --from"
            )
        return replace(cfg, stages=(name,))
    there = resolve(load_recipe(folder.path.absolute()))
    if name in there.stages and not stage_config(there, name).budget:
        return cfg if name in cfg.stages else replace(cfg, stages=there.stages)
    before = stage_config(there, name).budget
    budget = before if before and cfg.budget == there.budget else cfg.budget
    settings = replace(getattr(cfg, name), budget=budget)
    stages = there.stages if name in there.stages else (*there.stages, name)
    return replace(cfg, budget=there.budget, stages=stages, **{name: settings})


def claim(folder: RunFolder, cfg: RunConfig) -> None:
    """Make the run folder and its config.toml; refuse a folder that holds a run with other settings.

    What only stages read that have not begun may still change, and stages may be added behind the others.
    """
    folder.create()
    if not folder.config_path.exists():
        write_config(cfg, folder.config_path)
        return
    there, here = flat_values(resolve(load_recipe(folder.path.absolute()))), flat_values(cfg)
    begun = [stage for stage in cfg.stages if folder.stage(stage).metrics_path.exists()]
    free = _sections((stage for stage in get_args(StageName) if stage not in begun), begun)
    coming = _sections((stage for stage in cfg.stages if stage not in begun), begun)
    if coming:  # each stage's own are in its summary.json
        added = ADAPTER_SETTINGS
        under_way = {s for s in begun if not (folder.stage(s).path / "summary.json").is_file()}
        for settings, readers in ADDED_DATA:
            if set(cfg.stages).difference(begun) & set(readers) and not under_way & set(readers):
                added += settings
        free, coming = (*free, *added), (*coming, *added)
    changed = {name: value for name, value in here.items() if value != there.get(name)}
    longest = max(there["stages"], here["stages"], key=len)
    if (
        longest[: len(there["stages"])] == there["stages"]
        and longest[: len(here["stages"])] == here["stages"]
    ):
        changed.pop("stages", None)
    differing = [
        f"{name} is {there.get(name)!r} there and {value!r} here"
        for name, value in changed.items()
        if not name.startswith((*MAY_CHANGE, *free))
    ]
    if differing:
        raise UserError(
            f"{folder.path} holds a run with other settings: {'; '.join(differing[:4])}. Start another run with "
            f"--name, or continue this one with `onesitting run {folder.path}`"
        )
    fresh = {name: value for name, value in changed.items() if name.startswith(coming)}
    if fresh or longest != there["stages"]:
        write_config(resolve({**there, **fresh, "stages": longest}), folder.config_path)


def _sections(stages: Iterable[str], begun: Sequence[str]) -> tuple[str, ...]:
    """Beginnings of the names of the settings of these stages that none of the begun ones reads: `grpo.`, `rl.`, …"""
    names = set(stages)
    shared = {
        section
        for section, readers in SHARED_SECTIONS.items()
        if names.intersection(readers) and not set(begun).intersection(readers)
    }
    return tuple(f"{section}." for section in sorted(names | shared))
