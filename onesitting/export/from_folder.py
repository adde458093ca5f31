"""`onesitting import`: a local Hugging Face folder becomes a run.

The weights are copied file by file and never loaded: what is checked, the shapes, stands in the head of each file.
So a model larger than memory can be imported, and `load_model` maps the copies into memory without reading them.
"""

import json
import math
import os
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import Tensor

from onesitting import __version__
from onesitting.checks import check_config
from onesitting.config import ModelConfig, RunConfig, StageName, TokenizerConfig
from onesitting.errors import UserError
from onesitting.export.chat_check import chat_findings
from onesitting.export.source import whole_folder
from onesitting.model.flops import count_parameters
from onesitting.model.hf import from_hf_state, read_config, read_json, weight_files
from onesitting.model.stored import check_state
from onesitting.model.transformer import Transformer
from onesitting.recipe import write_config
from onesitting.runlog import CONFIG_FILE, RunFolder, write_atomic
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.tokenizer.unused import tokenizer_of_model

LONGEST_ROW = 2048
"""Rows of a fine-tuning that follows are no longer than this, whatever the model could read."""

EXTRA_FILES = ("generation_config.json", "model.safetensors.index.json")
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "README.md")


def import_folder(options: Namespace) -> Path:
    """Make a run of a model folder and say what works with it; the run's folder comes back.

    options: folder, name, out (the folder of all runs), link (hard links in place of copies of the weights).
    Raises UserError for a model or tokenizer of another kind, weights that do not fit config.json, or a run of
    that name.
    """
    folder = Path(options.folder).expanduser()
    cfg = read_config(folder)
    check_headers(folder, cfg)
    tokenizer = tokenizer_of_model(folder, cfg.vocab_size)
    chats, chat_line = chat_findings(folder, tokenizer)
    stage: StageName = "sft" if chats else "pretrain"
    settings = run_config(options.name, options.out, stage, cfg, tokenizer)
    target = Path(options.out).expanduser() / options.name
    with whole_folder(target) as partial:
        run = RunFolder(partial)
        model = run.stage(stage).model
        copy_model(folder, model, tokenizer, link=options.link)
        tokenizer.save(run.tokenizer)
        n_parameters = count_parameters(cfg)
        summary = {"stage": stage, "n_parameters": n_parameters, "imported_from": str(folder.resolve())}
        write_atomic(run.stage(stage).path / "summary.json", json.dumps(summary, indent=1) + "\n")
        write_config(settings, partial / CONFIG_FILE)
    console = Console(highlight=False)
    for line in (f"{target}  {n_parameters:,} parameters, {tokenizer.vocab_size:,} tokens", chat_line):
        console.print(line, soft_wrap=True, markup=False)
    return target


def run_config(name: str, out: str, stage: StageName, cfg: ModelConfig, tokenizer: Tokenizer) -> RunConfig:
    """The settings with which stages can be added to the run. Raises UserError for a name that is no folder's."""
    row = 2 ** int(math.log2(min(cfg.context_length, LONGEST_ROW)))  # divides the tokens of a step
    settings = RunConfig(
        name=name,
        out=out,
        stages=(stage,),
        model=replace(cfg, context_length=row),
        tokenizer=TokenizerConfig(vocab_size=tokenizer.vocab_size),
    )
    check_config(settings)
    return settings


def check_headers(folder: Path, cfg: ModelConfig) -> None:
    """Compare names and shapes in the heads of the weight files with config.json, without reading a weight.

    Raises UserError naming each tensor that is missing, unknown or of another shape.
    """
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, the file is no mapping
                    state[name] = torch.empty(file.get_slice(name).get_shape(), device="meta")
        except FileNotFoundError:
            raise UserError(
                f"{path} does not exist; only safetensors weights are read, convert others first"
            ) from None
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} is not a whole safetensors file ({error}); copy or download it again"
            ) from None
    if cfg.tie_embeddings:
        state.pop("lm_head.weight", None)  # a copy; load_model compares the values
    with torch.device("meta"):
        model = Transformer(cfg, seed=None)
    check_state(folder, model, from_hf_state(cfg, state))


def copy_model(folder: Path, model: Path, tokenizer: Tokenizer, *, link: bool) -> None:
    """The files that make a model folder, with the tokenizer as onesitting writes it."""
    model.mkdir(parents=True)
    for path in weight_files(folder):
        if link:
            os.link(path.resolve(), model / path.name)
        else:
            shutil.copyfile(path, model / path.name)
    present = [folder / name for name in EXTRA_FILES if (folder / name).is_file()]
    for path in [*present, *(p for pattern in LICENCES for p in folder.glob(pattern) if p.is_file())]:
        shutil.copyfile(path, model / path.name)
    config = read_json(folder / "config.json")
    origin = {"imported_with": f"onesitting {__version__}"}
    write_atomic(model / "config.json", json.dumps(config | origin, indent=2, ensure_ascii=False) + "\n")
    tokenizer.save(model)
