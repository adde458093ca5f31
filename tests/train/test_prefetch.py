"""Reading ahead, with page-locked memory for a CUDA device."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from onesitting.train.prefetch import Prefetch, pinned


@dataclass(frozen=True)
class Inner:
    tokens: Tensor
    doc_ids: Tensor | None
    n_units: int


@dataclass(frozen=True)
class Outer:
    batch: Inner
    weights: Tensor


class Source:
    cycle = 0

    def next_batches(self, model: Any, step: int, row_length: int) -> list[Inner]:
        return [Inner(torch.full((2,), step), None, 2)]


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Addresses of tensors that were pinned, where there is no device to pin for; and the threads' device."""
    found: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        found.append(copy.data_ptr())
        return copy

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    return found


def test_every_tensor_of_a_batch_is_pinned_and_the_rest_stays(locked: list[int]) -> None:
    batch = Outer(Inner(torch.arange(3), None, 7), torch.ones(2))
    copy = pinned(batch)
    assert sorted(locked) == sorted([copy.batch.tokens.data_ptr(), copy.weights.data_ptr()])
    assert torch.equal(copy.batch.tokens, batch.batch.tokens)
    assert (copy.batch.doc_ids, copy.batch.n_units) == (None, 7)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_batches_that_are_read_ahead_for_a_cuda_device_are_pinned_in_the_threads_own(
    kind: str, locked: list[int]
) -> None:
    prefetch = Prefetch(Source(), None, torch.device(kind))  # pyright: ignore[reportArgumentType]
    prefetch.start(3, 16)
    (batch,) = prefetch.take(3, 16)
    prefetch.close()
    assert batch.tokens.tolist() == [3, 3]
    assert locked == ([1, batch.tokens.data_ptr()] if kind == "cuda" else [])
