"""Settings of the stages that tune a model which can already answer: preferences, reward model, distillation.

The sections of config.py that came first are written out there; these share `TuningConfig`, so that a setting has
one name, one meaning and one help text in all of them. Nothing here imports torch.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """General data beside the run's own, so that a model that is trained on forgets less."""

    fraction: float = 0.0
    """Fraction of the rows of pretraining and of fine-tuning that are general data; 0: none."""
    data: tuple[str, ...] = ()
    """General documents, given as `data` is; empty: those of the run that start_from belongs to."""
    chat: tuple[str, ...] = ()
    """General conversations, given as `chat` is; empty: those of the run that start_from belongs to."""
    chat_fraction: float = 0.5
    """Fraction of pretraining's general rows that are conversations, as plain text."""


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """What all tuning stages have."""

    share: float = 0.2
    """Share of a time budget's training time that this stage gets."""
    budget: str = ""
    """Time of its own, such as 2m, for a stage that is added to a run; empty: its share of the run's budget."""
    tokens: int = 0
    """Tokens to train on; 0: what the time budget allows."""
    max_epochs: float = 1.0
    """Passes over the data after which the stage ends even if time is left; 0: no limit."""
    step_tokens: int = 8192
    """Tokens in one optimizer step, over all processes."""
    micro_batch_rows: int = 0
    """Rows in one forward pass; 0: chosen by the device."""
    context_length: int = 0
    """Tokens in a row; 0: the model's context length."""
    lr_scale: float = 0.05
    """Multiplies every learning rate of this stage."""
    warmup_steps: int = 10
    """Optimizer steps over which the learning rate rises to its peak."""
    decay_fraction: float = 0.9
    """Last part of training over which the learning rate falls linearly."""
    final_lr: float = 0.02
    """Learning rate of the last step, as a fraction of the peak."""


@dataclass(frozen=True, kw_only=True)
class DPOConfig(TuningConfig):
    """Preference optimisation on pairs of replies (DPO, IPO, SimPO) or on single judged replies (KTO)."""

    loss: Literal["sigmoid", "ipo", "simpo", "kto"] = "sigmoid"
    """sigmoid: DPO (arXiv:2305.18290); ipo (arXiv:2310.12036); simpo (arXiv:2405.14734), without a reference; kto
    (arXiv:2402.01306), on replies one by one."""
    beta: float = 0.1
    """Strength of the tie to the start model; for simpo the scale of the reward, about 2."""
    label_smoothing: float = 0.0
    """Probability that a pair is labelled the wrong way round (conservative DPO); sigmoid and simpo."""
    normalise_length: bool = False
    """Compare mean log-probabilities per token instead of sums; simpo always does."""
    margin: float = 1.0
    """Reward by which simpo wants the chosen reply ahead."""
    sft_weight: float = 0.0
    """Weight of an added cross-entropy per token of the chosen reply (arXiv:2404.19733)."""
    desirable_weight: float = 1.0
    """kto: weight of the chosen replies."""
    undesirable_weight: float = 1.0
    """kto: weight of the rejected replies."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TuningConfig):
    """Reward model: a number for each reply, from pairs of them (Bradley-Terry)."""

    centre_weight: float = 0.01
    """Weight of (reward of the chosen + reward of the rejected)², which keeps rewards around zero; 0: none
    (arXiv:2312.09244)."""
    lr_scale: float = 0.2


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TuningConfig):
    """Distillation from a teacher's distributions over the next token, on the conversations of `chat`."""

    teacher: str = ""
    """Model to learn from: a run, one of its stages, or a Hugging Face folder; its vocabulary must be the student's."""
    kl_weight: float = 0.5
    """Weight of the divergence; the cross-entropy has the rest."""
    temperature: float = 1.0
    """Divides the logits of both before they are compared (arXiv:1503.02531)."""
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    """forward: KL(teacher, student); reverse: KL(student, teacher); jsd: between the two (arXiv:2306.13649)."""
    jsd_beta: float = 0.5
    """jsd: weight of the teacher in the mixture that both are compared with."""
    on_policy: float = 0.0
    """Fraction of the rows whose replies the student writes itself."""
    top_k: int = 0
    """Keep this many of the teacher's likeliest tokens on disk, to ask it once; 0: all, asked anew each time."""
    max_epochs: float = 3.0
    lr_scale: float = 0.5
