"""Threads beside the one that computes, in a process that has two cores for PyTorch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, os, threading, time
from concurrent.futures import ThreadPoolExecutor
import torch
from onesitting.train.teams import in_passing_thread, worker_without_team

torch.set_num_threads(2)
n = lambda: len(os.listdir("/proc/self/task"))
large = torch.randn(500, 1000)
def work():  # additions, a product, and one in 16 bits, which another library does
    float((large + 1).sum() + (large @ large.T).sum() + (large.bfloat16() @ large.bfloat16().T).sum())
    return n()

found = {"alone": n(), "begun": []}
found["passing"] = in_passing_thread(work)
time.sleep(0.5)  # the system ends a thread a moment after Python
found["after passing"] = n()
pool = worker_without_team("beside", lambda: found["begun"].append(threading.current_thread().name))
found["worker"] = pool.submit(work).result()
found["threads"] = torch.get_num_threads()
found["computing"] = work()
found["ordinary"] = ThreadPoolExecutor(1).submit(work).result()
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux lists them")
def test_only_the_computing_thread_has_a_team() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    alone = found["alone"]
    assert found["passing"] == alone + 2, "a thread and the other member of its team"
    assert found["after passing"] == alone, "both have ended"
    assert found["worker"] == alone + 1, "the thread alone"
    (begun,) = found["begun"]
    assert begun.startswith("beside")
    assert found["threads"] == 2, "threads of the caller are as many as before"
    assert found["computing"] == alone + 2, "the caller's team"
    assert found["ordinary"] == alone + 4, "what would happen otherwise"
