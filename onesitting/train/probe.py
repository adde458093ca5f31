"""How many rows fit into a GPU's memory, measured: one and two rows forward and backward, before training.

A formula knows neither the fragments that an allocator leaves nor what a kernel keeps for its backward pass. Two
readings give the line a + b * rows; the rest is arithmetic.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from onesitting.model.moe import forget_counts
from onesitting.model.transformer import Transformer
from onesitting.train.device import GPU_MICRO_BATCH_TOKENS, DevicePlan
from onesitting.train.memory import release

FREE_SHARE = 0.9
"""Of the memory that is free: the rest is for fragments, and for what others take meanwhile."""
STATE_BYTES = 8
"""A trained parameter, for the optimizer's two moments, which the first step makes; Muon keeps one."""


@dataclass(frozen=True, kw_only=True)
class Readings:
    """Bytes, all on the device."""

    held: int
    """In tensors before the passes: the weights."""
    free: int
    """What the device could still give then."""
    peak_1: int
    """Highest of tensors in a pass of one row, gradients being there already."""
    peak_2: int
    """The same of two rows."""
    later: int = 0
    """What the optimizer will make."""

    @property
    def row_bytes(self) -> int:
        """b: what a further row takes."""
        return self.peak_2 - self.peak_1

    @property
    def fixed_bytes(self) -> int:
        """a, beyond the weights: gradients, buffers of the loss, and the optimizer's state."""
        return self.peak_1 - self.row_bytes - self.held + self.later

    def rows(self) -> int:
        """Rows that fit into FREE_SHARE of the free memory, at least 1.

        Raises ValueError where the readings tell nothing: a second row that took no memory.
        """
        if self.row_bytes <= 0:
            raise ValueError(f"a second row took {self.row_bytes} bytes")
        return max(1, int((FREE_SHARE * self.free - self.fixed_bytes) // self.row_bytes))


class Meter(Protocol):
    """Tells a device's memory, in bytes."""

    def held(self) -> int:
        """In tensors now."""
        ...

    def free(self) -> int:
        """What the device can still give."""
        ...

    def reset(self) -> None:
        """Count the peak from here on."""
        ...

    def peak(self) -> int:
        """Highest in tensors since."""
        ...


class CudaMeter:
    """That of the current CUDA or ROCm device."""

    def held(self) -> int:
        """In tensors now."""
        return torch.cuda.memory_allocated()

    def free(self) -> int:
        """What the driver still has, the allocator's own reserve being given back before."""
        return torch.cuda.mem_get_info()[0]

    def reset(self) -> None:
        """Count the peak from here on."""
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Highest in tensors since."""
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


def measured_plan(
    model: Transformer, plan: DevicePlan, row_length: int, meter: Meter | None = None
) -> DevicePlan:
    """The plan with as many tokens in a micro-batch as the model's own passes leave room for, and the reason.

    The model, its gradients and the random numbers are as before. Where it fails, the plan's formula stays.
    """
    if not plan.measures_memory:
        return plan
    try:
        found = read_memory(model, plan, row_length, meter or CudaMeter())
        rows = found.rows()
    except (RuntimeError, ValueError) as failure:
        first_line = (str(failure).strip() or type(failure).__name__).splitlines()[0][:120]
        reason = f"micro-batch by a formula, for the measurement failed: {first_line}"
        return replace(plan, reasons=(*plan.reasons, reason))
    reason = (
        f"micro-batch measured: {found.fixed_bytes / 1e9:.2f} GB and {found.row_bytes / 1e9:.3f} GB a row of "
        f"{row_length} tokens, of {found.free / 1e9:.1f} GB free: {rows} row{'s' if rows > 1 else ''} fit"
    )
    tokens = max(row_length, min(GPU_MICRO_BATCH_TOKENS, rows * row_length))
    return replace(plan, micro_batch_tokens=tokens, reasons=(*plan.reasons, reason))


def read_memory(model: Transformer, plan: DevicePlan, row_length: int, meter: Meter) -> Readings:
    """Forward and backward of one row, to make gradients and workspaces, then of one and of two, read."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with untouched(model, plan):
        release(plan.torch_device)
        held, free = meter.held(), meter.free()
        peaks: list[int] = []
        # Without the first pass, gradients made in the passes would hide behind activations, or those behind them.
        for n_rows in (1, 1, 2):
            meter.reset()
            _pass(model, plan, n_rows, row_length)
            peaks.append(meter.peak())
    release(plan.torch_device)
    return Readings(held=held, free=free, peak_1=peaks[1], peak_2=peaks[2], later=STATE_BYTES * trained)


def _pass(model: Transformer, plan: DevicePlan, n_rows: int, row_length: int) -> None:
    """Forward and backward of random rows of two documents each: a mask between them is part of what is kept."""
    device = plan.torch_device
    ids = torch.randint(0, model.cfg.vocab_size, (n_rows, row_length + 1), device=device)
    place = torch.arange(row_length, device=device).expand(n_rows, -1)  # (B, T)
    half = max(1, row_length // 2)
    with plan.autocast():
        loss = model(
            ids[:, :-1].contiguous(),
            targets=ids[:, 1:].contiguous(),
            doc_ids=(place // half).int(),
            positions=place % half,
        )
    (loss / ids.numel()).backward()


@contextmanager
def untouched(model: Transformer, plan: DevicePlan) -> Generator[None]:
    """Whatever passes run in the block: gradients, routers, mode and random numbers are as before at its end."""
    kept: list[Tensor | None] = [parameter.grad for parameter in model.parameters()]
    was_training = model.training
    on_gpu = plan.device in ("cuda", "xpu")
    devices = [torch.get_device_module(plan.device).current_device()] if on_gpu else []
    model.train()
    model.zero_grad(set_to_none=True)
    try:
        with torch.random.fork_rng(devices, device_type=plan.device if on_gpu else "cuda"):
            yield
    finally:
        for parameter, grad in zip(model.parameters(), kept, strict=True):
            parameter.grad = grad
        forget_counts(model)
        model.train(was_training)
