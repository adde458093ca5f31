"""The first optimizer step of every stage, through the loop: what two processes must make of it as one does.

All cases start from the two saved models of `prepare` (one dense, one a mixture), read the same prepared data, and go
through `make_stage` and `Loop.train_step`, as a run does. Nothing is evaluated or saved.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import rl_maker
import tiny
import torch

from onesitting.checkpoint import load_model, save_model
from onesitting.config import (
    CorpusConfig,
    DistillConfig,
    DPOConfig,
    GRPOConfig,
    LoraConfig,
    PPOConfig,
    RewardConfig,
    RLConfig,
    RunConfig,
    SFTConfig,
)
from onesitting.data.prepare import prepare_conversations, prepare_preferences
from onesitting.model.lora import add_adapter
from onesitting.model.transformer import Transformer
from onesitting.runlog import RunFolder
from onesitting.stages.make import StageInputs, make_stage
from onesitting.stages.ppo import add_value_head
from onesitting.stages.reward import with_score_head
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.train import distributed
from onesitting.train.budget import StepTarget
from onesitting.train.distributed import Ranks
from onesitting.train.loop import FitSettings, Loop

ROWS = {"context_length": 128, "step_tokens": 8 * 128, "micro_batch_rows": 2, "max_epochs": 0.0}
LORA = {"lora": LoraConfig(rank=2)}
RL = {
    "prompts": ("world:arithmetic",),
    "rewards": ("length", "stopped=0.3"),
    "max_tokens": 10,
    "eval_prompts": 1,
}

CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "sft": ("sft", False, {}),
    "sft, mixture": ("sft", True, {}),
    "dpo": ("dpo", False, {}),
    "dpo, adapter": ("dpo", False, LORA),
    "dpo, mixture": ("dpo", True, {}),
    "kto": ("dpo", False, {"dpo": DPOConfig(loss="kto", **ROWS)}),
    "kto, adapter": ("dpo", False, {"dpo": DPOConfig(loss="kto", **ROWS), **LORA}),
    "reward": ("reward", False, {}),
    "distill": ("distill", False, {"distill": DistillConfig(top_k=4, **ROWS)}),
    "distill, adapter": ("distill", False, LORA),
    "distill, on policy": ("distill", False, {"distill": DistillConfig(on_policy=0.5, **ROWS)}),
    "grpo": ("grpo", False, {"rl": RLConfig(**RL, prompts_per_batch=4, samples=4, kl_weight=0.1)}),
    "grpo, mixture": ("grpo", True, {}),
    "grpo, nothing to compare": ("grpo", True, {"rl": RLConfig(**RL | {"rewards": ("scorer",)}, samples=2)}),
    "ppo": ("ppo", False, {}),
    "ppo, adapter": ("ppo", False, LORA),
}
"""Name -> (stage, whether the model is a mixture, what differs from `config_of`)."""


def config_of(
    stage: str, words: Tokenizer, place: Path, model: Transformer, changes: dict[str, Any]
) -> RunConfig:
    cfg = rl_maker.config(words)
    sections: dict[str, Any] = {
        "sft": SFTConfig(**ROWS), "dpo": DPOConfig(**ROWS), "reward": RewardConfig(**ROWS),
        "distill": DistillConfig(**ROWS), "rl": RLConfig(**RL, prompts_per_batch=4, samples=4),
        "grpo": GRPOConfig(micro_batch_rows=2), "ppo": PPOConfig(micro_batch_rows=2), **changes,
    }  # fmt: skip
    sections["distill"] = replace(sections["distill"], teacher=str(place / "teacher"))
    return replace(cfg, name="t", stages=(stage,), model=model.cfg, **sections)


def prepare(place: Path) -> None:
    """Models and data that all cases and processes share."""
    words = tiny.tokenizer()
    save_model(place / "dense", rl_maker.random_model(words), words)
    shape = rl_maker.shape(words.vocab_size)
    mixture = Transformer(
        replace(shape, n_experts=4, n_active_experts=2, d_ff=48, router_aux_loss=0.05), seed=1
    )
    teacher = Transformer(replace(shape, n_layers=1), seed=3)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (*mixture.parameters(), *teacher.parameters()):
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.08)
        mixture.output_weight[sorted(words.stop_ids)] *= 3.0
    save_model(place / "mixture", mixture, words)
    save_model(place / "teacher", teacher, words)
    pairs = tiny.pairs(60)
    (place / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in pairs))
    talks = ({"prompt": one["prompt"], "response": one["chosen"]} for one in pairs)
    (place / "talks.jsonl").write_text("".join(json.dumps(record) + "\n" for record in talks))
    data(place, words)


def data(place: Path, words: Tokenizer) -> dict[str, Any]:
    corpus = CorpusConfig(cache="", workers=1, val_fraction=0.2)
    chat = prepare_conversations((str(place / "talks.jsonl"),), words, corpus, place / "chat", 0)
    preferences = prepare_preferences((str(place / "pairs.jsonl"),), words, corpus, place / "preferences", 0)
    return {"data": None, "chat": chat, "preferences": preferences}


def make_loop(name: str, place: Path, out: Path, ranks: Ranks, shared: dict[str, Any]) -> Loop:
    """The loop of a case before its first step."""
    stage_name, is_mixture, changes = CASES[name]
    start = place / ("mixture" if is_mixture else "dense")
    model = load_model(start)
    words: Tokenizer = shared["words"]
    cfg = config_of(stage_name, words, place, model, changes)
    if stage_name == "reward":
        model = with_score_head(model, cfg.seed)
    model.train()
    if cfg.lora.rank:
        add_adapter(model, cfg.lora, seed=0, base=start)
        generator = torch.Generator().manual_seed(4)
        with (
            torch.no_grad()
        ):  # as after some training: a new adapter's B is zero, and so is the gradient of its A
            for at, parameter in model.named_parameters():
                if ".lora_B." in at:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if stage_name == "ppo":
        add_value_head(model)
    folder = RunFolder(out / name.replace(", ", "-").replace(" ", "-")).stage(stage_name)
    folder.path.mkdir(parents=True, exist_ok=True)
    plan = rl_maker.device_plan(cfg)
    inputs = StageInputs(
        cfg=cfg, tokenizer=words, plan=plan, ranks=ranks, start=start, folder=folder.path, **shared["data"]
    )
    stage = make_stage(stage_name, inputs)
    target = StepTarget(
        getattr(cfg, stage_name), tokens=8 * stage.row_length * stage.n_rows, row_length=stage.row_length,
        n_rows=stage.n_rows, evaluate_every=1.0,
    )  # fmt: skip
    return Loop(stage, model, FitSettings(target=target), cfg, folder, plan, ranks, words)


def first_step(name: str, place: Path, out: Path, ranks: Ranks, shared: dict[str, Any]) -> dict[str, Any]:
    """The line of metrics of a case's first step."""
    loop = make_loop(name, place, out, ranks, shared)
    record = loop.train_step()
    loop.prefetch.close()
    return record


def shared_by_all(place: Path) -> dict[str, Any]:
    """Tokenizer and data of a prepared place."""
    words = Tokenizer.load(place / "dense")
    return {"words": words, "data": data(place, words)}


def all_first_steps(place: Path, out: Path, ranks: Ranks) -> dict[str, dict[str, Any]]:
    shared = shared_by_all(place)
    return {name: first_step(name, place, out, ranks, shared) for name in CASES}


def process(rank: int, world: int, port: int, place: Path) -> None:
    """What each of several processes does; the first one writes its metrics down."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    ranks = distributed.init(rl_maker.config(tiny.tokenizer()).device)
    found = all_first_steps(place, place / "two", ranks)
    if rank == 0:
        (place / "two.json").write_text(json.dumps(found))
    ranks.barrier()
    distributed.shutdown(ranks)
