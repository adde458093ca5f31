import dataclasses
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as some

from onesitting.config import ModelConfig, RunConfig
from onesitting.errors import UserError
from onesitting.recipe import bundled_recipes, flat_values, load_recipe, recipe_name, resolve, write_config
from onesitting.settings import Setting, help_texts, sections, settings, unknown_setting


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def values_of(setting: Setting) -> some.SearchStrategy[Any]:
    kind = setting.item_kind
    if get_origin(kind) is Literal:
        one: some.SearchStrategy[Any] = some.sampled_from(get_args(kind))
    elif kind is bool:
        one = some.booleans()
    elif kind is int:
        one = some.integers(-(2**63), 2**63 - 1)
    elif kind is float:
        one = some.floats(allow_nan=False, allow_infinity=False)
    else:
        one = some.text(some.characters(exclude_categories=["Cs"]), max_size=20)
    return some.lists(one, max_size=3).map(tuple) if setting.is_list else one


any_values = some.fixed_dictionaries(
    {},
    optional={name: values_of(it) for name, it in settings().items() if name != "size"},  # tests/test_dial.py
).filter(lambda values: values.get("corpus.world_mb") != 0)  # 0 is resolved to what the budget needs


@given(any_values)
def test_every_written_config_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
):
    cfg = resolve(values)
    path = tmp_path_factory.mktemp("round") / "config.toml"
    write_config(cfg, path)
    assert resolve(load_recipe(path)) == cfg
    assert {name: flat_values(cfg)[name] for name in values} == values


@given(any_values)
def test_values_typed_on_the_command_line_equal_values_in_a_recipe(values: dict[str, Any]):
    def typed(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    texts = {
        n: [typed(v) for v in value] if isinstance(value, tuple) else typed(value)
        for n, value in values.items()
    }
    assert resolve({}, texts) == resolve(values)


def test_command_line_beats_recipe_beats_default(tmp_path: Path):
    recipe = load_recipe(write(tmp_path, "seed = 3\n[model]\nn_layers = 7\nd_model = 96\n"))
    cfg = resolve(recipe, {"model.n_layers": "9"})
    assert (cfg.model.n_layers, cfg.model.d_model, cfg.seed) == (9, 96, 3)
    assert cfg.model.n_heads == ModelConfig().n_heads


def test_dotted_and_nested_names_mean_the_same():
    assert resolve({"optim": {"matrix_lr": 0.5}}) == resolve({"optim.matrix_lr": 0.5})


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipe_resolves_and_says_what_it_is(name: str):
    cfg = resolve(load_recipe(name))
    assert cfg != RunConfig()
    assert len(bundled_recipes()[name]) > 20


@pytest.mark.parametrize(
    ("name", "millions"), [("demo", 1.6), ("26m", 26.3), ("64m", 62.8), ("104m", 104.8), ("26m-moe", 25.7)]
)
def test_bundled_recipe_has_the_parameters_that_its_comment_says(name: str, millions: float):
    # Counted by hand from the shapes of a Qwen3 decoder.
    cfg = resolve(load_recipe(name))
    m = cfg.model
    attention = 2 * m.d_model * m.head_dim * (m.n_heads + m.n_kv_heads) + 2 * m.head_dim
    block = attention + 3 * m.d_model * m.d_ff * max(1, m.n_experts) + m.n_experts * m.d_model + 2 * m.d_model
    n_tables = 1 if m.tie_embeddings else 2
    total = n_tables * cfg.tokenizer.vocab_size * m.d_model + m.n_layers * block + m.d_model
    text = Path(__file__).parents[1].joinpath(f"onesitting/recipes/{name}.toml").read_text(encoding="utf-8")
    assert f"{total:,} parameters" in text
    assert f"(vocabulary {cfg.tokenizer.vocab_size}" in text
    assert total / 1e6 == pytest.approx(millions, abs=0.06)


def test_run_folder_is_a_recipe_and_is_taken_where_it_lies_now(tmp_path: Path):
    old = tmp_path / "runs" / "first"
    write_config(resolve({"name": "first", "out": str(tmp_path / "runs"), "seed": 5}), old / "config.toml")
    moved = tmp_path / "archive" / "second"
    moved.parent.mkdir()
    old.rename(moved)
    cfg = resolve(load_recipe(moved))
    assert (cfg.seed, cfg.name, Path(cfg.out) / cfg.name) == (5, "second", moved)


def test_a_run_folder_is_known_by_its_own_name_however_it_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    write_config(resolve({"name": "mine", "out": "runs"}), folder / "config.toml")
    (tmp_path / "latest").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    assert load_recipe("runs/mine")["out"] == "runs"
    for place, way in (
        (folder, "."),
        (folder / "..", "mine"),
        (tmp_path, "latest"),
        (folder, "../mine/../mine"),
    ):
        monkeypatch.chdir(place)
        flat = load_recipe(way)
        assert (Path(flat["out"]).resolve() / flat["name"], recipe_name(way)) == (folder, "mine"), way


def test_run_is_named_after_its_recipe(tmp_path: Path):
    assert recipe_name("demo") == "demo"
    assert recipe_name(tmp_path / "mine.toml") == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[optim]\n\nlearning_rate = 1\n",
            "line 3: unknown setting 'optim.learning_rate'; did you mean 'optim.matrix_lr'?",
        ),
        (
            "optim.matrix_lrr = 1\n",
            "line 1: unknown setting 'optim.matrix_lrr'; did you mean 'optim.matrix_lr'?",
        ),
        ("# a\nbudget = 5\n", "line 2: budget = 5: text expected"),
        ("[model]\nn_layers = 1.0\n", "line 2: model.n_layers = 1.0: a whole number expected"),
        ("[model]\nn_layers = true\n", "line 2: model.n_layers = True: a whole number expected"),
        ("[model]\nnorm = 'batch'\n", "line 2: model.norm = 'batch': one of rms, layer expected"),
        ("[model]\nbias = 'true'\n", "line 2: model.bias = 'true': true or false expected"),
        ("[optim]\nmatrix_lr = nan\n", "line 2: optim.matrix_lr = nan: a number expected"),
        ("stages = ['pretrain', 'dpo2']\n", "line 1: stages = 'dpo2': one of pretrain, sft"),
        ("optim = 3\n", "line 1: 'optim' is a section, not a setting; its settings are optim.matrices"),
        ("seed = \n", "not valid TOML: Invalid value (at line 1"),
    ],
)
def test_wrong_recipe_is_refused_with_file_line_and_what_is_allowed(tmp_path: Path, text: str, message: str):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as refused:
        load_recipe(path)
    assert str(refused.value).startswith(path)
    assert message in str(refused.value)


