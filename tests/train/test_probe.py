"""Measuring how many rows fit: the arithmetic with made-up readings, and a model that notices nothing."""

from dataclasses import replace

import pytest
import torch

from onesitting.config import DeviceConfig, ModelConfig
from onesitting.model.moe import moe_layers
from onesitting.model.transformer import Transformer
from onesitting.train.device import GPU_MICRO_BATCH_TOKENS, DevicePlan, detect, plan_device
from onesitting.train.hardware import Hardware
from onesitting.train.probe import Readings, measured_plan

SHAPE = ModelConfig(
    n_layers=2, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=64, vocab_size=64, context_length=16,
    n_experts=4, n_active_experts=2, router_aux_loss=0.01,
)  # fmt: skip
GB = 10**9


class FakeMeter:
    """A card with `free_gb` left on which a pass of n rows peaks at 1.5 + 0.5 n GB, the first one higher."""

    def __init__(self, free_gb: float = 8.0, row_gb: float = 0.5) -> None:
        self.free_gb, self.row_gb, self.n_passes = free_gb, row_gb, 0

    def held(self) -> int:
        return GB

    def free(self) -> int:
        return int(self.free_gb * GB)

    def reset(self) -> None:
        self.n_passes += 1

    def peak(self) -> int:
        n_rows = (3, 1, 2)[self.n_passes - 1]
        return int((1.5 + self.row_gb * n_rows) * GB)


@pytest.fixture
def plan() -> DevicePlan:
    return replace(plan_device(DeviceConfig(device="cpu", dtype="float32"), detect()), measures_memory=True)


@pytest.mark.parametrize(
    ("free", "later", "rows"),
    [(10, 0, 17), (10, 4, 9), (1, 0, 1), (0, 0, 1), (80, 1, 141)],  # (0.9 free - 0.5 - later) / 0.5
)
def test_rows_are_what_the_free_memory_holds_beyond_what_is_fixed(free, later, rows):
    found = Readings(held=GB, free=free * GB, peak_1=2 * GB, peak_2=int(2.5 * GB), later=later * GB)
    assert (found.row_bytes, found.fixed_bytes) == (GB // 2, GB // 2 + later * GB)
    assert found.rows() == rows


def test_a_second_row_that_takes_nothing_tells_nothing():
    with pytest.raises(ValueError, match="took 0 bytes"):
        Readings(held=1, free=100, peak_1=5, peak_2=5).rows()


def test_the_measured_rows_become_the_micro_batch_and_the_reason_is_kept(plan):
    found = measured_plan(Transformer(SHAPE, seed=0), plan, 16, FakeMeter())
    assert found.micro_batch_rows(16) == 13  # (7.2 - 0.5) / 0.5, the optimizer's state being small
    assert "0.500 GB a row of 16 tokens, of 8.0 GB free: 13 rows fit" in found.reasons[-1]
    large = measured_plan(Transformer(SHAPE, seed=0), plan, 16, FakeMeter(row_gb=1e-6))
    assert large.micro_batch_tokens == GPU_MICRO_BATCH_TOKENS
    small = measured_plan(Transformer(SHAPE, seed=0), plan, 16, FakeMeter(free_gb=0.1))
    assert small.micro_batch_rows(16) == 1


@pytest.mark.parametrize("works", [True, False])
def test_measuring_leaves_model_gradients_and_random_numbers_untouched(plan, works):
    model = Transformer(SHAPE, seed=0).eval()
    model.model.norm.weight.grad = torch.full((32,), 7.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    meter = FakeMeter()
    if not works:

        def fail() -> int:
            raise torch.OutOfMemoryError("CUDA out of memory.\nMore")

        meter.peak = fail
    found = measured_plan(model, plan, 16, meter)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert list(grads) == ["model.norm.weight"]
    assert grads["model.norm.weight"].eq(7.0).all()
    assert not model.training
    assert all(layer.counts is None and layer.probability_sum is None for layer in moe_layers(model))
    if not works:
        assert found == replace(plan, reasons=found.reasons)
        assert found.reasons[-1].endswith("the measurement failed: CUDA out of memory.")


def test_only_devices_that_tell_their_memory_are_measured():
    model, meter = Transformer(SHAPE, seed=0), FakeMeter()
    cpu = plan_device(DeviceConfig(), Hardware())
    assert measured_plan(model, cpu, 16, meter) == cpu
    assert meter.n_passes == 0
    kinds = {"cuda": True, "rocm": True, "xpu": False, "mps": False}
    for kind, measures in kinds.items():
        card = Hardware(accelerator=kind, name="GPU", capability=(8, 0), arch="gfx942", memory_bytes=8 * GB)
        assert plan_device(DeviceConfig(), card).measures_memory == measures, kind
