"""Text from prompts: many together, or one as a stream."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

import torch

from onesitting.inference.batch import Batch, PrefixCache
from onesitting.inference.row import Completion, Row, RowSettings, Thought
from onesitting.inference.sampling import Sampling
from onesitting.inference.speculative import Pair
from onesitting.inference.text_stream import spelled_bytes
from onesitting.model.packed import packed
from onesitting.model.transformer import Transformer, compute_dtype

if TYPE_CHECKING:
    from onesitting.tokenizer.bpe import Tokenizer

BATCH_ROWS = 64
"""Texts that are written together: a step costs about the same for 1 and 64 rows of a small model."""

LAST_STEPS = 0.6
"""Time of a step at the end, when few texts are left, in that of the mean step: 0.35 to 0.6 was measured."""

PREFILL_TOKENS = 4096
"""Tokens of prompts read in one forward pass, over all rows; bounds its memory."""


def generate(
    model: Transformer,
    tokenizer: "Tokenizer",
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling],
    stop_ids: AbstractSet[int] | None = None,
    *,
    logprobs: bool = False,
    dtype: torch.dtype | None = None,
    indices: Sequence[int] | None = None,
    thought: Thought | None = None,
    draft: Transformer | None = None,
    prefixes: PrefixCache | None = None,
    guess: bool = True,
    ends_at: float | None = None,
) -> list[Completion]:
    """One Completion for each prompt, in their order.

    sampling: of all texts, or one for each.
    stop_ids: tokens that end a text; None: the tokenizer's. A prompt that fills the model's context gives an
    empty completion that ended by length.
    dtype: of the computation; None: autocast's where it is on, else the model's.
    indices: number of each prompt, of which with sampling.seed its randomness is a function; None: 0, 1, …
    thought: limit to what the model thinks before it answers; what it forces is written, not sampled.
    draft: a smaller model of the same vocabulary, which guesses ahead (speculative.py); one text after the other then.
    guess: guess from the text itself where one is written alone (lookup.py), which changes nothing but the time.
    prefixes: what earlier calls with the very same weights have read; None: this call's own, if a prompt comes twice.
    ends_at: by time.monotonic(), when all texts should be written. A text that would end later if it grew as long as
    the longest so far is not begun: it is empty and its finish_reason "deadline". The first BATCH_ROWS always are
    begun. A draft writes all texts, however late.
    """
    with torch.inference_mode():
        model = for_decoding(model, dtype)
        rows = _rows(model, tokenizer, prompts, sampling, stop_ids, logprobs, indices, thought)
        waiting = [row for row in rows if row.finish_reason is None]
        if draft is not None:
            draft = for_decoding(draft, dtype)
            for row in waiting:
                pair = Pair(model, draft, row)
                while row.finish_reason is None:
                    pair.step()
        elif waiting:
            longest = max(len(row.prompt) + row.limit for row in waiting)
            rounds = _occurrences(waiting)
            if prefixes is None and any(rounds):
                prefixes = PrefixCache()
            batch = Batch(
                model, min(BATCH_ROWS, len(waiting)), longest, PREFILL_TOKENS, prefixes, guess=guess
            )
            # The second copies of a prompt come after all the first ones, which have read it for them by then.
            order = sorted(range(len(waiting)), key=lambda i: (rounds[i], i), reverse=True)
            waiting = [waiting[i] for i in order]
            _write(batch, waiting, ends_at)
    return [row.completion() for row in rows]


def _write(batch: Batch, waiting: list[Row], ends_at: float | None) -> None:
    """Write waiting rows, the last one first, each as soon as there is a slot; see `generate` for ends_at."""
    began, n_steps, longest = time.monotonic(), 0, 0
    while waiting or batch.rows:
        while waiting and batch.n_free:
            batch.add(waiting.pop())
        n_steps += 1
        longest = max([longest, *(len(row.ids) for row in batch.step())])
        if ends_at is None or not waiting:
            continue
        now = time.monotonic()
        step_s = (now - began) / n_steps
        if now + longest * LAST_STEPS * step_s > ends_at:  # a text takes a step for each of its tokens
            while waiting:
                waiting.pop().finish("deadline")


def stream(
    model: Transformer,
    tokenizer: "Tokenizer",
    prompt: Sequence[int],
    sampling: Sampling,
    stop_ids: AbstractSet[int] | None = None,
    *,
    dtype: torch.dtype | None = None,
    thought: Thought | None = None,
    draft: Transformer | None = None,
) -> Iterator[str]:
    """Pieces of the text that `generate` would give for this prompt alone, each as soon as it is certain.

    A character is never broken: bytes that do not yet make one are held back. So is text that may turn out to
    be the beginning of a stop string. With a draft, several tokens may come at once.
    """
    # Inference mode is entered around each step, not around a yield, where it would reach the caller's code.
    with torch.inference_mode():
        model = for_decoding(model, dtype)
        [row] = _rows(model, tokenizer, [prompt], sampling, stop_ids, thought=thought)
        if row.finish_reason is not None:
            return
        if draft is not None:
            writer = Pair(model, for_decoding(draft, dtype), row)
        else:
            writer = Batch(model, 1, len(row.prompt) + row.limit, PREFILL_TOKENS)
            writer.add(row)
    while row.finish_reason is None:
        n_before = len(row.pieces)
        with torch.inference_mode():
            writer.step()
        yield from filter(None, row.pieces[n_before:])


def _occurrences(rows: Sequence[Row]) -> list[int]:
    """How often the prompt of each row stands before it."""
    seen: Counter[tuple[int, ...]] = Counter()
    found: list[int] = []
    for row in rows:
        key = tuple(row.prompt)
        found.append(seen[key])
        seen[key] += 1
    return found


def _rows(
    model: Transformer,
    tokenizer: "Tokenizer",
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling],
    stop_ids: AbstractSet[int] | None,
    logprobs: bool = False,
    indices: Sequence[int] | None = None,
    thought: Thought | None = None,
) -> list[Row]:
    spelled = spelled_bytes(tokenizer)
    stop_ids = tokenizer.stop_ids if stop_ids is None else stop_ids
    each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    return [
        Row(
            prompt,
            RowSettings(
                sampling=own, stop_ids=stop_ids, index=index, tempered_logprobs=logprobs, thought=thought
            ),
            tokenizer,
            spelled,
            model.cfg.context_length,
        )
        for index, prompt, own in zip(indices or range(len(prompts)), prompts, each, strict=True)
    ]


def for_decoding(model: Transformer, dtype: torch.dtype | None) -> Transformer:
    """A copy of the model in the dtype of the computation and in the layout that decodes fastest."""
    model = getattr(model, "module", model)
    if type(model) is not Transformer:  # FSDP makes a class of its own, whose models cannot be copied
        return model
    return packed(model, dtype or compute_dtype(model.output_weight))
