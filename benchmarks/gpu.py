"""What gpu.sh does once an interpreter is there: checks, then measurements, then summary.json and summary.txt.

Every step is a process of its own with a time limit, and one that fails is written down and does not stop the next:
a machine that is lent for minutes should answer as much as it can.
"""

import argparse
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from onesitting.config import DeviceConfig, ModelConfig
from onesitting.model.documents import SHARED, document_bias, document_blocks
from onesitting.model.kernels import attention, attention_route
from onesitting.model.transformer import Transformer
from onesitting.train.device import compile_model, plan_device
from onesitting.train.hardware import detect

STEP_LIMIT_S = 150.0
"""A step that takes longer is ended."""
EXPECTED_DTYPE = {True: "bfloat16", False: "float16"}
"""Of a CUDA device with compute capability 8.0 or more, and 7.x."""
BENCH_ROUNDING = 0.02
"""Largest difference, in nats, between losses that differ only by rounding in 16 bits."""


def main() -> int:
    """Run everything; the exit code is the number of checks that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--build-s", type=float, default=0.0)
    options = parser.parse_args()
    began = time.perf_counter()
    record: dict[str, Any] = {"build_s": options.build_s, "torch": torch.__version__, "checks": {}}
    with tempfile.TemporaryDirectory(prefix="onesitting-gpu-") as name:
        scratch = Path(name)
        for title, check in (
            ("device policy", lambda: check_policy(options.device)),
            ("dtype and compilation", lambda: check_compile(options.device)),
            ("isolated attention", lambda: check_isolation(options.device)),
            ("training and resuming", lambda: check_training(options.device, scratch)),
        ):
            record["checks"][title] = outcome(title, check)
        for recipe in options.recipes:
            record[f"limit {recipe}"] = outcome(
                f"limit {recipe}", lambda r=recipe: bench("limit", r, options.device, scratch)
            )
            record[f"train {recipe}"] = outcome(
                f"train {recipe}", lambda r=recipe: bench("train", r, options.device, scratch)
            )
        record["budget"] = outcome(
            "budget", lambda: budget_run(options.recipes[0], options.budget, options.device, scratch)
        )
    record["wall_s"] = time.perf_counter() - began + options.build_s
    text = summary(record, options.recipes)
    (options.out / "summary.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "summary.txt").write_text(text)
    print(text)
    return sum("error" in found for found in record["checks"].values())


def outcome(title: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the work gives, or {"error": …}; with its seconds."""
    print(f"… {title}", flush=True)
    began = time.perf_counter()
    try:
        found = work()
    except Exception as error:  # whatever fails here is a result
        found = {"error": f"{type(error).__name__}: {error}"}
        print(f"  {found['error']}", flush=True)
    return {**found, "step_s": round(time.perf_counter() - began, 2)}


# ---- checks ------------------------------------------------------------------------------------------------


def check_policy(device: str) -> dict[str, Any]:
    """The automatic choice is the device that is meant, with the dtype that its generation multiplies fastest."""
    hardware = detect()
    plan = plan_device(DeviceConfig(device="auto" if device == "cuda" else device), hardware)
    if plan.device != device:
        raise AssertionError(f"auto chose {plan.device}, not {device}: {hardware}")
    if device == "cuda" and hardware.accelerator == "cuda" and hardware.capability >= (7, 0):
        expected = EXPECTED_DTYPE[hardware.capability >= (8, 0)]
        if plan.dtype != expected:
            raise AssertionError(f"dtype {plan.dtype} on compute capability {hardware.capability}")
    return {
        "name": plan.name,
        "capability": list(hardware.capability),
        "memory_bytes": hardware.memory_bytes,
        "cores": hardware.cores,
        "dtype": plan.dtype,
        "compile": plan.compile,
        "reasons": list(plan.reasons),
    }


