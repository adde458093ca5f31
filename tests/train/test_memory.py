"""Memory that runs out: the step is repeated in smaller pieces, and nothing else changes."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import N_ROWS, CountingStage, config, losses, train
from torch import Tensor

from onesitting.data.examples import Batch
from onesitting.errors import UserError
from onesitting.model.moe import moe_layers
from onesitting.model.transformer import Transformer
from onesitting.runlog import read_jsonl
from onesitting.train import loop
from onesitting.train.device import detect, plan_device
from onesitting.train.display import Display
from onesitting.train.distributed import Ranks
from onesitting.train.memory import cut_further, is_out_of_memory, refuse_sharded, unless_out_of_memory


class SmallMemory(CountingStage):
    """A stage whose device holds at most `fits` rows of activations; each step's tokens are written down."""

    def __init__(self, fits: int, micro_rows: int = N_ROWS, error: type[Exception] = torch.OutOfMemoryError):
        super().__init__(micro_rows)
        self.fits, self.error = fits, error
        self.plan = replace(plan_device(config().device, detect()), micro_batch_tokens=16 * micro_rows)
        self.read: dict[int, Tensor] = {}
        self.done: list[int] = []

    def next_batches(self, model: Transformer, step: int, row_length: int) -> list[Batch]:
        self.micro_rows = self.plan.micro_batch_rows(row_length, n_rows=N_ROWS)
        batches = super().next_batches(model, step, row_length)
        tokens = torch.cat([batch.tokens for batch in batches])
        assert torch.equal(self.read.setdefault(step, tokens), tokens)
        return batches

    def loss_sum(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        found = super().loss_sum(model, batch)
        if batch.n_rows > self.fits:
            found[0].backward()  # gradients of an attempt that then fails
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.done.append(batch.n_rows)
        return found


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(Display, "note", lambda self, message: found.append(message))
    return found


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_step_that_took_too_much_memory_is_repeated_with_the_same_tokens(
    tmp_path: Path, notes: list[str], error: type[Exception]
) -> None:
    calm, tight = SmallMemory(fits=1, micro_rows=1), SmallMemory(fits=1, error=error)
    expected, _, calm_folder = train(tmp_path / "calm", calm)
    assert notes == []
    model, result, folder = train(tmp_path / "tight", tight)
    assert result.steps == 12
    assert losses(folder) == losses(calm_folder), "the loss of every step, to the bit"
    for name, parameter in expected.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    assert tight.done == [1] * 48, "after the first step no attempt is too large"
    assert all(torch.equal(tight.read[step], calm.read[step]) for step in calm.read)
    assert notes == [
        "step 0: memory ran out; from here on 2 rows in a forward pass",
        "step 0: memory ran out; from here on 1 row in a forward pass",
    ]


def test_a_split_that_memory_enforced_gives_the_gradients_of_the_whole(tmp_path: Path) -> None:
    first: dict[int, dict[str, float]] = {}
    for fits in (N_ROWS, 2):
        _, _, folder = train(tmp_path / str(fits), SmallMemory(fits), config(n_steps=1))
        first[fits] = next(r for r in read_jsonl(folder.metrics_path) if "loss" in r)
    for name in ("loss", "grad_norm", "n_units", "tokens"):
        assert first[2][name] == pytest.approx(first[N_ROWS][name], rel=1e-5), name


def test_a_single_row_that_does_not_fit_is_refused_with_the_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"with 1 row of up to 16 .* pretrain\.micro_batch_rows") as refused:
        train(tmp_path, SmallMemory(fits=0))
    assert "model.context_length" in str(refused.value)


def test_a_stage_that_cannot_cut_its_rows_is_refused() -> None:
    stage = SmallMemory(fits=0)
    held = stage.next_batches(None, 0, 16)
    stage.next_batches = lambda *_: held
    with pytest.raises(UserError, match="with 4 rows"):
        cut_further(stage, None, held, (0, 16), Ranks(), has_failed=True)


def test_a_process_goes_on_with_single_rows_where_another_one_ran_out_of_memory() -> None:
    stage = SmallMemory(fits=1, micro_rows=1)
    batches = stage.next_batches(None, 0, 16)
    assert cut_further(stage, None, batches, (0, 16), Ranks(), has_failed=False) == batches


def test_processes_that_share_one_model_are_told_why_they_cannot_repeat_a_step() -> None:
    refuse_sharded("ddp", 3, "sft")
    with pytest.raises(UserError, match=r"fsdp .* lower sft\.micro_batch_rows"):
        refuse_sharded("fsdp", 3, "sft")


def test_other_errors_are_not_taken_for_missing_memory() -> None:
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert is_out_of_memory(
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")
    )
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))

    def wrong() -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        unless_out_of_memory(wrong)


def test_routers_forget_the_tokens_of_a_failed_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import test_loop

    mixture = replace(test_loop.SHAPE, n_experts=4, n_active_experts=2, router_aux_loss=0.01)
    monkeypatch.setattr(test_loop, "SHAPE", mixture)
    counted: list[list[int]] = []
    update = loop.moe.update_routers

    def watch(model: Transformer, sum_counts: Any) -> dict[str, float]:
        counted.append([int(layer.counts.sum()) for layer in moe_layers(model)])
        return update(model, sum_counts)

    monkeypatch.setattr(loop.moe, "update_routers", watch)
    train(tmp_path, SmallMemory(fits=2), config(n_steps=2))
    assert counted == [[N_ROWS * 16 * 2] * 2] * 2


class Neighbour:
    """One of two processes, played by threads: a flag of either is seen by both."""

    world = 2

    def __init__(self, meeting: threading.Barrier, flags: list[bool]) -> None:
        self.meeting, self.flags = meeting, flags

    def agree(self, flag: bool) -> bool:
        self.flags.append(flag)
        self.meeting.wait(10)
        return any(self.flags)


@pytest.mark.parametrize(
    ("first_rows", "outcomes"), [(4, [2, 2]), (1, [UserError, UserError])], ids=["both cut", "both end"]
)
def test_processes_cut_or_end_together_though_memory_ran_out_on_one(
    first_rows: int, outcomes: list[Any]
) -> None:
    meeting, flags, found = threading.Barrier(2), [], {}

    def process(rank: int) -> None:
        stage = SmallMemory(fits=1, micro_rows=first_rows if rank == 0 else 4)
        batches = stage.next_batches(None, 0, 16)
        ranks: Any = Neighbour(meeting, flags)
        try:
            cut = cut_further(stage, None, batches, (0, 16), ranks, has_failed=rank == 0)
            found[rank] = max(batch.n_rows for batch in cut)
        except UserError:
            found[rank] = UserError

    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [found[0], found[1]] == outcomes
