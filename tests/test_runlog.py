import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from onesitting.errors import UserError
from onesitting.runlog import (
    RunFolder,
    append_jsonl,
    keep_jsonl,
    read_jsonl,
    require_run,
    storage_error,
    write_atomic,
)

json_values = some.recursive(
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats(allow_nan=False, allow_infinity=False)
    | some.text(),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(), inner, max_size=3),
    max_leaves=8,
)
records = some.lists(some.dictionaries(some.text(), json_values, max_size=4), max_size=5)


@given(records)
def test_appended_records_are_read_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    for row in rows:
        append_jsonl(path, row)
    assert read_jsonl(path) == rows


@given(records.filter(bool), some.data())
def test_a_file_cut_anywhere_reads_as_its_whole_lines_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], data: some.DataObject
):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    for row in rows:
        append_jsonl(path, row)
    whole = path.read_bytes()
    cut = data.draw(some.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    expected = rows[: whole[:cut].count(b"\n")]
    assert read_jsonl(path) == expected
    append_jsonl(path, {"step": 99})
    assert read_jsonl(path) == [*expected, {"step": 99}]


def test_a_torn_line_longer_than_one_block_is_cut_off(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"text": "' + b"x" * 10_000)
    append_jsonl(path, {"step": 2})
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]


def test_numbers_that_are_not_finite_become_null_and_the_line_stays_json(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"loss": float("nan"), "more": {"norm": [float("inf"), 1.5]}})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "loss": None,
        "more": {"norm": [None, 1.5]},
    }


def test_several_records_are_written_at_once(tmp_path: Path):
    append_jsonl(tmp_path / "log.jsonl", {"a": 1}, {"a": 2})
    append_jsonl(tmp_path / "log.jsonl", {"a": 3})
    assert [record["a"] for record in read_jsonl(tmp_path / "log.jsonl")] == [1, 2, 3]


def test_a_missing_log_is_empty(tmp_path: Path):
    assert read_jsonl(tmp_path / "metrics.jsonl") == []


def test_a_broken_line_in_the_middle_is_refused_with_its_number(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: a JSON object expected"):
        read_jsonl(path)


def test_resumed_steps_are_dropped_and_the_others_kept(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 6):
        append_jsonl(path, {"step": step})
    keep_jsonl(path, lambda record: record["step"] <= 3)
    assert [record["step"] for record in read_jsonl(path)] == [1, 2, 3]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "report.md"
    write_atomic(path, "old")

    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="no space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_a_user_error():
    with pytest.raises(UserError, match="no space left for /dev/full"):
        append_jsonl(Path("/dev/full"), {"step": 1})


def test_a_file_in_the_place_of_the_run_folder_is_a_user_error(tmp_path: Path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        RunFolder(tmp_path / "runs" / "demo").create()
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        append_jsonl(tmp_path / "runs" / "metrics.jsonl", {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_user_error(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot write .*--out"):
        RunFolder(tmp_path / "demo").create()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT])
def test_storage_that_takes_no_files_is_the_users_to_mend(number: int):
    assert isinstance(storage_error(OSError(number, os.strerror(number)), Path("runs/demo")), UserError)


def test_other_system_errors_stay_what_they_are():
    error = OSError(errno.EIO, "input/output error")
    assert storage_error(error, Path("x")) is error


def test_a_run_folder_has_the_documented_layout(tmp_path: Path):
    run = RunFolder(tmp_path / "demo").create()
    stage = run.stage("pretrain")
    assert [
        str(path.relative_to(tmp_path)) for path in (run.config_path, run.tokenizer, run.data, run.report)
    ] == [
        "demo/config.toml",
        "demo/tokenizer",
        "demo/data",
        "demo/report.md",
    ]
    assert [
        path.name for path in (stage.metrics_path, stage.samples_path, stage.checkpoints, stage.model)
    ] == [
        "metrics.jsonl",
        "samples.jsonl",
        "checkpoints",
        "model",
    ]
    assert list(run.path.iterdir()) == []


def test_a_missing_run_names_the_runs_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"'runs/dmo' is not the folder of a run: it does not exist; there is no run yet"
    ):
        require_run("runs/dmo")
    write_atomic(Path("runs/demo/config.toml"), "")
    with pytest.raises(UserError, match="runs that exist: runs/demo"):
        require_run("runs/dmo")
    assert require_run("runs/demo").path == Path("runs/demo")
