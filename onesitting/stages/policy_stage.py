"""What stages of policy optimisation share: attempts by the present model, and the clipped loss of their tokens.

The loss of a sampled token is

    weight · (policy_loss(ratio, advantage) + rl.kl_weight · KL(policy || start))

with the ratio of present to sampling probabilities, both at the sampling temperature. It is exactly 1 at the first
step on a batch of attempts. GRPO and PPO differ in where the advantages come from.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from onesitting.config import RunConfig
from onesitting.model.lora import disabled
from onesitting.model.transformer import Transformer
from onesitting.rewards import Batched
from onesitting.rl_config import PolicyConfig
from onesitting.stages.attempt_batches import RLBatch, make_batches, sampled_hidden, sampled_logprobs
from onesitting.stages.attempts import AttemptMaker, Rewarded, evaluating, joined, load_reference
from onesitting.stages.policy_loss import Clip, Ratio, kl_estimate, log_ratios, policy_loss
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.train.device import DevicePlan
from onesitting.train.distributed import Ranks


class PolicyStage:
    """Attempts, rewards, advantages (by `advantages` of GRPO and PPO), clipped policy gradient."""

    unit = "tokens"
    replayable = False
    rate = 1.0
    learns_values = False

    def __init__(
        self,
        name: Literal["grpo", "ppo"],
        cfg: RunConfig,
        tokenizer: Tokenizer,
        plan: DevicePlan,
        ranks: Ranks,
        start: Path | None,
        rewards: dict[str, Batched] | None = None,
    ) -> None:
        """start: folder of the reference model. rewards: batched ones under further names, such as a reward model."""
        self.name, self.cfg, self.tokenizer, self.plan, self.ranks = name, cfg, tokenizer, plan, ranks
        self.settings: PolicyConfig = getattr(cfg, name)
        self.ratio: Ratio = "token"
        self.clip: Clip = "ppo"
        rl = cfg.rl
        self.cycle = rl.minibatches * rl.epochs
        self.row_length = cfg.model.context_length
        self.n_rows = rl.prompts_per_batch * rl.samples // rl.minibatches
        self.maker = AttemptMaker(cfg, name, tokenizer, plan, ranks, rewards)
        needs_copy = (
            rl.kl_weight > 0 and not cfg.lora.rank
        )  # with an adapter, disabling it gives the reference
        self.reference = load_reference(start, plan, cfg.model) if needs_copy else None
        self.held: tuple[int, list[list[RLBatch]]] = (-1, [])

    def next_batches(self, model: Transformer, step: int, row_length: int) -> list[RLBatch]:
        """This rank's micro-batches of step `step`; the first step of a cycle makes the attempts."""
        number, place = divmod(step, self.cycle)
        if place == 0 or self.held[0] != number:
            self.held = (number, self.make_set(model, number))
        batches = self.held[1][place % self.cfg.rl.minibatches]
        return batches if place == 0 else [replace(batch, statistics={}) for batch in batches]

    def make_set(self, model: Transformer, number: int) -> list[list[RLBatch]]:
        """Attempts of batch `number` as micro-batches, minibatch by minibatch."""
        parts = self.maker.make(model, number)
        batches = [self.micro_batches(model, part) for part in parts]
        if batches[0]:
            statistics = joined(parts).statistics()
            batches[0][0] = replace(batches[0][0], statistics=statistics | batches[0][0].statistics)
        return batches

    def advantages(self, part: Rewarded) -> list[float]:
        """The advantage of each attempt, as far as its reward and its group tell."""
        raise NotImplementedError

    def micro_batches(self, model: Transformer, part: Rewarded) -> list[RLBatch]:
        """Micro-batches of one minibatch, with log-probabilities of the policies that do not change any more."""
        rl, settings = self.cfg.rl, self.settings
        batches = make_batches(
            part.trajectories, part.rewards, self.advantages(part), aggregation=settings.aggregation,
            max_tokens=rl.max_tokens * rl.max_turns,
            micro_tokens=self.plan.micro_batch_tokens, micro_rows=settings.micro_batch_rows,
            keep_zero=rl.kl_weight > 0 or self.learns_values, pad_id=self.tokenizer.eos_id,
        )  # fmt: skip
        if self.cycle > 1:
            batches = [replace(b, old=self.fixed_logprobs(model, b)) for b in batches]
        if rl.kl_weight > 0:
            with nullcontext() if self.reference is not None else disabled(model):
                reference = self.reference or model
                batches = [replace(b, reference=self.fixed_logprobs(reference, b)) for b in batches]
        return batches

    def fixed_logprobs(self, model: Transformer, batch: RLBatch) -> Tensor:
        """(N,) log-probabilities by a model, without gradient."""
        batch = batch.to(self.plan.torch_device)
        # Under no_grad other kernels run, and the first ratio would be 1 + 1e-6: the graph is made and dropped.
        with evaluating(model), self.plan.autocast():
            hidden = sampled_hidden(model, batch)
            return sampled_logprobs(model, batch, hidden, self.cfg.rl.temperature).detach()

    def max_steps(self) -> int | None:
        """No limit: prompts are given again."""
        return None

    def loss_sum(self, model: Transformer, batch: RLBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the losses of the sampled tokens."""
        return self.policy_sum(model, batch, sampled_hidden(model, batch))

    def policy_sum(
        self, model: Transformer, batch: RLBatch, hidden: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from hidden states (N, d_model) before the sampled tokens."""
        rl, settings = self.cfg.rl, self.settings
        logp = sampled_logprobs(model, batch, hidden, rl.temperature)
        old = logp.detach() if batch.old is None else batch.old
        log_ratio = log_ratios(logp, old, batch.attempts, batch.n_attempts, self.ratio)
        part = policy_loss(
            logp, log_ratio, batch.advantages, low=settings.clip_low, high=settings.clip_high, clip=self.clip
        )
        loss, n = part.loss, torch.tensor(float(len(logp)), device=logp.device)
        sums = {"clip_fraction": part.clipped.sum().float(), "clip_fraction/n": n}
        sums |= {"approx_kl": kl_estimate(old, logp.detach(), "k3").sum(), "approx_kl/n": n}
        if batch.reference is not None:
            divergence = kl_estimate(logp, batch.reference, rl.kl_estimator)
            loss = loss + rl.kl_weight * divergence
            sums |= {"kl": divergence.sum(), "kl/n": n}
        for name, (total, count) in batch.statistics.items():
            sums |= {name: n.new_tensor(total), f"{name}/n": n.new_tensor(count)}
        return (loss * batch.weights).sum(), sums

    def evaluate(self, model: Transformer) -> dict[str, float]:
        """Mean greedy reward and its parts on held-out prompts."""
        return self.maker.validate(model)

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """Greedy attempts at held-out prompts."""
        return self.maker.samples(model)
