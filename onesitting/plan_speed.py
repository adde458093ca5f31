"""How fast a model will train here: timed, or predicted from the machine's matrix products and earlier runs."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onesitting.config import ModelConfig, RunConfig
from onesitting.evaluation.report_text import percent
from onesitting.model.transformer import Transformer
from onesitting.runlog import RunFolder, find_runs
from onesitting.train.device import DevicePlan
from onesitting.train.optim import build_optimizer

EXPECTED_FRACTION = 0.4
"""Of the matrix limit that a training step is taken to reach where no earlier run says what it reaches: an
assumption, until a run has been done here."""
MEASURE_S = 4.0
"""Seconds of timed steps, after the first."""


@dataclass(frozen=True)
class Speed:
    """Tokens a second of training, and where the number comes from, in words."""

    tokens_per_s: float
    source: str


def predict_speed(runs: Path, device: DevicePlan, limit: float, flops: float, n_parameters: int) -> Speed:
    """The fraction of the matrix limit that the most similar run on this device reached, else EXPECTED_FRACTION.

    runs: folder of earlier runs. limit: FLOP/s. flops: operations a token.
    """
    known = [
        (run.name, summary)
        for run in find_runs(runs)
        if (summary := _summary(run)).get("device") == device.name
        and summary.get("dtype") == device.dtype
        and 0 < (summary.get("fraction_of_limit") or 0) <= 1
        and summary.get("n_parameters")
    ]
    limit_words = f"this machine's {limit / 1e9:,.0f} GFLOP/s"
    if not known:
        source = (
            f"predicted: {percent(EXPECTED_FRACTION)} of {limit_words}, an assumption until a run is done"
        )
        return Speed(EXPECTED_FRACTION * limit / flops, source)

    def ratio(size: int) -> float:
        """How many times larger the larger of the two sizes is."""
        return max(size / n_parameters, n_parameters / size)

    name, summary = min(known, key=lambda run: ratio(run[1]["n_parameters"]))
    fraction = summary["fraction_of_limit"]
    return Speed(
        fraction * limit / flops, f"predicted: {percent(fraction)} of {limit_words}, as run {name} reached"
    )


def _summary(run: Path) -> dict[str, Any]:
    """summary.json of a run's pretraining; {} if there is none that can be read."""
    try:
        value = json.loads((RunFolder(run).stage("pretrain").path / "summary.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def measure_speed(cfg: RunConfig, model_cfg: ModelConfig, device: DevicePlan) -> Speed:
    """Forward, backward and update of the real model on random tokens.

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
    end, times = time.perf_counter() + MEASURE_S, [(micro_step(), update())]
    while time.perf_counter() < end and len(times) < 10:
        times.append((micro_step(), update()))
    micro_s, update_s = (min(values) for values in zip(*times, strict=True))
    step_s = cfg.pretrain.step_tokens / (rows * length) * micro_s + update_s
    compiled = ", not compiled (the run compiles and may be faster)" if device.compile else ""
    best = f"the best of {len(times)} steps" if len(times) > 1 else "one step"
    return Speed(cfg.pretrain.step_tokens / step_s, f"measured: {best} of this model just now{compiled}")
