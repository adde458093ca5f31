"""The limits of this machine at a model's own shapes and dtype: matrix products, attention, memory.

A training step cannot be faster than its matrix products, so every speed is reported as a fraction of what they
reach. Rates are kept per machine and shape, the best of all measurements: another program may have taken a part of
the machine the last time, so they are looked for again and never fall.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from onesitting.config import ModelConfig
from onesitting.errors import UserError
from onesitting.model.kernels import attention
from onesitting.runlog import write_atomic
from onesitting.train.device import DevicePlan

CACHE = Path("~/.cache/onesitting/limits.json")
"""Highest rates measured so far, by machine, threads, dtype, PyTorch version and shape."""
FIRST_S, AGAIN_S = 1.2, 0.3
"""Seconds of measuring where the cache knows nothing, and where it does; over all shapes together."""
PRODUCT_FLOPS = {"cpu": 2e9, "gpu": 2e11}
"""Operations of one timed call: a few milliseconds, far above the cost of a call."""
COPY_BYTES = {"cpu": 2**28, "gpu": 2**30}
"""Bytes read and written by one timed copy: several times what caches hold."""


@dataclass(frozen=True)
class Product:
    """`count` products of (tokens, inner) with (outer, inner)^T in one forward pass."""

    inner: int
    outer: int
    count: int


@dataclass(frozen=True)
class Probe:
    """Something to time."""

    name: str
    """What is timed and its shape; a part of the cache's key."""
    work: float
    """Operations, or bytes, of one call."""
    ready: Callable[[], Callable[[], object]]
    """Makes the tensors; what comes back is timed."""


