"""The checks of gpu.py, each a process of its own: `gpu_checks.py NAME --device cuda --save FILE --scratch FOLDER`.

Each returns what it found as a dict for JSON, and raises AssertionError where that is wrong.
Shapes: B rows, T tokens in a row.
"""

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onesitting.config import CheckpointConfig, DeviceConfig, ModelConfig, PretrainConfig, RunConfig
from onesitting.data.examples import IGNORED, Batch, document_positions, pretrain_batch
from onesitting.model.documents import SHARED, document_bias, document_blocks
from onesitting.model.kernels import attention, attention_route
from onesitting.model.transformer import Transformer
from onesitting.runlog import RunFolder, read_jsonl
from onesitting.stages.next_token import next_token_loss
from onesitting.train.budget import StepTarget
from onesitting.train.device import DevicePlan, compile_model, plan_device
from onesitting.train.distributed import Ranks
from onesitting.train.hardware import detect
from onesitting.train.loop import FitSettings, fit
from onesitting.train.parts import StepParts
from onesitting.train.passes import RecordedPasses, make_passes
from onesitting.train.probe import CudaMeter, read_memory

EXPECTED_DTYPE = {True: "bfloat16", False: "float16"}
"""Of a CUDA device with compute capability 8.0 or more, and 7.x."""
ROUNDING = 0.02
"""Largest difference, in nats or as a fraction of a norm, between values that differ only by rounding in 16 bits."""
SHAPE = ModelConfig(
    n_layers=2,
    d_model=128,
    n_heads=2,
    n_kv_heads=1,
    head_dim=64,
    d_ff=384,
    vocab_size=1024,
    context_length=128,
)


def make_plan(device: str, **settings: Any) -> DevicePlan:
    """The plan of this machine for a device."""
    return plan_device(DeviceConfig(device=device, **settings), detect())


