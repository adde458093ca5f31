"""Settings of reinforcement learning, typed and frozen; part of `config.RunConfig`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    """Reinforcement learning: prompts, attempts and rewards, for GRPO and PPO alike."""

    prompts: tuple[str, ...] = ("world",)
    """Prompts: `world`, one of its tasks (`world:arithmetic`, `world:tools`, `world:agent`), or JSONL files."""
    prompts_per_batch: int = 16
    """Different prompts in one batch of attempts, over all processes."""
    samples: int = 8
    """Attempts at each prompt: the group of GRPO."""
    minibatches: int = 1
    """Optimizer steps that one pass over a batch of attempts is cut into."""
    epochs: int = 1
    """Passes over a batch of attempts before the next one is made."""
    temperature: float = 1.0
    """Temperature of sampling, and of the log-probabilities that are trained."""
    max_tokens: int = 96
    """Longest turn of the model, in tokens."""
    max_turns: int = 1
    """Turns of the model in an attempt; above 1 its tool calls are answered and it goes on (agentic)."""
    tools: str = ""
    """Python file of tools, beside the world's; prompts of files that have none of their own offer them."""
    thinking: Literal["auto", "on", "off"] = "auto"
    """Open a thought in every turn, leave it out, or let the model choose."""
    rewards: tuple[str, ...] = ("scorer=1.0",)
    """Weighted sum of rewards, each NAME=WEIGHT; docs/rewards.md lists them."""
    judge: str = ""
    """Run or folder of a reward model, which the reward `judge` asks; empty: the reward stage of this run."""
    kl_weight: float = 0.0
    """Weight of the divergence from the model that the stage started with; 0: no reference model."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that divergence: docs/grpo.md."""
    eval_prompts: int = 64
    """Held-out prompts that each validation answers, greedily."""
    tool_s: float = 5.0
    """Seconds that a tool call may take."""
    tool_memory_mb: int = 512
    """Megabytes that the process of the tools may take."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """What GRPO and PPO share."""

    share: float = 0.3
    """Share of a time budget's training time that this stage gets."""
    budget: str = ""
    """Time of its own, such as 2m, for a stage that is added to a run; empty: its share of the run's budget."""
    steps: int = 0
    """Optimizer steps; 0: what the time budget allows."""
    micro_batch_rows: int = 0
    """Rows in one forward pass, each a prompt with its attempts; 0: chosen by the device."""
    lr_scale: float = 0.1
    """Multiplies every learning rate of this stage."""
    warmup_steps: int = 5
    """Optimizer steps over which the learning rate rises to its peak."""
    decay_fraction: float = 0.3
    """Last part of training over which the learning rate falls linearly."""
    final_lr: float = 0.1
    """Learning rate of the last step, as a fraction of the peak."""
    clip_low: float = 0.2
    """How far below 1 a probability ratio may fall before its gradient is cut."""
    clip_high: float = 0.28
    """How far above 1 a probability ratio may rise before its gradient is cut; above clip_low: clip-higher (DAPO)."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean over all tokens (DAPO), over sequences of their means (GRPO), or over sequences of their sums divided by
    the token limit (Dr. GRPO)."""

    @property
    def tokens(self) -> int:
        """Not a setting: how many tokens attempts have is found out by making them."""
        return 0

    @property
    def step_tokens(self) -> int:
        """Not a setting either: `config.step_tokens` knows the most there can be."""
        return 0

    @property
    def context_length(self) -> int:
        """Attempts may fill the model's context."""
        return 0


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(PolicyConfig):
    """Group-relative policy optimisation, with its variants as options."""

    normalise_std: bool = True
    """Divide advantages by their group's standard deviation (GRPO); false: Dr. GRPO."""
    ratio: Literal["token", "sequence"] = "token"
    """Probability ratio of each token, or one for the whole sequence (GSPO)."""
    clip: Literal["ppo", "cispo"] = "ppo"
    """Cut gradients beyond the clip (PPO), or bound the weights and keep all gradients (CISPO)."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig(PolicyConfig):
    """Proximal policy optimisation with a value head."""

    gamma: float = 1.0
    """Discount of later rewards, a token; 1: none."""
    lam: float = 1.0
    """GAE's λ: 1 trusts the rewards that came, 0 the value head."""
    value_clip: float = 0.2
    """How far a value may move from its estimate at sampling before its error stops falling; 0: freely."""
    normalise_advantages: bool = True
    """Give the advantages of each optimizer step mean 0 and deviation 1."""
