"""What a configuration can be refused for before anything runs; `plan` and `run` share it.

Types and unknown names are `recipe.resolve`'s work. This file looks at values: each alone, each
against the others, and the files that they name. Nothing here imports torch.
"""

import glob
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from onesitting.budgets import parse_budget, parse_end_moves
from onesitting.config import SHARED_SECTIONS, ModelConfig, RunConfig, StageName, stage_config, step_tokens
from onesitting.errors import UserError

N_BYTES = 256  # a byte-level tokenizer holds every byte
N_SPECIAL_TOKENS = 9  # onesitting.tokenizer.SPECIAL_TOKENS; a test holds the two equal
MAX_VOCAB_SIZE = 262_144  # the largest vocabulary in wide use (Gemma 3); above it, a slip of the keyboard

# (dotted setting, smallest, largest). Fractions that may not be 0 start at the smallest sensible step.
_INF = math.inf
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("corpus.world_mb", 0.01, 100_000),
    ("corpus.world_pairs", 1, _INF),
    ("corpus.val_fraction", 0, 0.5),
    ("corpus.max_bad_fraction", 0, 1),
    ("corpus.max_document_mb", 0.001, _INF),
    ("corpus.workers", 0, 4096),
    ("tokenizer.train_mb", 0.01, _INF),
    ("tokenizer.chat_fraction", 0, 0.9),
    ("model.n_layers", 1, 1024),
    ("model.d_model", 8, 65_536),
    ("model.n_heads", 1, 1024),
    ("model.n_kv_heads", 1, 1024),
    ("model.head_dim", 2, 1024),
    ("model.d_ff", 8, 1_048_576),
    ("model.n_experts", 0, 4096),
    ("model.n_active_experts", 1, 4096),
    ("model.router_aux_loss", 0, 1),
    ("model.router_bias_rate", 0, 1),
    ("model.context_length", 8, 1_048_576),
    ("model.rope_theta", 1, _INF),
    ("model.rope_factor", 1, 1024),
    ("model.rope_original", 0, 1_048_576),
    ("model.norm_eps", 0, 1),
    ("model.n_scores", 0, 1),
    ("optim.matrix_lr", 0, 10),
    ("optim.embed_lr", 0, 10),
    ("optim.head_lr", 0, 10),
    ("optim.scalar_lr", 0, 10),
    ("optim.adapter_lr", 0, 10),
    ("lora.rank", 0, 65_536),
    ("lora.alpha", 0, _INF),
    ("lora.dropout", 0, 0.99),
    ("optim.momentum", 0, 0.9999),
    ("optim.adam_beta1", 0, 0.9999),
    ("optim.adam_beta2", 0, 0.9999999),
    ("optim.weight_decay", 0, 10),
    ("optim.clip_norm", 0, _INF),
    ("pretrain.share", 0, 1),
    ("pretrain.tokens", 0, _INF),
    ("pretrain.step_tokens", 8, _INF),
    ("pretrain.micro_batch_rows", 0, _INF),
    ("pretrain.context_length", 0, _INF),
    ("pretrain.short_context", 0, _INF),
    ("pretrain.short_fraction", 0, 1),
    ("pretrain.lr_scale", 0, 1000),
    ("pretrain.warmup_steps", 0, _INF),
    ("pretrain.decay_fraction", 0, 1),
    ("pretrain.bigram_steps", 0, 10_000),
    ("pretrain.ngram_targets", -1, 1),
    ("pretrain.counting", -1, 1),
    ("pretrain.final_lr", 0, 1),
    ("pretrain.chat_fraction", 0, 1),
    ("sft.share", 0, 1),
    ("sft.tokens", 0, _INF),
    ("sft.max_epochs", 0, _INF),
    ("sft.step_tokens", 8, _INF),
    ("sft.micro_batch_rows", 0, _INF),
    ("sft.context_length", 0, _INF),
    ("sft.lr_scale", 0, 1000),
    ("sft.warmup_steps", 0, _INF),
    ("sft.decay_fraction", 0, 1),
    ("sft.final_lr", 0, 1),
    ("replay.fraction", 0, 0.95),
    ("replay.chat_fraction", 0, 1),
    *(
        (f"{stage}.{name}", smallest, largest)
        for stage in ("dpo", "reward", "distill")
        for name, smallest, largest in (
            ("share", 0, 1),
            ("tokens", 0, _INF),
            ("max_epochs", 0, _INF),
            ("step_tokens", 16, _INF),
            ("micro_batch_rows", 0, _INF),
            ("context_length", 0, _INF),
            ("lr_scale", 0, 1000),
            ("warmup_steps", 0, _INF),
            ("decay_fraction", 0, 1),
            ("final_lr", 0, 1),
        )
    ),
    ("dpo.beta", 1e-6, 1000),
    ("dpo.label_smoothing", 0, 0.5),
    ("dpo.margin", 0, 1000),
    ("dpo.sft_weight", 0, 1000),
    ("dpo.desirable_weight", 0, 1000),
    ("dpo.undesirable_weight", 0, 1000),
    ("reward.centre_weight", 0, 100),
    ("rl.prompts_per_batch", 1, _INF),
    ("rl.samples", 1, 4096),
    ("rl.minibatches", 1, 4096),
    ("rl.epochs", 1, 1000),
    ("rl.temperature", 0.01, 100),
    ("rl.max_tokens", 1, _INF),
    ("rl.max_turns", 1, 1000),
    ("rl.kl_weight", 0, 1000),
    ("rl.eval_prompts", 0, _INF),
    ("rl.tool_s", 0.01, _INF),
    ("rl.tool_memory_mb", 64, _INF),
    *(
        (f"{stage}.{name}", smallest, largest)
        for stage in ("grpo", "ppo")
        for name, smallest, largest in (
            ("share", 0, 1),
            ("steps", 0, _INF),
            ("micro_batch_rows", 0, _INF),
            ("lr_scale", 0, 1000),
            ("warmup_steps", 0, _INF),
            ("decay_fraction", 0, 1),
            ("final_lr", 0, 1),
            ("clip_low", 0, 1),
            ("clip_high", 0, _INF),
        )
    ),
    ("ppo.gamma", 0, 1),
    ("ppo.lam", 0, 1),
    ("ppo.value_clip", 0, _INF),
    ("distill.kl_weight", 0, 1),
    ("distill.temperature", 0.01, 100),
    ("distill.jsd_beta", 0.01, 0.99),
    ("distill.on_policy", 0, 1),
    ("distill.top_k", 0, 100_000),
    ("evaluation.val_tokens", 2, _INF),
    ("evaluation.every_fraction", 0.001, 1),
    ("evaluation.samples", 0, 1000),
    ("evaluation.sample_tokens", 1, _INF),
    ("evaluation.suite_items", 1, 100_000),
    ("evaluation.thinking_tokens", 0, _INF),
    ("device.threads", 0, 4096),
    ("checkpoint.every_s", 0, _INF),
    ("checkpoint.every_steps", 0, _INF),
    ("checkpoint.keep_last", 1, 100_000),
    ("log.every_s", 0, _INF),
)


