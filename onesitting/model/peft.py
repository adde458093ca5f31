"""Adapters on disk, as PEFT has them: adapter_config.json and adapter_model.safetensors.

`peft.PeftModel.from_pretrained(transformers_model, folder)` reads what is written here, and what PEFT writes can be
read. Beside the two files, base.json says which weights the adapter stands on. The GPT-2 shape has tensor names of
its own in transformers; an adapter of such a model carries ours, and only onesitting reads it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from onesitting.config import LoraConfig
from onesitting.errors import UserError
from onesitting.model.hf import read_json, read_safetensors
from onesitting.model.lora import add_adapter, lora_layers, matching_layers
from onesitting.model.transformer import Transformer

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
PREFIX = "base_model.model."
VALUE_HEAD = "value.weight"

READ = {
    "r", "lora_alpha", "use_rslora", "lora_dropout", "init_lora_weights", "base_model_name_or_path",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "task_type", "auto_mapping", "peft_version", "revision", "inference_mode",
    "eva_config", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
"""Options that are read here, that the matrices themselves answer, or that change nothing of a plain adapter."""
UNUSED = {
    "peft_type": ("LORA",), "bias": ("none",), "megatron_core": ("megatron.core",), "qalora_group_size": (16,),
}  # fmt: skip
"""Other options whose value for "not used" is not empty. Every further one, also of a later PEFT, must be empty."""

PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base as it is; the others (PiSSA, OLoRA, …) take something out of it."""


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter in PEFT's format."""
    return (folder / CONFIG).is_file()


def write_adapter(folder: Path, model: Transformer, name: str, final: Path) -> None:
    """Write an adapter's files into an existing folder; `final` is where that folder will stand in the end."""
    where, sha256 = model.frozen_base or ("", "")
    absolute = str(Path(where).resolve()) if where else ""
    files = {CONFIG: peft_config(model, name, absolute)}
    if where:
        relative = os.path.relpath(absolute, Path(final).resolve())
        files[BASE] = {"folder": absolute, "relative_folder": relative, "sha256": sha256}
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in peft_state(model, name).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def peft_config(model: Transformer, name: str, base: str) -> dict[str, Any]:
    """The content of adapter_config.json; base: folder of the model that the adapter stands on."""
    layers = lora_layers(model, name)
    adapter = next(iter(layers.values())).adapters[name]
    kinds = sorted({at.rpartition(".")[2] for at in layers})
    exact = matching_layers(model, tuple(kinds)) == list(layers)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha or 2 * adapter.rank,
        "use_rslora": adapter.rslora,
        "lora_dropout": adapter.dropout,
        "target_modules": kinds if exact else list(layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def peft_state(model: Transformer, name: str) -> dict[str, Tensor]:
    """PEFT's tensor names -> the live matrices of an adapter, and the value head that is trained with it."""
    state: dict[str, Tensor] = {}
    for at, layer in lora_layers(model, name).items():
        state[f"{PREFIX}{at}.lora_A.weight"] = layer.lora_A[name]
        state[f"{PREFIX}{at}.lora_B.weight"] = layer.lora_B[name]
    if model.value is not None:  # PPO's: in its checkpoints, not in finished adapters
        state[VALUE_HEAD] = model.value.weight
    return state


def load_adapter(folder: Path, model: Transformer, name: str = "default") -> list[str]:
    """Add the adapter of a folder to the model under `name` and use it; the names of its layers come back.

    Raises UserError for options of PEFT that this model does not have and for matrices that do not fit it.
    """
    folder = Path(folder)
    config, tensors = read_json(folder / CONFIG), read_safetensors(folder / WEIGHTS)
    tensors.pop(VALUE_HEAD, None)  # PPO's, for training alone
    _refuse_options(folder, config)
    layers = {key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors}
    cfg = LoraConfig(
        rank=config.get("r", 0), alpha=float(config.get("lora_alpha", 8)), name=name,
        rslora=bool(config.get("use_rslora")), dropout=float(config.get("lora_dropout") or 0),
        targets=tuple(sorted(layers)),
    )  # fmt: skip
    names = add_adapter(model, cfg, seed=None)
    fill_adapter(folder, model, name, tensors)
    return names


def _refuse_options(folder: Path, config: Mapping[str, Any]) -> None:
    for option, value in config.items():
        if option not in READ and value and value not in UNUSED.get(option, ()):
            raise UserError(
                f"{folder / CONFIG}: {option} is {value!r}, which this model does not have; only plain LoRA can be "
                "read, so merge that adapter in PEFT and start from the merged model"
            )
    if not float(config.get("lora_alpha", 8)) > 0:
        raise UserError(
            f"{folder / CONFIG}: lora_alpha is {config['lora_alpha']!r}, with which an adapter adds nothing; start "
            "from the base itself, or correct it"
        )
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise UserError(
            f"{folder / CONFIG}: init_lora_weights is {start!r}, so the adapter belongs to a changed base; convert it "
            "to plain LoRA in PEFT (path_initial_model_for_weight_conversion), or merge it there"
        )


@torch.no_grad()
def fill_adapter(folder: Path, model: Transformer, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Copy stored matrices into an adapter that the model carries; UserError where they do not belong to it."""
    live = peft_state(model, name)
    problems = [f"{key} is missing" for key in live.keys() - tensors.keys()]
    problems += [f"{key} is unknown" for key in tensors.keys() - live.keys()]
    for key in live.keys() & tensors.keys():
        if live[key].shape != tensors[key].shape:
            problems.append(f"{key} has shape {tuple(tensors[key].shape)}, not {tuple(live[key].shape)}")
    if problems:
        raise UserError(
            f"{folder}: the adapter does not fit this model: {'; '.join(sorted(problems)[:3])} "
            f"({len(problems)} in all); use it with the model it was trained on"
        )
    for key, matrix in live.items():
        matrix.copy_(tensors[key])


def recorded_base(folder: Path) -> dict[str, str]:
    """`folder`, `relative_folder` and `sha256` of the weights that an adapter was trained on; {} if PEFT wrote it."""
    return read_json(folder / BASE) if (folder / BASE).is_file() else {}


def base_folder(folder: Path) -> Path:
    """Folder of the weights that an adapter stands on; UserError when they are not there."""
    recorded = recorded_base(folder)
    named = str(read_json(folder / CONFIG).get("base_model_name_or_path") or "")
    for candidate in (recorded.get("folder"), recorded.get("relative_folder"), named):
        # A run that was moved as a whole is found by the relative path.
        path = folder / Path(candidate).expanduser() if candidate else None
        if path is not None and (path / "config.json").is_file():
            return path.resolve()
    raise UserError(
        f"{folder} is an adapter of the model {named or recorded.get('folder')!r}, which is not there; put that "
        f"folder back, or correct base_model_name_or_path in {folder / CONFIG}"
    )
