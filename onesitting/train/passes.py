"""The forward and backward passes of a micro-batch: run kernel by kernel, or recorded once and replayed as a whole.

A small model on a fast card computes its kernels in less time than it takes to launch them. A CUDA graph launches all
of them at once, but it repeats what was recorded: the same kernels at the same addresses, with the same numbers of
Python's. So batches are copied to where the first of their shape lay, gradients are added up in tensors that stay, and
the loss's scale is a tensor.
"""

# torch._foreach_*: PyTorch's multi-tensor operations have no public names.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from onesitting.model import moe
from onesitting.model.transformer import Transformer
from onesitting.train.compiler import first_line
from onesitting.train.device import DevicePlan
from onesitting.train.parts import StepParts
from onesitting.train.shards import is_sharded
from onesitting.train.stage import Stage

Sums = dict[str, Tensor]
MOST_RECORDINGS = 8
"""Shapes of micro-batches whose passes are recorded; each keeps its batch, all share the memory of their passes."""


class Passes:
    """Passes of micro-batches, whose gradients add up in the parameters."""

    def __init__(self, stage: Stage, model: Transformer, plan: DevicePlan, parts: StepParts) -> None:
        self.stage, self.model, self.plan, self.parts = stage, model, plan, parts

    def __call__(self, there: Any, scale: float, balance: float) -> Sums:
        """Add the gradients of a micro-batch's (loss · scale); returns its sums, scalars without a gradient.

        there: the batch, wherever it lies. balance: weight of a mixture's balance loss beside the sum of losses.
        """
        with self.parts("data"):
            batch = there.to(self.plan.torch_device)
        return self.run(batch, scale, balance)

    def run(self, batch: Any, scale: float | Tensor, balance: float) -> Sums:
        """The same for a batch on the device."""
        with self.parts("forward"), self.plan.autocast():
            loss, named = self.stage.loss_sum(self.model, batch)
            total, named = moe.add_balance_loss(self.model, loss, named, balance)
        with self.parts("backward"):
            (total * scale).backward()
        return {name: value.detach() for name, value in {"loss": loss, **named}.items()}

    def forget(self) -> None:
        """Give back memory that is kept between micro-batches."""


@dataclass(frozen=True)
class Recording:
    """The passes of micro-batches of one shape."""

    batch: Any
    """Where the passes read; the next batch is copied to here."""
    sums: Sums
    """Where they leave their sums."""
    replay: Callable[[], None]


class Recorder:
    """Records and replays work as CUDA graphs, on a stream of its own."""

    def __init__(self) -> None:
        self.stream: Any = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], Sums]) -> Sums:
        """Do the work on the stream that records, so that all it makes on the way belongs to that stream."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            sums = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return sums

    def record(self, work: Callable[[], Sums]) -> tuple[Callable[[], None], Sums]:
        """Record the work without doing it; returns what does it, and where its results will be."""
        graph = torch.cuda.CUDAGraph()
        # The thread that reads ahead may pin memory meanwhile: only this one is kept from what a graph cannot hold.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            sums = work()
        return graph.replay, sums


class RecordedPasses(Passes):
    """Passes that are recorded for each shape of a micro-batch when it first comes, and replayed from then on.

    The stage must be `replayable`. Where recording fails, all passes run as they are from then on, and a note says
    why. With the stopwatch on they do too, for a graph has no parts.
    """

    def __init__(
        self,
        stage: Stage,
        model: Transformer,
        plan: DevicePlan,
        parts: StepParts,
        note: Callable[[str], None],
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(stage, model, plan, parts)
        self.note, self.recorder = note, recorder or Recorder()
        self.failure = ""
        self.recordings: dict[tuple[Any, ...], Recording] = {}
        self.grads: dict[torch.nn.Parameter, Tensor] = {}
        self.scale = torch.ones((), device=plan.torch_device)

    def __call__(self, there: Any, scale: float, balance: float) -> Sums:
        """As of `Passes`; the sums are valid until the next call."""
        self.attach_gradients()
        if self.parts.is_on or self.failure:
            return super().__call__(there, scale, balance)
        self.scale.fill_(scale)
        shape = shape_of(there)
        if shape not in self.recordings:
            if len(self.recordings) == MOST_RECORDINGS:
                return super().__call__(there, scale, balance)
            return self.first(there, shape, balance)
        found = self.recordings[shape]
        copy_into(found.batch, there)
        found.replay()
        return found.sums

    def first(self, there: Any, shape: tuple[Any, ...], balance: float) -> Sums:
        """Run a batch of a new shape, which compiles and loads what its passes need, then record them for the next."""
        batch = copied(there, self.plan.torch_device)

        def work() -> Sums:
            return self.run(batch, self.scale, balance)

        sums = self.recorder.run(work)
        try:
            replay, places = self.recorder.record(work)
        except RuntimeError as failure:
            # An operation that a graph cannot hold, or too little memory for a second pass.
            self.failure = first_line(failure)
            self.note(f"a CUDA graph cannot hold this step, training goes on without: {self.failure}")
            self.recordings.clear()
        else:
            self.recordings[shape] = Recording(batch, places, replay)
        return sums

    def attach_gradients(self) -> None:
        """Give each parameter whose gradient was dropped the tensor that recorded passes add to, as zeros."""
        dropped = [p for p in self.model.parameters() if p.requires_grad and p.grad is None]
        for parameter in dropped:
            if parameter not in self.grads:
                self.grads[parameter] = torch.empty_like(parameter)
            parameter.grad = self.grads[parameter]
        if dropped:
            torch._foreach_zero_([self.grads[parameter] for parameter in dropped])

    def forget(self) -> None:
        """Drop all recordings and the memory of their passes."""
        self.recordings.clear()
        self.grads.clear()


def make_passes(
    stage: Stage, model: Transformer, plan: DevicePlan, parts: StepParts, note: Callable[[str], None]
) -> Passes:
    """Recorded passes where the plan asks for them and they can be replayed; note: where it is told why not."""
    fits = stage.replayable and not model.cfg.n_experts and not any(map(is_sharded, model.parameters()))
    if plan.graphs and fits:
        return RecordedPasses(stage, model, plan, parts, note)
    if plan.graphs:
        note(f"{stage.name}: no CUDA graphs, its passes depend on numbers that a graph would repeat")
    return Passes(stage, model, plan, parts)


# ---- batches: dataclasses of tensors -----------------------------------------------------------------------


def tensors_of(batch: Any) -> dict[str, Tensor]:
    """Field -> tensor of a batch, which has none within its other fields: a graph would read the first batch's."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    assert not any(is_dataclass(value) for value in values.values())
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def shape_of(batch: Any) -> tuple[Any, ...]:
    """Equal for batches whose passes are the same work."""
    return tuple((name, tuple(value.shape), value.dtype) for name, value in tensors_of(batch).items())


def copied(batch: Any, device: torch.device) -> Any:
    """The batch with copies of its tensors on a device."""
    found = tensors_of(batch).items()
    return replace(batch, **{name: value.to(device, non_blocking=True, copy=True) for name, value in found})


def copy_into(batch: Any, there: Any) -> None:
    """Overwrite the tensors of a batch with those of another of its shape."""
    news = tensors_of(there)
    for name, value in tensors_of(batch).items():
        value.copy_(news[name], non_blocking=True)
