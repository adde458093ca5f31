"""`onesitting bench train`: how fast the real training loop runs here, and where its time goes.

The steps are those of `train.loop.Loop`, the loop of every run: same batches, loss, optimizer and prefetching. Speed
is measured with the stopwatch off, the parts with it on.
"""

import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from onesitting.bench.corpus import bench_corpus
from onesitting.bench.limit import describe_machine, sized_model
from onesitting.bench.processes import tree_memory_bytes
from onesitting.bench.tables import aligned
from onesitting.checks import check_config
from onesitting.config import RunConfig
from onesitting.model.flops import count_matrix_parameters, count_parameters, flops_per_token
from onesitting.model.transformer import Transformer
from onesitting.runlog import StageFolder, write_atomic
from onesitting.stages.pretrain import PretrainStage, count_ngrams
from onesitting.train.budget import StepTarget
from onesitting.train.device import detect, plan_device
from onesitting.train.distributed import Ranks
from onesitting.train.limit import CACHE, measure_matrix_limit
from onesitting.train.loop import FitSettings, Loop
from onesitting.train.probe import measured_plan
from onesitting.train.usage import peak_memory_bytes, reset_peak_memory

LONG_STEP_S = 2.0
"""Steps that take longer are measured in smaller numbers: a large model on a processor needs minutes otherwise."""
PARTS = ("data", "forward", "backward", "optimizer")
MEASURE_S = 10.0
"""Seconds of counted steps where their number is not given."""


@dataclass(frozen=True, kw_only=True)
class TrainSpeed:
    """What was measured; seconds are of one optimizer step."""

    recipe: str
    data: str
    n_parameters: int
    row_length: int
    step_tokens: int
    micro_batch_rows: int
    compiled: bool
    n_steps: int
    first_step_s: float
    """The first step: compilation, where it is on, and warming up."""
    step_s: float
    """Mean of the counted steps."""
    best_step_s: float
    tokens_per_s: float
    flops_per_token: float
    """Forward and backward, attention included."""
    flops_per_s: float
    limit_flops_per_s: float
    fraction_of_limit: float
    fraction_of_limit_6n: float
    """With 6 operations for each matrix parameter and token, attention left out."""
    parts_s: dict[str, float]
    """data: waiting for the batch that a thread makes; other: the loop's own work."""
    batch_s: float
    """Making one step's batches, with nothing else running."""
    memory_before_bytes: int
    """Of the process before the model was made: Python, libraries, data. 0 on a GPU."""
    peak_memory_bytes: int


def bench_train(
    cfg: RunConfig,
    *,
    steps: int = 0,
    profile_to: Path | None = None,
    save: Path | None = None,
    cache: Path = CACHE,
) -> dict[str, Any]:
    """Measure, print, and return (and save, as JSON) a TrainSpeed with the machine.

    steps: optimizer steps that are counted; 0: as many as take MEASURE_S.
    profile_to: file for a Chrome trace of two steps (chrome://tracing, ui.perfetto.dev).
    """
    check_config(cfg)
    cfg = replace(cfg, pretrain=replace(cfg.pretrain, short_context=0, short_fraction=0.0, chat_fraction=0.0))
    plan = plan_device(cfg.device, detect()).for_model(sized_model(cfg))
    with tempfile.TemporaryDirectory(prefix="onesitting-bench-") as scratch:
        loop, words, before = _make_loop(cfg, Path(scratch), cache)
        reset_peak_memory(plan.torch_device)  # measuring the limit took some, too
        speed = _measure(loop, cfg, words, steps)
        # The kernel's own mark: a thread that looked ten times a second cost two busy cores an eighth of their speed.
        peak = peak_memory_bytes(plan.torch_device)
        if profile_to is not None:
            _profile(loop, profile_to)
        loop.prefetch.close()
    speed = replace(speed, memory_before_bytes=before if plan.device == "cpu" else 0, peak_memory_bytes=peak)
    print(f"{plan.describe()} · {speed.data}")
    print(_table(speed))
    if profile_to is not None:
        print(f"trace of two steps: {profile_to}")
    found = {**describe_machine(plan), **asdict(speed)}
    if save is not None:
        write_atomic(save, json.dumps(found, indent=1) + "\n")
    return found


def _make_loop(cfg: RunConfig, scratch: Path, cache: Path) -> tuple[Loop, str, int]:
    """The loop of a pretraining stage that never ends, where its text comes from, and bytes in use before it."""
    tokenizer, data, words = bench_corpus(cfg, scratch)
    model_cfg = sized_model(cfg)
    if model_cfg.vocab_size < tokenizer.vocab_size:
        model_cfg = replace(model_cfg, vocab_size=tokenizer.vocab_size)
    ranks = Ranks()
    plan = plan_device(cfg.device, detect(), ranks).for_model(model_cfg)
    plan.apply()
    before = tree_memory_bytes(os.getpid())
    model = Transformer(model_cfg, seed=cfg.seed).to(plan.torch_device).train()
    if not cfg.pretrain.micro_batch_rows:
        plan = measured_plan(model, plan, cfg.pretrain.context_length or model_cfg.context_length)
    ngrams = count_ngrams(cfg, data, None, tokenizer, plan)
    stage = PretrainStage(cfg, tokenizer, data, None, plan, ranks, ngrams=ngrams)
    target = StepTarget(cfg.pretrain, row_length=stage.row_length, n_rows=stage.n_rows, tokens=10**12)
    settings = FitSettings(
        target=target,
        lr_scale=cfg.pretrain.lr_scale,
        flops_per_token=flops_per_token(model_cfg, stage.row_length),
        limit_flops_per_s=measure_matrix_limit(plan, model_cfg, cache),
    )
    return Loop(stage, model, settings, cfg, StageFolder(scratch), plan, ranks, tokenizer), words, before


