"""What pretraining and SFT share: the next-token loss, shares of rows, and samples during training.

Shapes: B rows, T tokens in a row.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from onesitting.data.examples import Batch
from onesitting.inference.generate import generate
from onesitting.inference.sampling import Sampling
from onesitting.model.logprobs import Adviser, SoftTargets
from onesitting.model.transformer import Transformer

T = TypeVar("T")


def next_token_loss(
    model: Transformer, batch: Batch, adviser: Adviser | None = None, soft_part: float = 0.0
) -> Tensor:
    """Sum over the batch's targets of the cross-entropy in nats, a float32 scalar; -100 is not trained.

    soft_part: the largest part of a target that goes to the tokens that the adviser knows as likely, in [0, 1].
    """
    soft = None
    if adviser is not None and batch.contexts is not None and soft_part > 0:
        soft = SoftTargets(adviser, batch.tokens, batch.contexts, soft_part)
    return model(
        batch.tokens, targets=batch.targets, soft=soft, doc_ids=batch.doc_ids, positions=batch.positions
    )


def rank_share(n_rows: int, rank: int, world: int) -> tuple[int, int]:
    """(first, count) of the rows of one step that a rank reads; together the ranks read all, once."""
    first = n_rows * rank // world
    return first, n_rows * (rank + 1) // world - first


def rank_rows(parts: Sequence[tuple[T, int, int]], rank: int, world: int) -> list[tuple[T, int, int]]:
    """Of the rows of one step, (file, first row, number of rows) of each file, those that a rank reads.

    The files' rows are shared as one: with several files, too, no rank reads more than one row beyond another's.
    """
    skipped, left = rank_share(sum(n_rows for *_, n_rows in parts), rank, world)
    found: list[tuple[T, int, int]] = []
    for file, first, n_rows in parts:
        begin = min(skipped, n_rows)
        count = min(left, n_rows - begin)
        if count:
            found.append((file, first + begin, count))
        skipped, left = skipped - begin, left - count
    return found


def share(first: int, count: int, fraction: float) -> tuple[int, int]:
    """(first, count) of the rows that another source gives to rows first … first + count - 1 of a stream.

    It gives `fraction` of the whole stream, its own rows in order and each once; a step may have one row more or
    less than its part.
    """

    def before(row: int) -> int:
        return math.floor(row * fraction + 1e-9)  # 0.29 * 100 is a little below 29

    return before(first), before(first + count) - before(first)


def rest(first: int, count: int, fraction: float) -> tuple[int, int]:
    """(first, count) of the rows that `share` leaves to the stream's own source."""
    other_first, other_count = share(first, count, fraction)
    return first - other_first, count - other_count


def write_samples(
    model: Transformer, tokenizer: Any, prompts: list[tuple[str, list[int]]], tokens: int, seed: int
) -> list[dict[str, Any]]:
    """What the model writes after each (shown, ids) prompt: dicts with prompt, text, seed, finish_reason."""
    if not prompts:
        return []
    sampling = Sampling(temperature=0.7, top_p=0.95, max_tokens=tokens, seed=seed)
    with torch.inference_mode():
        done = generate(model, tokenizer, [ids for _, ids in prompts], sampling)
    return [
        {"prompt": shown, "text": c.text, "seed": seed, "finish_reason": c.finish_reason}
        for (shown, _), c in zip(prompts, done, strict=True)
    ]
