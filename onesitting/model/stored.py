"""Whether what a folder holds is the model that is asked for: its shape, and a tensor for each of the model's."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from onesitting.config import ModelConfig
from onesitting.errors import UserError
from onesitting.model.transformer import Transformer


def config_differences(stored: ModelConfig, wanted: ModelConfig) -> list[str]:
    """`model.x is A there and B here` for each field that differs; where the weights came from does not count."""
    fields = [f.name for f in dataclasses.fields(ModelConfig) if f.name not in _unstored(wanted)]
    pairs = [(name, getattr(stored, name), getattr(wanted, name)) for name in fields]
    return [
        f"model.{name} is {there!r} there and {here!r} here" for name, there, here in pairs if there != here
    ]


ROUTING = {"n_active_experts", "norm_top_k", "router_aux_loss", "router_bias_rate"}


def _unstored(cfg: ModelConfig) -> set[str]:
    """Fields that say nothing about this shape, so that a config.json does not hold them."""
    learned = {"rope_theta"} if cfg.positions == "learned" else set[str]()
    return {"initial_weights"} | learned | (set() if cfg.n_experts else ROUTING)


def check_state(folder: Path, model: Transformer, state: Mapping[str, Tensor]) -> None:
    """Raise UserError when weights under our names lack a tensor of the model, or have one too many or misshapen."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"{name} is missing" for name in expected.keys() - state.keys()]
    problems += [f"{name} is unknown" for name in state.keys() - expected.keys()]
    for name in expected.keys() & state.keys():
        if tuple(state[name].shape) != expected[name]:
            problems.append(f"{name} has shape {tuple(state[name].shape)}, not {expected[name]}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            f"{folder}: weights do not fit config.json: {'; '.join(sorted(problems)[:5])}{more}. "
            "Give a folder whose config.json and weights belong together"
        )