def check_compile(device: str) -> dict[str, Any]:
    """Products run in the plan's dtype, and compiled loss and gradients equal eager ones up to rounding."""
    plan = plan_device(DeviceConfig(device=device), detect())
    shape = ModelConfig(
        n_layers=2, d_model=128, n_heads=2, n_kv_heads=1, head_dim=64, d_ff=384, vocab_size=1024
    )
    ids = torch.randint(0, 1024, (4, 129), device=plan.torch_device)
    found: dict[str, Any] = {}
    for compiled in (False, True):
        model = Transformer(shape, seed=0).to(plan.torch_device).train()
        if compiled:
            why_not = compile_model(model, replace(plan, compile=True))
            if why_not:
                raise AssertionError(f"not compiled: {why_not}")
        began = time.perf_counter()
        with plan.autocast():
            dtype = torch.nn.functional.linear(model.output_weight, model.output_weight).dtype
            loss = model(ids[:, :-1].contiguous(), targets=ids[:, 1:].contiguous()) / (4 * 128)
        loss.backward()
        norm = math.sqrt(
            sum(float(p.grad.float().square().sum()) for p in model.parameters() if p.grad is not None)
        )
        kind = "compiled" if compiled else "eager"
        found[kind] = {"loss": float(loss.detach()), "norm": norm, "first_s": time.perf_counter() - began}
        if str(dtype) != f"torch.{plan.dtype}":
            raise AssertionError(f"products are in {dtype}, the plan says {plan.dtype}")
    eager, fast = found["eager"], found["compiled"]
    if (
        abs(eager["loss"] - fast["loss"]) > BENCH_ROUNDING
        or abs(eager["norm"] / fast["norm"] - 1) > BENCH_ROUNDING
    ):
        raise AssertionError(f"compiled and eager differ: {found}")
    return {"dtype": plan.dtype, **found}


def check_isolation(device: str) -> dict[str, Any]:
    """Attention that hides documents from each other has the values and gradients of the whole mask in float32."""
    plan = plan_device(DeviceConfig(device=device), detect())
    place = plan.torch_device
    doc_ids = (torch.arange(512, device=place) // 150).int().expand(2, -1).clone()
    doc_ids[1, :150] = SHARED
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, 512, heads, 64, generator=generator).to(place) for heads in (4, 2, 2)]
    grad = torch.randn(2, 512, 256, generator=generator).to(place)
    routes: dict[str, Callable[..., Any]] = {"sdpa_expanded": attention}
    if attention_route(device, detect().capability, masked=True, gqa=True, compiled=True) == "flex":
        routes["flex"] = torch.compile(attention, dynamic=False)

    def result(function: Callable[..., Any], route: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        q, k, v = (x.to(dtype).requires_grad_() for x in exact)
        mask = document_blocks(doc_ids) if route == "flex" else document_bias(doc_ids, dtype)
        y = function(q, k, v, mask, route)
        return [y.detach().float(), *(x.float() for x in torch.autograd.grad(y, (q, k, v), grad.to(dtype)))]

    expected = result(attention, "sdpa_expanded", torch.float32)
    found: dict[str, Any] = {}
    for route, function in routes.items():
        parts = zip(result(function, route, plan.torch_dtype), expected, strict=True)
        found[route] = [float((ours - right).norm() / right.norm()) for ours, right in parts]
        if not max(found[route]) < BENCH_ROUNDING:
            raise AssertionError(f"{route}: values and gradients of q, k, v are off by {found[route]}")
    return found


def check_training(device: str, scratch: Path) -> dict[str, Any]:
    """A short run learns; one that is interrupted and given again takes the same steps.

    On a processor the losses are equal bit for bit. A GPU adds some gradients in no fixed order, so there the
    difference between two uninterrupted runs is the measure: the resumed one may not differ by much more.
    """
    runs = {name: train_tiny(name, device, scratch, stop=name == "resumed") for name in ("a", "b", "resumed")}
    first, last = runs["a"][0], runs["a"][-1]
    if not last < first - 0.3:
        raise AssertionError(f"the loss went from {first:.3f} to {last:.3f}")
    noise = max(abs(a - b) for a, b in zip(runs["a"], runs["b"], strict=True))
    gap = max(abs(a - r) for a, r in zip(runs["a"], runs["resumed"], strict=True))
    if gap > (10 * noise + 1e-4 if device == "cuda" else 0.0):
        raise AssertionError(f"resumed losses differ by {gap:.2e}, two runs by {noise:.2e}")
    return {"first_loss": first, "last_loss": last, "two_runs_differ": noise, "resumed_differs": gap}


def train_tiny(name: str, device: str, scratch: Path, *, stop: bool) -> list[float]:
    """Losses of a tiny run's steps; stop: interrupt it after some of them and give the same command again."""
    command = [
        sys.executable, "-m", "onesitting", "pretrain", "tiny", "--out", str(scratch), "--name", name,
        "--stages", "pretrain", "--budget", "tokens=131072", "--device.device", device, "--device.compile", "off",
        "--corpus.cache", str(scratch / "cache"), "--evaluation.every_fraction", "1.0",
    ]  # fmt: skip
    metrics = scratch / name / "pretrain" / "metrics.jsonl"
    if stop:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.perf_counter() + STEP_LIMIT_S
        while process.poll() is None and time.perf_counter() < deadline:
            if metrics.is_file() and metrics.read_bytes().count(b"\n") >= 10:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.01)
        process.wait(STEP_LIMIT_S)
        before = metrics.read_bytes().count(b"\n")
    run(command)
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    if len(losses) != 64:
        raise AssertionError(f"{name}: {len(losses)} steps of 64 are in {metrics.name}")
    if stop and before >= len(records):
        raise AssertionError("the run was over before it could be interrupted")
    return losses


