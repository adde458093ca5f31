"""benchmarks/gpu.py: a deadline for everything, and a summary that is there after every step."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu import Session, run  # noqa: E402
from gpu_summary import summary  # noqa: E402


def texts(out: Path) -> tuple[dict, str]:
    return json.loads((out / "summary.json").read_text()), (out / "summary.txt").read_text()


def test_a_step_gets_what_is_left_and_one_without_enough_is_written_down_as_left_out(tmp_path: Path) -> None:
    session, limits = Session(tmp_path, deadline_s=100.0, build_s=7.0), []

    def work(limit_s: float) -> dict:
        limits.append(limit_s)
        return {}

    session.step("check a", work, limit_s=20.0)
    session.step("check b", work, limit_s=500.0)
    found = session.step("check c", work, limit_s=500.0, least_s=330.0)
    assert limits[0] == 20.0
    assert 90 < limits[1] <= 100
    assert len(limits) == 2
    assert found["skipped"].startswith("needs 330 s, ")
    record, text = texts(tmp_path)
    assert list(record["steps"]) == ["check a", "check b", "check c"]
    assert "check c: left out: needs 330 s" in text
    assert record["deadline_s"] == 107.0


def test_what_was_measured_before_a_kill_is_in_the_summary(tmp_path: Path) -> None:
    session = Session(tmp_path, deadline_s=60.0)
    session.step(
        "check device policy", lambda _: {"name": "Card", "dtype": "bfloat16", "torch": "2.11"}, 10.0
    )

    def killed(limit_s: float) -> dict:
        record, text = texts(tmp_path)
        assert record["steps"]["check device policy"]["name"] == "Card"
        assert text.startswith("Card, bfloat16, torch 2.11")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.step("train 26m", killed, 10.0)
    assert list(texts(tmp_path)[0]["steps"]) == ["check device policy"]


def test_a_step_that_fails_does_not_stop_the_next(tmp_path: Path) -> None:
    session = Session(tmp_path, deadline_s=60.0)
    session.step("check a", lambda _: run([sys.executable, "-c", "raise ValueError('why')"], 10.0), 10.0)
    session.step("check b", lambda _: {}, 10.0)
    record, text = texts(tmp_path)
    assert "ValueError: why" in record["steps"]["check a"]["error"]
    assert "check a: FAILED" in text
    assert "check b: ok" in text


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "alive"
    child = f"import time; time.sleep(4); open({str(note)!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    began = time.perf_counter()
    with pytest.raises(RuntimeError, match="took longer than 1 s"):
        run([sys.executable, "-c", parent], 1.0)
    assert time.perf_counter() - began < 3
    time.sleep(max(0.0, began + 5 - time.perf_counter()))
    assert not note.exists()


def test_a_summary_of_nothing_is_one() -> None:
    assert "?, ?, torch ?" in summary({"steps": {}, "build_s": 0.0, "deadline_s": 5.0})


FAKE_PYTHON = """#!/bin/sh
# A machine's own Python: it has torch, and lacks mdurl; pip is the real one.
case "$*" in
  *benchmarks/gpu.py*) echo "gpu.py with $PYTHONPATH and $*"; exit 0 ;;
  *"import torch"*) exit 0 ;;
  *find_spec*) [ -d "$SITE/mdurl" ] || echo mdurl; exit 0 ;;
esac
exec "$REAL" "$@"
"""


@pytest.mark.parametrize("has_wheel", [True, False])
def test_missing_packages_come_from_a_folder_of_wheels_and_torch_is_left_alone(
    tmp_path: Path, has_wheel: bool
) -> None:
    wheels, out, python = tmp_path / "wheels", tmp_path / "out", tmp_path / "python"
    wheels.mkdir()
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    name = "mdurl-9.0" if has_wheel else "other-9.0"
    with zipfile.ZipFile(wheels / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name.split('-')[0]}/__init__.py", "")
        info = f"{name}.dist-info"
        wheel.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name[:5]}\nVersion: 9.0\nRequires-Dist: torch\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    environment = {
        **os.environ, "PYTHON": str(python), "WHEELS": str(wheels), "OUT": str(out), "DEADLINE": "99",
        "REAL": sys.executable, "SITE": str(out / "site"),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", ROOT / "benchmarks/gpu.sh"], env=environment, capture_output=True, text=True
    )
    if has_wheel:
        assert done.returncode == 0, done.stderr
        assert {path.name for path in (out / "site").iterdir()} == {"mdurl", "mdurl-9.0.dist-info"}
        assert f"{ROOT}:{out}/site" in done.stdout
        assert "--mode check" in done.stdout
        assert "--budgets 2m --recipes 26m 64m 104m" in done.stdout
    else:
        assert done.returncode == 2
        assert "lacks mdurl; put wheels for it into" in done.stderr
