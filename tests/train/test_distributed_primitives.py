"""Two real processes over gloo against one process with the same global batch."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from onesitting.config import DeviceConfig, ModelConfig, OptimConfig
from onesitting.errors import UserError
from onesitting.model.transformer import Transformer
from onesitting.train import distributed
from onesitting.train.distributed import Ranks, buckets
from onesitting.train.hardware import Hardware
from onesitting.train.optim import build_optimizer
from onesitting.train.shards import full

# Plain initial weights: the wired ones make larger numbers, in which AdamW's early steps amplify the last bit.
SHAPE = ModelConfig(
    n_layers=2,
    d_model=32,
    n_heads=2,
    n_kv_heads=1,
    head_dim=16,
    d_ff=56,
    vocab_size=64,
    context_length=16,
    initial_weights="plain",
)
WORLD = 2
N_STEPS = 3


def global_batches(step):
    """Micro-batches (tokens, targets) of one step; rows of unequal numbers of targets."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 64, (4, 16), generator=generator)
    targets = torch.randint(0, 64, (4, 16), generator=generator)
    for row, kept in enumerate((16, 3, 9, 1)):
        targets[row, kept:] = -100
    return tokens, targets


def train(model, ranks, rows, micro_rows):
    """Losses, gradients of the first step and weights after N_STEPS steps, as the loop makes them."""
    optimizer = build_optimizer(model, OptimConfig(), torch.float32)
    losses, norms, gradients = [], [], {}
    for step in range(N_STEPS):
        tokens, targets = (part[rows] for part in global_batches(step))
        (n_units,) = ranks.sum_counts([int((targets >= 0).sum())])
        loss_sum = torch.zeros(())
        for first in range(0, len(tokens), micro_rows):
            part = slice(first, first + micro_rows)
            loss = model(tokens[part], targets=targets[part])
            distributed.sum_in_backward(model, first + micro_rows >= len(tokens))
            (loss / n_units).backward()
            loss_sum += loss.detach()
        distributed.all_reduce_gradients(model, ranks)
        losses.append(float(ranks.sum_tensors({"loss": loss_sum})["loss"]) / n_units)
        if step == 0:
            gradients = {name: full(p.grad).clone() for name, p in model.named_parameters()}
        norms.append(float(optimizer.clip(1.0)))
        optimizer.step(1.0)
        optimizer.zero_grad()
    return {
        "losses": torch.tensor(losses),
        "norms": torch.tensor(norms),
        "gradients": gradients,
        "weights": distributed.full_state(model),
        "state": {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()},
    }


def worker(rank, port, folder):
    """One of WORLD processes, with the environment that torchrun makes; does every job."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), LOCAL_WORLD_SIZE=str(WORLD),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    ranks = distributed.init(DeviceConfig(device="cpu"))
    try:
        result = {name: job(ranks) for name, job in JOBS.items()}
    finally:
        distributed.shutdown(ranks)
    torch.save(result, Path(folder) / f"{rank}.pt")


# ---- jobs that run in each process ---------------------------------------------------------------------------


def own_rows(ranks):
    return slice(2 * ranks.rank, 2 * ranks.rank + 2)


def job_whole_copies(ranks):
    model = Transformer(SHAPE, seed=ranks.rank)  # different on purpose: rank 0's weights must win
    distributed.broadcast_model(model, ranks)
    return train(model, ranks, own_rows(ranks), micro_rows=1)


class Reductions(TorchDispatchMode):
    """Counts the sums of gradients over processes."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += "reduce_scatter" in str(func)
        return func(*args, **(kwargs or {}))


def reductions(model, ranks, micro_rows):
    """How many sums of gradients one step makes."""
    optimizer = build_optimizer(model, OptimConfig(), torch.float32)
    tokens, targets = (part[own_rows(ranks)] for part in global_batches(0))
    with Reductions() as counted:
        for first in range(0, len(tokens), micro_rows):
            part = slice(first, first + micro_rows)
            distributed.sum_in_backward(model, first + micro_rows >= len(tokens))
            model(tokens[part], targets=targets[part]).backward()
    optimizer.zero_grad()
    return counted.n


def job_sharded(ranks):
    model = distributed.shard_model(Transformer(SHAPE, seed=0), ranks)
    sizes = [p.to_local().numel() for p in model.parameters()]
    result = train(model, ranks, own_rows(ranks), micro_rows=1)
    # A state of one process goes into sharded ones, and training goes on as it does unsharded.
    resumed = distributed.shard_model(Transformer(SHAPE, seed=3), ranks)
    optimizer = build_optimizer(resumed, OptimConfig(), torch.float32)
    optimizer.load_state_tensors(result["state"])
    again = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    # A validation leaves the last weights gathered; saving right after it must still find all of them.
    with torch.inference_mode():
        model.hidden(torch.zeros(1, 4, dtype=torch.int64))
    whole = distributed.unsharded(model)
    distributed.load_unsharded(resumed, whole)
    loaded = distributed.full_state(resumed)
    counts = [reductions(model, ranks, micro_rows) for micro_rows in (2, 1)]
    return {
        **result,
        "counts": counts,
        "again": again,
        "n_local": sum(sizes),
        "saved": whole.state_dict(),
        "loaded": loaded,
    }


