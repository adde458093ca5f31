"""What a run would do here, before anything runs: device, size, speed, memory, phases, end.

Everything is computed from the configuration, from a short measurement of this machine's matrix products, and from
the speed of a similar run or of a few training steps now. What is not known is said to be not known.
"""

import math
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import torch

from onesitting import budgets
from onesitting.budgets import parse_budget
from onesitting.checks import check_config
from onesitting.clock import CLOSING_S
from onesitting.config import ModelConfig, RunConfig, StageConfig, stage_config, step_tokens
from onesitting.data.ngrams import N_TRIPLES
from onesitting.data.sources import expand
from onesitting.dial import fitting_step
from onesitting.errors import UserError
from onesitting.evaluation.curves import short_number
from onesitting.evaluation.report_text import duration
from onesitting.model.flops import (
    count_active_parameters,
    count_parameters,
    flops_per_token,
    training_memory_bytes,
)
from onesitting.plan_speed import expected_speed
from onesitting.plan_text import show_plan
from onesitting.rewards import check_rl
from onesitting.runlog import RunFolder
from onesitting.stages import bigrams
from onesitting.stages.pretrain import counting, ngram_part
from onesitting.start import with_start_model
from onesitting.train.device import DevicePlan, plan_device
from onesitting.train.hardware import detect
from onesitting.train.limit import measure_matrix_limit

# Speeds for estimates, measured on two cores of an AMD EPYC (Zen 4); a run's own are in its timing.json.
START_S = 4.0  # Python, torch and the first look at the machine
WORLD_BYTES_PER_S = 5.0e6
TOKENIZER_BYTES_PER_S = 2.5e6
PREPARE_BYTES_PER_S = 8.0e6
COUNTED_PER_S = 1.2e7  # triples of tokens
WORLD_PAIR_BYTES = 1300.0  # both conversations of a pair, their prompt twice
BYTES_PER_TOKEN = 3.5  # of English prose with a few thousand entries; a run's own is in tokens.json
COMPRESSION = {".gz": 3.0, ".zst": 3.0, ".parquet": 2.0}  # text bytes in a byte of such a file, about

