"""`onesitting merge`: runs of one shape and one tokenizer become a run whose only stage is finished, and that chats."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from onesitting.checkpoint import find_model_folder, load_model, save_model
from onesitting.config import RunConfig, StageName
from onesitting.errors import UserError
from onesitting.model.flops import count_parameters
from onesitting.model.lora import weights_hash
from onesitting.model.merge import Method, merge_states
from onesitting.model.stored import config_differences
from onesitting.model.transformer import Transformer
from onesitting.recipe import load_recipe, resolve, write_config
from onesitting.runlog import CONFIG_FILE, RunFolder, write_atomic
from onesitting.tokenizer.bpe import Tokenizer


def merge_runs(
    sources: Sequence[Path],
    out: Path,
    method: Method,
    weights: Sequence[float] = (),
    *,
    base: Path | None = None,
    density: float = 0.2,
) -> Path:
    """Merge the models of `sources` (runs, stages, model folders) into a new run folder; its model's folder comes back.

    base: for `ties`, the model that all of them were trained from.
    Raises UserError for another shape or tokenizer, and for a folder `out` that exists.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: the folder is not empty; name a new one")
    folders = [find_model_folder(source) for source in (*sources, *([base] if base else []))]
    models = [load_model(folder) for folder in folders]
    tokenizer = _common_tokenizer(folders)
    for folder, model in zip(folders[1:], models[1:], strict=True):
        if differing := config_differences(model.cfg, models[0].cfg):
            raise UserError(f"{folder} has another shape than {folders[0]}: {'; '.join(differing)}")
    states = [dict(model.state_dict()) for model in models]
    base_state = states.pop() if base else None
    merged = Transformer(models[0].cfg, seed=None)
    merged.load_state_dict(merge_states(states, method, weights, base=base_state, density=density))
    cfg = _config(folders[0], out, merged)
    run = RunFolder(out).create()
    write_config(cfg, run.config_path)
    tokenizer.save(run.tokenizer)
    stage = run.stage(cfg.stages[0])
    save_model(stage.model, merged, tokenizer, dtype=next(models[0].parameters()).dtype)
    summary = {
        "stage": cfg.stages[0],
        "n_parameters": count_parameters(merged.cfg),
        "merged": {
            "method": method,
            "weights": list(weights) or [1.0] * len(states),
            "density": density if method == "ties" else None,
            "models": [
                {"folder": str(folder), "sha256": weights_hash(model)}
                for folder, model in zip(folders[: len(sources)], models, strict=False)
            ],
            "base": str(folders[-1]) if base else None,
        },
    }
    write_atomic(stage.path / "summary.json", json.dumps(summary, indent=1) + "\n")
    return stage.model


def _common_tokenizer(folders: Sequence[Path]) -> Tokenizer:
    tokenizers = [Tokenizer.load(folder) for folder in folders]
    for folder, tokenizer in zip(folders, tokenizers, strict=True):
        if tokenizer.hash != tokenizers[0].hash:
            raise UserError(
                f"{folder} has another tokenizer than {folders[0]}: the same ids mean other text, so their weights "
                "cannot be mixed; train one of them from the other with --from"
            )
    return tokenizers[0]


def _config(model_folder: Path, out: Path, model: Transformer) -> RunConfig:
    """Settings of the merged run: those of the first model's run, where it lies in one."""
    run = next(
        (parent for parent in model_folder.resolve().parents if (parent / CONFIG_FILE).is_file()), None
    )
    cfg = resolve(load_recipe(run)) if run else RunConfig()
    name = model_folder.resolve().parent.name
    stage: StageName = next((known for known in get_args(StageName) if known == name), "sft")
    out = out.expanduser()
    shape = replace(model.cfg, context_length=min(model.cfg.context_length, cfg.model.context_length))
    return replace(cfg, name=out.name, out=str(out.parent), stages=(stage,), start_from="", model=shape)
