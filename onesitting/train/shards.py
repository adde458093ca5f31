"""Tensors of which each process holds a part (DTensor, as FSDP2 makes them), and plain ones, treated alike.

A DTensor is known by its `to_local`: importing its module costs 0.9 s, which a single process never needs.
"""

from typing import Any, cast

import torch.distributed as dist
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds a part of the tensor."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This process's part: the tensor itself unless it is sharded."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered from all processes if it is sharded."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def gather_like(like: Tensor, part: Tensor) -> Tensor:
    """The whole tensor of which each process holds `part`, cut as `like` is; `part` itself if that is not cut."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    cut = cast(DTensor, like)
    whole = DTensor.from_local(
        part, cut.device_mesh, cut.placements, run_check=False, shape=cut.shape, stride=cut.stride()
    )
    return whole.full_tensor()


def shard_like(like: Tensor, whole: Tensor) -> Tensor:
    """This process's part of a tensor that every process holds whole, cut as `like` is. No communication."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    cut = cast(DTensor, like)
    return distribute_tensor(whole, cut.device_mesh, cut.placements, src_data_rank=None).to_local()


def sum_over_shards(value: Tensor) -> Tensor:
    """A scalar summed over all processes."""
    dist.all_reduce(value)
    return value
