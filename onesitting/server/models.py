"""The models of a server: loaded once at its start, each with an engine of its own."""

import json
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from onesitting.checkpoint import find_model_folder, load_model
from onesitting.errors import UserError
from onesitting.inference.engine import Engine, EngineSettings
from onesitting.inference.grammar import JsonGrammars
from onesitting.inference.sampling import Sampling
from onesitting.model.flops import kv_cache_bytes
from onesitting.model.quantise import quantise_int8
from onesitting.model.rope import stretched
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.tokenizer.unused import with_unused_entries
from onesitting.train.teams import worker_without_team

CACHE_BYTES = 2 << 30
"""Memory that the slots of one model may take; fewer slots are made when they would need more."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model under a name."""

    name: str
    engine: Engine
    tokenizer: Tokenizer
    defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    """Sampling settings of the model's generation_config.json."""
    created: int = 0
    """When it was loaded, in seconds since 1970."""
    grammars: JsonGrammars
    embedder: Executor = field(default_factory=lambda: worker_without_team("embeddings"))
    """Where `embed` is called, beside the engine."""

    @property
    def context_length(self) -> int:
        """Tokens of prompt and reply together."""
        return self.engine.model.cfg.context_length

    def embed(self, ids: Sequence[int]) -> list[float]:
        """The mean over a text's tokens of the last layer's normed states, scaled to length 1."""
        with torch.inference_mode():
            model = self.engine.model
            hidden = model.hidden(torch.tensor([list(ids)], device=model.device))[0]
            mean = hidden.float().mean(dim=0)
            return (mean / mean.norm().clamp(min=1e-12)).tolist()


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """How models are loaded."""

    device: torch.device
    dtype: torch.dtype
    int8: bool = False
    context_factor: float = 0.0
    """Context, in times of the one that the model was trained for; 0: the model's own."""
    engine: EngineSettings = field(default_factory=EngineSettings)


def load_served(name: str, path: Path, settings: LoadSettings) -> ServedModel:
    """A model and its engine from a run or model folder. Raises UserError when it cannot be loaded."""
    folder = find_model_folder(path)
    model = load_model(folder, settings.device)
    if settings.context_factor:
        model.cfg = stretched(model.cfg, settings.context_factor)
    return serve_model(name, model, Tokenizer.load(folder), settings, sampling_defaults(folder))


def serve_model(
    name: str,
    model: Transformer,
    tokenizer: Tokenizer,
    settings: LoadSettings,
    defaults: dict[str, Any] | None = None,
) -> ServedModel:
    """A model in memory, with an engine."""
    tokenizer = with_unused_entries(tokenizer, model.cfg.vocab_size)
    if settings.int8:
        model = quantise_int8(model.to(settings.dtype))
    slot_bytes = kv_cache_bytes(
        model.cfg, 1, model.cfg.context_length, str(settings.dtype).removeprefix("torch.")
    )
    n_slots = max(1, min(settings.engine.n_slots, CACHE_BYTES // slot_bytes))
    engine = EngineSettings(
        n_slots=n_slots,
        prefill_tokens=settings.engine.prefill_tokens,
        prefix_bytes=settings.engine.prefix_bytes,
        max_waiting=settings.engine.max_waiting,
        dtype=settings.dtype,
    )
    return ServedModel(
        name=name,
        engine=Engine(model, tokenizer, engine),
        tokenizer=tokenizer,
        defaults=defaults or {},
        created=int(time.time()),
        grammars=JsonGrammars(tokenizer),
    )


def sampling_defaults(folder: Path) -> dict[str, Any]:
    """Sampling settings that a model folder names."""
    path = folder / "generation_config.json"
    own: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = {it.name for it in fields(Sampling)} - {"stop", "max_tokens"}
    return {name: value for name, value in own.items() if name in names and value is not None}


def model_names(paths: Sequence[str]) -> list[tuple[str, Path]]:
    """A name for each RUN argument, `NAME=FOLDER` or a folder whose own name is taken. Names are distinct."""
    named: list[tuple[str, Path]] = []
    for text in paths:
        given, equals, folder = text.partition("=")
        path = Path(folder if equals else text).expanduser()
        name = given if equals else path.resolve().name
        if name in ("model", "") and not equals:
            name = (
                "-".join(part for part in path.resolve().parts[-3:] if part not in ("model", "/")) or "model"
            )
        if any(name == other for other, _ in named):
            raise UserError(
                f"two models are named '{name}'; name them: onesitting serve a={named[0][1]} b={path}"
            )
        named.append((name, path))
    return named