def check_config(cfg: RunConfig) -> None:
    """Return if the run can start; raise UserError with the setting, its value and the next action if not."""
    for name, smallest, largest in _RANGES:
        _check_range(name, setting(cfg, name), smallest, largest)
    _check_stages(cfg)
    check_model(cfg.model)
    _check_vocabulary(cfg)
    _check_rows(cfg)
    for stage in (cfg.pretrain, cfg.sft):
        parse_end_moves(stage.end_moves)
    _check_data(cfg)
    _check_rl(cfg)
    _check_shards(cfg)
    _check_places(cfg)


def setting(cfg: object, dotted: str) -> float:
    """The number that a dotted name stands for, as in `setting(cfg, "optim.matrix_lr")`."""
    for part in dotted.split("."):
        cfg = getattr(cfg, part)
    assert isinstance(cfg, int | float), dotted
    return cfg


def check_model(model: ModelConfig) -> None:
    """Refuse shapes that no decoder of this family can have."""
    if model.n_scores:
        raise UserError(
            f"model.n_scores = {model.n_scores}: a model that scores texts cannot write any; the reward stage makes it "
            "out of one that does (`onesitting reward …`), so leave it 0 and start from that one"
        )
    if model.n_heads % model.n_kv_heads:
        divisors = [str(n) for n in range(1, model.n_heads + 1) if model.n_heads % n == 0]
        raise UserError(
            f"model.n_kv_heads = {model.n_kv_heads} does not divide model.n_heads = {model.n_heads}: "
            f"use one of {', '.join(divisors)}"
        )
    if model.positions == "rope" and model.head_dim % 2:
        raise UserError(
            f"model.head_dim = {model.head_dim}: rotary positions turn pairs of numbers, so it must be even; "
            f"use {model.head_dim + 1}"
        )


def _check_range(name: str, value: float, smallest: float, largest: float) -> None:
    if smallest <= value <= largest:  # false for NaN
        return
    upper = "" if largest == _INF else f" and at most {largest:,g}"
    raise UserError(f"{name} = {value}: must be at least {smallest:g}{upper}")


