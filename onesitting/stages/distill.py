"""Distillation: a student learns a teacher's whole distribution over the next token, not its words alone.

The data are the conversations of SFT. A token's loss is (1 - w) cross-entropy + w T² divergence, at temperature T
(Hinton et al. 2015, arXiv:1503.02531). With `distill.on_policy` a part of the rows is written by the student itself
(Agarwal et al. 2023, arXiv:2306.13649): there only the divergence counts, for the student's words are no target.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onesitting.checkpoint import find_model_folder, load_model
from onesitting.config import RunConfig
from onesitting.data.examples import IGNORED, Batch, chat_rows, n_chat_rows
from onesitting.data.preference_rows import packed
from onesitting.data.tokens import ChatFile, ChatFolder
from onesitting.errors import UserError
from onesitting.evaluation.bits_per_byte import chat_bits_per_byte
from onesitting.inference.generate import generate
from onesitting.inference.sampling import Sampling
from onesitting.model.transformer import Transformer
from onesitting.runlog import write_atomic
from onesitting.stages.divergence import TopK, distillation_sums, top_k
from onesitting.stages.next_token import rank_share, write_samples
from onesitting.stages.reference import model_identity
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
        # At least one row where some are asked for: rounding must not switch it off.
        self.n_own = max(round(self.n_rows * settings.on_policy), math.ceil(settings.on_policy))
        self.cycle = 1 if self.n_own else 0
        self.teacher, self.teacher_folder = load_teacher(cfg, tokenizer, plan, self.row_length)
        self.kept: KeptLogits | None = None
        if settings.top_k:
            identity = f"{model_identity(self.teacher_folder)}/{settings.temperature}/{plan.dtype}"
            self.kept = KeptLogits(
                chat.train, folder, identity, row_length=self.row_length, seed=cfg.seed,
                k=min(settings.top_k, self.teacher.cfg.vocab_size),
            )  # fmt: skip

    def next_batches(self, model: Transformer | None, step: int, row_length: int) -> list[DistillBatch]:
        """This rank's micro-batches of step `step`: rows of the data, then rows that the student writes now."""
        n_data = self.n_rows - self.n_own
        offset, count = rank_share(n_data, self.ranks.rank, self.ranks.world)
        size = self.plan.micro_batch_rows(row_length, self.cfg.distill.micro_batch_rows, count)
        batches: list[DistillBatch] = []
        for first in range(offset, offset + count, size):
            n = min(size, offset + count - first)
            place = step * n_data + first
            batch = chat_rows(
                self.chat.train, row_length=row_length, seed=self.cfg.seed, first_row=place, n_rows=n
            )
            rows = packed_rows(self.chat.train, row_length, self.cfg.seed, place, n)
            batches.append(DistillBatch(batch=batch, rows=rows))
        if self.n_own and model is not None:
            own = self.own_rows(model, step, row_length)
            batches += [DistillBatch(batch=part, rows=None) for part in own.split(size)]
        return batches

    def own_rows(self, model: Transformer, step: int, row_length: int) -> Batch:
        """Conversations whose replies the student writes: a function of (weights, seed, step), shared by the ranks."""
        file, rng = self.chat.train, np.random.default_rng([self.cfg.seed, step, 7])
        # About as many conversations as fill the rows, by the mean length of those in the data.
        n = max(1, self.n_own * row_length * file.n_conversations // max(1, file.n_tokens))
        chosen, seed = rng.integers(0, file.n_conversations, n), int(rng.integers(2**31))
        offset, count = rank_share(n, self.ranks.rank, self.ranks.world)
        indices = range(offset, offset + count)
        prompts = [file.prompt(int(chosen[i]))[: row_length - 1] for i in indices]
        sampling = Sampling(temperature=1.0, max_tokens=min(GENERATED_TOKENS, row_length), seed=seed)
        model.eval()
        with self.plan.autocast():
            done = generate(
                model, self.tokenizer, prompts, sampling, self.tokenizer.stop_ids, indices=indices
            )
        model.train()
        examples = []
        for prompt, reply in zip(prompts, done, strict=True):
            written = [*reply.ids, *([] if reply.stop_id is None else [reply.stop_id])]
            ids = np.array([*prompt, *written], dtype=np.int64)
            examples.append((ids, np.arange(len(ids)) >= len(prompt)))
        rows = packed(examples, range(len(examples)), row_length=row_length, eos_id=self.tokenizer.eos_id)
        n_units = int((rows.targets != IGNORED).sum())
        return Batch(
            tokens=rows.tokens, targets=rows.targets, doc_ids=rows.doc_ids, positions=rows.positions,
            n_units=n_units, n_tokens=rows.n_tokens,
        )  # fmt: skip

    def max_steps(self) -> int | None:
        """Optimizer steps in `distill.max_epochs` passes over the conversations; None if all rows are the student's."""
        n_data = self.n_rows - self.n_own
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


# ---- the teacher's likeliest tokens, kept on disk --------------------------------------------------------------


def packed_rows(file: ChatFile, row_length: int, seed: int, first_row: int, n_rows: int) -> tuple[int, ...]:
    """The packed rows that `chat_rows` reads for these arguments."""
    per_epoch = n_chat_rows(file, row_length=row_length, seed=seed)
    places = (divmod(first_row + i, per_epoch) for i in range(n_rows))
    return tuple(int(file.epoch_order(per_epoch, seed, epoch)[row]) for epoch, row in places)


class KeptLogits:
    """The teacher's K likeliest tokens at every trained place of a file of conversations, row by row.

    Two memory-mapped files under a hash of teacher, data and rows: ids (n, K) uint32 and logprobs (n, K) float16, in
    the order of the packed rows. A row that was not computed yet has NaN in its first place.
    """

    def __init__(
        self, file: ChatFile, folder: Path, identity: str, *, row_length: int, seed: int, k: int
    ) -> None:
        items, first, n_inputs = file.pack(row_length, seed, False)
        before = np.concatenate([[0], np.cumsum(file.trained, dtype=np.int64)])
        starts = file.starts[items] + 1
        counts = before[starts + n_inputs[items]] - before[starts]  # trained places of each conversation
        ends = np.concatenate([[0], np.cumsum(counts)])
        self.edges, self.k = ends[first], k  # row r has the places edges[r] to edges[r + 1] - 1
        content = hashlib.sha256(np.ascontiguousarray(file.tokens).tobytes()).hexdigest()
        key = hashlib.sha256(f"{identity}/{content}/{row_length}/{seed}/{k}".encode()).hexdigest()[:16]
        self.ids = self._open(folder / f"{key}.ids", "<u4", 0)
        self.logprobs = self._open(folder / f"{key}.logprobs", "<f2", np.nan)

    def _open(self, path: Path, dtype: str, fill: float) -> Any:
        shape = (int(self.edges[-1]), self.k)
        kind = np.dtype(dtype)
        if not path.is_file() or path.stat().st_size != shape[0] * shape[1] * kind.itemsize:
            write_atomic(path, np.full(shape, fill, dtype=kind).tobytes())
        return np.memmap(path, dtype=kind, mode="r+", shape=shape)

    def read(self, rows: Sequence[int]) -> TopK | None:
        """What is kept of these rows, in their order; None if one of them is missing."""
        parts = [slice(self.edges[row], self.edges[row + 1]) for row in rows]
        if any(part.start < part.stop and np.isnan(self.logprobs[part.start, 0]) for part in parts):
            return None
        ids = np.concatenate([self.ids[part] for part in parts]).astype(np.int64)
        return TopK(
            torch.from_numpy(ids), torch.from_numpy(np.concatenate([self.logprobs[p] for p in parts])).float()
        )

    def write(self, rows: Sequence[int], found: TopK) -> None:
        """Keep what the teacher said in these rows; ids first, so that a row with logprobs is whole."""
        at = 0
        ids, logprobs = found.ids.cpu().numpy(), found.logprobs.float().cpu().numpy()
        for row in rows:
            part = slice(self.edges[row], self.edges[row + 1])
            n = part.stop - part.start
            self.ids[part] = ids[at : at + n]
            self.logprobs[part] = logprobs[at : at + n]
            at += n
