"""Starting from another model: `start_from`, given as `--from`, is a run, one of its stages, or a Hugging Face folder.

The model brings its shape and its tokenizer. Everything else, the data, the stages, the rates, is the run's own. What
the model was trained on before, where that is known, is replayed and measured: `general_data`; docs/domain.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from onesitting.checkpoint import find_model_folder
from onesitting.checks import check_specs
from onesitting.config import CorpusConfig, ModelConfig, RunConfig, StageName
from onesitting.errors import UserError
from onesitting.model.hf import read_config
from onesitting.model.peft import base_folder
from onesitting.model.rope import original_context, stretched
from onesitting.recipe import load_recipe, resolve
from onesitting.runlog import CONFIG_FILE, StageFolder
from onesitting.tokenizer.bpe import Tokenizer


@dataclass(frozen=True, kw_only=True)
class General:
    """What a run replays and must not forget, named as `data` and `chat` name data; () where that is not known."""

    data: tuple[str, ...]
    chat: tuple[str, ...]
    corpus: CorpusConfig
    """How it is read: as the start model's run did, so that what was held out there stays held out."""
    seed: int
    """Seed of the synthetic world, where that is the source."""

    @property
    def has_world(self) -> bool:
        """Whether the synthetic world is among it, which has a question suite."""
        return "world" in (*self.data, *self.chat)


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
    _check_tokenizer(cfg, folder)
    if cfg.lora.rank and stretched_as(model, cfg.model) != model:
        raise UserError(
            f"model.rope_factor = {cfg.model.rope_factor:g} with lora.rank = {cfg.lora.rank}: an adapter's folder "
            "leaves the shape to the model under it; stretch that one first, or set lora.rank=0"
        )
    model = stretched_as(model, cfg.model)
    context_length = min(model.context_length, cfg.model.context_length)
    return replace(cfg, model=replace(model, context_length=context_length), tokenizer=tokenizer)


def _check_tokenizer(cfg: RunConfig, folder: Path) -> None:
    """Refuse a tokenizer that is not the model's: its ids would mean other words."""
    given = Path(cfg.tokenizer.path).expanduser()
    if not cfg.tokenizer.path or not all((f / "tokenizer.json").is_file() for f in (given, folder)):
        return
    if Tokenizer.load(given).hash != Tokenizer.load(folder).hash:
        raise UserError(
            f"tokenizer.path = {cfg.tokenizer.path!r} is another tokenizer than that of start_from = "
            f"{cfg.start_from!r}, whose model knows no other token ids: leave tokenizer.path empty"
        )


def start_run(cfg: RunConfig) -> RunConfig | None:
    """Settings of the run that trained the start model, RUN/STAGE/…; None for a model from elsewhere or an import."""
    folder = start_folder(cfg)
    if folder is None:
        return None
    for run in folder.absolute().parents[1:3]:
        stages = [
            run / stage for stage in get_args(StageName) if folder.absolute().is_relative_to(run / stage)
        ]
        trained = any(StageFolder(stage).metrics_path.is_file() for stage in stages)
        if trained and (run / CONFIG_FILE).is_file():
            return resolve(load_recipe(run))
    return None


def general_data(cfg: RunConfig) -> General | None:
    """The data to replay, and to measure forgetting on; None without a start model, or where nothing is known.

    It is `replay.data` and `replay.chat`, else what the start model's run was trained on. Without replay, what is not
    there any more, or is the run's own data, is left out. Raises UserError where `replay.fraction` needs what is
    not known or not there.
    """
    if not cfg.start_from:
        return None
    base = start_run(cfg)
    seed = base.seed if base else cfg.seed
    found: dict[str, tuple[str, ...]] = {}
    for name, given, stage in (("data", cfg.replay.data, "pretrain"), ("chat", cfg.replay.chat, "sft")):
        specs = given or (getattr(base, name) if base and stage in base.stages else ())
        needed = cfg.replay.fraction > 0 and stage in cfg.stages
        if needed and not specs:
            raise UserError(
                f"replay.fraction = {cfg.replay.fraction:g}, but it is not known what the {stage} stage of "
                f"{cfg.start_from} read: name general data with replay.{name}, or set replay.fraction=0"
            )
        if needed or given:
            check_specs(f"replay.{name}", specs)
        elif not _is_there(name, specs) or (specs, seed) == (getattr(cfg, name), cfg.seed):
            specs = ()
        found[name] = specs
    if not any(found.values()):
        return None
    corpus = replace(base.corpus if base else cfg.corpus, cache=cfg.corpus.cache, workers=cfg.corpus.workers)
    return General(**found, corpus=corpus, seed=seed)


def _is_there(name: str, specs: tuple[str, ...]) -> bool:
    """Whether the data of these specs can still be found."""
    try:
        check_specs(name, specs)
    except UserError:
        return False
    return True


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
