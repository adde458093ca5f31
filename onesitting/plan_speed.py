"""How fast a model will train here: timed, or predicted from the machine's matrix products and earlier runs."""

import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onesitting.config import ModelConfig, RunConfig
from onesitting.evaluation.report_text import percent
from onesitting.model.flops import count_parameters
from onesitting.model.transformer import Transformer
from onesitting.runlog import RunFolder, find_runs
from onesitting.train.device import DevicePlan
from onesitting.train.optim import build_optimizer

EXPECTED_FRACTION = 0.4
"""Of the matrix limit that a training step is taken to reach where it is compiled and no earlier run says what it
reaches: an assumption, for compiling takes too long to try."""
SIMILAR = 2.0
"""A run of a model up to so many times as large or as small tells the speed: large ones use more of a machine."""
MEASURE_S, GLANCE_S = 4.0, 1.5
"""Seconds of timed steps, after the first: where measuring is asked for, and where nothing else is known."""


@dataclass(frozen=True)
class Speed:
    """Tokens a second of training, and where the number comes from, in words."""

    tokens_per_s: float
    source: str


def expected_speed(
    cfg: RunConfig, model: ModelConfig, device: DevicePlan, limit: float, flops: float, measure: bool | None
) -> Speed:
    """The speed that a similar run reached, else that of a few steps now, else an assumption.

    limit: FLOP/s of matrix products. flops: operations a token. measure: True: steps are timed in any case; False:
    never; None: where no similar run is known and nothing has to be compiled.
    """
    known = (
        None
        if measure
        else speed_of_similar_run(Path(cfg.out), device, limit, flops, count_parameters(model))
    )
    if known is not None:
        return known
    if measure or (measure is None and not device.compile):
        return measure_speed(cfg, model, device, MEASURE_S if measure else GLANCE_S)
    source = f"predicted: {percent(EXPECTED_FRACTION)} of {_words(limit)}, an assumption until a run is done"
    return Speed(EXPECTED_FRACTION * limit / flops, source)


def speed_of_similar_run(
    runs: Path, device: DevicePlan, limit: float, flops: float, n_parameters: int
) -> Speed | None:
    """The fraction of the matrix limit that the most similar run on this device reached; None without one.

    runs: folder of earlier runs. The other arguments are those of `expected_speed`.
    """
    known = [
        (max(size / n_parameters, n_parameters / size), summary["fraction_of_limit"], run.name)
        for run in find_runs(runs.expanduser())
        if (summary := _summary(run)).get("device") == device.name
        and summary.get("dtype") == device.dtype
        and 0 < (summary.get("fraction_of_limit") or 0) <= 1
        and (size := summary.get("n_parameters"))
    ]
    ratio, fraction, name = min(known, default=(math.inf, 0.0, ""))
    if ratio > SIMILAR:
        return None
    source = f"predicted: {percent(fraction)} of {_words(limit)}, as run {name} reached"
    return Speed(fraction * limit / flops, source)


def _words(limit: float) -> str:
    return f"this machine's {limit / 1e9:,.0f} GFLOP/s"


def _summary(run: Path) -> dict[str, Any]:
    """summary.json of a run's pretraining; {} if there is none that can be read."""
    try:
        value = json.loads((RunFolder(run).stage("pretrain").path / "summary.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def measure_speed(cfg: RunConfig, model_cfg: ModelConfig, device: DevicePlan, seconds: float) -> Speed:
    """Forward, backward and update of the real model on random tokens, for so many seconds or a few steps.

    It runs uncompiled: compiling would take longer than the measurement.
    """
    model = Transformer(model_cfg, seed=0).to(device.torch_device).train()
    optimizer = build_optimizer(model, cfg.optim)
    length = cfg.pretrain.context_length or model_cfg.context_length
    n_rows = max(1, cfg.pretrain.step_tokens // length)
    rows = min(device.micro_batch_rows(length, cfg.pretrain.micro_batch_rows, n_rows), n_rows)
    ids = torch.randint(0, model_cfg.vocab_size, (rows, length + 1), device=device.torch_device)

    def micro_step() -> float:
        began = time.perf_counter()
        with device.autocast():
            loss = model(ids[:, :-1].contiguous(), targets=ids[:, 1:].contiguous())
        (loss / (rows * length)).backward()
        _ = float(loss.detach())  # waits until the device is done
        return time.perf_counter() - began

    def update() -> float:
        began = time.perf_counter()
        optimizer.step(1e-6)
        _ = float(next(model.parameters()).detach().sum())
        return time.perf_counter() - began

    micro_step()  # buffers and libraries are made on the first pass
    update()
    end, times = time.perf_counter() + seconds, [(micro_step(), update())]
    while time.perf_counter() < end and len(times) < 10:
        times.append((micro_step(), update()))
    micro_s, update_s = (statistics.median(values) for values in zip(*times, strict=True))
    step_s = cfg.pretrain.step_tokens / (rows * length) * micro_s + update_s
    compiled = ", not compiled (the run compiles and may be faster)" if device.compile else ""
    steps = f"the median of {len(times)} steps" if len(times) > 1 else "one step"
    return Speed(cfg.pretrain.step_tokens / step_s, f"measured: {steps} of this model just now{compiled}")
