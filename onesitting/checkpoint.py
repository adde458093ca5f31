"""Models and training states on disk: complete Hugging Face folders, written so that a kill loses nothing.

A model folder holds config.json, model.safetensors, generation_config.json and the tokenizer's files. A
checkpoint is a model folder plus training.safetensors (optimizer and other tensors), training.json (the rest of
the state) and manifest.json (size and SHA-256 of every file). Either appears under its name only when it is
whole: files go to a sibling folder, are flushed to the disk, and the folder is renamed. No pickle anywhere.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from onesitting.config import StageName
from onesitting.errors import UserError
from onesitting.model.hf import (
    NATIVE,
    hf_config,
    hf_format,
    read_hf_folder,
    read_json,
    read_safetensors,
    to_hf_state,
)
from onesitting.model.lora import adapter_in_use, merge, weights_hash
from onesitting.model.peft import (
    WEIGHTS,
    base_folder,
    fill_adapter,
    is_adapter_folder,
    load_adapter,
    recorded_base,
    write_adapter,
)
from onesitting.model.stored import check_state, config_differences
from onesitting.model.transformer import Transformer
from onesitting.runlog import RunFolder

if TYPE_CHECKING:
    from onesitting.tokenizer.bpe import Tokenizer

MANIFEST = "manifest.json"


def save_model(
    folder: Path,
    model: Transformer,
    tokenizer: "Tokenizer | None" = None,
    *,
    generation: Mapping[str, Any] | None = None,
    card: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a complete model folder, replacing an older one of that name at the last moment.

    generation: more entries for generation_config.json, such as temperature. card: text of README.md.
    dtype: of the stored weights; None keeps the model's. Raises UserError when the folder cannot be written.
    """
    with _written_folder(Path(folder)) as temporary:
        _write_model(temporary, model, tokenizer, generation or {}, card, dtype)