def _check_stages(cfg: RunConfig) -> None:
    parse_budget(cfg.budget)
    if not cfg.stages:
        raise UserError(f"stages is empty: name at least one of {', '.join(get_args(StageName))}")
    if len(set(cfg.stages)) < len(cfg.stages):
        raise UserError(f"stages = {', '.join(cfg.stages)}: each stage can be named once")
    if "pretrain" in cfg.stages[1:]:
        right = ", ".join(["pretrain", *(stage for stage in cfg.stages if stage != "pretrain")])
        raise UserError(
            f"stages = {', '.join(cfg.stages)}: pretraining afterwards would undo the tuning; use {right}"
        )
    for stage in cfg.stages:
        part = stage_config(cfg, stage)
        if part.budget:
            parse_budget(part.budget, f"{stage}.budget")
        if part.share == 0 and not (part.tokens or getattr(part, "steps", 0) or part.budget):
            raise UserError(f"{stage}.share = 0 leaves it no time: raise it, or take {stage} out of stages")


def _check_vocabulary(cfg: RunConfig) -> None:
    size, smallest = cfg.tokenizer.vocab_size, N_BYTES + N_SPECIAL_TOKENS
    if not cfg.tokenizer.path and not smallest <= size <= MAX_VOCAB_SIZE:
        raise UserError(
            f"tokenizer.vocab_size = {size}: must be at least {smallest} ({N_BYTES} bytes and "
            f"{N_SPECIAL_TOKENS} special tokens) and at most {MAX_VOCAB_SIZE:,}"
        )
    if 0 < cfg.model.vocab_size < size and not cfg.tokenizer.path:
        raise UserError(
            f"model.vocab_size = {cfg.model.vocab_size} is smaller than tokenizer.vocab_size = {size}: "
            "leave it 0 to take the tokenizer's"
        )


def _check_rows(cfg: RunConfig) -> None:
    """Rows fit the model, and an optimizer step is a whole number of rows."""
    longest = cfg.model.context_length
    short, short_fraction = cfg.pretrain.short_context, cfg.pretrain.short_fraction
    if bool(short) != bool(short_fraction):
        raise UserError(
            f"pretrain.short_context = {short} and pretrain.short_fraction = {short_fraction:g}: "
            "a curriculum needs both, no curriculum neither"
        )
    row = cfg.pretrain.context_length or longest
    if short and row % short:
        divisors = [str(n) for n in range(8, row + 1) if row % n == 0]
        raise UserError(
            f"pretrain.short_context = {short} does not divide the later rows of {row} tokens: "
            f"use one of {', '.join(divisors[-6:])}"
        )
    lengths: list[tuple[str, str, int, int]] = []
    for stage in cfg.stages:
        part = stage_config(cfg, stage)
        name = f"{stage}.context_length" if part.context_length else "model.context_length"
        lengths.append((stage, name, part.context_length or longest, step_tokens(cfg, stage)))
    if short and "pretrain" in cfg.stages:
        lengths.append(("pretrain", "pretrain.short_context", short, cfg.pretrain.step_tokens))
    for stage, name, length, n_tokens in lengths:
        if length > longest:
            raise UserError(
                f"{name} = {length} is longer than model.context_length = {longest}: raise that or lower this"
            )
        if length < 8:
            raise UserError(f"{name} = {length}: rows of fewer than 8 tokens teach nothing; raise it")
        if n_tokens % length:
            nearest = max(1, round(n_tokens / length)) * length
            raise UserError(
                f"{stage}.step_tokens = {n_tokens} is not a whole number of rows of {length} tokens "
                f"({name}): use {nearest}"
            )


def _check_data(cfg: RunConfig) -> None:
    if "pretrain" in cfg.stages:
        check_specs("data", cfg.data)
    if {"sft", "distill"} & set(cfg.stages) or cfg.pretrain.chat_fraction > 0:
        check_specs("chat", cfg.chat)
    if "distill" in cfg.stages and not cfg.distill.teacher:
        raise UserError("distill.teacher is empty: name a run, one of its stages, or a Hugging Face folder")
    if {"dpo", "reward"} & set(cfg.stages):
        check_specs("preferences", cfg.preferences)
    without = {"kto": ("normalise_length", "sft_weight", "label_smoothing"), "ipo": ("label_smoothing",)}
    for name in without.get(cfg.dpo.loss, ()) if "dpo" in cfg.stages else ():
        if getattr(cfg.dpo, name):
            raise UserError(
                f"dpo.{name} = {getattr(cfg.dpo, name)} does nothing with dpo.loss = {cfg.dpo.loss}: leave one out"
            )
    if cfg.replay.fraction and not cfg.start_from:
        raise UserError(
            f"replay.fraction = {cfg.replay.fraction:g} without a model to start from: name the run whose model is to "
            "learn more with --from runs/NAME, or set replay.fraction=0"
        )
    if cfg.corpus.val_data:
        check_specs("corpus.val_data", cfg.corpus.val_data)
    elif cfg.corpus.val_fraction == 0:
        raise UserError(
            "corpus.val_fraction = 0 leaves nothing to validate on: set it to 0.005, say, "
            "or give corpus.val_data"
        )


