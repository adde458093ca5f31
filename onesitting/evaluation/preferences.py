"""How a model ranks replies that were judged, and which of two models writes the better ones.

Shapes: N sides (conversations with one reply), P pairs.
"""

import math
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
from onesitting.evaluation.suite import Z95, parsed, wilson_interval
from onesitting.inference.generate import generate
from onesitting.inference.sampling import Sampling
from onesitting.model.logprobs import logprob_sums
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.chat import render

if TYPE_CHECKING:
    from onesitting.tokenizer.bpe import Tokenizer

JUDGED = 3
"""Prompts whose replies are compared, in `evaluation.suite_items`: for 300 prompts of which the two models part on
one in seven the win rate is known to ±2 points."""
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


def win_rate(wins: int, losses: int, ties: int) -> Proportion:
    """The share of wins, ties as halves, with the 95 % interval of a mean of 0, ½ and 1.

    An interval for right or wrong would be far too wide where most cases are ties.
    """
    n = wins + losses + ties
    if n == 0:
        return proportion(0, 0)
    lead = (wins - losses) / n
    half = 0.5 * Z95 * math.sqrt(((wins + losses) / n - lead**2) / n)
    value = 0.5 + 0.5 * lead
    return Proportion(n=n, value=value, ci_low=max(0.0, value - half), ci_high=min(1.0, value + half))


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

    Held-out pairs are ranked. Where the run learns from the world, its rules judge greedy replies to its validation
    prompts: right_replies are right and end by themselves; win_rate, after alone, is how often the reply of `after` is
    right where that of `before` is not, ties as halves; decided_win_rate leaves the ties out.
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
    if WORLD in (*cfg.preferences, *cfg.chat, *cfg.data) and cfg.evaluation.suite != "none":
        prompts = distinct_prompts(World(cfg.seed), JUDGED * cfg.evaluation.suite_items)
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
        wins = sum(new > old for old, new in zip(*right, strict=True))
        losses = sum(new < old for old, new in zip(*right, strict=True))
        for name, found in (
            ("win_rate", win_rate(wins, losses, n - wins - losses)),
            ("decided_win_rate", proportion(wins, wins + losses)),
        ):
            compared[name] = {"before": None, "after": asdict(found)}
    return compared


def distinct_prompts(world: World, n: int) -> list[dict[str, Any]]:
    """The first n validation prompts that ask for different things: equal ones would be one case counted twice."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for prompt in world.prompts("val", 10 * n):
        found.setdefault((prompt["meta"]["task"], prompt["meta"]["key"]), prompt)
        if len(found) == n:
            break
    return list(found.values())


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
