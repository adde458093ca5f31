"""GRPO: attempts at one prompt are judged against each other; no value model is needed.

Each option of `grpo.*` and `rl.*` names its paper in `policy_loss.py`. The loss of a sampled token is

    weight · (policy_loss(ratio, advantage) + rl.kl_weight · KL(policy || start))

with the ratio of present to sampling probabilities, both at the sampling temperature. It is exactly 1 at the first
step on a batch of attempts.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onesitting.config import RunConfig
from onesitting.model.lora import disabled
from onesitting.model.transformer import Transformer
from onesitting.rewards import Batched
from onesitting.stages.attempts import (
    AttemptMaker,
    Rewarded,
    RLBatch,
    load_reference,
    make_batches,
    sampled_hidden,
    sampled_logprobs,
)
from onesitting.stages.policy_loss import group_advantages, kl_estimate, log_ratios, policy_loss
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.train.device import DevicePlan
from onesitting.train.distributed import Ranks


class GRPOStage:
    """Attempts by the present model, rewards, group advantages, clipped policy gradient."""

    name = "grpo"
    unit = "tokens"

    def __init__(
        self,
        cfg: RunConfig,
        tokenizer: Tokenizer,
        plan: DevicePlan,
        ranks: Ranks,
        start: Path | None,
        rewards: dict[str, Batched] | None = None,
    ) -> None:
        self.cfg, self.settings, self.tokenizer, self.plan = cfg, cfg.grpo, tokenizer, plan
        rl = cfg.rl
        self.cycle = rl.minibatches * rl.epochs
        self.row_length = cfg.model.context_length
        self.n_rows = rl.prompts_per_batch * rl.samples // rl.minibatches
        self.maker = AttemptMaker(cfg, self.name, tokenizer, plan, ranks, rewards)
        needs_copy = (
            rl.kl_weight > 0 and not cfg.lora.rank
        )  # with an adapter, disabling it gives the reference
        self.reference = load_reference(start, plan) if needs_copy else None
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
            whole = Rewarded([], [], {name: [] for name in parts[0].components}, self.cfg.rl.samples)
            for part in parts:
                whole.trajectories += part.trajectories
                whole.rewards += part.rewards
                for name, values in part.components.items():
                    whole.components[name] += values
            statistics = whole.statistics(self.cfg.rl.max_tokens)
            batches[0][0] = replace(batches[0][0], statistics=statistics)
        return batches

    def micro_batches(self, model: Transformer, part: Rewarded) -> list[RLBatch]:
        """Micro-batches of one minibatch, with log-probabilities of the policies that do not change any more."""
        rl, settings = self.cfg.rl, self.settings
        rewards = torch.tensor(part.rewards, dtype=torch.float64).view(-1, part.samples)
        advantages = group_advantages(rewards, normalise=settings.normalise_std).flatten()
        each = [advantages[i].expand(attempt.n_sampled) for i, attempt in enumerate(part.trajectories)]
        longest = max((len(attempt.ids) for attempt in part.trajectories), default=1)
        batches = make_batches(
            part.trajectories, each, aggregation=settings.aggregation, max_tokens=rl.max_tokens * rl.max_turns,
            micro_rows=self.plan.micro_batch_rows(longest, settings.micro_batch_rows),
            keep_zero=rl.kl_weight > 0, pad_id=self.tokenizer.eos_id,
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
        with self.plan.autocast():
            hidden = sampled_hidden(model, batch)
            return sampled_logprobs(model, batch, hidden, self.cfg.rl.temperature).detach()

    def max_steps(self) -> int | None:
        """No limit: prompts are given again."""
        return None

    def loss_sum(self, model: Transformer, batch: RLBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the losses of the sampled tokens."""
        rl, settings, rows = self.cfg.rl, self.settings, batch.rows
        logp = sampled_logprobs(model, batch, sampled_hidden(model, batch), rl.temperature)
        old = logp.detach() if batch.old is None else batch.old
        log_ratio = log_ratios(logp, old, rows, len(batch.tokens), settings.ratio)
        part = policy_loss(
            logp,
            log_ratio,
            batch.advantages,
            low=settings.clip_low,
            high=settings.clip_high,
            clip=settings.clip,
        )
        loss, n = part.loss, torch.tensor(float(len(rows)), device=logp.device)
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
