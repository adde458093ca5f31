"""Every setting of a run, typed and frozen; its docstring is its `--help`.

A recipe (TOML) and the command line fill the same `RunConfig` by dotted names (`optim.matrix_lr`); no torch here.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from onesitting.rl_config import GRPOConfig, PPOConfig, RLConfig
from onesitting.tuning_config import DistillConfig, DPOConfig, ReplayConfig, RewardConfig

StageName = Literal["pretrain", "sft", "distill", "dpo", "reward", "grpo", "ppo"]


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """How documents are read, cleaned and turned into tokens."""

    text_field: str = ""
    """Name of the text field in JSON, CSV and Parquet records; empty: guessed and shown."""
    chat_field: str = ""
    """Name of the field that holds a conversation's messages; empty: guessed and shown."""
    hub_subset: str = ""
    """Subset (configuration name) of a hub dataset."""
    hub_split: str = "train"
    """Split of a hub dataset."""
    world_mb: float = 16.0
    """Megabytes of text that the synthetic world writes, when it is the source; 0: enough for the budget."""
    world_pairs: int = 3000
    """Preference pairs that the synthetic world writes, when it is the source of preferences."""
    val_fraction: float = 0.005
    """Fraction of documents held out for validation; which ones depends on their content alone."""
    val_data: tuple[str, ...] = ()
    """Separate validation files; used instead of val_fraction when given."""
    max_bad_fraction: float = 0.01
    """Largest fraction of unreadable records that is skipped before preparation stops."""
    max_document_mb: float = 64.0
    """Documents above this many megabytes are split."""
    workers: int = 0
    """Processes that prepare data; 0: one per processor."""
    cache: str = "~/.cache/onesitting"
    """Folder of prepared token files, shared between runs and keyed by content hash."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The byte-level BPE tokenizer."""

    path: str = ""
    """Folder of an existing tokenizer to use instead of training one."""
    vocab_size: int = 4096
    """Entries in the vocabulary, special tokens included; rounded up to a multiple of 64."""
    train_mb: float = 16.0
    """Megabytes of text that the tokenizer is trained on."""
    chat_fraction: float = 0.25
    """Fraction of it that comes from the conversations, with tools and calls, where a stage reads them."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the transformer; the defaults are a Qwen3 decoder."""

    n_layers: int = 6
    """Transformer blocks."""
    d_model: int = 256
    """Width of the residual stream."""
    n_heads: int = 4
    """Query heads."""
    n_kv_heads: int = 2
    """Key and value heads; divides n_heads (grouped-query attention)."""
    head_dim: int = 64
    """Width of one head; even."""
    d_ff: int = 704
    """Width of the MLP's hidden layer; of each expert's, where there are experts."""
    n_experts: int = 0
    """MLPs in each block, of which every token uses a few (Qwen3-MoE); 0: one, which every token uses."""
    n_active_experts: int = 2
    """Experts that work on a token."""
    norm_top_k: bool = True
    """Weights of a token's experts add up to 1; false: they are the router's probabilities as they are."""
    router_aux_loss: float = 0.001
    """Weight of the loss that keeps the experts equally busy; 0: none."""
    router_bias_rate: float = 0.0
    """Step of a bias for each expert that keeps them equally busy without a loss, say 0.001; 0: none."""
    vocab_size: int = 0
    """Rows of the embedding; 0: the tokenizer's vocabulary size."""
    context_length: int = 512
    """Longest sequence, in tokens, that the model is trained for."""
    rope_theta: float = 10_000.0
    """Base of the rotary position frequencies."""
    rope_factor: float = 1.0
    """Stretch rotary positions to so many times the original context (YaRN); 1: not. Raise context_length as well."""
    rope_original: int = 0
    """Context before it was stretched, in tokens; 0: context_length / rope_factor, or that of start_from."""
    qk_norm: bool = True
    """RMS-normalise queries and keys per head (Qwen3); false: Llama."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm (GPT-2)."""
    norm_eps: float = 1e-6
    """Added to the variance in norms."""
    positions: Literal["rope", "learned"] = "rope"
    """Rotary positions, or a learned table (GPT-2)."""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """Gated SiLU, or GELU (GPT-2)."""
    bias: bool = False
    """Biases in linear layers (GPT-2)."""
    tie_embeddings: bool = True
    """Use the embedding table as the output matrix."""
    n_scores: int = 0
    """Numbers that a head gives a text instead of next-token logits; set by the reward stage."""
    initial_weights: Literal["lookup", "plain"] = "lookup"
    """Initial weights: two heads that begin by finding earlier copies of a token, or random weights alone."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Muon for the matrices of the blocks, AdamW for everything else."""

    matrices: Literal["muon", "adamw"] = "muon"
    """Rule for the matrices inside blocks; adamw is there to compare with, at a matrix_lr near 0.002."""
    matrix_lr: float = 0.02
    """Peak learning rate for matrices inside blocks."""
    embed_lr: float = 0.02
    """AdamW's peak learning rate for the token embedding."""
    head_lr: float = 0.004
    """AdamW's peak learning rate for an untied output matrix."""
    scalar_lr: float = 0.01
    """AdamW's peak learning rate for norms, biases and position tables."""
    adapter_lr: float = 0.008
    """AdamW's peak learning rate for LoRA's matrices."""
    momentum: float = 0.95
    """Muon's Nesterov momentum."""
    adam_beta1: float = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: float = 0.95
    """AdamW's decay of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the matrices, times the learning rate."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global L2 norm; 0: never."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """LoRA: train small matrices beside frozen weights, in every stage that starts from a model."""

    rank: int = 0
    """Rank of the trained matrices; 0: no adapter, all weights are trained."""
    alpha: float = 0.0
    """The update is scaled by alpha / rank; 0: twice the rank."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, which keeps large ranks from learning slower."""
    dropout: float = 0.0
    """Probability with which an adapter's input is dropped while training."""
    targets: tuple[str, ...] = ("*_proj",)
    """Linear layers that get an adapter: globs over a name or its last part, or `re:` and a regular expression."""
    name: str = "default"
    """Name of the adapter."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretraining on packed documents."""

    share: float = 0.7
    """Share of a time budget's training time that this stage gets."""
    budget: str = ""
    """Time of its own, such as 2m, for a stage that is added to a run; empty: its share of the run's budget."""
    tokens: int = 0
    """Tokens to train on; 0: what the time budget allows."""
    end_moves: tuple[str, ...] = ()
    """With tokens: where a timed run moved its end, as steps done:new number of steps; repeats that run."""
    step_tokens: int = 8192
    """Tokens in one optimizer step, over all processes; with smaller_steps, the most."""
    smaller_steps: bool = False
    """Take smaller steps where the budget holds few tokens, so that there are enough of them (docs/budget.md)."""
    micro_batch_rows: int = 0
    """Rows in one forward pass; 0: chosen by the device."""
    context_length: int = 0
    """Tokens in a row; 0: the model's context length."""
    short_context: int = 0
    """Tokens in a row during the first part of training; 0: no curriculum."""
    short_fraction: float = 0.0
    """Fraction of training with the short rows."""
    isolate: Literal["auto", "on", "off"] = "auto"
    """Hide documents in a row from each other; auto: where the device does it without losing time."""
    lr_scale: float = 1.0
    """Multiplies every learning rate of this stage."""
    warmup_steps: int = 20
    """Optimizer steps over which the learning rate rises to its peak."""
    decay_fraction: float = 0.5
    """Last part of training over which the learning rate falls linearly."""
    final_lr: float = 0.02
    """Learning rate of the last step, as a fraction of the peak."""
    chat_fraction: float = 0.0
    """Fraction of the tokens that come from the training conversations, as plain text."""
    bigram_steps: int = 100
    """Steps that fit a new model's embedding and untied output matrix to counted pairs of tokens; 0: none."""
    counting: float = -1.0
    """Part of the counting that is done, and of `bigram_steps`; -1: all for budgets from 45 s on, else less."""
    ngram_targets: float = -1.0
    """Part of a new model's targets that goes to tokens which often follow the two before; -1: 0.7 on a CPU, else 0."""


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning on conversations; only the assistant's tokens are trained."""

    share: float = 0.3
    """Share of a time budget's training time that this stage gets."""
    budget: str = ""
    """Time of its own, such as 2m, for a stage that is added to a run; empty: its share of the run's budget."""
    tokens: int = 0
    """Tokens to train on; 0: what the time budget allows."""
    end_moves: tuple[str, ...] = ()
    """With tokens: where a timed run moved its end, as steps done:new number of steps; repeats that run."""
    max_epochs: float = 3.0
    """Passes over the conversations after which the stage ends even if time is left; 0: no limit."""
    step_tokens: int = 8192
    """Tokens in one optimizer step, over all processes; with smaller_steps, the most."""
    smaller_steps: bool = False
    """Take smaller steps where the budget holds few tokens, so that there are enough of them (docs/budget.md)."""
    micro_batch_rows: int = 0
    """Rows in one forward pass; 0: chosen by the device."""
    context_length: int = 0
    """Tokens in a row; 0: the model's context length."""
    lr_scale: float = 0.5
    """Multiplies every learning rate of this stage."""
    warmup_steps: int = 10
    """Optimizer steps over which the learning rate rises to its peak."""
    decay_fraction: float = 0.9
    """Last part of training over which the learning rate falls linearly."""
    final_lr: float = 0.02
    """Learning rate of the last step, as a fraction of the peak."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured during training and at its end."""

    val_tokens: int = 65_536
    """Tokens of the validation split that bits per byte are measured on."""
    every_fraction: float = 0.1
    """Validate after each such fraction of a stage."""
    samples: int = 2
    """Texts written at each validation."""
    sample_tokens: int = 80
    """Longest sample, in tokens."""
    suite: Literal["auto", "world", "none"] = "auto"
    """Question suite for the report card; auto: the world's own when the world is the source."""
    suite_items: int = 100
    """Questions per task of the suite."""
    thinking: Literal["auto", "on", "off", "both"] = "auto"
    """Suite after fine-tuning: a thought in every reply, in none, as the model chooses, or twice: without and with."""
    thinking_tokens: int = 0
    """Longest thought of a reply to the suite, in tokens; 0: no limit."""


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where and how the arithmetic runs; `auto` asks the machine."""

    device: str = "auto"
    """auto, cpu, cuda, mps or xpu."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the matrix products; weights and optimizer state stay float32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step with torch.compile."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Replay a micro-batch's kernels as one recorded graph (docs/devices.md); auto: off until that is measured."""
    threads: int = 0
    """Processor threads; 0: one per core."""
    shard: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share a model: whole copies, or sharded parameters (FSDP2)."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state of training is saved and which states are kept."""

    every_s: float = 60.0
    """Seconds between checkpoints; 0: only at the end."""
    every_steps: int = 0
    """Optimizer steps between checkpoints; 0: by seconds alone."""
    keep_last: int = 2
    """Newest checkpoints that are kept; the best one is kept as well."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is shown and written while training."""

    every_s: float = 1.0
    """Seconds between lines of metrics on the screen; every step goes to metrics.jsonl."""
    tensorboard: bool = False
    """Also write TensorBoard event files into the run folder."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run, from text to report."""

    name: str = ""
    """Name of the run's folder; empty: the recipe's name."""
    out: str = "runs"
    """Folder that holds the runs."""
    seed: int = 0
    """Seed of every random choice."""
    budget: str = "5m"
    """Time for everything (`90s`, `5m`, `2h`), or `tokens=20M` for pretraining alone."""
    size: str = ""
    """Parameters, such as `5M`: shape, vocabulary and batch follow where not given; `auto`: best for the budget."""
    data: tuple[str, ...] = ("world",)
    """Text to pretrain on: files, folders, globs, `hub:owner/name`, or `world` (synthetic)."""
    chat: tuple[str, ...] = ("world",)
    """Conversations to fine-tune on: files, folders, globs, `hub:owner/name`, or `world`."""
    preferences: tuple[str, ...] = ("world",)
    """Chosen and rejected replies (DPO, reward model): files, folders, globs, `hub:owner/name`, or `world`."""
    stages: tuple[StageName, ...] = ("pretrain", "sft")
    """Training stages, in order."""
    start_from: str = ""
    """Run, stage or Hugging Face folder to start from, with its shape and tokenizer; empty: random weights."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """Reading and preparing data."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Tokenizer."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Model."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Pretraining."""
    sft: SFTConfig = field(default_factory=SFTConfig)
    """Supervised fine-tuning."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """General data beside the run's own."""
    dpo: DPOConfig = field(default_factory=DPOConfig)
    """Preference optimisation."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Reward model."""
    rl: RLConfig = field(default_factory=RLConfig)
    """Reinforcement learning."""
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    """GRPO."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """PPO."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """Distillation."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Device."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    log: LogConfig = field(default_factory=LogConfig)
    """Screen and log files."""