def _check_shards(cfg: RunConfig) -> None:
    """Sharded processes run every forward pass together: refuse where each has as many as its own texts ask for."""
    if cfg.device.shard != "fsdp":
        return
    unequal = [stage for stage in cfg.stages if stage in SHARED_SECTIONS["rl"]]
    unequal += ["distill.on_policy"] if "distill" in cfg.stages and cfg.distill.on_policy else []
    unequal += ["dpo with lora.rank"] if "dpo" in cfg.stages and cfg.lora.rank else []
    if unequal:
        raise UserError(
            f"device.shard = fsdp: with {unequal[0]} processes differ in how many forward passes they run, and sharded "
            "ones would wait for each other for ever; use device.shard=ddp"
        )


def _check_rl(cfg: RunConfig) -> None:
    """Batches of attempts can be cut as asked, and prompts are there."""
    if not any(stage in SHARED_SECTIONS["rl"] for stage in cfg.stages):
        return
    rl = cfg.rl
    if rl.prompts_per_batch % rl.minibatches:
        raise UserError(
            f"rl.minibatches = {rl.minibatches} does not divide rl.prompts_per_batch = {rl.prompts_per_batch}: "
            "every optimizer step takes whole groups"
        )
    if "grpo" in cfg.stages and rl.samples < 2:
        raise UserError(f"rl.samples = {rl.samples}: GRPO compares attempts at one prompt; give at least 2")
    if cfg.lora.dropout:
        raise UserError(
            f"lora.dropout = {cfg.lora.dropout:g}: attempts are made without dropout, so their probabilities would not "
            "be those that are trained; set lora.dropout=0 for reinforcement learning"
        )
    if rl.max_tokens >= cfg.model.context_length:
        raise UserError(
            f"rl.max_tokens = {rl.max_tokens} leaves no room for a prompt in model.context_length = "
            f"{cfg.model.context_length}: lower it"
        )
    if not rl.rewards:
        raise UserError("rl.rewards is empty: name at least one, such as scorer=1")
    asks_judge = "judge" in [text.partition("=")[0] for text in rl.rewards]
    if rl.judge and not asks_judge:
        raise UserError(f"rl.judge = {rl.judge!r}, but rl.rewards does not ask it: add judge=1")
    if rl.judge and not Path(rl.judge).expanduser().exists():
        raise UserError(f"rl.judge = {rl.judge!r}: no such run or folder here ({Path.cwd()}); check the path")
    if asks_judge and not rl.judge and "reward" not in cfg.stages:
        raise UserError(
            "rl.rewards asks judge, and this run has no reward model: name one with --rl.judge, or train one first "
            "with `onesitting reward …`"
        )
    check_specs("rl.prompts", [spec for spec in rl.prompts if spec.partition(":")[0] != "world"] or ["world"])


def check_specs(name: str, specs: Iterable[str]) -> None:
    """Refuse names of data that is not there. Hub datasets are looked up when they are read."""
    specs = tuple(specs)
    if not specs:
        raise UserError(f"{name} is empty: give files, folders, globs, hub:owner/name, or world")
    for spec in specs:
        if spec == "world":
            continue
        if spec.startswith("hub:"):
            if not spec.removeprefix("hub:").strip("/"):
                raise UserError(f"{name} = {spec!r}: write the dataset's name as hub:owner/name")
            continue
        path = Path(spec).expanduser()
        if path.is_dir():
            if not any(child.is_file() for child in path.rglob("*")):
                raise UserError(
                    f"{name} = {spec!r}: the folder holds no files; put text into it or name another"
                )
        elif not path.exists() and not glob.glob(str(path), recursive=True):
            raise UserError(
                f"{name} = {spec!r}: no such file, folder or pattern here ({Path.cwd()}); check the path"
            )


def _check_places(cfg: RunConfig) -> None:
    """Folders that the run reads hold what it needs; the folder that it writes can be written."""
    if cfg.tokenizer.path and not (Path(cfg.tokenizer.path).expanduser() / "tokenizer.json").is_file():
        raise UserError(
            f"tokenizer.path = {cfg.tokenizer.path!r}: no tokenizer.json there; name a tokenizer's folder"
        )
    if "/" in cfg.name or "\\" in cfg.name or cfg.name in (".", ".."):
        raise UserError(f"name = {cfg.name!r}: a folder's name without slashes; the folder above it is `out`")
    out = Path(cfg.out).expanduser().absolute()
    existing = next(folder for folder in (out, *out.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"out = {cfg.out!r}: {existing} is no folder that can be written to; name another")