BASE_BYTES = 0.5e9  # Python, torch and the pages of the token files that are in use
MAX_PASSES = 4  # more passes over the same text add little: Muennighoff et al. 2023, arXiv:2305.16264


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One training stage."""

    name: str
    seconds: float
    tokens: int
    """Expected in a time budget, exact with given tokens."""
    step_tokens: int
    row_length: int
    micro_batch_rows: int
    tokens_per_s: float
    passes: float | None
    """How often its text is read; None where the amount of text is not known."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.step_tokens


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would happen."""

    name: str
    folder: Path
    device: str
    reasons: tuple[str, ...]
    n_parameters: int
    n_active_parameters: int
    """Those that work on one token: fewer than all in a mixture of experts."""
    vocab_size: int
    flops_per_token: float
    limit_flops_per_s: float
    speed_source: str
    """Where tokens_per_s comes from, in words."""
    stages: list[StagePlan]
    phases: list[tuple[str, float]]
    """(phase, expected seconds), in order; those that are done already are left out."""
    budget_s: float | None
    memory_bytes: float
    memory_available_bytes: int
    disk_bytes: float
    disk_free_bytes: int
    bits_per_byte: str
    """A measured value with where it comes from, or why it is not known."""
    warnings: list[str]

    @property
    def seconds(self) -> float:
        """Expected seconds of everything."""
        return sum(seconds for _, seconds in self.phases)


def make_plan(cfg: RunConfig, *, measure: bool | None = None, must_fit: bool = True) -> Plan:
    """The plan for a configuration on this machine.

    measure: whether a few steps of the real model are timed; None: where no similar run is known.
    must_fit: refuse a time budget that is expected to leave nothing to train in; else a second is taken to be left.
    Raises UserError for every setting that the run itself would refuse at its start.
    """
    cfg = with_start_model(cfg)
    check_config(cfg)
    check_rl(cfg)
    budget = parse_budget(cfg.budget)
    model = replace(cfg.model, vocab_size=cfg.model.vocab_size or -(-_vocab_size(cfg) // 64) * 64)
    device = plan_device(cfg.device, detect()).for_model(model)
    device.apply()
    limit = measure_matrix_limit(device, model)
    run = RunFolder(Path(cfg.out).expanduser() / cfg.name)
    phases = _phases_before(cfg, run)
    length = cfg.pretrain.context_length or model.context_length
    flops = flops_per_token(model, length)
    speed = expected_speed(cfg, model, device, limit, flops, measure)
    if counting_s := _counting_seconds(cfg, model, device, limit):
        phases.append(("n-grams", counting_s))
    stages = _stages(cfg, model, device, speed.tokens_per_s, phases, must_fit)
    suite_s = suite_seconds(cfg)
    for stage in stages:
        phases.append((stage.name, stage.seconds))
        if suite_s:
            phases.append((f"evaluate {stage.name}", suite_s))
    phases.append(("report", CLOSING_S))
    n_parameters = count_parameters(model)
    memory = _memory_bytes(model, device, stages)
    free = shutil.disk_usage(next(p for p in (run.path, *run.path.absolute().parents) if p.exists())).free
    plan = Plan(
        name=cfg.name,
        folder=run.path,
        device=device.describe(),
        reasons=device.reasons,
        n_parameters=n_parameters,
        n_active_parameters=count_active_parameters(model),
        vocab_size=model.vocab_size,
        flops_per_token=flops,
        limit_flops_per_s=limit,
        speed_source=speed.source,
        stages=stages,
        phases=phases,
        budget_s=budget.seconds,
        memory_bytes=memory,
        memory_available_bytes=available_memory_bytes(device),
        disk_bytes=_disk_bytes(cfg, n_parameters),
        disk_free_bytes=free,
        bits_per_byte=expected_bits_per_byte(cfg, n_parameters, stages),
        warnings=[],
    )
    return replace(plan, warnings=find_warnings(plan))


def print_plan(cfg: RunConfig, recipe: str, measure: bool = False) -> None:
    """Print the plan; recipe: as it was given, for the command that starts the run."""
    show_plan(make_plan(cfg, measure=measure or None), recipe)


def _vocab_size(cfg: RunConfig) -> int:
    """Entries of the tokenizer that the run has, is given, or will train."""
    from onesitting.tokenizer.bpe import Tokenizer

    run = RunFolder(Path(cfg.out).expanduser() / cfg.name)
    for folder in (run.tokenizer, Path(cfg.tokenizer.path).expanduser() if cfg.tokenizer.path else None):
        if folder is not None and (folder / "tokenizer.json").is_file():
            return Tokenizer.load(folder).vocab_size
    return cfg.tokenizer.vocab_size


def _row_length(settings: StageConfig, model: ModelConfig) -> int:
    return settings.context_length or model.context_length


def text_bytes(cfg: RunConfig, stage: str) -> float | None:
    """Bytes of a stage's text, estimated from the sizes of files; None where a hub holds some of it."""
    total = 0.0
    told = cfg.corpus.world_mb * 1e6
    read = {  # stage -> what it reads, bytes of that if the world writes it (it talks half as much as it tells)
        "pretrain": (cfg.data, told),
        "sft": (cfg.chat, told / 2),
        "distill": (cfg.chat, told / 2),
        "dpo": (cfg.preferences, cfg.corpus.world_pairs * WORLD_PAIR_BYTES),
        "reward": (cfg.preferences, cfg.corpus.world_pairs * WORLD_PAIR_BYTES),
    }
    specs, world_bytes = read.get(stage, ((), 0.0))  # the others make their own
    for spec in specs:
        if spec.startswith("hub:"):
            return None
        if spec == "world":
            total += world_bytes
        else:
            total += sum(path.stat().st_size * COMPRESSION.get(path.suffix, 1.0) for path in expand(spec))
    return total


