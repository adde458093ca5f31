"""Contract 4 for every stage: two processes over gloo make the first step of one, from the same start."""

import json
import socket
from typing import Any

import first_steps
import pytest
import torch
import torch.multiprocessing as mp

from onesitting.train.distributed import Ranks

WORLD = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Case -> the metrics of its first step by one process and by two."""
    place = tmp_path_factory.mktemp("place")
    first_steps.prepare(place)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(first_steps.process, (WORLD, port, place), nprocs=WORLD, start_method="spawn")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = first_steps.all_first_steps(place, place / "one", Ranks())
    torch.set_num_threads(threads)
    together = json.loads((place / "two.json").read_text())
    return {name: (alone[name], together[name]) for name in first_steps.CASES}


@pytest.mark.parametrize("name", first_steps.CASES)
def test_two_processes_make_the_first_step_of_one(
    name: str, found: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    alone, together = found[name]
    assert together["n_units"] == alone["n_units"] > 0
    assert together["tokens"] == alone["tokens"]
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5, abs=1e-7)
    assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4, abs=1e-7)
    assert alone["grad_norm"] > 1e-4 or name == "grpo, nothing to compare"
    timed = ("_s", "tokens_per_s", "step", "tokens", "progress")
    for key in alone.keys() | together.keys():
        if isinstance(alone[key], float) and not key.endswith(timed):
            assert together[key] == pytest.approx(alone[key], rel=1e-4, abs=1e-6), key
