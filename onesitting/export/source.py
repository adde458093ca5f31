"""What every target starts from: one model folder with its tokenizer, and the run it belongs to, if any."""

import importlib
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onesitting.checkpoint import find_model_folder
from onesitting.config import ModelConfig
from onesitting.errors import UserError
from onesitting.model.hf import read_config
from onesitting.runlog import CONFIG_FILE, RunFolder, storage_error
from onesitting.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class Source:
    """A model to export."""

    folder: Path
    """The model folder: config.json, safetensors, tokenizer.json."""
    cfg: ModelConfig
    """Shape of the model."""
    tokenizer: Tokenizer
    """The tokenizer that lies beside it."""
    name: str
    """A name for files and cards: the run's, else the folder's."""
    run: RunFolder | None
    """The run that made it; None for a folder from elsewhere."""
    stage: str = ""
    """The stage of the run that it comes from."""

    @property
    def chats(self) -> bool:
        """Whether it was made for conversations: a base model has their tokens, but never saw one."""
        return "<|im_start|>" in self.tokenizer.special_ids and self.stage != "pretrain"


def open_source(path: str) -> Source:
    """The model that a path means: a run's last finished stage, a stage, or a model folder.

    Raises UserError when there is no model or no tokenizer.
    """
    folder = find_model_folder(Path(path).expanduser()).resolve()
    run = next((RunFolder(p) for p in (folder, *folder.parents[:3]) if (p / CONFIG_FILE).is_file()), None)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer.json; copy the tokenizer that the model was trained with")
    name = run.path.name if run else folder.name
    inside = folder.relative_to(run.path.resolve()).parts if run else ()
    return Source(folder, read_config(folder), Tokenizer.load(folder), name, run, inside[0] if inside else "")


def need(module: str) -> Any:
    """A library of the `export` extra. Raises UserError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"this needs the library {module.split('.')[0]}: pip install 'onesitting[export]'"
        ) from None


def _refuse_to_replace(path: Path, is_there: bool) -> None:
    if is_there:
        raise UserError(f"{path} is there already; choose another place with --out, or remove it")


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """A temporary name in the same folder, renamed to `path` when the block ends well, else deleted.

    Raises UserError if it is there already.
    """
    _refuse_to_replace(path, path.exists())
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise storage_error(error, path) from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Generator[Path]:
    """A temporary sibling that becomes `folder` when the block ends well. Raises UserError if it is there already."""
    folder = folder.absolute()  # `.` has no name
    _refuse_to_replace(folder, folder.exists() and (not folder.is_dir() or any(folder.iterdir())))
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():  # its files and not itself, since somebody may stand in it
            for path in list(partial.iterdir()):
                path.rename(folder / path.name)
        else:
            partial.rename(folder)
    except OSError as error:
        raise storage_error(error, folder) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_special(cfg: ModelConfig, target: str) -> None:
    """Raise UserError for a mixture of experts or a reward model, which this target is not written for."""
    if cfg.n_scores:
        raise UserError(
            f"a reward model writes no text, so it cannot be exported to {target}; its model folder is in Hugging "
            "Face's format, which transformers loads as AutoModelForSequenceClassification"
        )
    if cfg.n_experts:
        raise UserError(
            f"a mixture of experts (model.n_experts = {cfg.n_experts}) cannot be exported to {target} yet; its model "
            "folder is in Hugging Face's format (Qwen3-MoE), which transformers and vLLM load as it is"
        )
