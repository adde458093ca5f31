"""Several processes as one: what they agree on, add up and share.

Started by torchrun, each process reads its place from the environment; started plainly, it is alone and every
function here is a no-op. Losses are sums and the loop divides once, so gradients are summed over processes,
never averaged.
"""

# torch._foreach_*: PyTorch's multi-tensor operations have no public names.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from onesitting.config import DeviceConfig
from onesitting.errors import UserError
from onesitting.model.lora import skeleton
from onesitting.model.transformer import Transformer
from onesitting.train.device import detect, pick_kind
from onesitting.train.shards import full, is_sharded, local, shard_like

T = TypeVar("T")

BUCKET_BYTES = 64 * 2**20
"""Gradients travel in buckets of about this size: few enough calls, and little memory for the copy."""
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others; preparing data on rank 0 may take that long."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among all: `Ranks()` is alone."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            self.sum_counts([0])  # on the processor, unlike dist.barrier, which would pick a GPU by itself

    def agree(self, flag: bool) -> bool:
        """Whether any process says so; the same answer everywhere."""
        return self.sum_counts([int(flag)])[0] > 0

    def sum_counts(self, counts: Sequence[int]) -> list[int]:
        """Each count summed over all processes."""
        if self.world == 1:
            return list(counts)
        summed = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(summed)
        return summed.tolist()

    def sum_tensors(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalar sums by name, summed over all processes; a name that a process lacks counts as zero there."""
        if self.world == 1 or not sums:
            return sums
        every = sorted(sums)
        code = zlib.crc32("\n".join(every).encode())
        extremes = torch.tensor([code, -code])
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        if int(extremes.sum()) != 0:  # rare: some process has no batch in this step
            names: list[list[str]] = [[] for _ in range(self.world)]
            dist.all_gather_object(names, every)
            every = sorted({name for some in names for name in some})
        device = next(iter(sums.values())).device
        zero = torch.zeros((), device=device)
        stacked = torch.stack([sums.get(name, zero).detach().float() for name in every])
        dist.all_reduce(stacked)
        return dict(zip(every, stacked.unbind(), strict=True))

    def broadcast(self, value: T) -> T:
        """Rank 0's value, a plain Python object."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]


# ---- start and end -----------------------------------------------------------------------------------------


def init(cfg: DeviceConfig) -> Ranks:
    """This process's place, from torchrun's environment; joins the others and picks its GPU.

    Raises UserError when there are more processes than GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    ranks = Ranks(
        rank=int(os.environ["RANK"]),
        world=world,
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_world=int(os.environ.get("LOCAL_WORLD_SIZE", world)),
    )
    hardware = detect()
    kind = pick_kind(cfg.device, hardware)
    backend = "cpu:gloo"
    if kind != "cpu":
        if ranks.local_world > hardware.n_devices:
            raise UserError(
                f"{ranks.local_world} processes were started on a machine with {hardware.n_devices} "
                f"{hardware.accelerator} device(s); start that many, or use device.device=cpu"
            )
        if kind == "mps":
            raise UserError(
                "several processes cannot share an Apple GPU; use device.device=cpu or one process"
            )
        device_type, collectives = ("xpu", "xccl") if kind == "xpu" else ("cuda", "nccl")
        torch.get_device_module(device_type).set_device(ranks.local_rank)
        # Small numbers travel over gloo, so that asking about them never waits for the GPU.
        backend = f"cpu:gloo,{device_type}:{collectives}"
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=TIMEOUT)
    return ranks


def shutdown(ranks: Ranks) -> None:
    """Leave the group. After an error the others may be waiting; torchrun ends them."""
    if ranks.world > 1 and dist.is_initialized():
        dist.destroy_process_group()


# ---- gradients and weights ---------------------------------------------------------------------------------


def all_reduce_gradients(model: nn.Module, ranks: Ranks) -> None:
    """Replace every gradient by its sum over all processes; a missing one counts as zero.

    Sharded parameters (`shard_model`) were summed during the backward pass and are left alone.
    """
    if ranks.world == 1:
        return
    params = [p for p in model.parameters() if p.requires_grad and not is_sharded(p)]
    for parameter in params:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in buckets([cast(Tensor, p.grad) for p in params]):
        flat = torch.cat([grad.reshape(-1) for grad in bucket])
        dist.all_reduce(flat)
        parts = flat.split([grad.numel() for grad in bucket])
        torch._foreach_copy_(bucket, [part.view_as(grad) for part, grad in zip(parts, bucket, strict=True)])


def sum_in_backward(model: nn.Module, is_last: bool) -> None:
    """Let a sharded model sum its gradients over processes in the next backward pass, or only add them up here.

    One sum a step, in its last pass, instead of one a micro-batch; until then each process holds whole gradients.
    Whole models are summed by `all_reduce_gradients` and left alone.
    """
    if hasattr(model, "set_requires_gradient_sync"):
        cast(Any, model).set_requires_gradient_sync(is_last)


def buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """The tensors in order, cut into runs of one dtype and about BUCKET_BYTES each."""
    found: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        if not found or size + tensor.nbytes > BUCKET_BYTES or found[-1][0].dtype != tensor.dtype:
            found.append([])
            size = 0
        found[-1].append(tensor)
        size += tensor.nbytes
    return found


@torch.no_grad()
def broadcast_model(model: nn.Module, ranks: Ranks) -> None:
    """Give every process rank 0's weights and buffers."""
    if ranks.world > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)


def shard_model(model: Transformer, ranks: Ranks) -> Transformer:
    """The same model, each process holding 1/world of every parameter (FSDP2); unchanged for one process.

    Blocks are gathered one at a time when they are needed. Gradients are summed over
    processes. Every process must run the same number of forward and backward passes.
    Source: Zhao et al. 2023, arXiv:2304.11277; torch.distributed.fsdp.fully_shard.
    """
    if ranks.world == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(next(model.parameters()).device.type, (ranks.world,))
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh)
        sharded = cast(FSDPModule, module)
        sharded.set_gradient_divide_factor(1.0)  # a sum: FSDP would average
        sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other reduction
    register_fsdp_forward_method(model, "hidden")
    return model


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """The whole state dict on every process, sharded or not; all processes must call it."""
    for module in model.modules():  # after a forward pass without a backward one, the root is still gathered
        if hasattr(module, "reshard"):
            cast(Any, module).reshard()
    return {name: full(tensor.detach()) for name, tensor in model.state_dict().items()}


def unsharded(model: Transformer) -> Transformer:
    """The model itself, or a whole copy on the processor if it is sharded; then all processes must call it.

    What writes or reads model folders works on whole models and knows nothing of processes.
    """
    if not hasattr(model, "reshard"):
        return model
    whole = skeleton(model)
    whole.load_state_dict(full_state(model))
    return whole


@torch.no_grad()
def load_unsharded(model: Transformer, whole: Transformer) -> None:
    """Put the weights of a whole model, the same on every process, into `model`."""
    if whole is not model:
        for parameter, source in zip(model.parameters(), whole.parameters(), strict=True):
            local(parameter).copy_(shard_like(parameter, source.detach().to(local(parameter).device)))
        for buffer, source in zip(model.buffers(), whole.buffers(), strict=True):
            buffer.copy_(source)
