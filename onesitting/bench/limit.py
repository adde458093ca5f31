"""`onesitting bench limit`: what this machine reaches at a model's own shapes."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from onesitting.bench.tables import aligned
from onesitting.checks import check_config
from onesitting.config import ModelConfig, RunConfig
from onesitting.runlog import write_atomic
from onesitting.train.device import DevicePlan, detect, plan_device
from onesitting.train.limit import CACHE, Limits, measure_limits


def sized_model(cfg: RunConfig) -> ModelConfig:
    """The model's shape with its vocabulary: the given one, else what the tokenizer will have."""
    return replace(cfg.model, vocab_size=cfg.model.vocab_size or -(-cfg.tokenizer.vocab_size // 64) * 64)


def bench_limit(
    cfg: RunConfig, *, fresh: bool = False, save: Path | None = None, cache: Path = CACHE
) -> dict[str, Any]:
    """Measure, print a table, and return (and save, as JSON) the limits; rates are FLOP/s and bytes/s.

    fresh: forget what was measured before on this machine.
    """
    check_config(cfg)
    model = sized_model(cfg)
    plan = plan_device(cfg.device, detect()).for_model(model)
    plan.apply()
    context = cfg.pretrain.context_length or model.context_length
    limits = measure_limits(plan, model, context, cache, fresh=fresh)
    print(f"{plan.describe()} · {cfg.name}: width {model.d_model}, rows of {context} tokens")
    print(_table(limits))
    print(
        "The limit that fractions refer to is that of all forward products; each rate is the best ever seen here."
    )
    found = {**describe_machine(plan), "recipe": cfg.name, "context": context, **asdict(limits)}
    if save is not None:
        write_atomic(save, json.dumps(found, indent=1) + "\n")
    return found


def describe_machine(plan: DevicePlan) -> dict[str, Any]:
    """What a measurement needs to say about where it was taken."""
    return {
        "device": plan.name,
        "device_kind": plan.device,
        "dtype": plan.dtype,
        "threads": plan.threads,
        "torch": torch.__version__,
    }


def _table(limits: Limits) -> str:
    rows = [["product (inner x outer)", "a pass", "forward", "input gradient", "weight gradient"]]
    for one in limits.products:
        shape = f"{one.product.inner} x {one.product.outer}"
        rates = [_rate(rate) for rate in (one.forward, one.input_gradient, one.weight_gradient)]
        rows.append([shape, str(one.product.count), *rates])
    rows.append(["all, forward", "", _rate(limits.matrix), "", ""])
    rows.append(["all, with both gradients", "", _rate(limits.matrix_training), "", ""])
    rows.append(["attention, forward", "", _rate(limits.attention), "", ""])
    rows.append(["attention, both passes", "", _rate(limits.attention_training), "", ""])
    rows.append(["memory", "", f"{limits.memory_bytes_per_s / 1e9:,.1f} GB/s", "", ""])
    return aligned(rows)


def _rate(flops_per_s: float) -> str:
    return f"{flops_per_s / 1e9:,.0f} GFLOP/s" if flops_per_s < 1e13 else f"{flops_per_s / 1e12:,.0f} TFLOP/s"
