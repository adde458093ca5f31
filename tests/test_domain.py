"""Continued pretraining and fine-tuning on a domain, through the command line: replay, before and after, errors."""

import json
from pathlib import Path

import pytest
from test_pipeline import TINY, command

from onesitting.config import RunConfig, TokenizerConfig
from onesitting.errors import UserError
from onesitting.start import General, general_data, with_start_model
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer
from onesitting.tuning_config import ReplayConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run of the world, a folder of documents, a file of dialogues."""
    cwd = tmp_path_factory.mktemp("place")
    done = command("run", *TINY, "--corpus.cache", str(cwd / "cache"), "--budget", "tokens=60k", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    (cwd / "docs").mkdir()
    for i in range(60):
        text = f"The pump number {i} has {i + 2} valves. Valve {i} opens at noon. " * 4
        (cwd / f"docs/{i}.txt").write_text(text)
    with open(cwd / "talk.jsonl", "w") as file:
        for i in range(60):
            question, answer = f"How many valves has pump {i}?", f"Pump {i} has {i + 2} valves."
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return cwd


def domain(place: Path, name: str, *more: str, data: str = "docs") -> tuple[int, str]:
    """Exit code and what was written, of the recipe on the documents and dialogues."""
    done = command(
        "run", "domain", "--data", data, "--chat", "talk.jsonl", "--name", name, "--corpus.cache", "cache",
        "--budget", "tokens=30k", "--pretrain.step_tokens", "1024", "--sft.step_tokens", "1024",
        "--evaluation.val_tokens", "2048", "--evaluation.suite_items", "2", *more, cwd=place,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("adapter", [(), ("--lora.rank", "2")])
def test_the_recipe_reports_what_was_learned_and_what_was_forgotten(
    place: Path, adapter: tuple[str, ...]
) -> None:
    name = f"mine{len(adapter)}"
    code, said = domain(place, name, "--from", "runs/tiny", *adapter)
    assert code == 0, said
    report = json.loads((place / f"runs/{name}/report.json").read_text())
    assert report["missing"] == []
    before, after = report["before"]["held_out"], report["stages"][-1]["held_out"]
    assert list(before) == list(after) == ["documents", "replies", "general_documents", "general_replies"]
    assert after["documents"]["value"] < before["documents"]["value"], "it was trained on such documents"
    assert all(before[key]["n_bytes"] == after[key]["n_bytes"] for key in before), "the same text is measured"
    assert set(report["before"]["general"]) == set(report["stages"][-1]["general"]), (
        "the same questions are asked"
    )
    assert report["before"]["general"]["facts"]["n"] == 2
    card = (place / f"runs/{name}/report.md").read_text()
    assert "| held out | before | after pretrain | after sft |" in card
    assert "general documents, bits per byte" in card
    tokenizers = [Tokenizer.load(place / f"runs/{run}/tokenizer").hash for run in ("tiny", name)]
    assert tokenizers[0] == tokenizers[1]


def test_a_run_that_starts_from_nothing_has_no_before(place: Path) -> None:
    report = json.loads((place / "runs/tiny/report.json").read_text())
    assert report["before"]["held_out"] == {}
    assert "Before and after" not in (place / "runs/tiny/report.md").read_text()


def test_mistakes_are_said_before_anything_is_trained(place: Path) -> None:
    code, said = domain(place, "none")
    assert code == 2
    assert "replay.fraction = 0.25 without a model to start from" in said
    assert "--from runs/NAME" in said
    (place / "empty").mkdir()
    code, said = domain(place, "none", "--from", "runs/tiny", data="empty")
    assert code == 2
    assert "the folder holds no files" in said
    (place / "small").mkdir()
    (place / "small/a.txt").write_text("One pump.")
    code, said = domain(place, "small", "--from", "runs/tiny", data="small")
    assert code == 2
    assert "less than one row" in said
    assert not (place / "runs/small/pretrain").exists()


def test_general_data_is_what_the_start_models_run_was_trained_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    cfg = RunConfig(data=("docs",), chat=("talk.jsonl",), start_from="runs/tiny", seed=3)
    found = general_data(cfg)
    assert isinstance(found, General)
    assert (found.data, found.chat, found.seed, found.corpus.world_mb) == (("world",), ("world",), 0, 0.4)
    given = general_data(RunConfig(start_from="runs/tiny", replay=ReplayConfig(data=("docs",))))
    assert given is not None
    assert given.data == ("docs",)
    assert general_data(RunConfig(start_from="runs/tiny")) is None, "its own data is no general data"
    assert general_data(RunConfig()) is None


def test_replay_from_a_model_of_unknown_data_asks_for_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (tmp_path / "model").symlink_to(place / "runs/tiny/sft/model", target_is_directory=True)
    start = str(tmp_path / "model")
    with pytest.raises(UserError, match=r"replay\.fraction = 0\.1, but it is not known .* replay\.data"):
        general_data(RunConfig(start_from=start, replay=ReplayConfig(fraction=0.1)))
    with pytest.raises(UserError, match=r"replay\.data = 'nowhere': no such file"):
        general_data(
            RunConfig(start_from=start, replay=ReplayConfig(fraction=0.1, data=("nowhere",), chat=("world",)))
        )
    assert general_data(RunConfig(start_from=start)) is None


def test_another_tokenizer_than_the_models_is_refused(place: Path, tmp_path: Path) -> None:
    train_tokenizer(["other words than those"] * 20, 320).save(tmp_path)
    cfg = RunConfig(start_from=str(place / "runs/tiny"), tokenizer=TokenizerConfig(path=str(tmp_path)))
    with pytest.raises(UserError, match=r"tokenizer\.path = .* is another tokenizer"):
        with_start_model(cfg)