# ---- measurements ------------------------------------------------------------------------------------------


def bench(what: str, recipe: str, device: str, scratch: Path) -> dict[str, Any]:
    """The JSON of one `onesitting bench`."""
    save = scratch / f"{what}-{recipe}.json"
    run(
        [
            sys.executable, "-m", "onesitting", "bench", what, recipe, "--save", str(save), "--device.device", device,
            "--corpus.cache", str(scratch / "cache"),
        ]
    )  # fmt: skip
    return json.loads(save.read_text())


def budget_run(recipe: str, budget: str, device: str, scratch: Path) -> dict[str, Any]:
    """A whole run with a time budget: how long it really took, and what came out."""
    command = [
        sys.executable, "-m", "onesitting", "run", recipe, "--out", str(scratch), "--name", "budget",
        "--budget", budget,
        "--device.device", device, "--corpus.cache", str(scratch / "cache"),
    ]  # fmt: skip
    if device != "cpu":  # which reads more in the same time
        command += ["--corpus.world_mb", "16"]
    began = time.perf_counter()
    run(command, limit_s=10 * 60)
    wall_s = time.perf_counter() - began
    timing = json.loads((scratch / "budget" / "timing.json").read_text())
    summary_ = json.loads((scratch / "budget" / "pretrain" / "summary.json").read_text())
    kept = ("bits_per_byte", "tokens", "tokens_per_s", "fraction_of_limit", "seconds_setup", "compiled")
    return {
        "budget": budget,
        "budget_s": timing["budget_s"],
        "wall_s": wall_s,
        "phases": timing["phases"],
        **{name: summary_.get(name) for name in kept},
    }


def run(command: list[str], limit_s: float = STEP_LIMIT_S) -> None:
    """Run a command; raises RuntimeError with the end of its output if it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took longer than {limit_s:.0f} s: {' '.join(command[2:5])}") from None
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}: {(done.stderr or done.stdout).strip()[-600:]}")


def summary(record: dict[str, Any], recipes: list[str]) -> str:
    """The record for people."""
    policy = record["checks"]["device policy"]
    lines = [f"{policy.get('name', '?')}, {policy.get('dtype', '?')}, torch {record['torch']}"]
    for title, found in record["checks"].items():
        state = f"FAILED: {found['error']}" if "error" in found else "ok"
        lines.append(f"check  {title:<24} {state} ({found['step_s']:.0f} s)")
    for recipe in recipes:
        limit, train = record[f"limit {recipe}"], record[f"train {recipe}"]
        if "error" in limit or "error" in train:
            lines.append(f"{recipe}: {limit.get('error') or train.get('error')}")
            continue
        parts, step_s = train["parts_s"], sum(train["parts_s"].values())
        shares = ", ".join(f"{name} {seconds / step_s:.0%}" for name, seconds in parts.items())
        tera = {name: limit[name] / 1e12 for name in ("matrix", "matrix_training", "attention_training")}
        lines.append(
            f"{recipe:<6} limit {tera['matrix']:,.1f} TFLOP/s (with gradients {tera['matrix_training']:,.1f}, "
            f"attention {tera['attention_training']:,.1f}), memory {limit['memory_bytes_per_s'] / 1e9:,.0f} GB/s"
        )
        lines.append(
            f"       {train['tokens_per_s']:,.0f} tokens/s, {train['flops_per_s'] / 1e12:,.1f} TFLOP/s, "
            f"{train['fraction_of_limit']:.1%} of the limit ({train['fraction_of_limit_6n']:.1%} by 6N), "
            f"{train['peak_memory_bytes'] / 1e9:.2f} GB, first step {train['first_step_s']:.0f} s; {shares}"
        )
    budget = record["budget"]
    if "error" in budget:
        lines.append(f"budget run: {budget['error']}")
    else:
        lines.append(
            f"budget {budget['budget']}: took {budget['wall_s']:.1f} s; {budget['tokens']:,} tokens, "
            f"{budget['bits_per_byte']:.3f} bits per byte"
        )
    lines.append(f"all of it took {record['wall_s']:.0f} s, {record['build_s']:.0f} of them to build")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