def make_model(device: str, shape: ModelConfig = SHAPE) -> Transformer:
    """A model whose every weight matters: fresh ones have zero output matrices, which hide gradients."""
    model, generator = Transformer(shape, seed=0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model.to(device).train()


def gradient(model: Transformer, plan: DevicePlan, batches: list[Batch]) -> tuple[float, Tensor]:
    """Mean loss of all batches in nats, and its gradient as one float32 vector on the processor."""
    n_units, total = sum(batch.n_units for batch in batches), 0.0
    model.zero_grad(set_to_none=True)
    for batch in batches:
        with plan.autocast():
            loss = next_token_loss(model, batch.to(plan.torch_device))
        (loss / n_units).backward()
        total += float(loss.detach())
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    return total / n_units, torch.cat([g.detach().float().flatten().cpu() for g in grads])


def distance(a: Tensor, b: Tensor) -> float:
    """Length of the difference as a fraction of b's."""
    return float((a - b).norm() / b.norm())


def ragged_batch(n_rows: int = 4, T: int = 128) -> Batch:
    """Rows as fine-tuning packs them: documents of unequal length, few targets, one row without any, padding."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, 1024, (n_rows, T), generator=generator)
    starts = torch.rand((n_rows, T), generator=generator) < 0.05
    doc_ids = starts.int().cumsum(1).int()
    doc_ids[-1, T * 3 // 4 :] = -1
    targets = torch.randint(0, 1024, (n_rows, T), generator=generator)
    targets[(doc_ids % 2 == 0) | (doc_ids < 0)] = IGNORED  # every other document is a user's
    targets[0] = IGNORED
    return Batch(
        tokens=tokens,
        targets=targets,
        doc_ids=doc_ids,
        positions=document_positions(doc_ids),
        n_units=int((targets != IGNORED).sum()),
        n_tokens=int((doc_ids >= 0).sum()),
    )


def plain_batch(n_rows: int, T: int, seed: int, vocab_size: int = 1024, isolate: bool = False) -> Batch:
    """Rows of a text that can be learned: the next token is one more, now and then anything."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, vocab_size, (n_rows, 1), generator=generator)
    ids = (start + torch.arange(T + 1)) % min(vocab_size, 97)
    noise = torch.rand(ids.shape, generator=generator) < 0.1
    ids = torch.where(noise, torch.randint(0, vocab_size, ids.shape, generator=generator), ids)
    return pretrain_batch(ids.numpy(), torch.zeros(ids.shape, dtype=torch.int32).numpy(), isolate=isolate)


# ---- the checks --------------------------------------------------------------------------------------------


def policy(device: str, scratch: Path) -> dict[str, Any]:
    """The automatic choice is the device that is meant, with the dtype that its generation multiplies fastest."""
    hardware = detect()
    plan = make_plan("auto" if device == "cuda" else device)
    assert plan.device == device, f"auto chose {plan.device}, not {device}: {hardware}"
    if device == "cuda" and hardware.accelerator == "cuda" and hardware.capability >= (7, 0):
        expected = EXPECTED_DTYPE[hardware.capability >= (8, 0)]
        assert plan.dtype == expected, f"dtype {plan.dtype} on compute capability {hardware.capability}"
    return {
        "name": plan.name,
        "torch": torch.__version__,
        "capability": list(hardware.capability),
        "kernels": list(hardware.kernels),
        "memory_bytes": hardware.memory_bytes,
        "cores": hardware.cores,
        "dtype": plan.dtype,
        "compile": plan.compile,
        "reasons": list(plan.reasons),
    }


def compare_compiled(device: str, batch: Batch) -> dict[str, Any]:
    """Loss and gradient of a batch, eager and compiled, each against eager float32; graphs, and why they break.

    Raises AssertionError if compiling makes the gradient worse than the plan's dtype alone does.
    """
    plan, exact = make_plan(device), make_plan(device, dtype="float32")
    # A rehearsal compiles C++, half a minute of one core a layer.
    shape = SHAPE if device != "cpu" else replace(SHAPE, n_layers=1)
    true_loss, true_grad = gradient(make_model(device, shape), exact, [batch])
    loss, grad = gradient(make_model(device, shape), plan, [batch])
    eager = distance(grad, true_grad)
    model = make_model(device, shape)
    why_not = compile_model(model, replace(plan, compile=True))
    assert not why_not, f"not compiled: {why_not}"
    from torch._dynamo.utils import counters

    counters.clear()
    began = time.perf_counter()
    fast_loss, fast_grad = gradient(model, plan, [batch])
    first_s = time.perf_counter() - began
    found = {
        "float32_loss": true_loss,
        "eager": {"loss": loss, "gradient_off": eager},
        "compiled": {"loss": fast_loss, "gradient_off": distance(fast_grad, true_grad), "first_s": first_s},
        "graphs": counters["stats"].get("unique_graphs", 0),
        "graph_breaks": dict(counters["graph_break"]),
    }
    assert found["graphs"] > 0, f"nothing was compiled: {found}"
    assert abs(fast_loss - true_loss) <= abs(loss - true_loss) + ROUNDING, found
    assert found["compiled"]["gradient_off"] <= 1.5 * eager + ROUNDING, found
    return found


def compiled(device: str, scratch: Path) -> dict[str, Any]:
    """Products run in the plan's dtype, and compiled loss and gradients equal eager ones up to rounding."""
    plan, model = make_plan(device), make_model(device)
    with plan.autocast():
        dtype = torch.nn.functional.linear(model.output_weight, model.output_weight).dtype
    assert str(dtype) == f"torch.{plan.dtype}", f"products are in {dtype}, the plan says {plan.dtype}"
    return {"dtype": plan.dtype, **compare_compiled(device, plain_batch(4, 128, seed=3))}


def documents(device: str, scratch: Path) -> dict[str, Any]:
    """The same for rows of isolated documents with few, ragged targets."""
    return compare_compiled(device, ragged_batch())


def isolation(device: str, scratch: Path) -> dict[str, Any]:
    """Attention that hides documents from each other has the values and gradients of the whole mask in float32."""
    plan = make_plan(device)
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
        if not max(found[route]) < ROUNDING:
            raise AssertionError(f"{route}: values and gradients of q, k, v are off by {found[route]}")
    return found


def splits(device: str, scratch: Path) -> dict[str, Any]:
    """Gradients of a step are the same in one micro-batch and in several, exactly in float32 but for its rounding."""
    found: dict[str, Any] = {}
    batch = ragged_batch(8)
    for dtype, most in (("float32", 1e-3), ("auto", ROUNDING)):
        plan, model = make_plan(device, dtype=dtype), make_model(device)
        _, whole = gradient(model, plan, [batch])
        off = {rows: distance(gradient(model, plan, batch.split(rows))[1], whole) for rows in (4, 2, 1)}
        found[plan.dtype] = off
        assert max(off.values()) <= most, f"{plan.dtype}: {off}"
    return found


class TextStage:
    """The loop's stage without files. fits: rows that it pretends the device holds; 0: what it really holds."""

    name, unit, cycle, replayable = "pretrain", "tokens", 0, True

    def __init__(
        self, plan: DevicePlan, shape: ModelConfig, n_rows: int, fits: int = 0, *, isolate: bool = False
    ) -> None:
        self.plan, self.shape, self.n_rows, self.fits, self.isolate = plan, shape, n_rows, fits, isolate

    def next_batches(self, model: Any, step: int, row_length: int) -> list[Batch]:
        """Rows that depend on the step alone."""
        batch = plain_batch(self.n_rows, row_length, 1000 + step, self.shape.vocab_size, self.isolate)
        return batch.split(self.plan.micro_batch_rows(row_length, n_rows=self.n_rows))

    def loss_sum(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of next-token cross-entropies in nats."""
        loss = next_token_loss(model, batch)
        if self.fits and batch.n_rows > self.fits:
            raise torch.OutOfMemoryError("out of memory, it is pretended")
        return loss, {}

    def evaluate(self, model: Transformer) -> dict[str, float]:
        """Nothing is held out."""
        return {}

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """No texts."""
        return []


def losses_of(stage: TextStage, folder: Path, n_steps: int, device: str) -> list[float]:
    """Losses of the steps of a small training."""
    shape, T = stage.shape, stage.shape.context_length
    step_tokens = T * stage.n_rows
    cfg = RunConfig(
        name="check",
        model=shape,
        pretrain=PretrainConfig(tokens=n_steps * step_tokens, step_tokens=step_tokens, warmup_steps=2),
        checkpoint=CheckpointConfig(every_s=0.0),
    )
    target = StepTarget(
        cfg.pretrain, tokens=cfg.pretrain.tokens, row_length=T, n_rows=stage.n_rows, evaluate_every=1.0
    )
    out = RunFolder(folder).stage("pretrain")
    model = Transformer(shape, seed=3).to(device).train()
    fit(stage, model, FitSettings(target=target), cfg=cfg, folder=out, plan=stage.plan, ranks=Ranks())
    losses = [record["loss"] for record in read_jsonl(out.metrics_path) if record.get("loss") is not None]
    assert len(losses) >= n_steps - 2, f"{len(losses)} of {n_steps} steps gave a finite loss"
    return losses


def out_of_memory(device: str, scratch: Path) -> dict[str, Any]:
    """A step of 16 rows on a device that holds about four of them ends with the loss of one that holds all.

    A GPU's memory is really limited; a processor's is pretended to be.
    """
    on_gpu = device == "cuda"
    shape = SHAPE
    if on_gpu:
        shape = replace(SHAPE, n_layers=4, d_model=256, d_ff=768, vocab_size=8192, context_length=1024)
    n_rows, T = 16, shape.context_length
    plan = replace(make_plan(device, compile="off"), micro_batch_tokens=n_rows * T)
    calm = losses_of(TextStage(replace(plan, most_rows=2), shape, n_rows), scratch / "calm", 3, device)
    found: dict[str, Any] = {}
    if on_gpu:
        model = make_model(device, shape)
        read = read_memory(model, plan, T, CudaMeter())
        del model
        allowed = read.held + read.fixed_bytes + 5 * read.row_bytes
        found = {"row_bytes": read.row_bytes, "fixed_bytes": read.fixed_bytes, "allowed_bytes": allowed}
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(allowed / detect().memory_bytes)
    stage = TextStage(plan, shape, n_rows, fits=0 if on_gpu else 4)
    tight = losses_of(stage, scratch / "tight", 3, device)
    if on_gpu:
        torch.cuda.set_per_process_memory_fraction(1.0)
    found |= {"most_rows": stage.plan.most_rows, "losses": tight, "losses_with_room": calm}
    assert 1 <= stage.plan.most_rows < n_rows, f"memory did not run out: {found}"
    assert abs(tight[0] - calm[0]) < 0.01, found
    return found


def graphs(device: str, scratch: Path) -> dict[str, Any]:
    """Steps whose passes are replayed as CUDA graphs have the losses of those that are not, plain and compiled, also
    where documents are hidden from each other. A processor has no such graphs."""
    if device == "cpu":
        return {"left_out": "a processor has no CUDA graphs"}
    found: dict[str, Any] = {}
    for compile_it in ("off", "on"):
        plan = replace(make_plan(device, compile=compile_it, cuda_graphs="on"), most_rows=4)
        stages = {on: TextStage(replace(plan, graphs=on), SHAPE, 8, isolate=True) for on in (False, True)}
        losses = {
            on: losses_of(stage, scratch / f"{compile_it}-{on}", 12, device) for on, stage in stages.items()
        }
        off = max(abs(a - b) for a, b in zip(losses[False], losses[True], strict=True))
        found[f"compile {compile_it}"] = {"first": losses[True][0], "last": losses[True][-1], "off": off}
        assert off < ROUNDING, f"compile {compile_it}: losses differ by {off}: {losses}"
        # A failure to record leaves a note and the same losses: here it is an error.
        model, one = make_model(device), stages[True]
        compile_model(model, one.plan)
        passes = make_passes(one, model, one.plan, StepParts(one.plan.torch_device), _fail)
        for batch in one.next_batches(model, 0, SHAPE.context_length):
            passes(batch, 1.0, 1.0)
        assert isinstance(passes, RecordedPasses)
        assert passes.recordings, "nothing was recorded"
    return found


def _fail(message: str) -> None:
    raise AssertionError(message)


def float16(device: str, scratch: Path) -> dict[str, Any]:
    """A training in float16 with the loss scale goes where float32 goes. A processor does three steps of it."""
    on_gpu = device == "cuda"
    n_steps, T = (40, 128) if on_gpu else (3, 16)
    shape = replace(SHAPE, context_length=T)
    if not on_gpu:
        shape = replace(shape, d_model=32, n_heads=2, head_dim=16, d_ff=64, vocab_size=128)
    found: dict[str, Any] = {}
    for dtype in ("float32", "float16"):
        plan = make_plan(device, dtype=dtype, compile="off")
        assert (plan.make_scaler() is not None) == (dtype == "float16")
        found[dtype] = losses_of(TextStage(plan, shape, 4), scratch / dtype, n_steps, device)
    exact, half = found["float32"], found["float16"]
    assert not on_gpu or half[-1] < half[0] - 0.3, f"float16 did not learn: {found}"
    assert abs(half[-1] - exact[-1]) < 0.3, found
    return {name: [losses[0], losses[-1]] for name, losses in found.items()} | {"steps_used": len(half)}


def training(device: str, scratch: Path) -> dict[str, Any]:
    """A short run learns; one that is interrupted and given again takes the same steps.

    On a processor the losses are equal bit for bit. A GPU adds some gradients in no fixed order, so there the
    difference between two uninterrupted runs is the measure: the resumed one may not differ by much more.
    """
    runs = {name: train_tiny(name, device, scratch, stop=name == "resumed") for name in ("a", "b", "resumed")}
    first, last = runs["a"][0], runs["a"][-1]
    assert last < first - 0.3, f"the loss went from {first:.3f} to {last:.3f}"
    noise = max(abs(a - b) for a, b in zip(runs["a"], runs["b"], strict=True))
    gap = max(abs(a - r) for a, r in zip(runs["a"], runs["resumed"], strict=True))
    allowed = 10 * noise + 1e-4 if device == "cuda" else 0.0
    assert gap <= allowed, f"resumed losses differ by {gap:.2e}, two runs by {noise:.2e}"
    return {"first_loss": first, "last_loss": last, "two_runs_differ": noise, "resumed_differs": gap}


def train_tiny(name: str, device: str, scratch: Path, *, stop: bool) -> list[float]:
    """Losses of a tiny run's steps; stop: interrupt it after some of them and give the same command again."""
    command = [
        sys.executable, "-m", "onesitting", "pretrain", "tiny", "--out", str(scratch), "--name", name,
        "--stages", "pretrain", "--budget", "tokens=131072", "--device.device", device, "--device.compile", "off",
        "--corpus.cache", str(scratch / "cache"), "--evaluation.every_fraction", "1.0",
    ]  # fmt: skip
    metrics, before = scratch / name / "pretrain" / "metrics.jsonl", 0
    if stop:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if metrics.is_file() and metrics.read_bytes().count(b"\n") >= 10:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.01)
        process.wait()
        before = metrics.read_bytes().count(b"\n")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.stderr or done.stdout).strip()[-600:]
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 64, f"{name}: {len(losses)} steps of 64 are in {metrics.name}"
    assert not stop or before < len(records), "the run was over before it could be interrupted"
    assert all(math.isfinite(loss) for loss in losses)
    return losses


CHECKS = (policy, compiled, documents, isolation, splits, out_of_memory, float16, graphs, training)


def main() -> None:
    """Run one check and write what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[check.__name__ for check in CHECKS])
    parser.add_argument("--device", required=True)
    parser.add_argument("--save", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    options = parser.parse_args()
    check = next(check for check in CHECKS if check.__name__ == options.name)
    options.save.write_text(json.dumps(check(options.device, options.scratch)))


if __name__ == "__main__":
    main()
