"""What the loop remembers, and what it gives back."""

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onesitting.train.budget import StepTarget


@dataclass
class LoopState:
    """The JSON part of a checkpoint; with the tensors it is all that resuming needs."""

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    first_step_s: float = 0.0
    """Seconds before the first step had run: compilation and warm-up."""
    lr_scale: float = 1.0
    bad_steps: int = 0
    skipped_steps: int = 0
    rollbacks: int = 0
    best_step: int = -1
    best_value: float = math.inf
    last_loss: float = math.nan
    evaluation: dict[str, float] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What the loop needs besides the stage; `stages/` fill it from the run's configuration."""

    target: StepTarget
    """Turns a time or token budget into a number of optimizer steps, a learning rate and a row length."""
    lr_scale: float = 1.0
    """Multiplies every learning rate."""
    flops_per_token: float = 0.0
    """Forward and backward operations a token, for the fraction of the limit."""
    limit_flops_per_s: float = 0.0
    """Measured matrix-product limit of this machine; 0: unknown."""


@dataclass(frozen=True)
class FitResult:
    """How a stage went; also written to its summary.json."""

    steps: int
    tokens: int
    seconds: float
    seconds_setup: float
    """Until the first step was done: reading, warming up, and whatever was compiled by then."""
    seconds_compile: float
    """Of torch.compile's work in this process, by its own account; 0.0 where nothing was compiled."""
    tokens_per_s: float
    final_loss: float
    skipped_steps: int
    peak_memory_bytes: int
    compiled: bool
    """Whether the model's forward was compiled in the end."""
    evaluation: dict[str, float]


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of PyTorch's global generator for one process's step; the same after a resume, unlike for any other step."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def host_values(scalars: dict[str, Tensor]) -> dict[str, float]:
    """The scalars as numbers, by name, read from the device at once: each single `float()` would wait for it."""
    device = next(iter(scalars.values())).device
    values = torch.stack([scalar.detach().to(device, torch.float32) for scalar in scalars.values()]).tolist()
    return dict(zip(scalars, values, strict=True))


def means(sums: dict[str, float], n_units: int) -> dict[str, float]:
    """Named sums over units, but the loss; one with a count of its own, `name/n`, is divided by that."""
    counts = {name: sums.get(f"{name}/n", n_units) for name in sums}
    return {
        name: total / max(1, counts[name])
        for name, total in sums.items()
        if name != "loss" and not name.endswith("/n")
    }
