"""What gpu.sh does once an interpreter is there: checks, then measurements; summary.json and summary.txt.

Every step is a process of its own with a time limit, at most what is left until the deadline. One that fails, or finds
too little time, is written down and does not stop the next, and the summary is written after each: a machine that is
lent for minutes should answer as much as it can. The checks are in gpu_checks.py.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_summary import write_summary

HERE = Path(__file__).resolve().parent
# Function in gpu_checks.py: (what it is about, limit in seconds). Those that compile, which may hang, come late.
CHECKS = {
    "policy": ("device policy", 60),
    "splits": ("gradients do not depend on micro-batches", 60),
    "out_of_memory": ("out of memory is survived", 90),
    "float16": ("float16 with a loss scale", 90),
    "compiled": ("dtype and compilation", 90),
    "isolation": ("values and gradients of isolated attention", 90),
    "documents": ("isolated documents and masked targets, compiled", 90),
    "graphs": ("CUDA graphs give the same steps", 120),
    "training": ("training and resuming", 150),
}
BENCH_LIMIT_S = 150.0
RACE_LIMIT_S = 5400.0
STARTING_S = 15.0
"""Least time worth a step: starting Python and torch alone takes up to this long."""
CLOSING_S = 30.0
"""What a run may take beyond its budget before it is ended."""


class Session:
    """Steps until a deadline, and what came of each."""

    def __init__(self, out: Path, deadline_s: float, build_s: float = 0.0) -> None:
        self.out, self.build_s = out, build_s
        self.began = time.perf_counter()
        self.end = self.began + deadline_s
        self.record: dict[str, Any] = {"build_s": build_s, "deadline_s": deadline_s + build_s, "steps": {}}

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.end - time.perf_counter()

    def step(
        self, title: str, work: Callable[[float], dict[str, Any]], limit_s: float, least_s: float = STARTING_S
    ) -> dict[str, Any]:
        """What `work` gives within its limit in seconds; {"error": …} if it fails, {"skipped": …} if time is short."""
        began = time.perf_counter()
        if self.left() < least_s:
            found = {"skipped": f"needs {least_s:.0f} s, {max(0.0, self.left()):.0f} are left"}
        else:
            print(f"… {title}", flush=True)
            try:
                found = work(min(limit_s, self.left()))
            except Exception as error:  # whatever fails here is a result
                found = {"error": f"{type(error).__name__}: {error}"}
        for word in found.keys() & {"error", "skipped"}:
            print(f"  {title}: {word}: {found[word]}", flush=True)
        self.record["steps"][title] = {**found, "step_s": round(time.perf_counter() - began, 2)}
        self.record["wall_s"] = round(time.perf_counter() - self.began + self.build_s, 2)
        write_summary(self.record, self.out)
        return found


def run(command: list[str], limit_s: float) -> None:
    """Run a command; raises RuntimeError with the end of its output if it fails or takes too long."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    except BaseException as stopped:
        os.killpg(process.pid, signal.SIGKILL)  # with the compiler's workers
        process.communicate()
        if isinstance(stopped, subprocess.TimeoutExpired):
            raise RuntimeError(f"took longer than {limit_s:.0f} s: {' '.join(command[1:5])}") from None
        raise
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}: {output.strip()[-600:]}")


def check(name: str, device: str, scratch: Path, limit_s: float) -> dict[str, Any]:
    """The JSON of a function of gpu_checks.py."""
    save = scratch / f"check-{name}.json"
    script = str(HERE / "gpu_checks.py")
    run(
        [sys.executable, script, name, "--device", device, "--save", str(save), "--scratch", str(scratch)],
        limit_s,
    )
    return json.loads(save.read_text())


def ours(device: str, scratch: Path, *words: str) -> list[str]:
    """A command of ours, on the device and with the cache in scratch."""
    settings = ["--device.device", device, "--corpus.cache", str(scratch / "cache")]
    return [sys.executable, "-m", "onesitting", *words, *settings]


def bench(
    what: str, recipe: str, device: str, scratch: Path, limit_s: float, *settings: str
) -> dict[str, Any]:
    """The JSON of one `onesitting bench`."""
    save = scratch / f"{what}-{recipe}.json"
    run(ours(device, scratch, "bench", what, recipe, "--save", str(save), *settings), limit_s)
    return json.loads(save.read_text())


