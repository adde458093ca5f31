"""When memory runs out in a step: the same step again, with the same tokens in smaller micro-batches."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from onesitting.errors import UserError
from onesitting.model.moe import forget_counts
from onesitting.model.transformer import Transformer
from onesitting.train.distributed import Ranks
from onesitting.train.stage import Stage, TrainBatch

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
"""How libraries say it in a plain RuntimeError: Apple's GPUs, processors, and cuBLAS when it makes its workspace."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of PyTorch means that the device's memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def unless_out_of_memory(work: Callable[[], Any]) -> Any:
    """What `work` gives; None where memory ran out in it.

    The error is gone when this returns, and with it the frames that held the tensors of the attempt.
    """
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None


def forget_attempt(model: Transformer, device: torch.device) -> None:
    """Drop an attempt's gradients and counts, and give the memory back, so that tensors of other shapes find room."""
    model.zero_grad(set_to_none=True)
    forget_counts(model)
    release(device)


def release(device: torch.device) -> None:
    """Give the memory of dropped tensors back to the device."""
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def cut_further(
    stage: Stage,
    model: Transformer,
    batches: Sequence[TrainBatch],
    place: tuple[int, int],
    ranks: Ranks,
    *,
    has_failed: bool,
) -> Sequence[TrainBatch]:
    """The same step's batches with at most half the rows in each; the stage cuts all later ones so, too.

    place: step and row length. has_failed: whether it was this process that ran out of memory; one that did not, and
    whose rows are single already, goes on with them.
    Raises UserError, on every process, where one that failed cannot cut its rows further.
    """
    step, row_length = place
    rows = max((batch.n_rows for batch in batches), default=1)
    smaller, fewer = batches, rows
    if rows > 1:
        stage.plan = replace(stage.plan, most_rows=rows // 2)
        smaller = stage.next_batches(model, step, row_length)
        fewer = max(batch.n_rows for batch in smaller)
    if ranks.agree(has_failed and fewer >= rows):
        raise UserError(
            f"{stage.name}: memory ran out at step {step} with {rows} row{'s' if rows > 1 else ''} of up to "
            f"{row_length} tokens in a forward pass, which cannot be cut further; lower {stage.name}.micro_batch_rows "
            "or model.context_length, choose a smaller model, or end what else uses the device's memory"
        )
    return smaller


def describe_cut(step: int, batches: Sequence[TrainBatch]) -> str:
    """The note about it."""
    rows = max((batch.n_rows for batch in batches), default=0)
    return f"step {step}: memory ran out; from here on {rows} row{'s' if rows != 1 else ''} in a forward pass"


def refuse_sharded(shard: str, step: int, name: str) -> None:
    """Raise UserError where processes that share a model's parts cannot repeat a step: they wait within it."""
    if shard == "fsdp":
        raise UserError(
            f"{name}: memory ran out at step {step}; with device.shard = fsdp a step cannot be repeated with fewer "
            f"rows, for the other processes wait in the middle of it: lower {name}.micro_batch_rows"
        )
