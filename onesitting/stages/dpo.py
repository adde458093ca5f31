"""Preference optimisation: make the replies that people chose likelier than those they rejected.

A pair is one prompt with two replies. The loss of a pair grows with how far the model, against the reference (the
model that training started from), moved towards the wrong reply; `--dpo.loss` names how. KTO needs no pairs, only
replies that were liked or not. Losses are sums over pairs (KTO: replies); the prompt is never a target.

Shapes: N sides (conversations with one reply), P pairs = N / 2.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onesitting.checkpoint import load_model
from onesitting.config import RunConfig
from onesitting.data.preference_rows import (
    PreferenceBatch,
    epoch_rows,
    mismatched,
    n_preference_rows,
    preference_rows,
)
from onesitting.data.tokens import PreferenceFile, PreferenceFolder
from onesitting.evaluation.preferences import count_wins, held_out_batches, reply_logprobs
from onesitting.model.lora import adapter_names, disabled
from onesitting.model.transformer import Transformer
from onesitting.stages.next_token import rank_share, write_samples
from onesitting.stages.reference import ReferenceLogprobs, model_identity
from onesitting.start import stretched_as
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.train.device import DevicePlan
from onesitting.train.distributed import Ranks
from onesitting.tuning_config import DPOConfig

# ---- losses ------------------------------------------------------------------------------------------------


def sigmoid_loss(logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """(P,) Bradley-Terry losses in nats of pairs whose chosen reply is `logits` (P,) ahead in reward.

    With logits = beta * (log-ratio of the chosen - log-ratio of the rejected reply), a log-ratio being log policy
    - log reference, this is DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7). label_smoothing: probability that a
    label is wrong (Mitchell 2023, "A note on DPO with noisy preferences").
    """
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def ipo_loss(difference: Tensor, beta: float) -> Tensor:
    """(P,) squared distances of the difference of log-ratios (P,) from 1 / (2 beta), a lead that is enough.

    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17 (its tau is beta).
    """
    return (difference - 1 / (2 * beta)).square()


def kto_loss(rewards: Tensor, chosen: Tensor, baseline: float, cfg: DPOConfig) -> Tensor:
    """(N,) losses of single replies: 1 - sigmoid of how far each is on the right side of the baseline.

    rewards: (N,) beta * log-ratio. chosen: (N,) bool. baseline: beta * KL(policy, reference), at least 0.
    Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8, less the constant weights.
    """
    good = cfg.desirable_weight * (1 - torch.sigmoid(rewards - baseline))
    bad = cfg.undesirable_weight * (1 - torch.sigmoid(baseline - rewards))
    return torch.where(chosen, good, bad)


def pair_losses(policy: Tensor, reference: Tensor, lengths: Tensor, cfg: DPOConfig) -> tuple[Tensor, Tensor]:
    """((P,) losses, (N,) implicit rewards) of pairs.

    policy, reference: (N,) float32 log-probabilities of replies in nats, chosen and rejected in turn; lengths: (N,)
    their tokens. SimPO reads no reference (Meng et al. 2024, arXiv:2405.14734, eq. 6).
    """
    scale = lengths if cfg.normalise_length or cfg.loss == "simpo" else torch.ones_like(lengths)
    ratios = (policy if cfg.loss == "simpo" else policy - reference) / scale
    differences = ratios[0::2] - ratios[1::2]  # (P,)
    if cfg.loss == "ipo":
        losses = ipo_loss(differences, cfg.beta)
    else:
        margin = cfg.margin if cfg.loss == "simpo" else 0.0
        losses = sigmoid_loss(cfg.beta * differences - margin, cfg.label_smoothing)
    if cfg.sft_weight:  # Pang et al. 2024, arXiv:2404.19733, eq. 2
        losses = losses - cfg.sft_weight * policy[0::2] / lengths[0::2]
    return losses, cfg.beta * ratios.detach()


# ---- the stage ---------------------------------------------------------------------------------------------


class DPOStage:
    """Packed pairs, or with KTO packed single replies; the frozen start model is the reference."""

    name = "dpo"
    replayable = False
    rate = 1.0

    def __init__(
        self,
        cfg: RunConfig,
        tokenizer: Tokenizer,
        preferences: PreferenceFolder,
        plan: DevicePlan,
        ranks: Ranks,
        *,
        start: Path,
        folder: Path,
    ) -> None:
        """start: folder of the model that training starts from. folder: gets the reference's log-probabilities."""
        self.cfg, self.tokenizer, self.data, self.plan, self.ranks = cfg, tokenizer, preferences, plan, ranks
        self.start, self.folder = start, folder
        self.row_length = cfg.dpo.context_length or cfg.model.context_length
        self.paired = cfg.dpo.loss != "kto"
        self.unit = "pairs" if self.paired else "replies"
        self.cycle = 0 if self.paired else 1  # KTO's baseline is measured with the current model
        self.n_rows = max(2 if self.paired else 1, cfg.dpo.step_tokens // self.row_length)
        self.frozen: Transformer | None = None
        self.references: dict[str, ReferenceLogprobs] = {}
        if cfg.dpo.loss != "simpo":  # now, when the processes make their stages one after another
            self.identity = model_identity(start)
            for split in ("train", "val"):
                self.reference(split)

    def next_batches(self, model: Transformer | None, step: int, row_length: int) -> list[PreferenceBatch]:
        """This rank's micro-batches of step `step`."""
        sides = 2 if self.paired else 1
        n_packed = self.n_rows // sides  # a packed row of pairs is two rows of tokens
        offset, count = rank_share(n_packed, self.ranks.rank, self.ranks.world)
        seed, paired = self.cfg.seed, self.paired
        rows = epoch_rows(
            self.data.train, row_length=row_length, seed=seed, first_row=step * n_packed + offset, n_rows=count,
            paired=paired,
        )  # fmt: skip
        given, n_rows = self.cfg.dpo.micro_batch_rows, sides * len(rows)
        size = max(1, self.plan.micro_batch_rows(row_length, given, n_rows, together=sides) // sides)
        groups = [rows[i : i + size] for i in range(0, len(rows), size)]
        batches = [
            preference_rows(self.data.train, group, row_length=row_length, seed=seed, paired=paired)
            for group in groups
        ]
        if self.paired or model is None:
            return batches
        baseline = self.kl_baseline(model, batches)
        return [replace(batch, baseline=baseline) for batch in batches]

    def max_steps(self) -> int | None:
        """Optimizer steps in `dpo.max_epochs` passes over the preferences."""
        if self.cfg.dpo.max_epochs == 0:
            return None
        n_rows = n_preference_rows(
            self.data.train, row_length=self.row_length, seed=self.cfg.seed, paired=self.paired
        )
        sides = 2 if self.paired else 1
        return max(1, round(self.cfg.dpo.max_epochs * n_rows / (self.n_rows // sides)))

    def loss_sum(self, model: Transformer, batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of losses over pairs (KTO: replies), and sums of rewards and log-probabilities."""
        policy = reply_logprobs(model, batch)  # (N,)
        reference = (
            policy.detach() if self.cfg.dpo.loss == "simpo" else self.reference("train").of(batch, model)
        )
        if self.paired:
            losses, rewards = pair_losses(policy, reference, batch.lengths, self.cfg.dpo)
            return losses.sum(), {
                "reward_margin": (rewards[0::2] - rewards[1::2]).sum(),
                "preference_accuracy": torch.tensor(count_wins(rewards), device=rewards.device),
                "chosen_reward": rewards[0::2].sum(),
                "rejected_reward": rewards[1::2].sum(),
                "chosen_logprob": policy.detach()[0::2].sum(),
                "rejected_logprob": policy.detach()[1::2].sum(),
            }
        chosen = batch.sides % 2 == 0
        rewards = self.cfg.dpo.beta * (policy - reference)  # (N,)
        baseline = self.cfg.dpo.beta * batch.baseline
        losses = kto_loss(rewards, chosen, baseline, self.cfg.dpo)
        signed = torch.where(chosen, rewards, -rewards).detach()
        right = torch.where(chosen, rewards > baseline, rewards < baseline)
        return losses.sum(), {
            "signed_reward": signed.sum(),
            "preference_accuracy": right.float().sum(),
            "kl_nats": torch.full_like(losses, batch.baseline).sum(),
        }

    def kl_baseline(self, model: Transformer, batches: list[PreferenceBatch]) -> float:
        """KTO's estimate of KL(policy, reference) in nats, at least 0: the mean log-ratio of replies to other prompts.

        Over all processes, and with a partner that depends on the data alone: the same for any micro-batches.
        """
        total = torch.zeros(2, dtype=torch.float64)
        model.eval()
        with self.plan.autocast(), torch.no_grad():
            for batch in batches:
                other = mismatched(
                    self.data.train, batch.sides.tolist(), row_length=self.row_length, seed=self.cfg.seed
                ).to(self.plan.torch_device)
                ratios = reply_logprobs(model, other)
                with self.reference_model(model) as reference:
                    ratios = ratios - reply_logprobs(reference, other)
                total += torch.tensor([float(ratios.double().sum()), len(ratios)], dtype=torch.float64)
        model.train()
        sums = self.ranks.sum_tensors({"ratios": total[0], "n": total[1]})
        return max(0.0, float(sums["ratios"]) / max(1.0, float(sums["n"])))

    # ---- the reference ---------------------------------------------------------------------------------------

    @contextmanager
    def reference_model(self, model: Transformer) -> Generator[Transformer]:
        """The model with its adapter disabled; without one the start model, loaded when it is first needed."""
        if adapter_names(model):
            with disabled(model):
                yield model
            return
        if self.frozen is None:
            self.frozen = load_model(self.start, self.plan.torch_device, self.plan.torch_dtype)
            self.frozen.cfg = stretched_as(self.frozen.cfg, self.cfg.model)
            self.frozen.requires_grad_(False)
        yield self.frozen

    def reference(self, split: str) -> ReferenceLogprobs:
        """What the reference says of the replies of a split."""
        if split not in self.references:
            file: PreferenceFile = getattr(self.data, split)
            self.references[split] = ReferenceLogprobs(
                self.reference_model, file, self.folder, self.identity, self.plan,
                row_length=self.row_length, seed=self.cfg.seed, paired=self.paired,
            )  # fmt: skip
        return self.references[split]

    # ---- evaluation ------------------------------------------------------------------------------------------

    def evaluate(self, model: Transformer) -> dict[str, float]:
        """On held-out preferences: how often the chosen reply has the higher reward, and by how much.

        ranking_accuracy is the same for the log-probabilities themselves. Of unpaired replies every chosen one is
        compared with every rejected one.
        """
        batches = held_out_batches(
            self.data.val, row_length=self.row_length, paired=self.paired, seed=self.cfg.seed,
            max_tokens=self.cfg.evaluation.val_tokens,
            micro_rows=self.plan.micro_batch_rows(self.row_length, self.cfg.dpo.micro_batch_rows),
        )  # fmt: skip
        values: list[Tensor] = []  # (3, N): reward, log-probability, chosen or not
        for batch in batches:
            batch = batch.to(self.plan.torch_device)
            policy = reply_logprobs(model, batch)
            is_simpo = self.cfg.dpo.loss == "simpo"
            ratios = policy if is_simpo else policy - self.reference("val").of(batch, model)
            by_token = is_simpo or self.cfg.dpo.normalise_length
            rewards = self.cfg.dpo.beta * (ratios / batch.lengths if by_token else ratios)
            values.append(torch.stack([rewards, policy, (batch.sides % 2 == 0).float()]).cpu())
        if not values:  # no held-out preference fits into a row
            return {}
        rewards, logprobs, chosen = torch.cat(values, dim=1)
        if self.paired:
            n_pairs = len(rewards) // 2
            return {
                "preference_accuracy": count_wins(rewards) / n_pairs,
                "ranking_accuracy": count_wins(logprobs) / n_pairs,
                "reward_margin": float((rewards[0::2] - rewards[1::2]).mean()),
                "chosen_logprob": float(logprobs[0::2].mean()),
                "rejected_logprob": float(logprobs[1::2].mean()),
                "n_pairs": float(n_pairs),
            }
        good, bad = rewards[chosen > 0], rewards[chosen == 0]
        if not len(good) or not len(bad):
            return {"n_replies": float(len(rewards))}
        ahead = (good[:, None] > bad).float() + 0.5 * (good[:, None] == bad)
        return {
            "preference_accuracy": float(ahead.mean()),
            "reward_margin": float(good.mean() - bad.mean()),
            "n_replies": float(len(rewards)),
        }

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """Replies to held-out prompts."""
        ids = [
            self.data.val.prompt(i)
            for i in range(min(self.cfg.evaluation.samples, self.data.val.n_preferences))
        ]
        prompts = [(self.tokenizer.decode(one), one) for one in ids]
        return write_samples(model, self.tokenizer, prompts, self.cfg.evaluation.sample_tokens, self.cfg.seed)
