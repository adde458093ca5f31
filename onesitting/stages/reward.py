"""Reward model: a number for each reply, learned from pairs of replies; a reward for reinforcement learning.

The model is the one that training started from, with one linear layer to a single number in place of the output
matrix. The score of a conversation is that number at its last token, as in transformers' sequence classifiers, so
the saved folder loads there (`AutoModelForSequenceClassification`, num_labels 1) and gives equal scores.

Shapes: N sides (conversations), P pairs = N / 2.
"""

from collections.abc import Mapping, Sequence
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
    n_preference_rows,
    preference_rows,
    whole_conversations,
)
from onesitting.data.tokens import PreferenceFolder
from onesitting.errors import UserError
from onesitting.evaluation.preferences import count_wins, held_out_batches
from onesitting.model.transformer import Transformer
from onesitting.rewards import Attempt
from onesitting.stages.next_token import rank_share
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.tokenizer.chat import render
from onesitting.train.device import DevicePlan
from onesitting.train.distributed import Ranks


def reward_losses(scores: Tensor, centre_weight: float) -> Tensor:
    """(P,) losses in nats of scores (N,), those of the chosen and the rejected reply in turn.

    -log sigmoid(chosen - rejected) (Bradley & Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, eq. 1), and
    centre_weight * (chosen + rejected)², for the first term does not say where zero is (Eisenstein et al. 2023,
    arXiv:2312.09244, section 4).
    """
    chosen, rejected = scores[0::2], scores[1::2]
    return -F.logsigmoid(chosen - rejected) + centre_weight * (chosen + rejected).square()


def with_score_head(model: Transformer, seed: int) -> Transformer:
    """A copy of the model that scores instead of predicting tokens; the new layer depends on the seed alone."""
    if model.cfg.n_scores:
        return model
    scorer = Transformer(replace(model.cfg, n_scores=1, tie_embeddings=True), seed=seed)
    head = scorer.state_dict()["score.weight"]
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    scorer.load_state_dict({**state, "score.weight": head})
    return scorer.to(model.device)


def conversation_scores(model: Transformer, batch: PreferenceBatch) -> Tensor:
    """(N,) float32 scores of the conversations of a batch of whole ones."""
    assert model.score is not None, "a language model has no score"
    hidden = model.hidden(batch.tokens, doc_ids=batch.doc_ids, positions=batch.positions)  # (B, T, d)
    ends = batch.owner >= 0
    scores = (hidden[ends].float() * model.score.weight[0].float()).sum(dim=1)  # not rounded to bfloat16
    return scores.new_zeros(len(batch.sides)).index_copy(0, batch.owner[ends], scores)


