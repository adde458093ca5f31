"""Starting from another model: `start_from`, given as `--from`, is a run, one of its stages, or a Hugging Face folder.

The model brings its shape and its tokenizer. Everything else, the data, the stages, the rates, is the run's own.
"""

from dataclasses import replace
from pathlib import Path

from onesitting.checkpoint import find_model_folder
from onesitting.config import ModelConfig, RunConfig
from onesitting.errors import UserError
from onesitting.model.hf import read_config
from onesitting.model.peft import base_folder
from onesitting.model.rope import original_context, stretched


def start_folder(cfg: RunConfig) -> Path | None:
    """The model folder that `start_from` means; None without it. Raises UserError when there is no model."""
    return find_model_folder(Path(cfg.start_from).expanduser()) if cfg.start_from else None


def with_start_model(cfg: RunConfig) -> RunConfig:
    """The configuration with the shape and the tokenizer of `start_from`; unchanged without it.

    `model.context_length` keeps the run's own value where that is shorter: a model of long context need not be
    trained on rows that long. `model.rope_factor` stretches the model's context. Raises UserError when the model is
    not there or has no tokenizer.
    """
    folder = start_folder(cfg)
    if folder is None:
        return cfg
    whole = folder if (folder / "config.json").is_file() else base_folder(folder)
    model = read_config(whole)
    tokenizer = cfg.tokenizer
    if not tokenizer.path:
        if not (folder / "tokenizer.json").is_file():
            raise UserError(
                f"start_from = {cfg.start_from!r}: {folder} has no tokenizer.json; "
                "set tokenizer.path to the tokenizer that this model was trained with"
            )
        tokenizer = replace(tokenizer, path=str(folder))
    if cfg.lora.rank and stretched_as(model, cfg.model) != model:
        raise UserError(
            f"model.rope_factor = {cfg.model.rope_factor:g} with lora.rank = {cfg.lora.rank}: an adapter's folder "
            "leaves the shape to the model under it; stretch that one first, or set lora.rank=0"
        )
    model = stretched_as(model, cfg.model)
    context_length = min(model.context_length, cfg.model.context_length)
    return replace(cfg, model=replace(model, context_length=context_length), tokenizer=tokenizer)


def stretched_as(model: ModelConfig, wanted: ModelConfig) -> ModelConfig:
    """A model's shape, its context stretched where the run asks for it and the model is not so already.

    Raises UserError when the rows would not use what was asked for.
    """
    if wanted.rope_factor in (1.0, model.rope_factor):
        return model
    longer = stretched(model, wanted.rope_factor)
    if wanted.context_length <= original_context(model):
        raise UserError(
            f"model.rope_factor = {wanted.rope_factor:g}, but rows have model.context_length = {wanted.context_length} "
            f"tokens, which this model reads as it is: set model.context_length={longer.context_length}"
        )
    return longer
