"""How a model ranks replies that were judged, and which of two models writes the better ones.

Shapes: N sides (conversations with one reply), P pairs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onesitting.config import RunConfig
from onesitting.data.preference_rows import PreferenceBatch, preference_rows
from onesitting.data.sources import WORLD
from onesitting.data.tokens import PreferenceFile
from onesitting.data.world import World
from onesitting.data.world.suite import SCORERS
from onesitting.evaluation.suite import parsed, wilson_interval
from onesitting.inference.generate import generate
from onesitting.inference.sampling import Sampling
from onesitting.model.logprobs import logprob_sums
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.chat import render

if TYPE_CHECKING:
    from onesitting.tokenizer.bpe import Tokenizer

REPLY_TOKENS = 300
"""Longest reply that is judged; the world's longest stories have about 260 tokens."""


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
    file: PreferenceFile,
    *,
    row_length: int,
    paired: bool,
    seed: int,
    max_tokens: int,
    micro_rows: int,
    whole: bool = False,
) -> Iterable[PreferenceBatch]:
    """The first rows of held-out preferences, at most max_tokens places of them but one row, where there are any."""
    n_rows = len(file.pack(row_length, seed, paired, whole)[1]) - 1
    sides = 2 if paired else 1
    n_rows = min(n_rows, max(1, max_tokens // (sides * row_length)))
    step = max(1, micro_rows // sides)
    for first in range(0, n_rows, step):
        rows = range(first, min(first + step, n_rows))
        yield preference_rows(file, rows, row_length=row_length, seed=seed, paired=paired, whole=whole)


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


def compare_models(
    cfg: RunConfig,
    before: Transformer,
    after: Transformer,
    tokenizer: "Tokenizer",
    val: PreferenceFile,
    *,
    row_length: int,
    micro_rows: int,
) -> dict[str, dict[str, Any]]:
    """What the report card says of a stage that learned from preferences: name -> {"before", "after"} proportions.

    Held-out pairs are ranked. Where the world is among the preferences, its rules judge greedy replies to its held-out
    prompts: right_replies are right and end by themselves; win_rate, after alone, is how often the reply of `after` is
    right where that of `before` is not, ties as halves.
    """
    max_tokens = cfg.evaluation.val_tokens
    pairs = list(  # none where only single replies were held out, which cannot be ranked
        held_out_batches(
            val,
            row_length=row_length,
            paired=True,
            seed=cfg.seed,
            max_tokens=max_tokens,
            micro_rows=micro_rows,
        )
    )
    prompts: list[dict[str, Any]] = []
    if WORLD in cfg.preferences:
        prompts = list(World(cfg.seed).prompts("val", cfg.evaluation.suite_items))
    compared: dict[str, dict[str, Any]] = {}
    if pairs:
        rankings = [ranking(model, pairs) for model in (before, after)]
        for name in rankings[0]:
            compared[name] = {"before": asdict(rankings[0][name]), "after": asdict(rankings[1][name])}
    if prompts:
        right = [_right_replies(model, tokenizer, prompts) for model in (before, after)]
        n = len(prompts)
        shares = [asdict(proportion(sum(replies), n)) for replies in right]
        compared["right_replies"] = {"before": shares[0], "after": shares[1]}
        wins = sum((new > old) + 0.5 * (new == old) for old, new in zip(*right, strict=True))
        compared["win_rate"] = {"before": None, "after": asdict(proportion(wins, n))}
    return compared


def _right_replies(
    model: Transformer, tokenizer: "Tokenizer", prompts: Sequence[dict[str, Any]]
) -> list[bool]:
    ids = [render(tokenizer, p["messages"], p["tools"], add_generation_prompt=True)[0] for p in prompts]
    done = generate(
        model, tokenizer, ids, Sampling(temperature=0.0, max_tokens=REPLY_TOKENS), tokenizer.stop_ids
    )
    return [
        d.finish_reason == "stop" and SCORERS[p["scorer"]](parsed(d.text, "chat"), p["reference"]).correct
        for p, d in zip(prompts, done, strict=True)
    ]
