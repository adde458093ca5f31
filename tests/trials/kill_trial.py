"""Contract 1 as a trial: 25 SIGKILLs at random moments, and the same bits as a run that was left alone.

    python tests/trials/kill_trial.py [--kills 25] [--seed 0]

The tiny recipe is trained once in peace and once with its process killed again and again, also inside saves. Final
weights, losses and batches must be equal bit for bit. Takes some minutes; not part of `make test`.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OPTIONS = (
    "tiny", "--corpus.world_mb", "0.4", "--tokenizer.train_mb", "0.2", "--budget", "tokens=1200k",
    "--checkpoint.every_steps", "3", "--evaluation.suite", "none", "--evaluation.every_fraction", "0.25",
)  # fmt: skip


def start(place: Path) -> subprocess.Popen[bytes]:
    """The command, in its own process group so that a kill takes its children too."""
    return subprocess.Popen(
        [sys.executable, "-m", "onesitting", "run", *OPTIONS, "--corpus.cache", str(place / "cache")],
        cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def result(place: Path) -> dict[str, object]:
    """What must be equal: the hash of each final model and the loss of every step."""
    found: dict[str, object] = {}
    for stage in ("pretrain", "sft"):
        folder = place / "runs" / "tiny" / stage
        weights = (folder / "model" / "model.safetensors").read_bytes()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found[f"{stage} weights"] = hashlib.sha256(weights).hexdigest()
        found[f"{stage} losses"] = [(r["step"], r["tokens"], r["loss"]) for r in lines if "loss" in r]
    return found


def main() -> None:
    """Run the trial; exits with 1 if a bit differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        calm, killed = Path(temporary) / "calm", Path(temporary) / "killed"
        for place in (calm, killed):
            place.mkdir()
        began = time.monotonic()
        assert start(calm).wait() == 0, "the undisturbed run failed"
        peace_s = time.monotonic() - began
        print(f"undisturbed: {peace_s:.1f} s")
        n_kills = 0
        while True:
            process = start(killed)
            try:
                # From before the first import into the training, which starts after about three seconds.
                code = process.wait(rng.uniform(0.5, 4.5) if n_kills < options.kills else None)
                assert code == 0, f"the resumed run failed with exit code {code}"
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                n_kills += 1
                steps = sorted(p.name for p in killed.glob("runs/tiny/*/checkpoints/[0-9]*"))
                print(f"kill {n_kills}: newest checkpoints {steps[-2:]}", flush=True)
        a, b = result(calm), result(killed)
        for key, value in a.items():
            print(f"{key}: {'equal' if value == b[key] else 'DIFFERENT'}")
        print(f"{n_kills} kills")
        sys.exit(a != b)


if __name__ == "__main__":
    main()
