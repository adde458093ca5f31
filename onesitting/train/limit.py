"""The limit of this machine: how fast it multiplies matrices of the model's own shapes and dtype.

A training step cannot be faster than its matrix products. Every speed is reported as a fraction of this limit.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F

from onesitting.config import ModelConfig
from onesitting.runlog import write_atomic
from onesitting.train.device import DevicePlan

CACHE = Path("~/.cache/onesitting/limits.json")
"""Highest rates measured so far, by machine, dtype, threads, shapes and PyTorch version."""
FIRST_S, AGAIN_S = 1.2, 0.3
"""Seconds of measuring where the cache knows nothing, and where it does: another program may have taken a part
of the machine the last time, so the limit is looked for again and never falls."""
PRODUCT_FLOPS = {"cpu": 2e9, "gpu": 2e11}
"""Operations of one timed product: a few milliseconds, far above the cost of a call."""


@dataclass(frozen=True)
class Product:
    """`count` products of (tokens, inner) with (outer, inner)^T in one forward pass."""

    inner: int
    outer: int
    count: int


def products(model: ModelConfig) -> tuple[Product, ...]:
    """The matrix products of one forward pass, equal shapes together; attention's own are not counted."""
    d, query, key = model.d_model, model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    n_up = 2 if model.mlp == "swiglu" else 1
    shapes = [(d, query, 1), (d, key, 2), (query, d, 1), (d, model.d_ff, n_up), (model.d_ff, d, 1)]
    counts: dict[tuple[int, int], int] = {}
    for inner, outer, count in shapes:
        counts[inner, outer] = counts.get((inner, outer), 0) + count * model.n_layers
    counts[d, model.vocab_size] = counts.get((d, model.vocab_size), 0) + 1
    return tuple(Product(inner, outer, count) for (inner, outer), count in counts.items())


def measure_matrix_limit(plan: DevicePlan, model: ModelConfig, cache: Path = CACHE) -> float:
    """FLOP/s of the model's matrix products on this machine, the best of all measurements; about a second.

    A product of (M, K) with (K, N) counts 2 M K N operations.
    """
    shapes, cache = products(model), cache.expanduser()
    key = _key(plan, shapes)
    known = _read(cache)
    measured = _measure(plan, shapes, AGAIN_S if key in known else FIRST_S)
    if measured > known.get(key, 0.0):
        known[key] = measured
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(cache, json.dumps(known, indent=1, sort_keys=True) + "\n")
        except OSError:
            pass  # a cache that cannot be written costs a second next time
    return known[key]


def _key(plan: DevicePlan, shapes: tuple[Product, ...]) -> str:
    """Readable machine name and a hash of the rest."""
    rest = repr((plan.dtype, plan.threads, plan.micro_batch_tokens, shapes, torch.__version__))
    return f"{plan.name}, {plan.dtype}, {sha256(rest.encode()).hexdigest()[:16]}"


def _read(cache: Path) -> dict[str, float]:
    try:
        values = json.loads(cache.read_text())
        return {str(key): float(value) for key, value in values.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


@torch.inference_mode()
def _measure(plan: DevicePlan, shapes: tuple[Product, ...], seconds: float) -> float:
    """Total operations over total time, each shape at its own best time."""
    on_cpu = plan.device == "cpu"
    wait = _nothing if on_cpu else torch.get_device_module(plan.device).synchronize
    operations = elapsed_s = 0.0
    for shape in shapes:
        each = 2.0 * shape.inner * shape.outer
        # As many tokens as a micro-batch has, fewer where one product would take too long.
        tokens = int(
            min(plan.micro_batch_tokens, max(256, PRODUCT_FLOPS["cpu" if on_cpu else "gpu"] // each))
        )
        a = torch.randn(tokens, shape.inner, device=plan.torch_device, dtype=plan.torch_dtype)
        w = torch.randn(shape.outer, shape.inner, device=plan.torch_device, dtype=plan.torch_dtype)
        best_s = _best_time(a, w, wait, seconds / len(shapes), 1 if on_cpu else 10)
        operations += each * tokens * shape.count
        elapsed_s += best_s * shape.count
    return operations / elapsed_s


def _best_time(
    a: torch.Tensor, w: torch.Tensor, wait: Callable[[], None], seconds: float, n_calls: int
) -> float:
    """Shortest seconds of one product within the time given; n_calls are queued between two looks at the clock."""
    end = time.perf_counter() + seconds
    best_s = float("inf")
    n_looks = 0
    while n_looks < 3 or time.perf_counter() < end:
        wait()
        began = time.perf_counter()
        for _ in range(n_calls):
            F.linear(a, w)
        wait()
        best_s = min(best_s, (time.perf_counter() - began) / n_calls) if n_looks else best_s
        n_looks += 1  # the first one warms up
    return best_s


def _nothing() -> None:
    """A processor's products are done when the call returns."""