class StageConfig(Protocol):
    """What the settings of every stage have; `stage_config` finds them by the stage's name."""

    share: float
    """Share of a time budget's training time."""
    budget: str
    """Time of its own; empty: its share of the run's."""
    tokens: int
    """Tokens to train on; 0: what the time allows."""
    step_tokens: int
    """Places in one optimizer step, over all processes."""
    micro_batch_rows: int
    """Rows in one forward pass; 0: chosen by the device."""
    context_length: int
    """Tokens in a row; 0: the model's context length."""
    lr_scale: float
    """Factor on every learning rate."""
    warmup_steps: int
    """Updates until the peak of the learning rate."""
    decay_fraction: float
    """Last part of training over which the rate falls."""
    final_lr: float
    """Rate of the last update, as a fraction of the peak."""


def stage_config(cfg: RunConfig, name: str) -> StageConfig:
    """The settings of a stage: the section of its name."""
    return getattr(cfg, name)


SHARED_SECTIONS: dict[str, tuple[str, ...]] = {"rl": ("grpo", "ppo")}
"""Section -> the stages that read it, beside the section of a stage's own name."""


def step_tokens(cfg: RunConfig, name: str) -> int:
    """Places for tokens in one optimizer step of a stage, over all processes; of RL, if every attempt were longest."""
    if name in SHARED_SECTIONS["rl"]:
        attempts = cfg.rl.prompts_per_batch * cfg.rl.samples // cfg.rl.minibatches
        return max(1, attempts) * cfg.model.context_length
    return stage_config(cfg, name).step_tokens
