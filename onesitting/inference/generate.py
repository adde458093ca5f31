"""Text from prompts: in batches of unequal length, or one as a stream.

Shapes: B rows of a batch, T tokens of the longest prompt, V vocabulary.
"""

import copy
import random
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from onesitting.inference.sampling import Sampling, choose
from onesitting.inference.text_stream import TextStream, spelled_bytes
from onesitting.model.kv_cache import KVCache
from onesitting.model.transformer import Transformer, compute_dtype

if TYPE_CHECKING:
    from onesitting.tokenizer.bpe import Tokenizer

BATCH_ROWS = 64
"""Rows that are generated together: a step costs about the same for 1 and 64 rows of a small model."""

PREFILL_TOKENS = 16_384
"""Tokens of prompts read in one forward pass, over all rows; bounds its memory."""


@dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt."""

    ids: list[int]
    """Its tokens, without the one that ended it."""
    text: str
    """Their text, special tokens spelled out, up to a stop string."""
    finish_reason: Literal["stop", "length"]
    """stop: a stop token or string; length: max_tokens, or the end of the model's context."""
    stop_id: int | None = None
    """The stop token that ended it, if one did."""
    logprobs: list[float] | None = None
    """Log-probability in nats of each sampled token, the stop token included, at the sampling temperature
    (1 if that is 0) and before candidates were cut; None unless asked for."""


def generate(
    model: Transformer,
    tokenizer: "Tokenizer",
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: AbstractSet[int] | None = None,
    *,
    logprobs: bool = False,
    dtype: torch.dtype | None = None,
    indices: Sequence[int] | None = None,
) -> list[Completion]:
    """One Completion for each prompt, in their order.

    stop_ids: tokens that end a text; None: the tokenizer's. A prompt that fills the model's context gives an
    empty completion that ended by length.
    dtype: of the computation; None: autocast's where it is on, else the model's.
    indices: number of each prompt, of which with sampling.seed its randomness is a function; None: 0, 1, …
    """
    run = _Run(tokenizer, sampling, tokenizer.stop_ids if stop_ids is None else stop_ids, logprobs)
    numbers = range(len(prompts)) if indices is None else indices
    with torch.inference_mode():
        model = _in_dtype(model, dtype)
        context = model.cfg.context_length
        rows = [_Row(run, i, prompt, context) for i, prompt in zip(numbers, prompts, strict=True)]
        waiting = sorted((r for r in rows if r.finish_reason is None), key=lambda r: len(r.prompt))
        for start in range(0, len(waiting), BATCH_ROWS):
            batch = _Batch(model, run, waiting[start : start + BATCH_ROWS])
            while batch.rows:
                batch.step()
    return [row.completion() for row in rows]