class RewardStage:
    """Packed pairs of whole conversations."""

    name = "reward"
    unit = "pairs"
    cycle = 0
    replayable = False
    rate = 1.0

    def __init__(
        self,
        cfg: RunConfig,
        tokenizer: Tokenizer,
        preferences: PreferenceFolder,
        plan: DevicePlan,
        ranks: Ranks,
    ) -> None:
        self.cfg, self.tokenizer, self.data, self.plan, self.ranks = cfg, tokenizer, preferences, plan, ranks
        self.row_length = cfg.reward.context_length or cfg.model.context_length
        self.n_rows = max(2, cfg.reward.step_tokens // self.row_length)

    def next_batches(self, model: Transformer | None, step: int, row_length: int) -> list[PreferenceBatch]:
        """This rank's micro-batches of step `step`."""
        n_packed, seed = self.n_rows // 2, self.cfg.seed  # a packed row of pairs is two rows of tokens
        offset, count = rank_share(n_packed, self.ranks.rank, self.ranks.world)
        rows = epoch_rows(
            self.data.train, row_length=row_length, seed=seed, first_row=step * n_packed + offset, n_rows=count,
            paired=True, whole=True,
        )  # fmt: skip
        given, n_rows = self.cfg.reward.micro_batch_rows, 2 * len(rows)
        size = max(1, self.plan.micro_batch_rows(row_length, given, n_rows, together=2) // 2)
        groups = [rows[i : i + size] for i in range(0, len(rows), size)]
        return [
            preference_rows(self.data.train, group, row_length=row_length, seed=seed, paired=True, whole=True)
            for group in groups
        ]

    def max_steps(self) -> int | None:
        """Optimizer steps in `reward.max_epochs` passes over the pairs."""
        if self.cfg.reward.max_epochs == 0:
            return None
        n_rows = n_preference_rows(
            self.data.train, row_length=self.row_length, seed=self.cfg.seed, paired=True, whole=True
        )
        return max(1, round(self.cfg.reward.max_epochs * n_rows / (self.n_rows // 2)))

    def loss_sum(self, model: Transformer, batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of losses over pairs, and sums of what the scores say."""
        scores = conversation_scores(model, batch)
        seen = scores.detach()
        return reward_losses(scores, self.cfg.reward.centre_weight).sum(), {
            "reward_margin": (seen[0::2] - seen[1::2]).sum(),
            "preference_accuracy": torch.tensor(count_wins(seen), device=seen.device),
        }

    def evaluate(self, model: Transformer) -> dict[str, float]:
        """On held-out pairs: how often the chosen reply has the higher score, and by how much."""
        batches = held_out_batches(
            self.data.val, row_length=self.row_length, paired=True, seed=self.cfg.seed, whole=True,
            max_tokens=self.cfg.evaluation.val_tokens,
            micro_rows=self.plan.micro_batch_rows(self.row_length, self.cfg.reward.micro_batch_rows),
        )  # fmt: skip
        found = [conversation_scores(model, batch.to(self.plan.torch_device)).cpu() for batch in batches]
        if not found:  # no held-out pair fits into a row
            return {}
        scores = torch.cat(found)
        n_pairs = len(scores) // 2
        return {
            "preference_accuracy": count_wins(scores) / n_pairs,
            "reward_margin": float((scores[0::2] - scores[1::2]).mean()),
            "mean_score": float(scores.mean()),
            "score_std": float(scores.std()),
            "n_pairs": float(n_pairs),
        }

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """None: this model writes nothing."""
        return []


# ---- using a reward model ------------------------------------------------------------------------------------

Conversation = Sequence[Mapping[str, Any]]
AT_ONCE = 32
"""Conversations in one forward pass."""


class RewardModel:
    """A trained reward model with its tokenizer."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def score(self, messages: Conversation, tools: Sequence[Mapping[str, Any]] | None = None) -> float:
        """The score of a conversation that ends with the assistant's reply; higher is better."""
        return self.scores([messages], [tools])[0]

    def scores(
        self,
        conversations: Sequence[Conversation],
        tools: Sequence[Sequence[Mapping[str, Any]] | None] | None = None,
    ) -> list[float]:
        """The scores of several conversations, computed in packed rows.

        One that is longer than the model's context loses its beginning. Scores compare replies to one prompt; from
        prompt to prompt only their differences mean something.
        """
        offered = tools or [None] * len(conversations)
        length = self.model.cfg.context_length
        ids = [
            render(self.tokenizer, messages, each)[0][-length:]
            for messages, each in zip(conversations, offered, strict=True)
        ]
        scores: list[float] = []
        for start in range(0, len(ids), AT_ONCE):
            part = ids[start : start + AT_ONCE]
            # The mask grows with the square of the row, and a context may be far longer than these texts.
            row = min(length, -(-max(map(len, part)) // 64) * 64)
            batch = whole_conversations(part, row_length=row, eos_id=self.tokenizer.eos_id)
            with torch.inference_mode():
                scores += conversation_scores(self.model, batch.to(self.model.device)).tolist()
        return scores

    def judge(self, attempts: Sequence[Attempt]) -> list[float]:
        """The scores of attempts: a reward for reinforcement learning."""
        conversations = [[*attempt.prompt, *attempt.messages] for attempt in attempts]
        return self.scores(conversations, [attempt.tools for attempt in attempts])


def load_reward_model(path: str | Path, device: str | torch.device = "cpu") -> RewardModel:
    """The reward model of a run, of its `reward` stage, or of a model folder.

    Raises UserError when there is none.
    """
    path = Path(path).expanduser()
    folders = [path / "reward" / "model", path / "model", path]
    folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    if folder is None:
        raise UserError(f"{path} holds no reward model; train one with `onesitting reward {path}`")
    model = load_model(folder, device)
    if model.cfg.n_scores != 1:
        raise UserError(
            f"{folder} is a model that writes, not one that scores; train a reward model with `onesitting reward …`"
        )
    return RewardModel(model, Tokenizer.load(folder))
