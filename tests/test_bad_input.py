"""Fifty kinds of bad input through the command line: one clear message, exit code 2, no traceback, nothing lost."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from onesitting.cli import main

Case = Callable[[Path], list[str]]
TINY = ["run", "tiny", "--corpus.cache", "", "--device.threads", "1"]
PROSE = "The miller carried the sack to the mill by the river. "


def text(path: Path, content: str | bytes) -> str:
    """Write a file; its path as text."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def recipe(content: str) -> Case:
    """A run of a recipe file with this content."""
    return lambda tmp: ["run", text(tmp / "mine.toml", content)]


def data(name: str, content: str | bytes, *more: str) -> Case:
    """A run on one data file with this content."""
    return lambda tmp: [*TINY, "--data", text(tmp / name, content), *more]


def chat(name: str, content: str | bytes, *more: str) -> Case:
    """A run whose conversations are one file with this content."""
    return lambda tmp: [
        *TINY, "--data", text(tmp / "prose.txt", PROSE * 400), "--chat", text(tmp / name, content), *more
    ]  # fmt: skip


def setting(*arguments: str) -> Case:
    """The tiny run with some settings."""
    return lambda tmp: [*TINY, *arguments]


CASES: dict[str, tuple[Case, str]] = {
    "unknown command": (lambda tmp: ["trian"], "did you mean 'train'|unknown command 'trian'"),
    "unknown recipe": (lambda tmp: ["run", "demmo"], "no recipe 'demmo'"),
    "unknown setting": (setting("--optim.matrixlr", "1"), "did you mean .*optim.matrix_lr"),
    "unknown setting in a recipe": (recipe("[optim]\nlearning_rate = 1\n"), "mine.toml, line 2.*unknown setting"),
    "invalid TOML": (recipe("budget = \n"), "not valid TOML"),
    "wrong type": (setting("--model.n_layers", "many"), "model.n_layers"),
    "wrong type in a recipe": (recipe("[model]\nn_layers = 'two'\n"), "line 2.*n_layers"),
    "wrong choice": (setting("--device.dtype", "float8"), "device.dtype"),
    "NaN setting": (setting("--optim.matrix_lr", "nan"), "optim.matrix_lr"),
    "negative setting": (setting("--sft.step_tokens", "-4"), "sft.step_tokens"),
    "budget in words": (setting("--budget", "soon"), "budget = 'soon'"),
    "budget without unit": (setting("--budget", "90"), "did you mean '90s'"),
    "budget of nothing": (setting("--budget", "0s"), "must be more than 0"),
    "end that moves backwards": (setting("--pretrain.end_moves", "9:3"), "end_moves has .9:3"),
    "vocabulary too small": (setting("--tokenizer.vocab_size", "100"), "tokenizer.vocab_size = 100"),
    "vocabulary too large": (setting("--tokenizer.vocab_size", "9000000"), "tokenizer.vocab_size"),
    "embedding smaller than the tokenizer": (setting("--model.vocab_size", "300"), "model.vocab_size"),
    "heads that do not divide": (setting("--model.n_heads", "3", "--model.n_kv_heads", "2"), "n_kv_heads"),
    "odd head width": (setting("--model.head_dim", "15"), "head_dim"),
    "row longer than the model's": (setting("--pretrain.context_length", "4096"), "pretrain.context_length"),
    "step that is no whole rows": (setting("--pretrain.step_tokens", "1000"), "pretrain.step_tokens"),
    "share above one": (setting("--pretrain.share", "1.9"), "pretrain.share = 1.9"),
    "device that is not here": (setting("--device.device", "xpu"), "xpu"),
    "tokenizer folder without one": (lambda tmp: [*TINY, "--tokenizer.path", str(tmp)], "tokenizer.json"),
    "start model that is none": (lambda tmp: [*TINY, "--from", str(tmp)], "holds no model"),
    "missing data": (setting("--data", "nowhere.txt"), "nowhere.txt"),
    "glob without a match": (setting("--data", "nothing-*.md"), "nothing-"),
    "empty folder": (lambda tmp: [*TINY, "--data", str(tmp)], "no file"),
    "empty file": (data("empty.txt", ""), "empty.txt"),
    "only white space": (data("blank.txt", " \n\n \n"), "blank.txt"),
    "binary as text": (data("photo.txt", bytes(range(256)) * 64), "photo.txt"),
    "broken JSON lines": (data("broken.jsonl", "{]\n" * 50), r"broken.jsonl"),
    "records without text": (data("numbers.jsonl", '{"n": 1}\n' * 50), "text_field"),
    "field that is not there": (
        data("some.jsonl", json.dumps({"body": PROSE}) + "\n", "--corpus.text_field", "text"), "text"
    ),
    "NaN where text belongs": (data("nan.jsonl", '{"text": NaN}\n' * 50), "nan.jsonl"),
    "table without text": (data("table.csv", "a,b\n1,2\n3,4\n"), "table.csv"),
    "damaged parquet": (data("cut.parquet", b"PAR1 and then nothing"), "cut.parquet"),
    "damaged gzip": (data("cut.txt.gz", b"\x1f\x8b\x08\x00 no"), "cut.txt.gz"),
    "damaged zstd": (data("cut.jsonl.zst", b"\x28\xb5\x2f\xfd no"), "cut.jsonl.zst"),
    "unknown kind of file": (data("book.docx", b"PK\x03\x04 binary \x00 stuff"), "book.docx"),
    "conversations without an assistant": (
        chat("mute.jsonl", json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n"),
        "assistant|conversation",
    ),
    "conversations in a text file": (chat("talk.txt", "A: hi\nB: ho\n"), "talk.txt"),
    "conversations of an unknown role": (
        chat("roles.jsonl", json.dumps({"messages": [{"role": "wizard", "content": "Hi"}]}) + "\n"), "roles.jsonl"
    ),
    "chat with a run that is not there": (lambda tmp: ["chat", str(tmp / "runs" / "none")], "does not exist"),
    "generate from a folder without a model": (lambda tmp: ["generate", str(tmp), "--prompt", "x"], "no model"),
    "report of no run": (lambda tmp: ["report", str(tmp)], "config.toml"),
    "sft without a model to start from": (lambda tmp: ["sft", *TINY[1:]], "needs a model to start from"),
    "name with a slash": (setting("--name", "a/b"), "name = 'a/b'"),
    "out that is a file": (lambda tmp: [*TINY, "--out", text(tmp / "file", "x")], "out"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_one_message_and_exit_code_2(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    place = tmp_path / "data"
    place.mkdir()
    arguments, expected = CASES[case]
    code = main(arguments(place))
    err = capsys.readouterr().err
    assert code == 2, err
    assert err.startswith("error: "), err
    assert err.count("error: ") == 1, err
    assert "Traceback" not in err
    assert re.search(expected, err), err


def test_a_corpus_shorter_than_one_batch_still_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = text(tmp_path / "short.txt", PROSE * 3 + "\n\n" + "A hen laid an egg.")
    arguments = [*TINY, "--data", short, "--stages", "pretrain", "--budget", "tokens=8192"]
    assert main(arguments) == 0, capsys.readouterr().err


def test_a_vocabulary_beyond_uint16_is_stored_in_32_bits(tmp_path: Path) -> None:
    from onesitting.data.prepare import token_dtype

    assert token_dtype(65_536).itemsize == 2
    assert token_dtype(65_600).itemsize == 4


def test_prepared_tokens_with_a_flipped_byte_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prose = text(tmp_path / "prose.txt", PROSE * 400)
    arguments = [*TINY, "--data", prose, "--stages", "pretrain", "--budget", "tokens=8192"]
    assert main(["prepare", *arguments[1:]]) == 0
    tokens = tmp_path / "runs/tiny/data/text/train.bin"
    content = bytearray(tokens.read_bytes())
    content[10] ^= 1
    tokens.write_bytes(content)
    assert main(arguments) == 2
    assert "train.bin" in capsys.readouterr().err


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root"
)
@pytest.mark.parametrize(
    ("options", "expected"), [("size=300k", "[Nn]o space left"), ("ro", "cannot write|out")]
)
def test_a_full_and_a_read_only_disk_are_said_so(
    options: str,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        code = main([*TINY, "--out", str(disk), "--corpus.cache", str(tmp_path / "cache")])
        err = capsys.readouterr().err
        assert code == 2, err
        assert re.search(expected, err), err
        assert "Traceback" not in err
    finally:
        subprocess.run(["umount", "-l", disk], check=False)
