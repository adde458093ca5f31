"""Distillation: a student learns a teacher's whole distribution over the next token, not its words alone.

The data are the conversations of SFT. A token's loss is (1 - w) cross-entropy + w T² divergence, at temperature T
(Hinton et al. 2015, arXiv:1503.02531). With `distill.on_policy` a part of the rows is written by the student itself
(Agarwal et al. 2023, arXiv:2306.13649): there only the divergence counts, for the student's words are no target.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onesitting.checkpoint import find_model_folder, load_model
from onesitting.config import RunConfig
from onesitting.data.examples import IGNORED, Batch, chat_rows, concatenate, n_chat_rows
from onesitting.data.preference_rows import packed
from onesitting.data.tokens import ChatFolder
from onesitting.errors import UserError
from onesitting.evaluation.bits_per_byte import chat_bits_per_byte
from onesitting.inference.generate import Completion, generate
from onesitting.inference.sampling import Sampling
from onesitting.model.transformer import Transformer
from onesitting.stages.divergence import TopK, distillation_sums, top_k
from onesitting.stages.kept import KeptLogits, packed_rows
from onesitting.stages.next_token import rank_share, rest, share, write_samples
from onesitting.stages.reference import model_identity
from onesitting.stages.rollout import seed_of
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.train.device import DevicePlan
from onesitting.train.distributed import Ranks

GENERATED_TOKENS = 256
"""Longest reply that the student writes on policy."""


@dataclass(frozen=True, kw_only=True)
class DistillBatch:
    """Rows of conversations, and where they come from.

    rows: packed row in the file, of each row of the batch; None where the student wrote them.
    """

    batch: Batch
    rows: tuple[int, ...] | None

    @property
    def n_units(self) -> int:
        """Trained tokens."""
        return self.batch.n_units

    @property
    def n_tokens(self) -> int:
        """Real inputs."""
        return self.batch.n_tokens

    @property
    def n_rows(self) -> int:
        """B."""
        return self.batch.n_rows

    def to(self, device: torch.device | str) -> "DistillBatch":
        """The batch on a device."""
        return replace(self, batch=self.batch.to(device))


class DistillStage:
    """Packed conversations with a frozen teacher beside the student."""

    name = "distill"
    unit = "tokens"
    replayable = False
    rate = 1.0

    def __init__(
        self,
        cfg: RunConfig,
        tokenizer: Tokenizer,
        chat: ChatFolder,
        plan: DevicePlan,
        ranks: Ranks,
        *,
        folder: Path,
    ) -> None:
        """folder: gets the teacher's top logits, where they are kept. Raises UserError for an unfit teacher."""
        self.cfg, self.tokenizer, self.chat, self.plan, self.ranks = cfg, tokenizer, chat, plan, ranks
        settings = cfg.distill
        self.row_length = settings.context_length or cfg.model.context_length
        self.n_rows = max(1, settings.step_tokens // self.row_length)
        self.cycle = 1 if settings.on_policy else 0
        self.teacher, self.teacher_folder = load_teacher(cfg, tokenizer, plan, self.row_length)
        self.kept: KeptLogits | None = None
        if settings.top_k:
            identity = f"{model_identity(self.teacher_folder)}/{settings.temperature}/{plan.dtype}"
            self.kept = KeptLogits(
                chat.train, folder, identity, row_length=self.row_length, seed=cfg.seed,
                k=min(settings.top_k, self.teacher.cfg.vocab_size),
            )  # fmt: skip

    def next_batches(self, model: Transformer | None, step: int, row_length: int) -> list[DistillBatch]:
        """This rank's micro-batches of step `step`: rows of the data, then rows that the student writes now.

        Of all rows of training the student writes `distill.on_policy`; a step may have one more or less than its part.
        """
        fraction = self.cfg.distill.on_policy
        data_first, n_data = rest(step * self.n_rows, self.n_rows, fraction)
        offset, count = rank_share(n_data, self.ranks.rank, self.ranks.world)
        size = self.plan.micro_batch_rows(row_length, self.cfg.distill.micro_batch_rows, count)
        batches: list[DistillBatch] = []
        for first in range(offset, offset + count, size):
            n = min(size, offset + count - first)
            place = data_first + first
            batch = chat_rows(
                self.chat.train, row_length=row_length, seed=self.cfg.seed, first_row=place, n_rows=n
            )
            rows = packed_rows(self.chat.train, row_length, self.cfg.seed, place, n)
            batches.append(DistillBatch(batch=batch, rows=rows))
        own_first, n_own = share(step * self.n_rows, self.n_rows, fraction)
        offset, count = rank_share(n_own, self.ranks.rank, self.ranks.world)
        if count and model is not None:
            own = self.own_rows(model, range(own_first + offset, own_first + offset + count), row_length)
            batches += [DistillBatch(batch=part, rows=None) for part in own.split(size)]
        return batches

    def own_rows(self, model: Transformer, rows: range, row_length: int) -> Batch:
        """Rows of conversations whose replies the student writes, a function of (weights, seed, number of the row).

        For each row as many replies are written as fill one in the data, and the first of them that fit are read: it is
        one row whatever their length.
        """
        file = self.chat.train
        n_asked = max(1, row_length * file.n_conversations // max(1, file.n_tokens))
        rng = [np.random.default_rng([self.cfg.seed, row, 7]) for row in rows]
        chosen = [int(item) for one in rng for item in one.integers(0, file.n_conversations, n_asked)]
        prompts = [file.prompt(item)[: row_length - 1] for item in chosen]
        sampling = Sampling(
            temperature=1.0,
            max_tokens=min(GENERATED_TOKENS, row_length),
            seed=seed_of(self.cfg.seed, self.name),
        )
        indices = range(rows.start * n_asked, rows.stop * n_asked)
        model.eval()
        with self.plan.autocast():
            done = generate(
                model, self.tokenizer, prompts, sampling, self.tokenizer.stop_ids, indices=indices
            )
        model.train()
        made: list[Batch] = []
        for first in range(0, len(prompts), n_asked):
            part = slice(first, first + n_asked)
            made.append(self.own_row(prompts[part], done[part], row_length))
        return concatenate(made)

    def own_row(self, prompts: list[list[int]], replies: list[Completion], row_length: int) -> Batch:
        """One row of the first replies that fit. A reply that was cut is not taught to stop."""
        examples: list[tuple[np.ndarray, np.ndarray]] = []
        room = row_length
        for prompt, reply in zip(prompts, replies, strict=True):
            written = [*reply.ids, *([] if reply.stop_id is None else [reply.stop_id])]
            ids = np.array([*prompt, *written], dtype=np.int64)[: row_length + 1]
            room -= len(ids) - 1
            if room < 0:
                break
            examples.append((ids, np.arange(len(ids)) >= len(prompt)))
        row = packed(examples, range(len(examples)), row_length=row_length, eos_id=self.tokenizer.eos_id)
        return Batch(
            tokens=row.tokens, targets=row.targets, doc_ids=row.doc_ids, positions=row.positions,
            n_units=int((row.targets != IGNORED).sum()), n_tokens=row.n_tokens,
        )  # fmt: skip

    def max_steps(self) -> int | None:
        """Optimizer steps in `distill.max_epochs` passes over the conversations; None if all rows are the student's."""
        n_data = self.n_rows * (1 - self.cfg.distill.on_policy)
        if self.cfg.distill.max_epochs == 0 or n_data == 0:
            return None
        rows = n_chat_rows(self.chat.train, row_length=self.row_length, seed=self.cfg.seed)
        return max(1, round(self.cfg.distill.max_epochs * rows / n_data))

    def loss_sum(self, model: Transformer, batch: DistillBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the tokens' losses, and the sums of cross-entropies and divergences that it is made of."""
        settings, inputs = self.cfg.distill, batch.batch
        if model.cfg.vocab_size != self.teacher.cfg.vocab_size:
            raise UserError(
                f"the student's embedding has {model.cfg.vocab_size:,} rows and the teacher's "
                f"{self.teacher.cfg.vocab_size:,}; set model.vocab_size = {self.teacher.cfg.vocab_size}"
            )
        trained = inputs.targets != IGNORED
        hidden = model.hidden(inputs.tokens, doc_ids=inputs.doc_ids, positions=inputs.positions)[trained]
        cross_entropy, divergence = distillation_sums(
            hidden, model.output_weight, self.taught(batch, trained), self.teacher.output_weight,
            inputs.targets[trained], kind=settings.divergence, temperature=settings.temperature,
            beta=settings.jsd_beta,
        )  # fmt: skip
        weight = 1.0 if batch.rows is None else settings.kl_weight
        loss = (1 - weight) * cross_entropy + weight * settings.temperature**2 * divergence
        return loss, {"cross_entropy": cross_entropy, "divergence": divergence}

    def taught(self, batch: DistillBatch, trained: Tensor) -> Tensor | TopK:
        """What the teacher says at the trained places: its hidden states, or its likeliest tokens where kept."""
        if self.kept is None or batch.rows is None:
            return self.teacher_hidden(batch.batch)[trained]
        found = self.kept.read(batch.rows)
        if found is None:
            hidden = self.teacher_hidden(batch.batch)[trained]
            found = top_k(hidden, self.teacher.output_weight, self.kept.k, self.cfg.distill.temperature)
            self.kept.write(batch.rows, found)
            found = self.kept.read(batch.rows)  # as it will be read the next time, in 16 bits
        assert found is not None
        return TopK(found.ids.to(trained.device), found.logprobs.to(trained.device))

    def teacher_hidden(self, batch: Batch) -> Tensor:
        """(B, T, e) hidden states of the teacher."""
        with torch.no_grad(), self.plan.autocast():
            return self.teacher.hidden(batch.tokens, doc_ids=batch.doc_ids, positions=batch.positions)

    def evaluate(self, model: Transformer) -> dict[str, float]:
        """On held-out conversations: bits per byte, and how far student and teacher are apart, in nats a token."""
        result = chat_bits_per_byte(
            model, self.chat.val, self.tokenizer.token_bytes, row_length=self.row_length,
            max_tokens=self.cfg.evaluation.val_tokens, device=self.plan.torch_device,
        )  # fmt: skip
        file, length = self.chat.val, self.row_length
        n_rows = min(
            n_chat_rows(file, row_length=length, seed=self.cfg.seed),
            max(1, self.cfg.evaluation.val_tokens // length),
        )
        n_micro = self.plan.micro_batch_rows(length, self.cfg.distill.micro_batch_rows)
        total, same, n = 0.0, 0, 0
        for first in range(0, n_rows, n_micro):
            rows = min(n_micro, n_rows - first)
            batch = chat_rows(file, row_length=length, seed=self.cfg.seed, first_row=first, n_rows=rows)
            batch = batch.to(self.plan.torch_device)
            trained = batch.targets != IGNORED
            student = model.hidden(batch.tokens, doc_ids=batch.doc_ids, positions=batch.positions)[trained]
            teacher = self.teacher_hidden(batch)[trained]
            _, apart = distillation_sums(
                student, model.output_weight, teacher, self.teacher.output_weight, batch.targets[trained],
                kind="forward", temperature=1.0, beta=0.5,
            )  # fmt: skip
            best = [
                top_k(h, w, 1, 1.0).ids
                for h, w in ((student, model.output_weight), (teacher, self.teacher.output_weight))
            ]
            total, same, n = total + float(apart), same + int((best[0] == best[1]).sum()), n + batch.n_units
        return {
            "bits_per_byte": result.bits_per_byte,
            "val_nats_per_token": result.nats_per_token,
            "teacher_kl_nats": total / max(1, n),
            "agreement": same / max(1, n),
        }

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """Replies to the first turns of held-out conversations."""
        ids = [
            self.chat.val.prompt(i)
            for i in range(min(self.cfg.evaluation.samples, self.chat.val.n_conversations))
        ]
        prompts = [(self.tokenizer.decode(one), one) for one in ids]
        return write_samples(model, self.tokenizer, prompts, self.cfg.evaluation.sample_tokens, self.cfg.seed)


def load_teacher(
    cfg: RunConfig, tokenizer: Tokenizer, plan: DevicePlan, row_length: int
) -> tuple[Transformer, Path]:
    """The frozen teacher and its folder.

    Raises UserError if it is not there, has another vocabulary, or cannot read rows that long.
    """
    if not cfg.distill.teacher:
        raise UserError("distill.teacher is empty: name a run, one of its stages, or a Hugging Face folder")
    folder = find_model_folder(Path(cfg.distill.teacher).expanduser())
    teacher = load_model(folder, plan.torch_device, plan.torch_dtype)
    theirs = Tokenizer.load(folder)
    if theirs.hash != tokenizer.hash:
        raise UserError(
            f"distill.teacher = {cfg.distill.teacher!r}: its vocabulary is another than the student's "
            f"({theirs.vocab_size:,} and {tokenizer.vocab_size:,} entries), so they cannot be compared; "
            f"train the student with --tokenizer.path {folder}, or learn from its text: onesitting distill-data"
        )
    if teacher.cfg.context_length < row_length:
        raise UserError(
            f"distill.teacher = {cfg.distill.teacher!r} reads at most {teacher.cfg.context_length} tokens, the "
            f"rows have {row_length}; set distill.context_length = {teacher.cfg.context_length}"
        )
    teacher.requires_grad_(False)
    return teacher, folder