def budget_run(recipe: str, budget: str, device: str, scratch: Path, limit_s: float) -> dict[str, Any]:
    """A whole run with a time budget: how long it really took, and what came out."""
    name = f"budget-{budget}"
    command = ours(device, scratch, "run", recipe, "--out", str(scratch), "--name", name, "--budget", budget)
    if device != "cpu":  # which reads more in the same time
        command += ["--corpus.world_mb", "16"]
    began = time.perf_counter()
    run(command, limit_s)
    wall_s = time.perf_counter() - began
    timing = json.loads((scratch / name / "timing.json").read_text())
    summary = json.loads((scratch / name / "pretrain" / "summary.json").read_text())
    kept = (
        "bits_per_byte", "tokens", "tokens_per_s", "fraction_of_limit", "seconds_setup", "seconds_compile", "compiled",
        "micro_batch_tokens", "peak_memory_bytes", "device_reasons",
    )  # fmt: skip
    return {
        "budget": budget,
        "budget_s": timing["budget_s"],
        "wall_s": wall_s,
        "phases": timing["phases"],
        **{name: summary.get(name) for name in kept},
    }


def race(out: Path, limit_s: float) -> dict[str, Any]:
    """The race on one GPU; a runner that is done stays in results.jsonl, however the rest ends."""
    spec = str(HERE / "race" / "gpu.toml")
    run([sys.executable, "-m", "onesitting", "bench", "race", spec, "--out", str(out / "race")], limit_s)
    return json.loads((out / "race" / "results.json").read_text())


def measure(session: Session, options: argparse.Namespace, scratch: Path) -> None:
    """Checks, then speed of each recipe; the budget comes after the first recipe, for it matters most."""
    device = options.device
    for name, (title, limit_s) in CHECKS.items():
        session.step(f"check {title}", lambda limit, n=name: check(n, device, scratch, limit), limit_s)
    for number, recipe in enumerate(options.recipes):
        for what in ("limit", "train"):
            session.step(
                f"{what} {recipe}",
                lambda limit, w=what, r=recipe: bench(w, r, device, scratch, limit),
                BENCH_LIMIT_S,
            )
        if number == 0:
            budgets(session, options, scratch)
    for recipe in options.recipes if device == "cuda" else []:
        session.step(
            f"train {recipe} with CUDA graphs",
            lambda limit, r=recipe: bench("train", r, device, scratch, limit, "--device.cuda_graphs", "on"),
            BENCH_LIMIT_S,
        )


def budgets(session: Session, options: argparse.Namespace, scratch: Path) -> None:
    """A whole run for each budget; one that would not end before the deadline is not begun."""
    from onesitting.budgets import parse_budget

    for budget in options.budgets:
        needed = (parse_budget(budget).seconds or 0.0) + CLOSING_S
        session.step(
            f"budget {budget}",
            lambda limit, b=budget: budget_run(options.recipes[0], b, options.device, scratch, limit),
            needed + CLOSING_S,
            needed,
        )


def main() -> int:
    """Run everything; the exit code is the number of checks that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("check", "runs"), default="check")
    parser.add_argument("--recipes", nargs="+", required=True)
    parser.add_argument("--budgets", nargs="+", default=["2m"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--deadline", type=float, default=540.0, help="seconds from now")
    parser.add_argument("--build-s", type=float, default=0.0)
    options = parser.parse_args()
    session = Session(options.out, options.deadline, options.build_s)
    with tempfile.TemporaryDirectory(prefix="onesitting-gpu-") as name:
        if options.mode == "check":
            measure(session, options, Path(name))
        else:
            policy = f"check {CHECKS['policy'][0]}"
            session.step(policy, lambda limit: check("policy", options.device, Path(name), limit), 60)
            budgets(session, options, Path(name))
            if os.environ.get("PROSE") and os.environ.get("MINIMIND"):
                session.step("race", lambda limit: race(options.out, limit), RACE_LIMIT_S, 120)
            else:
                session.record["steps"]["race"] = {"skipped": "PROSE and MINIMIND are not set", "step_s": 0}
    print(write_summary(session.record, options.out))
    return sum(
        "error" in found for title, found in session.record["steps"].items() if title.startswith("check")
    )


if __name__ == "__main__":
    sys.exit(main())