def _phases_before(cfg: RunConfig, run: RunFolder) -> list[tuple[str, float]]:
    """Start, tokenizer and preparation, each unless the run folder has its result."""
    phases = [("start", START_S)]
    if not cfg.tokenizer.path and not (run.tokenizer / "tokenizer.json").is_file():
        size = min(cfg.tokenizer.train_mb * 1e6, text_bytes(cfg, "pretrain") or math.inf)
        writing_s = size / WORLD_BYTES_PER_S if "world" in cfg.data else 0.0
        phases.append(("tokenizer", writing_s + size / TOKENIZER_BYTES_PER_S))
    seconds = 0.0
    prepared = (
        ("pretrain", cfg.data, "text"),
        ("sft", cfg.chat, "chat"),
        ("dpo", cfg.preferences, "preferences"),
    )
    for stage, specs, folder in prepared:
        if stage in cfg.stages and not (run.data / folder).exists():
            size = text_bytes(cfg, stage) or 0.0
            seconds += size / PREPARE_BYTES_PER_S + (size / WORLD_BYTES_PER_S if "world" in specs else 0.0)
    if seconds:
        phases.append(("prepare", seconds))
    return phases


def _counting_seconds(cfg: RunConfig, model: ModelConfig, device: DevicePlan, limit: float) -> float:
    """What a new model is not taught but counted: pairs with the fit to them, and triples."""
    if "pretrain" not in cfg.stages or cfg.start_from:
        return 0.0
    part = counting(cfg)
    fit_s = bigrams.expected_seconds(model, round(part * cfg.pretrain.bigram_steps), limit)
    n_tokens = min(part * N_TRIPLES, (text_bytes(cfg, "pretrain") or math.inf) / BYTES_PER_TOKEN)
    return fit_s + (n_tokens / COUNTED_PER_S if ngram_part(cfg, device) else 0.0)


def suite_seconds(cfg: RunConfig) -> float:
    """Seconds that the run keeps for one pass of the question suite."""
    suite = cfg.evaluation.suite
    if suite == "none" or (suite == "auto" and "world" not in (*cfg.data, *cfg.chat)):
        return 0.0
    return budgets.suite_seconds(parse_budget(cfg.budget).seconds)


