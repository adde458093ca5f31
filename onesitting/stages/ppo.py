"""PPO: a value head estimates what an attempt will be worth before each token; advantages are errors against it.

The head is one linear layer, `Transformer.value`, that reads the policy's trunk and does not shape it; it is added for
this stage and taken away from the finished model. The reward comes with an attempt's last token. What PPO shares with
GRPO is in `policy_stage.py`.

Shapes: B rows, T tokens of the longest attempt, N sampled tokens, row after row.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from onesitting.config import RunConfig
from onesitting.model.transformer import Linear, Transformer
from onesitting.rewards import Batched
from onesitting.stages.attempt_batches import RLBatch, sampled_hidden
from onesitting.stages.attempts import Rewarded, evaluating
from onesitting.stages.policy_loss import generalised_advantages, value_loss
from onesitting.stages.policy_stage import PolicyStage
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.train.device import DevicePlan
from onesitting.train.distributed import Ranks


def add_value_head(model: Transformer) -> None:
    """Give the model a value head that says 0 for everything; beside an adapter it is trained too."""
    model.value = Linear(model.cfg.d_model, 1, bias=False)
    with torch.no_grad():
        model.value.weight.zero_()
    model.value.to(model.device)


def values_of(model: Transformer, hidden: Tensor) -> Tensor:
    """(N,) float32 estimates from hidden states (N, d_model)."""
    assert model.value is not None, "add_value_head comes first"
    return (hidden.float() * model.value.weight).sum(dim=1)  # no product: autocast would round its result


def attempt_advantages(batch: RLBatch, values: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """(advantages (N,), returns (N,)) of a micro-batch; the reward comes with the last token. values: (N,)."""
    attempts, n_attempts = batch.attempts, batch.n_attempts
    lengths = torch.bincount(attempts, minlength=n_attempts)
    places = torch.cat([torch.arange(int(length)) for length in lengths]).to(attempts.device)
    table = values.new_zeros(n_attempts, int(lengths.max()))  # (A, longest)
    rewards = table.clone()
    table[attempts, places] = values
    rewards[torch.arange(n_attempts), lengths - 1] = batch.rewards
    advantages, returns = generalised_advantages(rewards, table, gamma=gamma, lam=lam)
    return advantages[attempts, places], returns[attempts, places]


class PPOStage(PolicyStage):
    """Policy optimisation with a learned value of every token."""

    learns_values = True

    def __init__(
        self,
        cfg: RunConfig,
        tokenizer: Tokenizer,
        plan: DevicePlan,
        ranks: Ranks,
        start: Path | None,
        rewards: dict[str, Batched] | None = None,
    ) -> None:
        super().__init__("ppo", cfg, tokenizer, plan, ranks, start, rewards)

    def advantages(self, part: Rewarded) -> list[float]:
        """None yet: they are those of tokens, and need the values."""
        return [0.0] * len(part.rewards)

    def micro_batches(self, model: Transformer, part: Rewarded) -> list[RLBatch]:
        """Micro-batches with values, returns and advantages, which are normalised over the whole minibatch."""
        ppo = self.cfg.ppo
        batches: list[RLBatch] = []
        for batch in super().micro_batches(model, part):
            with torch.no_grad(), evaluating(model), self.plan.autocast():
                moved = batch.to(self.plan.torch_device)
                values = values_of(model, sampled_hidden(model, moved))
                advantages, returns = attempt_advantages(moved, values, gamma=ppo.gamma, lam=ppo.lam)
            batches.append(replace(batch, values=values, returns=returns, advantages=advantages))
        returns = [batch.returns for batch in batches if batch.returns is not None]
        _, spread = self.mean_and_std(returns)
        if batches:
            n = sum(len(one) for one in returns)
            batches[0] = replace(batches[0], statistics={"return_variance": (n * spread**2, float(n))})
        if not ppo.normalise_advantages:
            return batches
        mean, std = self.mean_and_std([batch.advantages for batch in batches])
        return [replace(b, advantages=(b.advantages - mean) / (std + 1e-8)) for b in batches]

    def mean_and_std(self, values: list[Tensor]) -> tuple[float, float]:
        """Of the minibatch's tokens, over its micro-batches and all processes; each of `values` is (N,)."""
        every = torch.cat(values).double().cpu() if values else torch.zeros(0).double()
        sums = {
            "n": torch.tensor(float(len(every))).double(),
            "sum": every.sum(),
            "squares": every.square().sum(),
        }
        sums = {name: float(value) for name, value in self.ranks.sum_tensors(sums).items()}
        mean = sums["sum"] / max(1.0, sums["n"])
        return mean, max(0.0, sums["squares"] / max(1.0, sums["n"]) - mean**2) ** 0.5

    def loss_sum(self, model: Transformer, batch: RLBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the policy's losses and the value head's, which share no parameter."""
        assert batch.values is not None
        assert batch.returns is not None
        hidden = sampled_hidden(model, batch)
        policy, sums = self.policy_sum(model, batch, hidden)
        # Not detached, its gradient drowns the policy's in the trunk: entropy rose and the reward fell (docs/log.md).
        values = values_of(model, hidden.detach())
        losses = value_loss(values, batch.values, batch.returns, self.cfg.ppo.value_clip)
        sums |= {"value_loss": losses.detach().sum(), "value_loss/n": sums["approx_kl/n"]}
        return policy + (losses * batch.weights).sum(), sums
