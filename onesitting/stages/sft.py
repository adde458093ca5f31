"""Supervised fine-tuning: learn to answer, from conversations.

Only the assistant's tokens and its end-of-turn token are trained. Conversations are packed into rows and hidden
from each other. A fraction of the rows may be general conversations that the start model was trained on (`replay`).
"""

from typing import Any

from torch import Tensor

from onesitting.config import RunConfig
from onesitting.data.examples import Batch, chat_rows, concatenate, n_chat_rows
from onesitting.data.tokens import ChatFolder
from onesitting.evaluation.bits_per_byte import chat_bits_per_byte
from onesitting.model.transformer import Transformer
from onesitting.stages.next_token import next_token_loss, rank_rows, rest, share, write_samples
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.train.device import DevicePlan
from onesitting.train.distributed import Ranks


class SFTStage:
    """Packed, masked, isolated conversations."""

    name = "sft"
    unit = "tokens"
    cycle = 0
    replayable = True
    rate = 1.0

    def __init__(
        self,
        cfg: RunConfig,
        tokenizer: Tokenizer,
        chat: ChatFolder,
        plan: DevicePlan,
        ranks: Ranks,
        general: ChatFolder | None = None,
    ) -> None:
        self.cfg, self.tokenizer, self.chat, self.plan, self.ranks = cfg, tokenizer, chat, plan, ranks
        self.row_length = cfg.sft.context_length or cfg.model.context_length
        self.n_rows = max(1, cfg.sft.step_tokens // self.row_length)
        self.general, self.replayed = general, cfg.replay.fraction if general else 0.0

    def next_batches(self, model: Transformer | None, step: int, row_length: int) -> list[Batch]:
        """This rank's micro-batches of step `step`."""
        place = step * self.n_rows, self.n_rows, self.replayed
        of_step = [(self.chat.train, *rest(*place))]
        of_step += [(self.general.train, *share(*place))] if self.general else []
        parts = [
            chat_rows(file, row_length=row_length, seed=self.cfg.seed, first_row=first, n_rows=n_rows)
            for file, first, n_rows in rank_rows(of_step, self.ranks.rank, self.ranks.world)
        ]
        if not parts:
            return []
        batch = concatenate(parts)
        return batch.split(
            self.plan.micro_batch_rows(row_length, self.cfg.sft.micro_batch_rows, batch.n_rows)
        )

    def max_steps(self) -> int | None:
        """Optimizer steps in `sft.max_epochs` passes over the training conversations."""
        if self.cfg.sft.max_epochs == 0:
            return None
        rows = n_chat_rows(self.chat.train, row_length=self.row_length, seed=self.cfg.seed)
        own_rows = self.n_rows * (1 - self.replayed)  # of a step
        return max(1, round(self.cfg.sft.max_epochs * rows / own_rows))

    def loss_sum(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of cross-entropies in nats over the assistant's tokens."""
        return next_token_loss(model, batch), {}

    def evaluate(self, model: Transformer) -> dict[str, float]:
        """Bits per byte and nats per token of the assistant's words in held-out conversations."""
        result = chat_bits_per_byte(
            model, self.chat.val, self.tokenizer.token_bytes, row_length=self.row_length,
            max_tokens=self.cfg.evaluation.val_tokens, device=self.plan.torch_device,
        )  # fmt: skip
        return {"bits_per_byte": result.bits_per_byte, "val_nats_per_token": result.nats_per_token}

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """Replies to the first turns of held-out conversations."""
        prompts = []
        for index in range(min(self.cfg.evaluation.samples, self.chat.val.n_conversations)):
            ids = self.chat.val.prompt(index)
            prompts.append((self.tokenizer.decode(ids), ids))
        return write_samples(model, self.tokenizer, prompts, self.cfg.evaluation.sample_tokens, self.cfg.seed)
