"""What all tests share: repeatable property tests, one thread a process, a user's command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from user_command import Cli

# The suite runs several processes on few cores; more threads in each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Derandomized: a failure that only the third run finds would be nobody's. No deadline: machines are busy.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("repeatable")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """`python -m onesitting …` in an empty folder: cli("run", "demo", stdin="…", env={…}, timeout_s=60)."""

    def call(
        *arguments: str, stdin: str = "", env: dict[str, str] | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        package_root = str(Path(__file__).resolve().parents[1])
        environment = {**os.environ, "PYTHONPATH": package_root, "COLUMNS": "100", **(env or {})}
        return subprocess.run(
            [sys.executable, "-m", "onesitting", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=timeout_s,
        )

    return call
