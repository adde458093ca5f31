"""The clock that a run's phases share."""

import json
from pathlib import Path

import pytest

from onesitting.clock import CLOSING_S, Clock


def test_phases_add_up_over_sittings(tmp_path: Path) -> None:
    first = Clock(tmp_path / "timing.json", 100.0)
    first.set("pretrain", 30.0)
    used = first.used_s
    second = Clock(tmp_path / "timing.json", 100.0)
    assert second.phases["pretrain"] == 30.0
    assert second.used_s >= used - 0.01, "the start of the second process counts as well"
    assert second.left_s == pytest.approx(100.0 - second.used_s - CLOSING_S)


def test_a_phase_counts_its_seconds_also_when_it_fails(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "timing.json", None)
    with pytest.raises(RuntimeError), clock.phase("prepare"):
        raise RuntimeError
    written = {e["phase"]: e["seconds"] for e in json.loads((tmp_path / "timing.json").read_text())["phases"]}
    assert "prepare" in written
    assert clock.left_s is None, "no time budget, no limit"


def test_only_one_process_writes(tmp_path: Path) -> None:
    Clock(tmp_path / "timing.json", 10.0, writes=False).set("sft", 1.0)
    assert not (tmp_path / "timing.json").exists()