@dataclass(frozen=True, kw_only=True)
class ProductRates:
    """FLOP/s of one shape: forward, gradient of the input, gradient of the weight."""

    product: Product
    forward: float
    input_gradient: float
    weight_gradient: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the machine reaches; FLOP/s, and bytes/s for memory."""

    matrix: float
    """All products of a forward pass: the limit that fractions refer to."""
    matrix_training: float
    """The same with both gradients of each product."""
    products: tuple[ProductRates, ...]
    attention: float
    """Causal attention, forward; only the half of the square that is seen counts."""
    attention_training: float
    """The same with its backward pass."""
    memory_bytes_per_s: float
    """Copying: bytes read plus bytes written."""


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
    shapes = products(model)
    rates = best_rates(plan, [_forward(plan, shape) for shape in shapes], cache)
    return _combined([(shape, rate) for shape, rate in zip(shapes, rates, strict=True)])


def measure_limits(
    plan: DevicePlan,
    model: ModelConfig,
    context: int,
    cache: Path = CACHE,
    *,
    fresh: bool = False,
    seconds: float = 4.0,
) -> Limits:
    """All limits at the model's shapes, in rows of `context` tokens; some seconds.

    fresh: forget what was measured before. seconds: for all of them together.
    """
    shapes = products(model)
    probes = [make(plan, shape) for shape in shapes for make in (_forward, _input_gradient, _weight_gradient)]
    probes += [
        _attention(plan, model, context, training=False),
        _attention(plan, model, context, training=True),
    ]
    probes.append(_copy(plan))
    rates = best_rates(plan, probes, cache, fresh=fresh, seconds=seconds)
    each = [
        ProductRates(product=shape, forward=a, input_gradient=b, weight_gradient=c)
        for shape, a, b, c in zip(shapes, rates[0:-3:3], rates[1:-3:3], rates[2:-3:3], strict=True)
    ]
    return Limits(
        matrix=_combined([(one.product, one.forward) for one in each]),
        matrix_training=_combined(
            [(p.product, rate) for p in each for rate in (p.forward, p.input_gradient, p.weight_gradient)]
        ),
        products=tuple(each),
        attention=rates[-3],
        attention_training=rates[-2],
        memory_bytes_per_s=rates[-1],
    )


def _combined(rates: Sequence[tuple[Product, float]]) -> float:
    """Total operations over total time."""
    work = [(shape.inner * shape.outer * shape.count, rate) for shape, rate in rates]
    return sum(operations for operations, _ in work) / sum(operations / rate for operations, rate in work)


# ---- what is timed -----------------------------------------------------------------------------------------


def _forward(plan: DevicePlan, shape: Product) -> Probe:
    tokens = _tokens(plan, 2.0 * shape.inner * shape.outer)

    def ready() -> Callable[[], object]:
        x, w = _random(plan, tokens, shape.inner), _random(plan, shape.outer, shape.inner)
        return lambda: F.linear(x, w)

    return _product_probe("forward", tokens, shape, ready)


def _input_gradient(plan: DevicePlan, shape: Product) -> Probe:
    tokens = _tokens(plan, 2.0 * shape.inner * shape.outer)

    def ready() -> Callable[[], object]:
        dy, w = _random(plan, tokens, shape.outer), _random(plan, shape.outer, shape.inner)
        return lambda: dy @ w

    return _product_probe("input gradient", tokens, shape, ready)


def _weight_gradient(plan: DevicePlan, shape: Product) -> Probe:
    tokens = _tokens(plan, 2.0 * shape.inner * shape.outer)

    def ready() -> Callable[[], object]:
        dy, x = _random(plan, tokens, shape.outer), _random(plan, tokens, shape.inner)
        return lambda: dy.T @ x

    return _product_probe("weight gradient", tokens, shape, ready)


def _product_probe(
    kind: str, tokens: int, shape: Product, ready: Callable[[], Callable[[], object]]
) -> Probe:
    work = 2.0 * tokens * shape.inner * shape.outer
    return Probe(f"{kind} {tokens}x{shape.inner}x{shape.outer}", work, ready)


def _attention(plan: DevicePlan, model: ModelConfig, context: int, *, training: bool) -> Probe:
    heads, kv_heads, width = model.n_heads, model.n_kv_heads, model.head_dim
    each = 2.0 * heads * width * context  # two products over half a row, for one token
    rows = max(1, _tokens(plan, each) // context)

    def ready() -> Callable[[], object]:
        q = _random(plan, rows, context, heads, width).requires_grad_(training)
        k, v = (_random(plan, rows, context, kv_heads, width).requires_grad_(training) for _ in "kv")
        if not training:
            return lambda: attention(q, k, v, None)
        dy = _random(plan, rows, context, heads * width)
        return lambda: torch.autograd.grad(attention(q, k, v, None), (q, k, v), dy)

    kind = "attention, both passes" if training else "attention"
    name = f"{kind} {rows}x{context}, {heads} heads, {kv_heads} kv heads of {width}"
    return Probe(name, each * rows * context * (3 if training else 1), ready)


def _copy(plan: DevicePlan) -> Probe:
    size = min(COPY_BYTES["cpu" if plan.device == "cpu" else "gpu"], plan.memory_bytes // 2)

    def ready() -> Callable[[], object]:
        source = torch.ones(size // 8, device=plan.torch_device)
        into = torch.empty_like(source)
        return lambda: into.copy_(source)

    return Probe(f"copy {size}", float(size), ready)


def _tokens(plan: DevicePlan, flops_per_token: float) -> int:
    """As many tokens as a micro-batch has, fewer where one call would take too long."""
    most = PRODUCT_FLOPS["cpu" if plan.device == "cpu" else "gpu"]
    return int(min(plan.micro_batch_tokens, max(256, most // flops_per_token)))


def _random(plan: DevicePlan, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=plan.torch_device, dtype=plan.torch_dtype)


# ---- timing and keeping ------------------------------------------------------------------------------------


def best_rates(
    plan: DevicePlan,
    probes: Sequence[Probe],
    cache: Path = CACHE,
    *,
    fresh: bool = False,
    seconds: float = FIRST_S,
) -> list[float]:
    """Work a second of each probe: the best measured so far on this machine, now included.

    seconds: for all probes together where none is known; a known one is looked at for a quarter of its part.
    """
    cache = cache.expanduser()
    known = _read(cache)
    keys = [f"{_machine(plan)}: {probe.name}" for probe in probes]
    before = dict(known)
    for key, probe in zip(keys, probes, strict=True):
        old = 0.0 if fresh else known.get(key, 0.0)
        part = seconds / len(probes) * (AGAIN_S / FIRST_S if old else 1.0)
        known[key] = max(old, _rate(plan, probe, part))
    if known != before:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(cache, json.dumps(known, indent=1, sort_keys=True) + "\n")
        except (OSError, UserError):
            pass  # a cache that cannot be written costs a second next time
    return [known[key] for key in keys]


def _machine(plan: DevicePlan) -> str:
    threads = f"{plan.threads} threads, " if plan.device == "cpu" else ""
    return f"{plan.name}, {threads}{plan.dtype}, torch {torch.__version__}"


def _read(cache: Path) -> dict[str, float]:
    try:
        values = json.loads(cache.read_text())
        return {str(key): float(value) for key, value in values.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _rate(plan: DevicePlan, probe: Probe, seconds: float) -> float:
    """Work a second at the shortest time of a call that was seen in the seconds given."""
    on_cpu = plan.device == "cpu"
    wait = _nothing if on_cpu else torch.get_device_module(plan.device).synchronize
    n_calls = 1 if on_cpu else 10  # queued between two looks at the clock
    call = probe.ready()
    end = time.perf_counter() + seconds
    best_s = float("inf")
    n_looks = 0
    while n_looks < 3 or time.perf_counter() < end:
        wait()
        began = time.perf_counter()
        for _ in range(n_calls):
            call()
        wait()
        best_s = min(best_s, (time.perf_counter() - began) / n_calls) if n_looks else best_s
        n_looks += 1  # the first one warms up
    return probe.work / best_s


def _nothing() -> None:
    """A processor's products are done when the call returns."""