def job_agreement(ranks):
    sums = {"loss": torch.tensor(1.0 + ranks.rank)}
    if ranks.rank == 1:
        sums["only_here"] = torch.tensor(5.0)
    lonely = nn.Linear(2, 2)
    if ranks.rank == 1:
        lonely(torch.ones(1, 2)).sum().backward()
    distributed.all_reduce_gradients(lonely, ranks)
    ranks.barrier()
    return {
        "place": [ranks.rank, ranks.world, ranks.local_rank, ranks.local_world],
        "counts": ranks.sum_counts([1, 10 * ranks.rank, 2**40]),
        "agree": [ranks.agree(False), ranks.agree(ranks.rank == 1), ranks.agree(True)],
        "sums": {name: float(value) for name, value in ranks.sum_tensors(sums).items()},
        "said": ranks.broadcast({"from": ranks.rank, "at": 0.1}),
        "gradient": lonely.weight.grad,
    }


JOBS = {"whole": job_whole_copies, "sharded": job_sharded, "agreement": job_agreement}


# ---- tests ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone():
    """What one process does with the whole batch."""
    return train(Transformer(SHAPE, seed=0), Ranks(), slice(0, 4), micro_rows=4)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What rank 0 and rank 1 return, by job; one pair of processes for all jobs, as starting takes seconds."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(worker, (port, str(folder)), nprocs=WORLD, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("job", ["whole", "sharded"])
def test_two_processes_train_as_one_with_the_same_global_batch(job, alone, two):
    first, second = (results[job] for results in two)
    torch.testing.assert_close(first["losses"], alone["losses"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first["norms"], alone["norms"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first["gradients"], alone["gradients"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(first["state"], alone["state"], rtol=1e-3, atol=1e-6)
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name])
    if job == "sharded":
        n_parameters = sum(tensor.numel() for tensor in alone["weights"].values())
        assert first["n_local"] + second["n_local"] == n_parameters
        assert first["n_local"] < 0.6 * n_parameters
        assert first["counts"] == [SHAPE.n_layers + 1, SHAPE.n_layers + 1]  # not twice for two micro-batches
        assert all(torch.equal(first["again"][name], tensor) for name, tensor in first["state"].items())
        for name, tensor in first["weights"].items():
            assert torch.equal(first["saved"][name], tensor)
            assert torch.equal(second["loaded"][name], tensor)


def test_processes_agree_sum_and_share(two):
    for rank, results in enumerate(two):
        result = results["agreement"]
        assert result["place"] == [rank, 2, rank, 2]
        assert result["counts"] == [2, 10, 2**41]
        assert result["agree"] == [False, True, True]
        assert result["sums"] == {"loss": 3.0, "only_here": 5.0}
        assert result["said"] == {"from": 0, "at": 0.1}
        assert torch.equal(result["gradient"], torch.ones(2, 2))  # a missing gradient counted as zero


def test_alone_nothing_is_communicated():
    ranks = Ranks()
    assert ranks.sum_counts([3, 4]) == [3, 4]
    assert ranks.agree(True)
    assert not ranks.agree(False)
    assert ranks.broadcast("x") == "x"
    sums = {"loss": torch.tensor(2.0)}
    assert ranks.sum_tensors(sums) is sums
    model = Transformer(SHAPE)
    distributed.all_reduce_gradients(model, ranks)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert distributed.shard_model(model, ranks) is model
    assert distributed.unsharded(model) is model
    ranks.barrier()
    distributed.shutdown(ranks)


def test_without_torchrun_the_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.init(DeviceConfig()) == Ranks()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "4")
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(distributed, "detect", lambda: Hardware(accelerator="cuda", n_devices=2))
    with pytest.raises(UserError, match="4 processes were started on a machine with 2"):
        distributed.init(DeviceConfig())


def test_buckets_keep_order_size_and_dtype(monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET_BYTES", 100)
    tensors = [torch.zeros(n) for n in (10, 10, 10, 60, 1)] + [torch.zeros(1, dtype=torch.float64)]
    found = buckets(tensors)
    assert [[t.numel() for t in bucket] for bucket in found] == [[10, 10], [10], [60], [1], [1]]
    assert [t for bucket in found for t in bucket] == tensors
    assert buckets([]) == []
