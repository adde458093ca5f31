"""A tiny model, tokenizer and preferences that the tests of stages share."""

import json
from pathlib import Path
from typing import Any

import torch

from onesitting.checkpoint import save_model
from onesitting.config import (
    CorpusConfig,
    DeviceConfig,
    EvaluationConfig,
    ModelConfig,
    RunConfig,
)
from onesitting.data.prepare import prepare_preferences
from onesitting.data.tokens import PreferenceFolder
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer
from onesitting.train.device import DevicePlan, detect, plan_device

ROW = 128


def tokenizer() -> Tokenizer:
    return train_tokenizer(["What is it? It is good. It is bad. " * 30], 320)


def shape(vocab_size: int, **changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = {
        "n_layers": 2, "d_model": 32, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 48,
        "vocab_size": vocab_size, "context_length": ROW, **changes,
    }  # fmt: skip
    return ModelConfig(**sizes)


def config(model: ModelConfig, **sections: Any) -> RunConfig:
    return RunConfig(
        name="t", model=model, device=DeviceConfig(device="cpu", dtype="float32", compile="off", threads=1),
        evaluation=EvaluationConfig(every_fraction=0.5, samples=0), **sections,
    )  # fmt: skip


def plan(cfg: RunConfig) -> DevicePlan:
    return plan_device(cfg.device, detect())


def pairs(n: int) -> list[dict[str, Any]]:
    """Good replies of one word more than the bad ones, prompts and replies of unequal length."""
    return [
        {
            "prompt": f"What is {'it ' * (i % 4)}{i}?",
            "chosen": "It is good. " * (1 + i % 3),
            "rejected": "It is bad" + " bad" * (i % 5) + ".",
        }
        for i in range(n)
    ]


def preferences(folder: Path, words: Tokenizer, records: list[dict[str, Any]]) -> PreferenceFolder:
    path = folder / "prefs.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return prepare_preferences(
        (str(path),), words, CorpusConfig(cache="", workers=1, val_fraction=0.2), folder / "p", 0
    )


def trained_start(folder: Path, words: Tokenizer, cfg: ModelConfig, noise: float = 0.05) -> Path:
    """A model folder with weights that no initialisation gives: all of them matter."""
    model = Transformer(cfg, seed=0)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    save_model(folder / "start", model, words)
    return folder / "start"
