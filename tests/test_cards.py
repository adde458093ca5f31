"""Expected times on well-known cards: arithmetic from the table, and documents that say the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from onesitting.cards import CPU_FRACTION, GPU_FRACTION, Card, cards_table, expect, read_cards
from onesitting.config import RunConfig
from onesitting.model.flops import count_parameters, flops_per_token, training_memory_bytes
from onesitting.recipe import load_recipe, resolve

DOCS = Path(__file__).resolve().parents[1] / "docs"
RECIPES = ("26m", "64m", "104m")


def recipe(name: str) -> RunConfig:
    return replace(resolve(load_recipe(name)), name=name)


def card(**changes) -> Card:
    return Card(
        **{"name": "C", "memory_gib": 24, "tflops": 100.0, "source": "s", "capability": (8, 6), **changes}
    )


def test_every_card_has_a_peak_a_memory_and_a_source() -> None:
    cards = read_cards()
    assert len({one.name for one in cards}) == len(cards) >= 10
    for one in cards:
        assert 0.1 < one.tflops < 3000, one.name
        assert 4 <= one.memory_gib <= 288, one.name
        assert len(one.source) > 10, one.name
        assert bool(one.flags) != (one.capability >= (7, 0)), one.name


def test_times_are_operations_over_a_fraction_of_the_peak() -> None:
    cfg = recipe("26m")
    model = replace(cfg.model, vocab_size=6400)
    found = expect(cfg, card())
    assert found.tokens_per_s == pytest.approx(GPU_FRACTION * 1e14 / flops_per_token(model, 512))
    assert found.enough_s == pytest.approx(20 * count_parameters(model) / found.tokens_per_s)
    share = cfg.pretrain.share / (cfg.pretrain.share + cfg.sft.share)
    assert found.budget_tokens == pytest.approx(2 * 3600 * share * found.tokens_per_s)
    tokens = expect(replace(cfg, budget="tokens=1m"), card())
    assert tokens.budget_tokens is None
    assert "| – |" in cards_table(replace(cfg, budget="tokens=1m"), [card()])


def test_a_processors_fraction_gives_the_speed_that_was_measured() -> None:
    cores = next(one for one in read_cards() if one.name.startswith("2 cores"))
    assert cores.flops_per_s == pytest.approx(CPU_FRACTION * cores.tflops * 1e12)
    cfg = recipe("26m")
    measured = replace(cfg, model=replace(cfg.model, n_layers=8, tie_embeddings=True))  # docs/performance.md
    assert expect(measured, cores).tokens_per_s == pytest.approx(1670, rel=0.04)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("memory_gib", [8, 12, 16, 24, 80])
def test_micro_batches_are_equal_parts_that_fit_the_memory_formula(name: str, memory_gib: int) -> None:
    cfg = recipe(name)
    found = expect(cfg, card(memory_gib=memory_gib))
    length = cfg.model.context_length
    assert (cfg.pretrain.step_tokens // length) % found.rows == 0
    assert found.fits
    vocab_size = cfg.tokenizer.vocab_size
    needed = training_memory_bytes(replace(cfg.model, vocab_size=vocab_size), found.rows, length, "bfloat16")
    assert needed < found.memory_bytes <= memory_gib * 2**30


def test_a_card_that_is_too_small_for_a_single_row_is_said_to_be() -> None:
    found = expect(recipe("104m"), card(memory_gib=2))
    assert (found.rows, found.fits) == (1, False)
    assert "too much" in cards_table(recipe("104m"), [card(memory_gib=2)])


@pytest.mark.parametrize("name", RECIPES)
def test_the_documented_table_is_what_is_computed(name: str) -> None:
    assert cards_table(recipe(name)) in (DOCS / "plan.md").read_text(encoding="utf-8")


def test_the_readme_gives_the_same_times() -> None:
    lines = (DOCS.parent / "README.md").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    shown = {row[0]: row[1:] for row in table}
    from onesitting.evaluation.report_text import duration

    found = 0
    for one in read_cards():
        if one.name in shown:
            found += 1
            assert shown[one.name] == [duration(expect(recipe(name), one).enough_s) for name in RECIPES]
    assert found >= 5