def _measure(loop: Loop, cfg: RunConfig, words: str, steps: int) -> TrainSpeed:
    """Run the steps: the first, one to warm up, those that count, and half as many with the stopwatch on."""
    began = time.perf_counter()
    loop.train_step()
    first_s = time.perf_counter() - began
    began = time.perf_counter()
    loop.train_step()  # the first may have compiled; this one warms up
    least = 3 if time.perf_counter() - began < LONG_STEP_S else 2
    seconds, tokens = _counted_steps(loop, steps, least)
    parts = _timed_parts(loop, max(least, len(seconds) // 2))
    model, stage = loop.model, loop.stage
    assert isinstance(stage, PretrainStage)
    began = time.perf_counter()
    stage.next_batches(model, loop.state.step + 10, stage.row_length)
    batch_s = time.perf_counter() - began
    rate, flops, limit = tokens / sum(seconds), loop.settings.flops_per_token, loop.settings.limit_flops_per_s
    return TrainSpeed(
        recipe=cfg.name,
        data=words,
        n_parameters=count_parameters(model.cfg),
        row_length=stage.row_length,
        step_tokens=stage.row_length * stage.n_rows,
        micro_batch_rows=min(
            stage.n_rows,
            stage.plan.micro_batch_rows(stage.row_length, cfg.pretrain.micro_batch_rows, stage.n_rows),
        ),
        compiled=loop.plan.compile and not loop.uncompiled_because,
        n_steps=len(seconds),
        first_step_s=first_s,
        step_s=statistics.fmean(seconds),
        best_step_s=min(seconds),
        tokens_per_s=rate,
        flops_per_token=flops,
        flops_per_s=rate * flops,
        limit_flops_per_s=limit,
        fraction_of_limit=rate * flops / limit,
        fraction_of_limit_6n=rate * 6 * count_matrix_parameters(model.cfg) / limit,
        parts_s=parts,
        batch_s=batch_s,
        memory_before_bytes=0,
        peak_memory_bytes=0,
    )


def _counted_steps(loop: Loop, steps: int, least: int) -> tuple[list[float], int]:
    """Seconds of each counted step, and the real tokens of all of them; at least `least` where steps is 0."""
    loop.parts.wait()
    seconds: list[float] = []
    tokens, end = loop.state.tokens, time.perf_counter() + MEASURE_S
    while len(seconds) < steps or (not steps and (len(seconds) < least or time.perf_counter() < end)):
        began = time.perf_counter()
        loop.train_step()
        seconds.append(time.perf_counter() - began)
    loop.parts.wait()
    return seconds, loop.state.tokens - tokens


def _timed_parts(loop: Loop, steps: int) -> dict[str, float]:
    """Seconds of each part of a step, the rest as `other`; means over `steps`."""
    loop.parts.is_on = True
    loop.parts.seconds.clear()
    began = time.perf_counter()
    for _ in range(steps):
        loop.train_step()
    loop.parts.wait()
    step_s = (time.perf_counter() - began) / steps
    loop.parts.is_on = False
    parts = {name: loop.parts.seconds.get(name, 0.0) / steps for name in PARTS}
    return {**parts, "other": max(0.0, step_s - sum(parts.values()))}


def _profile(loop: Loop, path: Path) -> None:
    activities = [ProfilerActivity.CPU]
    if loop.plan.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    loop.parts.is_on = True
    with profile(activities=activities, record_shapes=True) as trace:
        loop.train_step()
        loop.train_step()
    loop.parts.is_on = False
    path.parent.mkdir(parents=True, exist_ok=True)
    trace.export_chrome_trace(str(path))


def _table(speed: TrainSpeed) -> str:
    step = sum(speed.parts_s.values())
    rows = [["part of a step", "ms", "share"]]
    rows += [[name, f"{1e3 * s:,.1f}", f"{s / step:.0%}"] for name, s in speed.parts_s.items()]
    rows.append(["all, with the stopwatch on", f"{1e3 * step:,.1f}", ""])
    rows.append(["all, without", f"{1e3 * speed.step_s:,.1f}", ""])
    facts = [
        ["", ""],
        ["parameters", f"{speed.n_parameters:,}"],
        ["tokens in a step", f"{speed.step_tokens:,} in rows of {speed.row_length}"],
        ["steps counted", f"{speed.n_steps}, the fastest {1e3 * speed.best_step_s:,.1f} ms"],
        [
            "first step",
            f"{speed.first_step_s:.2f} s{', compilation included' if speed.compiled else ', not compiled'}",
        ],
        ["making a step's batches alone", f"{1e3 * speed.batch_s:,.1f} ms"],
        ["tokens/s", f"{speed.tokens_per_s:,.0f}"],
        ["model FLOP/s", f"{speed.flops_per_s / 1e9:,.1f} G"],
        ["limit of matrix products", f"{speed.limit_flops_per_s / 1e9:,.1f} GFLOP/s"],
        [
            "fraction of the limit",
            f"{speed.fraction_of_limit:.1%} ({speed.fraction_of_limit_6n:.1%} without attention's operations)",
        ],
        [
            "peak memory",
            f"{speed.peak_memory_bytes / 1e6:,.0f} MB, {speed.memory_before_bytes / 1e6:,.0f} before the model",
        ],
    ]
    return aligned(rows) + "\n" + "\n".join(f"{name:<30}  {value}".rstrip() for name, value in facts)
