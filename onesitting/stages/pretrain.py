"""Pretraining: predict the next token of packed documents.

Rows hold whole documents where they fit, and start at document starts. The first part of training may use shorter
rows (`pretrain.short_context`): the same tokens, cut into more rows, so the order does not depend on the length.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onesitting.budgets import parse_budget
from onesitting.config import RunConfig
from onesitting.data.examples import IGNORED, Batch, chat_rows, concatenate, pretrain_batch
from onesitting.data.ngrams import HIDDEN, N_TRIPLES, Ngrams, Sources
from onesitting.data.tokens import ChatFile, ChatFolder, Material, TokenFile, TokenFolder, rows
from onesitting.evaluation.bits_per_byte import bits_per_byte
from onesitting.model.transformer import Transformer
from onesitting.stages.next_token import next_token_loss, rank_rows, rest, share, write_samples
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.train.device import DevicePlan
from onesitting.train.distributed import Ranks

AUTO_NGRAM_PART = 0.7
"""On a CPU, whose budgets end before a model has outgrown them (docs/log.md, 2026-11-27). A GPU reads more tokens a
second than can be looked up."""
COUNTS_ALL_FROM_S = 45.0
"""Seconds of a budget from which on everything is counted: 6 s of two cores, and as many for the fit (docs/log.md)."""
MOST_COUNTERS = 4
"""Threads that count n-grams; each holds a sixteenth of them."""


def ngram_part(cfg: RunConfig, plan: DevicePlan) -> float:
    """Part of the targets that goes to likely tokens: what is set, or what the device is worth."""
    given = cfg.pretrain.ngram_targets
    return given if given >= 0 else AUTO_NGRAM_PART if plan.device == "cpu" else 0.0


def text_sources(cfg: RunConfig, data: TokenFolder, chat: ChatFolder | None) -> Sources:
    """What a new model is trained on, with the share of each."""
    share_of_chat = cfg.pretrain.chat_fraction if chat else 0.0
    sources = [(data.train.tokens, 1.0 - share_of_chat)]
    return [*sources, (chat.train.tokens, share_of_chat)] if chat else sources


def counting(cfg: RunConfig) -> float:
    """Part of the counting that is done, in [0, 1]: what is set, or what leaves most of a short budget for training."""
    if cfg.pretrain.counting >= 0:
        return cfg.pretrain.counting
    seconds = parse_budget(cfg.pretrain.budget or cfg.budget).seconds
    return min(1.0, seconds / COUNTS_ALL_FROM_S) if seconds else 1.0


def explicit_counting(cfg: RunConfig, name: str) -> dict[str, float]:
    """Settings of the stage `name` that repeat its counting without its budget in seconds."""
    return {"counting": counting(cfg)} if name == "pretrain" and counting(cfg) < 1 else {}


def count_ngrams(
    cfg: RunConfig, data: TokenFolder, chat: ChatFolder | None, tokenizer: Tokenizer, plan: DevicePlan
) -> Ngrams | None:
    """Counts for softer targets, where the settings or the device ask for them."""
    if ngram_part(cfg, plan) == 0 or counting(cfg) == 0:
        return None
    n_tokens, workers = round(counting(cfg) * N_TRIPLES), min(MOST_COUNTERS, plan.threads)
    return Ngrams(text_sources(cfg, data, chat), tokenizer.vocab_size, n_tokens, workers)


class PretrainStage:
    """Packed documents, optionally with fractions of conversations as plain text and of replayed general data."""

    name = "pretrain"
    unit = "tokens"
    cycle = 0
    rate = 1.0

    def __init__(
        self,
        cfg: RunConfig,
        tokenizer: Tokenizer,
        data: TokenFolder,
        chat: ChatFolder | None,
        plan: DevicePlan,
        ranks: Ranks,
        general: Material | None = None,
        ngrams: Ngrams | None = None,
    ) -> None:
        """ngrams: counts of the text, for softer targets; None: the tokens that came are all there is to learn."""
        settings = cfg.pretrain
        self.cfg, self.tokenizer, self.data, self.chat, self.plan = cfg, tokenizer, data, chat, plan
        self.row_length = settings.context_length or cfg.model.context_length
        self.n_rows = max(1, settings.step_tokens // self.row_length)
        self.general = general or Material()
        self.replayed = cfg.replay.fraction if self.general.text else 0.0
        self.ranks, self.ngrams = ranks, None if ngrams is None else ngrams.to(plan.torch_device)
        self.ngram_part = ngram_part(cfg, plan)
        self.replayable = self.ngrams is None  # their part changes with the rate
        self.isolate = plan.isolates_documents if settings.isolate == "auto" else settings.isolate == "on"

    def next_batches(self, model: Transformer | None, step: int, row_length: int) -> list[Batch]:
        """This rank's micro-batches of step `step`: rows of `row_length` tokens."""
        ours = rank_rows(self.step_rows(step), self.ranks.rank, self.ranks.world)
        parts = [self.read(file, first, n_rows) for file, first, n_rows in ours]
        if not parts:
            return []
        batch = concatenate(parts)
        if row_length != self.row_length:
            batch = batch.reshape_rows(row_length)
        size = self.plan.micro_batch_rows(row_length, self.cfg.pretrain.micro_batch_rows, batch.n_rows)
        parts = batch.split(size)
        return [self.with_contexts(part) for part in parts]

    def with_contexts(self, batch: Batch) -> Batch:
        """The batch with the counted contexts of its inputs, where n-grams were counted."""
        if self.ngrams is None:
            return batch
        contexts = torch.from_numpy(self.ngrams.contexts_of(batch.tokens.numpy()))
        return replace(batch, contexts=contexts.masked_fill_(batch.targets == IGNORED, HIDDEN))

    def step_rows(self, step: int) -> list[tuple[TokenFile | ChatFile, int, int]]:
        """(file, first row, number of rows) of everything that step `step` reads, over all processes."""
        first, n_rows = step * self.n_rows, self.n_rows
        found: list[tuple[TokenFile | ChatFile, int, int]] = []
        for (text, chat), chat_fraction, rows_of in (
            (Material(self.data, self.chat), self.cfg.pretrain.chat_fraction, rest),
            (self.general, self.cfg.replay.chat_fraction, share),
        ):
            part = rows_of(first, n_rows, self.replayed)
            fraction = chat_fraction if chat else 0.0
            if text:
                found.append((text.train, *rest(*part, fraction)))
            if chat:
                found.append((chat.train, *share(*part, fraction)))
        return found

    def read(self, file: TokenFile | ChatFile, first_row: int, n_rows: int) -> Batch:
        """Rows `first_row …` of the endless order of (seed) of the documents or the conversations in a file."""
        if isinstance(file, ChatFile):
            return chat_rows(
                file, row_length=self.row_length, seed=self.cfg.seed, first_row=first_row,
                n_rows=n_rows, train_all=True, isolate=self.isolate,
            )  # fmt: skip
        ids, doc_ids = rows(
            file,
            row_length=self.row_length,
            seed=self.cfg.seed,
            first_row=first_row,
            n_rows=n_rows,
        )
        return pretrain_batch(ids, doc_ids, isolate=self.isolate)

    def max_steps(self) -> int | None:
        """No limit: documents are read again in another order once all have been read."""
        return None

    def loss_sum(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of next-token cross-entropies in nats.

        What n-grams say takes part of the targets as long as the learning rate is high, and leaves with it: the last
        steps learn from the tokens that came, which alone say how sure to be.
        """
        return next_token_loss(model, batch, self.ngrams, self.ngram_part * self.rate), {}

    def evaluate(self, model: Transformer) -> dict[str, float]:
        """Bits per byte on the first tokens of the validation split, whose documents are hidden as those trained on."""
        result = bits_per_byte(
            model, self.data.val, self.tokenizer.token_bytes, context=self.row_length,
            max_tokens=self.cfg.evaluation.val_tokens, device=self.plan.torch_device, isolate=self.isolate,
        )  # fmt: skip
        return {"bits_per_byte": result.bits_per_byte, "val_nats_per_token": result.nats_per_token}

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """What the model writes after the first words of validation documents."""
        prompts = []
        starts, tokens = self.data.val.doc_starts, self.data.val.tokens
        for start in starts[: self.cfg.evaluation.samples]:
            ids = np.asarray(tokens[start : start + 8]).tolist()
            if self.tokenizer.eos_id in ids:
                ids = ids[: ids.index(self.tokenizer.eos_id)] or [self.tokenizer.eos_id]
            prompts.append((self.tokenizer.decode(ids), ids))
        return write_samples(model, self.tokenizer, prompts, self.cfg.evaluation.sample_tokens, self.cfg.seed)
