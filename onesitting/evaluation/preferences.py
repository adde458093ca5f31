"""How a model ranks replies that were judged, and which of two models writes the better ones.

Shapes: N sides (conversations with one reply), P pairs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onesitting.data.preference_rows import PreferenceBatch, n_preference_rows, preference_rows
from onesitting.data.tokens import PreferenceFile
from onesitting.data.world.suite import SCORERS
from onesitting.evaluation.suite import parsed, wilson_interval
from onesitting.inference.generate import generate
from onesitting.inference.sampling import Sampling
from onesitting.model.logprobs import logprob_sums
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.chat import render

if TYPE_CHECKING:
    from onesitting.tokenizer.bpe import Tokenizer


def reply_logprobs(model: Transformer, batch: PreferenceBatch) -> Tensor:
    """(N,) float32 log-probability in nats of each side's reply, given its prompt."""
    hidden = model.hidden(batch.tokens, doc_ids=batch.doc_ids, positions=batch.positions)  # (B, T, d)
    return logprob_sums(
        hidden.flatten(0, 1),
        model.output_weight,
        batch.targets.flatten(),
        batch.owner.flatten(),
        len(batch.sides),
    )


def held_out_batches(
    file: PreferenceFile, *, row_length: int, paired: bool, seed: int, max_tokens: int, micro_rows: int
) -> Iterable[PreferenceBatch]:
    """The first rows of held-out preferences, at most max_tokens places of them but one row at least."""
    n_rows = n_preference_rows(file, row_length=row_length, seed=seed, paired=paired)
    sides = 2 if paired else 1
    n_rows = min(n_rows, max(1, max_tokens // (sides * row_length)))
    step = max(1, micro_rows // sides)
    for first in range(0, n_rows, step):
        rows = range(first, min(first + step, n_rows))
        yield preference_rows(file, rows, row_length=row_length, seed=seed, paired=paired)


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """A share of n cases, with its Wilson 95 % interval."""

    n: int
    value: float
    ci_low: float
    ci_high: float


def proportion(wins: float, n: int) -> Proportion:
    """wins: cases that count, ties as halves."""
    low, high = wilson_interval(round(wins), n)
    return Proportion(n=n, value=wins / n if n else 0.0, ci_low=low, ci_high=high)


def ranking(model: Transformer, batches: Iterable[PreferenceBatch]) -> dict[str, Proportion]:
    """How often the model finds the chosen reply of a pair likelier than the rejected one.

    ranking_accuracy: by the log-probability of the reply; ranking_accuracy_per_token: by its mean over the reply's
    tokens, which does not favour the shorter reply. Ties count half.
    Source of the first: Chen et al. 2024, arXiv:2405.19534, definition 2.1.
    """
    wins, wins_per_token, n = 0.0, 0.0, 0
    for batch in batches:
        batch = batch.to(model.device)
        with torch.no_grad():
            sums = reply_logprobs(model, batch)
        wins += count_wins(sums)
        wins_per_token += count_wins(sums / batch.lengths)
        n += batch.n_units
    return {
        "ranking_accuracy": proportion(wins, n),
        "ranking_accuracy_per_token": proportion(wins_per_token, n),
    }


def count_wins(values: Tensor) -> float:
    """Pairs in which the first value is the larger one, ties as halves; values: (2 P,), chosen and rejected in turn."""
    chosen, rejected = values.view(-1, 2).unbind(1)
    return float((chosen > rejected).sum() + 0.5 * (chosen == rejected).sum())


def win_rate(
    before: Transformer,
    after: Transformer,
    tokenizer: "Tokenizer",
    prompts: Sequence[dict[str, Any]],
    max_tokens: int,
) -> dict[str, Any]:
    """How often the reply of `after` beats that of `before` under the world's rules; both greedy.

    prompts: from World.prompts. A reply that is right and ends by itself beats one that is not; else it is a tie.
    Returns win_rate (ties as halves), and the share of right replies of each.
    """
    right = [_right_replies(model, tokenizer, prompts, max_tokens) for model in (before, after)]
    wins = sum((a > b) + 0.5 * (a == b) for b, a in zip(*right, strict=True))
    n = len(prompts)
    shares = {
        f"right_{name}": proportion(sum(got), n) for name, got in zip(("before", "after"), right, strict=True)
    }
    return {"win_rate": asdict(proportion(wins, n)), **{k: asdict(v) for k, v in shares.items()}}


def _right_replies(
    model: Transformer, tokenizer: "Tokenizer", prompts: Sequence[dict[str, Any]], max_tokens: int
) -> list[bool]:
    ids = [render(tokenizer, p["messages"], p["tools"], add_generation_prompt=True)[0] for p in prompts]
    done = generate(
        model, tokenizer, ids, Sampling(temperature=0.0, max_tokens=max_tokens), tokenizer.stop_ids
    )
    return [
        d.finish_reason == "stop" and SCORERS[p["scorer"]](parsed(d.text, "chat"), p["reference"]).correct
        for p, d in zip(prompts, done, strict=True)
    ]