def load_model(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Transformer:
    """The model of a folder (ours or Hugging Face's), in evaluation mode; of an adapter's, the merged model.

    dtype: of the weights; None keeps the stored one. Raises UserError naming each tensor that is missing,
    unknown or of another shape.
    """
    if not (Path(folder) / "config.json").is_file() and is_adapter_folder(Path(folder)):
        return _load_merged(Path(folder)).to(device=device, dtype=dtype)
    cfg, state = read_hf_folder(Path(folder))
    state = {
        name: tensor for name, tensor in state.items() if name != "value.weight"
    }  # PPO's, for training alone
    with torch.device("meta"):
        model = Transformer(cfg, seed=None)
    check_state(Path(folder), model, state)
    state = {name: tensor.to(device=device, dtype=dtype) for name, tensor in state.items()}
    model.load_state_dict(state, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def _load_merged(folder: Path) -> Transformer:
    """The model that an adapter's folder refers to, with the adapter merged into it."""
    model = load_model(base_folder(folder))
    _check_base(folder, weights_hash(model))
    load_adapter(folder, model)
    merge(model)
    return model


def _check_base(folder: Path, sha256: str) -> None:
    """Refuse other weights than those that an adapter was trained on."""
    base = recorded_base(folder)
    if base and base["sha256"] != sha256:
        raise UserError(
            f"{folder} is an adapter of other weights than those that {base['folder']} holds now (their SHA-256 "
            "differs); put the old model back, or train the adapter again"
        )


def save_adapter(
    folder: Path, model: Transformer, name: str = "default", tokenizer: "Tokenizer | None" = None
) -> None:
    """Write an adapter that the model carries as a folder in PEFT's format, replacing an older one."""
    with _written_folder(Path(folder)) as temporary:
        write_adapter(temporary, model, name, Path(folder))
        if tokenizer:
            tokenizer.save(temporary)


def find_model_folder(path: Path) -> Path:
    """The model folder that a path means: itself, a stage's `model/`, or a run's last finished stage, in its own order.

    Raises UserError listing where it looked.
    """
    path = Path(path)
    own, known = RunFolder(path).stages()[::-1], get_args(StageName)[::-1]
    stages = [stage for stage in (*own, *(s for s in known if s not in own)) if stage != "reward"]
    candidates = [path, path / "model", *(path / stage / "model" for stage in stages)]
    for candidate in candidates:
        if (candidate / "config.json").is_file() or is_adapter_folder(candidate):
            return candidate
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run folder (runs/NAME) or a model folder")
    for stage in (*stages, "."):
        newest, _ = latest_checkpoint(path / stage / "checkpoints")
        if newest is not None:
            return newest
    raise UserError(
        f"{path} holds no model (no model/, {'/model/, '.join(stages)}/model/ or checkpoint); train one first"
    )


class Checkpoint(NamedTuple):
    """What `load_checkpoint` gives back beside the weights, which it puts into the model."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    model: Transformer,
    tokenizer: "Tokenizer | None" = None,
    *,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    """Write model and training state as one folder, whole or not at all; of a model with an adapter, the adapter alone.

    folder: …/checkpoints/000400. tensors: any names, shapes and dtypes. state: JSON values.
    Raises UserError when the disk is full or the folder cannot be written; nothing is left behind then.
    """
    adapter = adapter_in_use(model)
    with _written_folder(Path(folder)) as temporary:
        if adapter is None:
            _write_model(temporary, model, tokenizer, {}, None, None)
        else:
            write_adapter(temporary, model, adapter, Path(folder))
            if tokenizer:
                tokenizer.save(temporary)
        _write_safetensors(temporary / "training.safetensors", tensors)
        _write_json(temporary / "training.json", state)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        entries = {
            str(p.relative_to(temporary)): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files
        }
        _write_json(temporary / MANIFEST, {"files": entries})


def load_checkpoint(folder: Path, model: Transformer) -> Checkpoint:
    """Put a checkpoint's weights into `model` (in place, bit for bit) and give back the training state.

    Raises UserError when a file is missing, cut short or changed, or when the checkpoint is of another model.
    """
    folder = Path(folder)
    verify_checkpoint(folder)
    adapter = adapter_in_use(model)
    if adapter is not None and is_adapter_folder(folder):
        _check_base(folder, model.frozen_base[1] if model.frozen_base else "")
        fill_adapter(folder, model, adapter, read_safetensors(folder / WEIGHTS))
    else:
        _load_weights(folder, model, adapter)
    return Checkpoint(read_safetensors(folder / "training.safetensors"), read_json(folder / "training.json"))


def _load_weights(folder: Path, model: Transformer, adapter: str | None) -> None:
    """Put all weights of a checkpoint into the model; UserError when they are of another."""
    if adapter is not None or is_adapter_folder(folder):
        differing = [f"it holds {'an adapter' if adapter is None else 'all weights'}, unlike lora.rank"]
    else:
        cfg, weights = read_hf_folder(folder)
        differing = config_differences(cfg, model.cfg)
        if not differing:
            check_state(folder, model, weights)
            model.load_state_dict(weights)
    if differing:
        raise UserError(
            f"{folder} is a checkpoint of another model: {'; '.join(differing)}. "
            "Use the settings it was made with, or start a run under another name"
        )


def verify_checkpoint(folder: Path) -> None:
    """Compare every file with the manifest; UserError names the first file that differs, and how."""
    advice = "delete this checkpoint folder, and the run goes on from the one before it"
    try:
        entries = read_json(folder / MANIFEST)["files"]
    except (UserError, KeyError):
        raise UserError(
            f"{folder} has no readable {MANIFEST}, so it is not a whole checkpoint; {advice}"
        ) from None
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; {advice}")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise UserError(f"{path} has {size} bytes where the manifest says {entry['bytes']}; {advice}")
        if _sha256(path) != entry["sha256"]:
            raise UserError(f"{path} was changed after it was written (its SHA-256 differs); {advice}")


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders in …/checkpoints, oldest first; unfinished ones are not among them."""
    if not Path(folder).is_dir():
        return []
    return sorted(
        (p for p in Path(folder).iterdir() if p.is_dir() and p.name.isdigit()), key=lambda p: int(p.name)
    )


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """(newest whole checkpoint in …/checkpoints or None, one message for each newer one that was skipped)."""
    skipped: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(path)
        except UserError as error:
            skipped.append(str(error))
            continue
        return path, skipped
    return None, skipped


def prune_checkpoints(folder: Path, keep_last: int, best: Path | str | None = None) -> list[Path]:
    """Delete all but the newest `keep_last` checkpoints (at least one) and the best; give back the deleted ones.

    Folders that a kill left half-written or half-deleted go too.
    """
    folder = Path(folder)
    found = list_checkpoints(folder)
    kept = {p.name for p in found[-max(1, keep_last) :]} | ({Path(best).name} if best else set())
    deleted = [p for p in found if p.name not in kept]
    for path in deleted:
        _delete(path)
    for path in folder.glob(".*") if folder.is_dir() else ():
        if path.name.startswith((".deleted-", ".writing-", ".replaced-")):
            shutil.rmtree(path, ignore_errors=True)
    return deleted


def discard_newer_checkpoints(folder: Path, step: int) -> None:
    """Delete the checkpoints of …/checkpoints that are of later steps than `step`, to which training went back.

    They are damaged, or of weights that were given up, and would count as the newest that pruning keeps.
    """
    for path in list_checkpoints(folder):
        if int(path.name) > step:
            _delete(path)


def _delete(checkpoint: Path) -> None:
    # Renamed first: a kill in the middle leaves nothing that looks like a checkpoint.
    doomed = checkpoint.with_name(f".deleted-{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _write_model(
    folder: Path,
    model: Transformer,
    tokenizer: "Tokenizer | None",
    generation: Mapping[str, Any],
    card: str | None,
    dtype: torch.dtype | None,
) -> None:
    cfg = model.cfg
    state = {name: tensor.detach().to("cpu", dtype) for name, tensor in model.state_dict().items()}
    dtype_name = str(dtype or next(model.parameters()).dtype).removeprefix("torch.")
    eos_id = tokenizer.eos_id if tokenizer else None
    try:
        hf_format(cfg)
    except UserError:  # trainable, but no standard format has it: our own field names, our own tensor names
        config = {"model_type": NATIVE, "dtype": dtype_name, **dataclasses.asdict(cfg)}
    else:
        config = hf_config(cfg, eos_id=eos_id, pad_id=eos_id, dtype=dtype_name)
        state = to_hf_state(cfg, state)
    _write_json(folder / "config.json", config)
    _write_safetensors(folder / "model.safetensors", state)
    if tokenizer:
        tokenizer.save(folder)
        stop_ids = [*sorted(tokenizer.stop_ids - {tokenizer.eos_id}), tokenizer.eos_id]
        defaults = {"eos_token_id": stop_ids, "pad_token_id": eos_id, "max_length": cfg.context_length}
        _write_json(folder / "generation_config.json", {**defaults, **generation})
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(
        {name: _own_memory(tensor) for name, tensor in tensors.items()}, path, metadata={"format": "pt"}
    )


def _own_memory(tensor: Tensor) -> Tensor:
    """The tensor on the CPU in a storage of its own: safetensors refuses views that share one."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _written_folder(folder: Path) -> Generator[Path]:
    """A temporary sibling that becomes `folder` when the block ends well, and vanishes when it does not."""
    temporary = folder.with_name(f".writing-{folder.name}-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        _flush(p for p in temporary.rglob("*") if p.is_file())
        _flush([temporary])
        _replace_folder(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {folder}: {error}; free space there or choose another place with `out`"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(paths: Iterable[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; an older folder of that name is moved aside first and deleted afterwards."""
    old = folder.with_name(f".replaced-{folder.name}-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _flush([folder.parent])
    shutil.rmtree(old, ignore_errors=True)
