"""GRPO: attempts at one prompt are judged against each other; no value model is needed.

Each option of `grpo.*` names its paper in `policy_loss.py`; what GRPO and PPO share is in `policy_stage.py`.
"""

from pathlib import Path

import torch

from onesitting.config import RunConfig
from onesitting.rewards import Batched
from onesitting.stages.attempts import Rewarded
from onesitting.stages.policy_loss import group_advantages
from onesitting.stages.policy_stage import PolicyStage
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.train.device import DevicePlan
from onesitting.train.distributed import Ranks


class GRPOStage(PolicyStage):
    """Policy optimisation with the advantages of groups."""

    def __init__(
        self,
        cfg: RunConfig,
        tokenizer: Tokenizer,
        plan: DevicePlan,
        ranks: Ranks,
        start: Path | None,
        rewards: dict[str, Batched] | None = None,
    ) -> None:
        super().__init__("grpo", cfg, tokenizer, plan, ranks, start, rewards)
        self.ratio, self.clip = cfg.grpo.ratio, cfg.grpo.clip

    def advantages(self, part: Rewarded) -> list[float]:
        """Each attempt's reward less the mean of its group."""
        rewards = torch.tensor(part.rewards, dtype=torch.float64).view(-1, part.samples)
        return group_advantages(rewards, normalise=self.cfg.grpo.normalise_std).flatten().tolist()
