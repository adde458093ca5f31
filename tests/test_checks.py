"""Every refusal names the dotted setting, the value found and what to do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onesitting import checks
from onesitting.config import RunConfig
from onesitting.errors import UserError


def change(cfg: RunConfig, dotted: str, value: Any) -> RunConfig:
    head, _, rest = dotted.partition(".")
    return replace(cfg, **{head: replace(getattr(cfg, head), **{rest: value}) if rest else value})


def test_the_default_configuration_passes(tmp_path: Path) -> None:
    checks.check_config(RunConfig(out=str(tmp_path / "runs")))


def test_the_count_of_special_tokens_is_the_tokenizers() -> None:
    tokenizer = pytest.importorskip("onesitting.tokenizer.bpe")
    assert len(tokenizer.SPECIAL_TOKENS) == checks.N_SPECIAL_TOKENS


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("model.n_kv_heads", 3, "use one of 1, 2, 4"),
        ("model.head_dim", 63, "use 64"),
        ("model.n_layers", 0, "at least 1"),
        ("optim.matrix_lr", float("nan"), "at least 0"),
        ("optim.matrix_lr", -0.1, "at least 0"),
        ("optim.adam_beta2", 1.0, "at most"),
        ("tokenizer.vocab_size", 100, "at least 265"),
        ("tokenizer.vocab_size", 10_000_000, "at most 262,144"),
        ("model.vocab_size", 300, "leave it 0"),
        ("pretrain.step_tokens", 1000, "use 1024"),
        ("sft.step_tokens", 100, "use 512"),
        ("pretrain.context_length", 1024, "longer than model.context_length"),
        ("pretrain.short_context", 128, "pretrain.short_fraction"),
        ("sft.share", 0.0, "no time"),
        ("budget", "", "write a time"),
        ("sft.budget", "soon", "write a time"),
        ("stages", (), "pretrain, sft"),
        ("stages", ("sft", "sft"), "once"),
        ("stages", ("sft", "pretrain"), "use pretrain, sft"),
        ("data", (), "is empty"),
        ("data", ("no/such/file.txt",), "no such file"),
        ("data", ("hub:",), "hub:owner/name"),
        ("chat", ("no_such_*.jsonl",), "no such file"),
        ("corpus.val_fraction", 0.0, "corpus.val_data"),
        ("corpus.val_data", ("missing.txt",), "no such file"),
        ("tokenizer.path", "nowhere", "tokenizer.json"),
        ("name", "a/b", "without slashes"),
    ],
)
def test_a_bad_value_is_refused_by_its_dotted_name(
    setting: str, value: Any, says: str, tmp_path: Path
) -> None:
    cfg = change(RunConfig(out=str(tmp_path)), setting, value)
    with pytest.raises(UserError) as caught:
        checks.check_config(cfg)
    assert setting in str(caught.value)
    assert says in str(caught.value)


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no files"):
        checks.check_specs("data", [str(tmp_path / "empty")])


def test_files_folders_and_patterns_that_exist_pass(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    checks.check_specs(
        "data", [str(tmp_path), str(tmp_path / "a.txt"), str(tmp_path / "*.txt"), "hub:owner/name"]
    )


def test_short_rows_divide_the_later_ones(tmp_path: Path) -> None:
    cfg = change(
        change(RunConfig(out=str(tmp_path)), "pretrain.short_fraction", 0.3), "pretrain.short_context", 128
    )
    checks.check_config(cfg)
    with pytest.raises(UserError, match=r"pretrain\.short_context = 100 .* use one of .*256"):
        checks.check_config(change(cfg, "pretrain.short_context", 100))


def test_an_output_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="out = "):
        checks.check_config(RunConfig(out=str(tmp_path / "file" / "runs")))


def test_settings_of_a_stage_that_does_not_run_are_not_judged(tmp_path: Path) -> None:
    cfg = RunConfig(out=str(tmp_path), stages=("pretrain",), chat=("missing.jsonl",))
    checks.check_config(change(cfg, "sft.step_tokens", 100))


def test_every_number_of_the_configuration_has_a_range() -> None:
    """A new numeric setting must be given one, or be named here with its reason."""
    elsewhere = {"seed", "model.vocab_size", "tokenizer.vocab_size"}  # any seed; checked against each other
    cfg = RunConfig()
    numbers: set[str] = set()
    for name, value in vars(cfg).items():
        fields = (
            {f"{name}.{key}": part for key, part in vars(value).items()}
            if hasattr(value, "__dict__")
            else {name: value}
        )
        numbers |= {
            key
            for key, part in fields.items()
            if isinstance(part, int | float) and not isinstance(part, bool)
        }
    assert numbers - elsewhere == {name for name, _, _ in checks._RANGES}


@pytest.mark.parametrize(
    ("stages", "settings", "says"),
    [
        (("grpo",), {"device.shard": "fsdp"}, "with grpo processes differ"),
        (("ppo",), {"device.shard": "fsdp"}, "with ppo processes differ"),
        (("dpo",), {"device.shard": "fsdp", "lora.rank": 4}, "dpo with lora.rank"),
        (
            ("distill",),
            {"device.shard": "fsdp", "distill.teacher": "x", "distill.on_policy": 0.5},
            "on_policy",
        ),
        (("grpo",), {"lora.rank": 4, "lora.dropout": 0.1}, "without dropout"),
        (("grpo",), {"rl.rewards": ("judge=1",)}, "name one with --rl.judge"),
        (("grpo",), {"rl.rewards": ("judge=1",), "rl.judge": "nowhere"}, "no such run or folder"),
        (
            ("dpo",),
            {"dpo.loss": "kto", "dpo.normalise_length": True},
            "dpo.normalise_length = True does nothing",
        ),
        (("dpo",), {"dpo.loss": "kto", "dpo.sft_weight": 0.1}, "dpo.sft_weight = 0.1 does nothing"),
        (("dpo",), {"dpo.loss": "ipo", "dpo.label_smoothing": 0.1}, "dpo.label_smoothing = 0.1 does nothing"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(
    tmp_path: Path, stages: tuple[Any, ...], settings: dict[str, Any], says: str
) -> None:
    cfg = RunConfig(out=str(tmp_path), stages=("pretrain", *stages))
    for name, value in settings.items():
        cfg = change(cfg, name, value)
    with pytest.raises(UserError, match=says):
        checks.check_config(cfg)
    for name in settings.keys() & {"device.shard", "lora.dropout", "rl.rewards", "dpo.loss"}:
        cfg = change(cfg, name, getattr(getattr(RunConfig(), name.split(".")[0]), name.split(".")[1]))
    checks.check_config(change(cfg, "rl.judge", ""))
