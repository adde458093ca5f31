"""Comparing two models on held-out preferences: ranking against a count by hand, the world's verdicts."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))
import tiny

from onesitting.checkpoint import load_model
from onesitting.data.world import World
from onesitting.data.world.splits import split_of
from onesitting.evaluation.preferences import compare_models, distinct_prompts, proportion, win_rate
from onesitting.evaluation.report_text import PREFERENCE_NAMES
from onesitting.model.transformer import Transformer


def logprob(model: Transformer, ids: torch.Tensor, trained: torch.Tensor) -> float:
    found = model(ids[None, :-1]).log_softmax(-1)[0].gather(1, ids[1:, None])[:, 0]
    return float(found[trained[1:]].sum())


def test_ranking_is_counted_over_the_held_out_pairs_and_replies_are_judged_by_the_world(
    tmp_path: Path,
) -> None:
    words = tiny.tokenizer()
    shape = tiny.shape(words.vocab_size)
    start = tiny.trained_start(tmp_path, words, shape, noise=0.3)
    before, after = load_model(start), Transformer(shape, seed=5).eval()
    data = tiny.preferences(tmp_path / "data", words, tiny.pairs(60))
    cfg = tiny.config(shape, preferences=("world",))
    cfg = replace(cfg, evaluation=replace(cfg.evaluation, suite_items=2))
    with torch.inference_mode():
        compared = compare_models(cfg, before, after, words, data.val, row_length=tiny.ROW, micro_rows=4)
        for name, model in (("before", before), ("after", after)):
            right = 0
            for pair in range(data.val.n_preferences):
                sides = [data.val.side(2 * pair + which) for which in (0, 1)]
                chosen, rejected = (
                    logprob(model, torch.from_numpy(ids), torch.from_numpy(trained)) for ids, trained in sides
                )
                right += chosen > rejected
            found = compared["ranking_accuracy"][name]
            assert found["n"] == data.val.n_preferences > 3
            assert found["value"] == pytest.approx(right / data.val.n_preferences)
    assert compared["win_rate"]["before"] is None
    assert compared["win_rate"]["after"]["n"] == 3 * 2
    assert compared.keys() == PREFERENCE_NAMES.keys()


def test_a_proportion_has_its_interval_and_ties_count_half() -> None:
    found = proportion(7.5, 10)
    assert (found.n, found.value) == (10, 0.75)
    assert found.ci_low < 0.75 < found.ci_high
    assert proportion(0, 0).value == 0.0


def test_the_interval_of_a_win_rate_is_that_of_its_wins_ties_and_losses() -> None:
    found = win_rate(30, 10, 60)
    values = torch.tensor([1.0] * 30 + [0.0] * 10 + [0.5] * 60, dtype=torch.float64)
    half = 1.959964 * float(values.std(correction=0)) / 10
    assert found.value == pytest.approx(float(values.mean()))
    assert (found.ci_low, found.ci_high) == pytest.approx((0.6 - half, 0.6 + half), rel=1e-4)
    alike = win_rate(0, 0, 50)
    assert (alike.value, alike.ci_low, alike.ci_high) == (0.5, 0.5, 0.5)
    assert win_rate(0, 0, 0).value == 0.0


def test_prompts_that_are_judged_are_held_out_and_each_asks_something_else() -> None:
    prompts = distinct_prompts(World(0), 200)
    asked = {(prompt["meta"]["task"], prompt["meta"]["key"]) for prompt in prompts}
    assert len(asked) == len(prompts) == 200
    assert {split_of(key) for task, key in asked if task in ("reading", "tools", "memory")} == {"val"}