def stream(
    model: Transformer,
    tokenizer: "Tokenizer",
    prompt: Sequence[int],
    sampling: Sampling,
    stop_ids: AbstractSet[int] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Iterator[str]:
    """Pieces of the text that `generate` would give for this prompt alone, each as soon as it is certain.

    A character is never broken: bytes that do not yet make one are held back. So is text that may turn out to
    be the beginning of a stop string.
    """
    run = _Run(tokenizer, sampling, tokenizer.stop_ids if stop_ids is None else stop_ids)
    # Inference mode is entered around each step, not around a yield, where it would reach the caller's code.
    with torch.inference_mode():
        model = _in_dtype(model, dtype)
        row = _Row(run, 0, prompt, model.cfg.context_length)
        batch = _Batch(model, run, [row]) if row.finish_reason is None else None
    while batch is not None and batch.rows:
        n_before = len(row.pieces)
        with torch.inference_mode():
            batch.step()
        yield from filter(None, row.pieces[n_before:])


class _Run:
    """What all rows of one call share."""

    def __init__(
        self, tokenizer: "Tokenizer", sampling: Sampling, stop_ids: AbstractSet[int], logprobs: bool = False
    ) -> None:
        self.sampling, self.stop_ids, self.logprobs = sampling, stop_ids, logprobs
        self.eos_id = tokenizer.eos_id
        self.spelled = spelled_bytes(tokenizer)


class _Row:
    """One prompt, what was written after it, and its own source of randomness."""

    def __init__(self, run: _Run, index: int, prompt: Sequence[int], context_length: int) -> None:
        self.prompt = list(prompt) or [run.eos_id]  # documents begin after the end of the one before
        self.ids: list[int] = []
        self.pieces: list[str] = []
        self.finish_reason: Literal["stop", "length"] | None = None
        self.stop_id: int | None = None
        self.logprobs: list[float] = []
        self.limit = min(run.sampling.max_tokens, context_length - len(self.prompt))
        if self.limit <= 0:
            self.finish_reason = "length"
        seed = run.sampling.seed
        self.random = random.Random() if seed is None else random.Random(f"{seed}/{index}")
        self._run, self._text = run, TextStream(run.spelled, run.sampling.stop)

    def add(self, token: int, logprob: float | None) -> None:
        """Take one more sampled token."""
        if logprob is not None:
            self.logprobs.append(logprob)
        if token in self._run.stop_ids:
            self.finish_reason, self.stop_id = "stop", token
        else:
            self.ids.append(token)
            self.pieces.append(self._text.add(token))
            if self._text.stopped:
                self.finish_reason = "stop"
            elif len(self.ids) >= self.limit:
                self.finish_reason = "length"
        if self.finish_reason is not None:
            self.pieces.append(self._text.end())

    def completion(self) -> Completion:
        """The row as its caller sees it."""
        assert self.finish_reason is not None
        logprobs = self.logprobs if self._run.logprobs else None
        return Completion(self.ids, "".join(self.pieces), self.finish_reason, self.stop_id, logprobs)


class _Batch:
    """Rows that are written together, one token each a step; finished rows leave."""

    def __init__(self, model: Transformer, run: _Run, rows: list[_Row]) -> None:
        self.model, self.run, self.rows = model, run, rows
        lengths = torch.tensor([len(row.prompt) for row in rows])
        tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for i, row in enumerate(rows):  # padded at the right, where nothing sees it
            tokens[i, : len(row.prompt)] = torch.tensor(row.prompt)
        self.cache = KVCache(model, len(rows), max(len(row.prompt) + row.limit for row in rows))
        tokens, lengths = tokens.to(model.device), lengths.to(model.device)
        self._last = _prefill(
            model, tokens, lengths, self.cache
        )  # (B, d_model) hidden states of the last tokens
        self._chosen: Tensor | None = None  # (B,) tokens that the model has not read yet
        self._seen: Tensor | None = None
        if run.sampling.repetition_penalty != 1.0:
            self._seen = _seen_tokens(tokens, lengths, model.cfg.vocab_size)

    def step(self) -> None:
        """Write one token in each row that is not finished; `rows` becomes empty when all are."""
        if self._chosen is not None:
            self._last = self.model.hidden(self._chosen[:, None], cache=self.cache)[:, -1]
        sampling = self.run.sampling
        logits = F.linear(self._last, self.model.output_weight.to(self._last.dtype)).float()  # (B, V)
        uniforms = [row.random.random() for row in self.rows] if sampling.temperature else []
        chosen = choose(logits, sampling, uniforms, self._seen)
        if self._seen is not None:
            self._seen.scatter_(1, chosen[:, None], value=True)
        logprobs: list[float] | list[None] = [None] * len(self.rows)
        if self.run.logprobs:
            tempered = (logits / (sampling.temperature or 1.0)).log_softmax(dim=1)
            logprobs = tempered.gather(1, chosen[:, None])[:, 0].tolist()
        for row, token, logprob in zip(self.rows, chosen.tolist(), logprobs, strict=True):
            if row.finish_reason is None:
                row.add(token, logprob)
        self._chosen = chosen
        self._drop_finished()

    def _drop_finished(self) -> None:
        """Take finished rows out once they are an eighth of the batch: copying the cache has a price too."""
        going_on = [i for i, row in enumerate(self.rows) if row.finish_reason is None]
        n_finished = len(self.rows) - len(going_on)
        if going_on and n_finished * 8 < len(self.rows):
            if n_finished:  # until then they idle at the beginning of their slots, where there is always room
                idle = torch.tensor([row.finish_reason is not None for row in self.rows])
                self.cache.lengths = self.cache.lengths.masked_fill(idle.to(self.cache.lengths.device), 0)
            return
        self.rows = [self.rows[i] for i in going_on]
        if self.rows:
            index = torch.tensor(going_on, device=self.cache.lengths.device)
            self.cache.keep(index)
            self._chosen = None if self._chosen is None else self._chosen[index]
            self._seen = None if self._seen is None else self._seen[index]


def _prefill(model: Transformer, tokens: Tensor, lengths: Tensor, cache: KVCache) -> Tensor:
    """(B, d_model) hidden state of each row's last token, after tokens (B, T) are read into the cache."""
    rows = torch.arange(len(tokens), device=tokens.device)
    last: Tensor | None = None
    start = 0
    for chunk in tokens.split(max(1, PREFILL_TOKENS // len(tokens)), dim=1):
        hidden = model.hidden(chunk, cache=cache)
        at = lengths - 1 - start
        here = hidden[rows, at.clamp(0, chunk.shape[1] - 1)]
        is_here = (at >= 0) & (at < chunk.shape[1])
        last = here if last is None else torch.where(is_here[:, None], here, last)
        start += chunk.shape[1]
    cache.lengths = lengths
    assert last is not None
    return last


def _seen_tokens(tokens: Tensor, lengths: Tensor, vocab_size: int) -> Tensor:
    """(B, V) bool, the tokens in each row of tokens (B, T), padding left out."""
    is_real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    first = tokens[:, :1].expand_as(tokens)  # padding counts as the row's first token once more
    seen = torch.zeros(len(tokens), vocab_size, dtype=torch.bool, device=tokens.device)
    return seen.scatter_(1, torch.where(is_real, tokens, first), value=True)


def _in_dtype(model: Transformer, dtype: torch.dtype | None) -> Transformer:
    """The model with weights in the dtype of the computation: a copy, so that no step has to cast them."""
    model = getattr(model, "module", model)
    wanted = dtype or compute_dtype(model.output_weight)
    if model.output_weight.dtype == wanted:
        return model
    return copy.deepcopy(model).to(wanted)
