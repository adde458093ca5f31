"""Rotary positions, and YaRN, which stretches them to a longer context.

Shapes: T time, D head width.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from onesitting.config import ModelConfig
from onesitting.errors import UserError

FAST_TURNS, SLOW_TURNS = 32, 1
"""Turns of a pair within the original context from which on, and up to which, it counts as fast or slow."""


def rope_tables(positions: Tensor, cfg: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (..., T, 1, D) in `dtype`, for positions (..., T); the first half of sin is negated.

    Pair i of a head, (x[i], x[i + D/2]), turns by `position * frequency[i]` radians (Su et al. 2021,
    arXiv:2104.09864), so a rotated head is `x * cos + (x with its halves swapped) * sin`.
    """
    angles = positions.to(torch.float32)[..., None, None] * frequencies(cfg, positions.device)
    cos, sin = angles.cos(), angles.sin()
    if cfg.rope_factor != 1.0:
        cos, sin = cos * head_scale(cfg), sin * head_scale(cfg)
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def frequencies(cfg: ModelConfig, device: torch.device | None = None) -> Tensor:
    """(D / 2,) float32, radians by which each rotary pair turns a position.

    Pair i turns by theta^(-2i/D). YaRN (Peng et al. 2023, arXiv:2309.00071, section 3.2) leaves pairs alone that turn
    often within the original context, since they tell neighbours apart, and slows those by `rope_factor` that turn
    less than once, since they would meet angles that training never showed; between the two it mixes.
    """
    exponent = torch.arange(0, cfg.head_dim, 2, device=device, dtype=torch.float32) / cfg.head_dim
    fast = cfg.rope_theta**-exponent
    if cfg.rope_factor == 1.0:
        return fast
    low = max(math.floor(_pair_that_turns(FAST_TURNS, cfg)), 0)
    high = min(math.ceil(_pair_that_turns(SLOW_TURNS, cfg)), cfg.head_dim - 1)
    index = torch.arange(cfg.head_dim // 2, device=device, dtype=torch.float32)
    slowed = ((index - low) / max(high - low, 0.001)).clamp(0, 1)
    return fast / cfg.rope_factor * slowed + fast * (1 - slowed)


def _pair_that_turns(n_turns: float, cfg: ModelConfig) -> float:
    """Index, a fraction, of the pair with so many turns within the original context."""
    wavelength = original_context(cfg) / n_turns
    return cfg.head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(cfg.rope_theta))


def head_scale(cfg: ModelConfig) -> float:
    """Factor on rotated queries and keys: a longer context spreads attention thin, larger scores gather it again.

    Source: arXiv:2309.00071, eq. 22; 1 without stretching.
    """
    return 0.1 * math.log(cfg.rope_factor) + 1.0


def original_context(cfg: ModelConfig) -> int:
    """Tokens that the model was trained for before it was stretched."""
    return cfg.rope_original or max(1, round(cfg.context_length / cfg.rope_factor))


def resolved(cfg: ModelConfig) -> ModelConfig:
    """The same shape with `rope_original` written out, as files have it."""
    original = 0 if cfg.rope_factor == 1.0 else original_context(cfg)
    return cfg if cfg.rope_original == original else replace(cfg, rope_original=original)


def stretched(cfg: ModelConfig, factor: float) -> ModelConfig:
    """The same shape with a context of `factor` times its original one.

    Raises UserError where positions are learned, or the factor is below 1.
    """
    if not (math.isfinite(factor) and factor >= 1):
        raise UserError(f"the context's factor is {factor:g}; give 1 or more, such as 4")
    if cfg.positions == "learned":
        raise UserError(
            "this model's positions are a learned table, which has no entry beyond model.context_length = "
            f"{cfg.context_length}; only rotary positions can be stretched"
        )
    original = original_context(cfg)
    longer = replace(cfg, rope_factor=factor, rope_original=original, context_length=int(original * factor))
    return resolved(longer)


def rope_entries(cfg: ModelConfig) -> dict[str, Any]:
    """The entries of config.json; older programs read `rope_theta` and `rope_scaling`, newer `rope_parameters`."""
    theta = {"rope_theta": cfg.rope_theta}
    if cfg.rope_factor == 1.0:
        return theta | {"rope_parameters": {"rope_type": "default", **theta}}
    yarn = {
        "rope_type": "yarn",
        "factor": cfg.rope_factor,
        "original_max_position_embeddings": original_context(cfg),
    }
    return theta | {"rope_scaling": yarn, "rope_parameters": yarn | theta}


def read_rope_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ModelConfig; UserError names an entry whose value is not what YaRN, or no scaling, has here."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    fields: dict[str, Any] = {
        "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "yarn"):
        raise UserError(f"config.json: rope_type is {kind!r}; this model only has 'default' and 'yarn'")
    if kind == "default":
        return fields
    original = _at_least_one("original_max_position_embeddings", rope, config.get("max_position_embeddings"))
    factor = _at_least_one("factor", rope, None)
    fields |= {"rope_factor": factor, "rope_original": 0 if factor == 1 else int(original)}
    scale = 0.1 * math.log(factor) + 1.0
    known = {
        "attention_factor": scale,
        "beta_fast": FAST_TURNS,
        "beta_slow": SLOW_TURNS,
        "truncate": True,
        "mscale": 1.0,
        "mscale_all_dim": 0.0,
    }
    for name, value in known.items():
        found = rope.get(name)
        is_right = isinstance(found, int | float) and math.isclose(found, value, rel_tol=1e-6)
        if found is not None and not is_right:
            raise UserError(f"config.json: {name} is {found!r}; this model's yarn only has {value!r}")
    return fields


def _at_least_one(name: str, rope: Mapping[str, Any], default: Any) -> float:
    value = rope.get(name) or default
    if isinstance(value, int | float) and value >= 1:
        return float(value)
    raise UserError(f"config.json: {name} is {value!r}; yarn needs a number of at least 1")
