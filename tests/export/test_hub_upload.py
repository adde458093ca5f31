"""The hf target: a folder that others load, a card that says what the report says, an upload by the real library."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from small_models import SHAPES, Done
from transformers import AutoModelForCausalLM, AutoTokenizer
from upload_hub import TOKEN, UploadHub, upload_hub

from onesitting.checkpoint import load_model
from onesitting.config import RunConfig
from onesitting.evaluation.report import write_report
from onesitting.export.card import model_card
from onesitting.export.source import Source, open_source
from onesitting.recipe import write_config
from onesitting.runlog import RunFolder, append_jsonl

Command = Callable[..., Done]
MakeSource = Callable[[str], Source]


@pytest.fixture
def run(make_source: MakeSource, tmp_path: Path) -> RunFolder:
    """A finished run with measured numbers, around a small model."""
    run = RunFolder(tmp_path / "runs/small").create()
    write_config(
        RunConfig(name="small", out="runs", data=("hub:lab/stories@abc", "world"), budget="90s"),
        run.config_path,
    )
    shutil.copytree(make_source("qwen3").folder, run.stage("sft").model)
    for stage in ("pretrain", "sft"):
        for step in range(1, 6):
            append_jsonl(
                run.stage(stage).metrics_path,
                {"step": step, "tokens": 100 * step, "elapsed_s": step, "loss": 3 / step, "lr_factor": 1.0},
            )
        append_jsonl(
            run.stage(stage).metrics_path, {"step": 5, "tokens": 500, "evaluation": {"bits_per_byte": 1.25}}
        )
        summary = {
            "stage": stage,
            "steps": 5,
            "tokens": 500,
            "n_parameters": 98_304,
            "bits_per_byte": 1.23456,
        }
        (run.stage(stage).path / "summary.json").write_text(json.dumps(summary))
    result = {
        "n": 50,
        "correct": 21,
        "accuracy": 0.42,
        "ci_low": 0.29,
        "ci_high": 0.56,
        "baseline": 0.1,
        "examples": [],
    }
    (run.stage("sft").path / "evaluation.json").write_text(json.dumps({"arithmetic": result}))
    write_report(run)
    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with upload_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            huggingface_hub.constants, "HF_HUB_DISABLE_XET", True
        )  # a protocol of the real hub alone
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.mark.parametrize("shape", SHAPES)
def test_exported_folder_has_the_same_logits_ids_and_chat_in_transformers(
    shape: str, make_source: MakeSource, command: Command
) -> None:
    source = make_source(shape)
    done = command("export", str(source.folder), "--to", "hf", "--out", "exported")
    assert done.returncode == 0, done.stderr
    theirs, tokenizer = (
        AutoModelForCausalLM.from_pretrained("exported"),
        AutoTokenizer.from_pretrained("exported"),
    )
    ids = source.tokenizer.encode("naïve 日本語 12")
    assert tokenizer("naïve 日本語 12")["input_ids"] == ids
    with torch.no_grad():
        ours = load_model(source.folder)(torch.tensor([ids]))
        torch.testing.assert_close(theirs(torch.tensor([ids])).logits, ours, atol=1e-4, rtol=1e-4)


def test_card_says_what_the_report_says_and_its_head_is_yaml(run: RunFolder) -> None:
    card = model_card(open_source(str(run.path)), "apache-2.0", "lab/small")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "apache-2.0"
    assert head["library_name"] == "transformers"
    assert head["datasets"] == ["lab/stories"]
    metrics = [result["metrics"][0] for result in head["model-index"][0]["results"]]
    assert metrics == [
        {"type": "bits_per_byte", "name": "bits per byte", "value": 1.2346},
        {"type": "accuracy", "name": "Arithmetic", "value": 0.42},
    ]
    huggingface_hub.ModelCard(card).validate  # noqa: B018, the library parses the head without complaint
    for line in (
        "42 % (29–56)",
        "The budget was 90s",
        "![Loss",
        "## What it cannot do",
        "hub:lab/stories@abc",
        'from_pretrained("lab/small")',
    ):
        assert line in card, line
    assert "How to go on" not in card


def test_card_of_an_earlier_stage_says_nothing_of_the_later_ones(run: RunFolder) -> None:
    shutil.copytree(run.stage("sft").model, run.stage("pretrain").model)
    card = model_card(open_source(str(run.stage("pretrain").path)), "", "lab/base")
    head = yaml.safe_load(card.split("---\n")[1])
    assert [result["metrics"][0]["type"] for result in head["model-index"][0]["results"]] == ["bits_per_byte"]
    assert head["tags"] == ["onesitting"]
    assert "Arithmetic" not in card
    assert "not fine-tuned on conversations" in card
    assert "apply_chat_template" not in card


def test_card_without_a_licence_or_a_report_says_so(make_source: MakeSource) -> None:
    card = model_card(make_source("qwen3"), "", "somewhere")
    assert "has not chosen a licence" in card
    assert "nothing is said about its quality" in card
    assert "license" not in yaml.safe_load(card.split("---\n")[1])


def test_what_a_push_left_on_the_hub_gives_the_same_logits(
    run: RunFolder, hub: UploadHub, command: Command, tmp_path: Path
) -> None:
    done = command(
        "export", str(run.path), "--to", "hf", "--push", "lab/small", "--license", "mit", "--private"
    )
    assert done.returncode == 0, done.stderr
    assert f"published: {hub.url}/lab/small" in done.stdout
    files = hub.repositories["lab/small"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "curves.svg"} <= files.keys()
    assert hub.private == {"lab/small": True}
    assert hub.commits == ["Model, tokenizer and card from onesitting"]
    assert len(hub.stored) == 1  # the weights went the way of large files
    assert 'license: "mit"' in files["README.md"].decode()
    (tmp_path / "down").mkdir()
    for name, content in files.items():
        (tmp_path / "down" / name).write_bytes(content)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        there = AutoModelForCausalLM.from_pretrained(tmp_path / "down")(ids).logits
        torch.testing.assert_close(there, load_model(run.stage("sft").model)(ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("repository", "token", "message"),
    [
        ("lab/small", "hf_wrong", "the hub answered 401: the token is missing or wrong"),
        ("others/small", TOKEN, "the hub answered 403: the token may not write there"),
        ("small", TOKEN, "--push 'small': write the repository as owner/name"),
        ("lab/--", TOKEN, "--push lab/--: "),
    ],
)
def test_a_push_that_the_hub_refuses_is_one_line(
    repository: str, token: str, message: str, make_source: MakeSource, hub: UploadHub, command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", token)
    folder = str(make_source("qwen3").folder)
    done = command("export", folder, "--to", "hf", "--out", "exported", "--push", repository)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not hub.repositories