def _stages(
    cfg: RunConfig,
    model: ModelConfig,
    device: DevicePlan,
    speed: float,
    before: Sequence[tuple[str, float]],
    must_fit: bool,
) -> list[StagePlan]:
    """Each stage with its tokens: those given, or what its share of the remaining time allows."""
    budget = parse_budget(cfg.budget)
    parts = {name: stage_config(cfg, name) for name in cfg.stages}
    shares = {name: part.share for name, part in parts.items()}
    before_s = sum(seconds for _, seconds in before)
    left = (budget.seconds or 0.0) - before_s - CLOSING_S - suite_seconds(cfg) * len(cfg.stages)
    if budget.seconds is not None and must_fit and left < 1.0:
        raise UserError(
            f"budget = {cfg.budget!r}: about {budget.seconds - left:.0f} s go into tokenizer, data and evaluation, "
            "and nothing is left to train in; give a larger budget"
        )
    left = max(1.0, left)
    stages: list[StagePlan] = []
    for name in cfg.stages:
        settings = parts[name]
        row_length = _row_length(settings, model)
        tokens = settings.tokens or getattr(settings, "steps", 0) * step_tokens(cfg, name)
        if not tokens and budget.tokens is not None:
            share = 1.0 if name == cfg.stages[0] else settings.share / shares[cfg.stages[0]]
            tokens = round(budget.tokens * share)
        tokens = tokens or round(left * shares[name] / sum(shares.values()) * speed)
        available = text_bytes(cfg, name)
        passes = tokens * BYTES_PER_TOKEN / available if available else None
        max_epochs: float = getattr(settings, "max_epochs", 0.0)
        if passes and max_epochs and passes > max_epochs:
            tokens, passes = round(tokens * max_epochs / passes), max_epochs
        step = step_tokens(cfg, name)
        if getattr(settings, "smaller_steps", False):
            step = fitting_step(tokens, model.d_model, row_length, step)
        tokens = max(1, tokens // step) * step
        stages.append(
            StagePlan(
                name=name,
                seconds=tokens / speed,
                tokens=tokens,
                step_tokens=step,
                row_length=row_length,
                micro_batch_rows=device.micro_batch_rows(
                    row_length, settings.micro_batch_rows, max(1, step // row_length)
                ),
                tokens_per_s=speed,
                passes=passes,
            )
        )
    return stages


def _memory_bytes(model: ModelConfig, device: DevicePlan, stages: Sequence[StagePlan]) -> float:
    """Expected peak: parameters with their optimizer state, activations of one forward pass, and the rest."""
    base = BASE_BYTES if device.device == "cpu" else 0.0
    return base + max(
        training_memory_bytes(
            model, min(s.micro_batch_rows, s.step_tokens // s.row_length), s.row_length, device.dtype
        )
        for s in stages
    )


def available_memory_bytes(device: DevicePlan) -> int:
    """Memory that is free now, on the device that trains."""
    if device.device == "cuda":
        return torch.cuda.mem_get_info()[0]
    hardware = detect()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return hardware.ram_bytes
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return min([*free, hardware.ram_bytes])


def _disk_bytes(cfg: RunConfig, n_parameters: int) -> float:
    """Checkpoints that are kept (and one being written) with their state, final models, token files."""
    checkpoints = (cfg.checkpoint.keep_last + 2) * 12 * n_parameters
    texts = sum(text_bytes(cfg, stage) or 0.0 for stage in cfg.stages)
    return len(cfg.stages) * (checkpoints + 4 * n_parameters) + texts / BYTES_PER_TOKEN * 2


def expected_bits_per_byte(cfg: RunConfig, n_parameters: int, stages: Sequence[StagePlan]) -> str:
    """What a measured run of this size on this text reached, or that none is known.

    Only runs with the same text and parameter count, and between half and twice the tokens, are spoken of.
    """
    entries = tomllib.loads((resources.files("onesitting") / "measured.toml").read_text(encoding="utf-8"))
    tokens = next((stage.tokens for stage in stages if stage.name == "pretrain"), 0)
    fitting = [
        entry
        for entry in entries.get("run", [])
        if tuple(entry["data"]) == cfg.data
        and entry["n_parameters"] == n_parameters
        and 0.5 <= entry["tokens"] / max(1, tokens) <= 2
    ]
    if not fitting:
        return "not known: no run of this size on this text was measured"
    nearest = min(fitting, key=lambda entry: abs(entry["tokens"] - tokens))
    return f"about {nearest['bits_per_byte']:.2f}: measured after {short_number(nearest['tokens'])} tokens"


def find_warnings(plan: Plan) -> list[str]:
    """What may go wrong or be a waste, each with what to change."""
    found: list[str] = []
    if plan.memory_bytes > plan.memory_available_bytes:
        found.append(
            f"memory: about {plan.memory_bytes / 1e9:.1f} GB are needed and {plan.memory_available_bytes / 1e9:.1f} "
            "are free; lower pretrain.micro_batch_rows or choose a smaller model"
        )
    if plan.disk_bytes > plan.disk_free_bytes:
        found.append(
            f"disk: about {plan.disk_bytes / 1e9:.1f} GB are needed and {plan.disk_free_bytes / 1e9:.1f} are free; "
            "lower checkpoint.keep_last or choose another place with --out"
        )
    for stage in plan.stages:
        if stage.steps < 100 and stage.name in ("pretrain", "sft"):
            found.append(
                f"{stage.name}: only {stage.steps} steps; give a larger budget or lower {stage.name}.step_tokens"
            )
        if stage.name == "pretrain" and stage.passes and stage.passes > MAX_PASSES:
            found.append(
                f"pretrain: the text is read {stage.passes:.0f} times; more than {MAX_PASSES} passes add little, "
                "so more text would help more than more time"
            )
    if plan.budget_s and plan.seconds < 0.95 * plan.budget_s:
        found.append(
            f"time: {duration(plan.budget_s - plan.seconds)} of the budget are left over, for given tokens or "
            "sft.max_epochs end a stage early; raise pretrain.share or give more conversations"
        )
    if plan.budget_s is None and plan.seconds > 24 * 3600:
        found.append(f"time: about {duration(plan.seconds)}; give a time budget, or fewer tokens")
    return found