def test_recipe_that_is_no_text_is_refused_with_its_name(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"seed = 1 # \xff\n")
    with pytest.raises(UserError, match="UTF-8 expected, found byte 0xff"):
        load_recipe(path)


def test_missing_recipe_names_what_there_is(tmp_path: Path):
    with pytest.raises(UserError, match=r"no recipe 'dmo': give one of demo, .*26m.*\.toml file"):
        load_recipe("dmo")
    with pytest.raises(UserError, match="it is not the folder of a run"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("optim.learning_rate", "'optim.matrix_lr'"),
        ("matrix_lr", "'optim.matrix_lr'"),
        ("modle.n_layers", "'model.n_layers'"),
        ("model.layers", "'model.n_layers'"),
        ("budgte", "'budget'"),
    ],
)
def test_unknown_name_gets_the_nearest_one(name: str, suggestion: str):
    assert unknown_setting(name).endswith(f"did you mean {suggestion}?")


def test_a_name_without_its_section_is_shown_with_all_that_have_it():
    sections = [name.partition(".")[0] for name in settings() if name.endswith(".tokens")]
    assert {"pretrain", "sft", "dpo"} <= set(sections)
    assert all(f"'{section}.tokens'" in unknown_setting("tokens") for section in sections)


@pytest.mark.parametrize(
    ("text", "value"),
    [("20M", 20_000_000), ("8k", 8000), ("1e6", 1_000_000), ("1.5M", 1_500_000), ("1_000", 1000)],
)
def test_token_counts_can_be_typed_as_people_write_them(text: str, value: int):
    assert resolve({}, {"pretrain.tokens": text}).pretrain.tokens == value


@pytest.mark.parametrize("text", ["2.5", "many", "", "1e999", "nan", "M", "0x10"])
def test_what_is_no_whole_number_is_refused(text: str):
    with pytest.raises(UserError, match=r"pretrain\.tokens = .* a whole number expected"):
        resolve({}, {"pretrain.tokens": text})


def test_file_name_that_is_no_utf8_is_refused_before_it_reaches_the_written_config():
    with pytest.raises(UserError, match="data = "):
        resolve({}, {"data": ["caf\udce9.txt"]})


def test_every_setting_and_section_has_help():
    missing = [name for name in (*settings(), *sections()) if not help_texts().get(name)]
    assert missing == []


def test_every_default_has_its_setting_type():
    assert resolve(flat_values(RunConfig())) == RunConfig()


def test_configs_are_frozen_and_keyword_only():
    for part in (
        RunConfig(),
        *(value for value in vars(RunConfig()).values() if dataclasses.is_dataclass(value)),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            part.seed = 1  # pyright: ignore[reportAttributeAccessIssue]
        assert all(field.kw_only for field in dataclasses.fields(part))


def test_written_config_explains_every_setting(tmp_path: Path):
    write_config(RunConfig(), tmp_path / "config.toml")
    text = (tmp_path / "config.toml").read_text(encoding="utf-8")
    tomllib.loads(text)
    assert "matrix_lr = 0.02  # Peak learning rate for matrices" in text


@pytest.mark.parametrize(
    ("budget", "mb"), [("5m", 16.0), ("1h", 192.0), ("20s", 4.0), ("10h", 256.0), ("tokens=10M", 40.0)]
)
def test_the_world_of_the_demo_grows_with_the_budget(budget: str, mb: float) -> None:
    assert resolve(load_recipe("demo"), {"budget": budget}).corpus.world_mb == mb
    assert resolve(load_recipe("demo"), {"budget": budget, "corpus.world_mb": "3"}).corpus.world_mb == 3.0
