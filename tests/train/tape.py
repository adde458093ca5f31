"""A tape that plays a CUDA graph on a processor: it repeats recorded operations in the memory that they had."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::equal",
    "aten::masked_select",
    "aten::unique_dim",
)
"""Operations that wait for a device, which a graph cannot hold."""


class Tape(TorchDispatchMode):
    """Operations in the order in which they were called, each with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation and remember it."""
        kwargs = kwargs or {}
        if func._schema.name in WAITS or uses_mask(func, args):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **kwargs)
        made = [] if changes_or_views(func) else tensors_in(result)
        if made or func._schema.is_mutable:
            self.calls.append((func, args, kwargs, made))
        return result

    def replay(self) -> None:
        """Do all of it again: with the same numbers, in the same memory."""
        with torch.no_grad():
            for func, args, kwargs, made in self.calls:
                result = func(*args, **kwargs)
                for place, value in zip(made, tensors_in(result) if made else [], strict=True):
                    if value.data_ptr() != place.data_ptr():
                        place.copy_(value)


def tensors_in(result: Any) -> list[Tensor]:
    """The tensors of an operation's result."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def uses_mask(func: Any, args: Any) -> bool:
    """Whether a tensor is indexed by booleans, whose number the device must tell first."""
    indexes = args[1] if func._schema.name == "aten::index" else []
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indexes)


def changes_or_views(func: Any) -> bool:
    """Whether an operation's results are (in) the memory of its arguments."""
    return any(result.alias_info is not None for result in func._schema.returns) or func._schema.is_mutable


class TapeRecorder:
    """What passes.Recorder is on a card; like a CUDA graph, recording leaves the parameters' gradients as they were."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.tapes: list[Tape] = []
        self.n_replays = 0

    def run(self, work: Callable[[], Any]) -> Any:
        """Do the work."""
        return work()

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Record the work; returns what does it, and where its results will be."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        before = [grad.clone() for grad in grads]
        tape = Tape()
        try:
            with tape:
                places = work()
        finally:
            torch._foreach_copy_(grads, before)
        self.tapes.append(tape)

        def replay() -> None:
            self.n_replays += 1
            tape.replay()

        return replay, places
