"""One dial: a number of parameters decides the rest, and a budget decides the number."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from user_command import Cli

from onesitting.cli_settings import parse_request, settings_parser
from onesitting.dial import (
    WIDEST,
    Shape,
    best_shape,
    expected_bits,
    family,
    fitting_step,
    parse_size,
    size_text,
)
from onesitting.errors import UserError
from onesitting.model.flops import count_matrix_parameters, count_parameters, flops_per_token
from onesitting.recipe import load_recipe, resolve, write_config


@pytest.mark.parametrize("shape", list(family()), ids=lambda shape: str(shape.width))
def test_a_shape_counts_as_the_model_that_its_settings_make(shape: Shape) -> None:
    cfg = resolve(shape.settings())
    model = replace(cfg.model, vocab_size=cfg.tokenizer.vocab_size)
    assert shape.parameters == count_parameters(model)
    assert shape.multiplied == count_matrix_parameters(model)
    assert shape.flops == flops_per_token(model, model.context_length)
    assert model.n_heads % model.n_kv_heads == 0
    assert model.n_heads * model.head_dim == model.d_model


def test_sizes_and_batches_grow_with_the_width() -> None:
    shapes = list(family())
    assert [s.parameters for s in shapes] == sorted({s.parameters for s in shapes})
    assert [s.step_tokens for s in shapes] == sorted(s.step_tokens for s in shapes)
    assert parse_size("1.2M").step_tokens == 2048
    assert parse_size("100M").step_tokens == 32768


@pytest.mark.parametrize(
    ("tokens", "width", "row_length", "step"),
    [
        (0.9e6, 512, 512, 4096),  # eight times the width
        (4e6, 512, 512, 8192),  # three times the root of the tokens, from here on
        (24e6, 512, 512, 16384),
        (1e10, 512, 512, 16384),  # the most
        (0.4e6, 256, 256, 2048),
        (10.0, 64, 1024, 1024),  # one row at least
        (4e6, 512, 340, 16 * 340),
    ],
)
def test_a_step_that_fits_grows_with_tokens_and_width_up_to_the_most(
    tokens: float, width: int, row_length: int, step: int
) -> None:
    assert fitting_step(tokens, width, row_length, 16384) == step


@given(st.integers(1, WIDEST // 64))
def test_a_size_that_is_written_is_read_as_the_same_shape(n: int) -> None:
    assert parse_size(size_text(Shape(64 * n))) == Shape(64 * n)


def test_the_nearest_shape_is_taken_and_other_texts_are_refused() -> None:
    assert parse_size("26m") == parse_size("26000000") == parse_size("0.026B")
    assert 0.7 < parse_size("26M").parameters / 26e6 < 1.4
    for text in ("", "big", "-5M", "0", "5 apples"):
        with pytest.raises(UserError, match="number of parameters such as 5M"):
            parse_size(text)


def test_more_time_makes_a_larger_model_and_more_tokens_but_little_text_a_smaller_one() -> None:
    budgets = [10.0**n for n in range(12, 19)]
    shapes = [best_shape(work) for work in budgets]
    assert [s.width for s in shapes] == sorted(s.width for s in shapes)
    assert shapes[0].width < shapes[4].width < shapes[-1].width
    for work, shape in zip(budgets, shapes, strict=True):
        other = Shape(shape.width + 64)
        assert expected_bits(shape, work / shape.work) <= expected_bits(other, work / other.work)
    assert best_shape(1e16, most_tokens=1e6).width != best_shape(1e16).width
    for most_tokens in (1e6, 1e7, 1e8):  # little text makes a small model, however much time there is
        assert best_shape(1e18, most_tokens).parameters <= most_tokens
    assert best_shape(1e18, most_tokens=1e6).width < best_shape(1e18).width
    assert best_shape(1e9) == next(iter(family())), "where nothing can be read, not a large one either"


def test_what_is_given_wins_over_what_the_size_decides_and_the_size_over_the_recipe() -> None:
    demo = load_recipe("demo")
    assert resolve(demo).model.d_model == 192
    larger = resolve(demo, {"size": "26M", "model.n_layers": "3"})
    assert (larger.model.d_model, larger.model.n_layers) == (parse_size("26M").width, 3)
    assert larger.pretrain.short_context == resolve(demo).pretrain.short_context
    assert resolve({"size": "26M", "model.d_model": 64}).model.d_model == 64


def test_a_written_configuration_is_read_back_with_its_size(tmp_path: Path) -> None:
    cfg = resolve(load_recipe("demo"), {"size": "5M", "optim.embed_lr": "0.5"})
    write_config(cfg, tmp_path / "config.toml")
    assert resolve(load_recipe(tmp_path / "config.toml")) == cfg


def test_plan_of_auto_names_a_size_that_grows_with_the_budget(cli: Cli) -> None:
    def parameters(*arguments: str) -> int:
        out = cli("plan", "auto", *arguments).stdout
        [line] = [line for line in out.splitlines() if line.startswith("model ")]
        return int(line.split()[1].replace(",", ""))

    small, large = parameters("--budget", "3m"), parameters("--budget", "20h")
    assert small < large
    assert small in {shape.parameters for shape in family()}


def test_a_recipe_whose_size_is_auto_keeps_its_own_settings(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('size = "auto"\n[model]\nn_layers = 3\n')
    for arguments, n_layers in (((), 3), (("--size", "auto"), parse_size("5M").layers)):
        parser = settings_parser("plan", "")
        cfg = parse_request(parser, [str(recipe), *arguments], lambda cfg: "5M").cfg
        assert (cfg.size, cfg.model.d_model) == ("5M", parse_size("5M").width)
        assert cfg.model.n_layers == n_layers


def test_a_run_that_was_begun_keeps_its_size(cli: Cli, tmp_path: Path) -> None:
    cfg = resolve(load_recipe("auto"), {"size": "0.3M", "out": str(tmp_path), "name": "mine"})
    (tmp_path / "mine").mkdir()
    write_config(cfg, tmp_path / "mine" / "config.toml")
    out = cli("plan", "auto", "--budget", "20h", "--out", str(tmp_path), "--name", "mine").stdout
    assert f"{parse_size('0.3M').parameters:,} parameters" in out


def test_auto_without_pretraining_asks_for_a_size(cli: Cli) -> None:
    done = cli("plan", "auto", "--stages", "sft")
    assert done.returncode == 2
    assert "give a size such as 5M" in done.stderr
