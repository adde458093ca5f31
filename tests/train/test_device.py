"""The device matrix: machines that are not here, as tables; and what the plan does on this one."""

import os
import platform
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from onesitting.config import DeviceConfig, ModelConfig, OptimConfig
from onesitting.errors import UserError
from onesitting.recipe import load_recipe, resolve
from onesitting.train import device as device_module
from onesitting.train import hardware as hardware_module
from onesitting.train import usage
from onesitting.train.device import DevicePlan, compile_model, even_rows, fast_dtype, plan_device
from onesitting.train.hardware import Hardware, detect, measure_cpu_bf16
from onesitting.train.optim import build_optimizer
from onesitting.train.process import leave_tiles_out
from onesitting.train.scaler import LossScaler

OLD_CPU = Hardware(cpu_name="old", cores=4, compiler="/usr/bin/g++", python_headers=True)
AVX512_BF16 = replace(OLD_CPU, cpu_flags=frozenset({"avx512_bf16"}))
AMX = replace(OLD_CPU, cpu_flags=frozenset({"avx512_bf16", "amx_bf16"}))
ARM_BF16 = replace(OLD_CPU, cpu_flags=frozenset({"bf16"}))


def cuda(capability):
    return Hardware(
        accelerator="cuda",
        name="GPU",
        capability=capability,
        n_devices=1,
        memory_bytes=16 * 2**30,
        triton=True,
    )


def rocm(arch):
    return Hardware(
        accelerator="rocm", name="GPU", arch=arch, n_devices=1, memory_bytes=16 * 2**30, triton=True
    )


XPU = Hardware(accelerator="xpu", name="Arc", n_devices=1, memory_bytes=16 * 2**30, triton=True)
MPS = Hardware(accelerator="mps", name="Apple GPU", n_devices=1)

TABLE = {  # machine: (hardware, device, dtype, scaler, compiled)
    "processor without 16 bits": (OLD_CPU, "cpu", "float32", False, False),
    "processor with AVX-512 BF16": (AVX512_BF16, "cpu", "bfloat16", False, False),
    "the same, measured": (replace(AVX512_BF16, cpu_bf16_speed=1.9), "cpu", "bfloat16", False, False),
    "Xeon without its tiles": (replace(AVX512_BF16, cpu_bf16_speed=0.53), "cpu", "float32", False, False),
    "processor with AMX": (AMX, "cpu", "bfloat16", False, False),
    "ARM processor with BF16": (ARM_BF16, "cpu", "bfloat16", False, False),
    "Pascal": (cuda((6, 1)), "cuda", "float32", False, False),
    "Volta": (cuda((7, 0)), "cuda", "float16", True, True),
    "Turing": (cuda((7, 5)), "cuda", "float16", True, True),
    "Ampere": (cuda((8, 0)), "cuda", "bfloat16", False, True),
    "Ada": (cuda((8, 9)), "cuda", "bfloat16", False, True),
    "Hopper": (cuda((9, 0)), "cuda", "bfloat16", False, True),
    "Ampere without Triton": (replace(cuda((8, 0)), triton=False), "cuda", "bfloat16", False, False),
    "CDNA 2": (rocm("gfx90a"), "cuda", "bfloat16", False, True),
    "CDNA 3": (rocm("gfx942"), "cuda", "bfloat16", False, True),
    "RDNA 3": (rocm("gfx1100"), "cuda", "bfloat16", False, True),
    "RDNA 2": (rocm("gfx1030"), "cuda", "float16", True, True),
    "Apple": (MPS, "mps", "float32", False, False),
    "Intel GPU": (XPU, "xpu", "bfloat16", False, True),
}


@pytest.mark.parametrize("machine", TABLE)
def test_each_machine_gets_the_fastest_type_that_trains_well(machine):
    hardware, device, dtype, scaler, compiled = TABLE[machine]
    plan = plan_device(DeviceConfig(), hardware)
    assert (plan.device, plan.dtype, plan.use_scaler, plan.compile) == (device, dtype, scaler, compiled)
    assert plan.torch_device.type == device
    assert any(dtype in reason for reason in plan.reasons)
    assert plan.compile_reason


@pytest.mark.parametrize("machine", TABLE)
def test_the_processor_can_be_asked_for_on_every_machine(machine):
    plan = plan_device(DeviceConfig(device="cpu"), TABLE[machine][0])
    assert plan.device == "cpu"
    assert plan.dtype in ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("asked", "hardware"),
    [("cuda", OLD_CPU), ("mps", cuda((8, 0))), ("xpu", MPS), ("cuda:1", OLD_CPU), ("tpu", OLD_CPU)],
)
def test_a_device_that_is_not_here_is_refused_with_the_one_that_is(asked, hardware):
    with pytest.raises(UserError, match=r"device\.device") as refused:
        plan_device(DeviceConfig(device=asked), hardware)
    assert repr(asked) in str(refused.value)
    assert (hardware.accelerator or "only a processor") in str(refused.value)


def test_a_system_that_tells_no_peak_of_memory_is_no_fault(monkeypatch: pytest.MonkeyPatch):
    device = torch.device("cpu")
    assert usage.peak_memory_bytes(device) > 1e6
    monkeypatch.setattr(usage, "resource", None)  # Windows has none
    assert usage.peak_memory_bytes(device) == 0


CUDA_13 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
CUDA_12_6 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")


@pytest.mark.parametrize(
    ("capability", "kernels", "works"),
    [
        ((7, 0), CUDA_13, False),  # V100
        ((6, 1), CUDA_13, False),  # Pascal
        ((7, 0), CUDA_12_6, True),
        ((6, 1), CUDA_12_6, True),  # by the code of 6.0
        ((7, 5), CUDA_13, True),
        ((8, 9), CUDA_13, True),  # by the code of 8.6
        ((12, 0), CUDA_12_6, False),
        ((12, 1), CUDA_13, True),
        ((13, 0), CUDA_13, True),  # by the driver's compiler
        ((9, 0), ("sm_90a",), True),
        ((10, 0), ("sm_90a",), False),
        ((7, 0), (), True),  # not known: tried
    ],
)
def test_a_card_without_kernels_in_this_build_is_left_out_with_the_reason(capability, kernels, works):
    hardware = replace(cuda(capability), name="Card", kernels=kernels)
    plan = plan_device(DeviceConfig(), hardware)
    assert plan.device == ("cuda" if works else "cpu")
    if not works:
        assert "has no kernels for Card" in plan.reasons[0]
        with pytest.raises(UserError, match=r"no kernels for Card .* device\.device=cpu"):
            plan_device(DeviceConfig(device="cuda"), hardware)
        assert plan_device(DeviceConfig(device="cpu"), hardware).device == "cpu"
    old = capability < (7, 5) and not works
    assert ("CUDA 12.6" in hardware.lacks_kernels()) == old


def test_kernels_of_rocm_are_those_of_the_very_card():
    built = ("gfx90a:xnack-", "gfx942", "gfx1100")
    assert plan_device(DeviceConfig(), replace(rocm("gfx942"), kernels=built)).device == "cuda"
    assert plan_device(DeviceConfig(), replace(rocm("gfx90a"), kernels=built)).device == "cuda"
    assert plan_device(DeviceConfig(), replace(rocm("gfx1030"), kernels=built)).device == "cpu"


@pytest.mark.parametrize(
    ("hardware", "dtype", "tf32"),
    [
        (cuda((8, 6)), "float32", True),
        (cuda((8, 6)), "auto", False),
        (cuda((7, 5)), "float32", False),
        (OLD_CPU, "float32", False),
        (rocm("gfx942"), "float32", False),
    ],
)
def test_float32_on_ampere_and_later_uses_its_tensor_cores(monkeypatch, hardware, dtype, tf32):
    plan, asked = plan_device(DeviceConfig(dtype=dtype), hardware), []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    plan.apply()
    assert asked == (["high"] if tf32 else [])
    assert ("TensorFloat-32" in plan.reasons[0]) == tf32


def test_the_compilers_own_seconds_are_counted():
    before, began = usage.compile_seconds(), time.perf_counter()
    torch.compile(lambda x: x.sin() + 1, backend="eager")(torch.zeros(3))
    assert 0 < usage.compile_seconds() - before <= time.perf_counter() - began


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_the_peak_of_a_gpus_memory_is_counted_anew_for_each_stage(monkeypatch, kind):
    counter = SimpleNamespace(peak=5)
    module = SimpleNamespace(
        max_memory_allocated=lambda: counter.peak, reset_peak_memory_stats=lambda: setattr(counter, "peak", 0)
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert usage.peak_memory_bytes(torch.device(kind)) == 5
    usage.reset_peak_memory(torch.device(kind))
    assert usage.peak_memory_bytes(torch.device(kind)) == 0
    counter.peak = 7
    usage.reset_peak_memory(torch.device("cpu"))
    assert counter.peak == 7, "a processor's is not asked"


def test_one_of_several_cards_is_chosen_from_outside():
    with pytest.raises(UserError, match=r"set CUDA_VISIBLE_DEVICES=1 and device\.device=cuda"):
        plan_device(DeviceConfig(device="cuda:1"), cuda((8, 0)))
    assert plan_device(DeviceConfig(device="cuda:0"), cuda((8, 0))).device == "cuda"


def test_rocm_answers_to_cuda_as_it_does_in_pytorch():
    assert plan_device(DeviceConfig(device="cuda"), rocm("gfx942")).device == "cuda"


def test_float16_on_a_processor_is_never_chosen_but_done_when_asked_for():
    for hardware in (OLD_CPU, AVX512_BF16):
        plan = plan_device(DeviceConfig(dtype="float16"), hardware)
        assert (plan.dtype, plan.use_scaler) == ("float16", True)
        assert "hundreds of times slower" in plan.reasons[0]


def test_a_type_asked_for_is_taken_and_the_better_one_named():
    plan = plan_device(DeviceConfig(dtype="float32"), cuda((9, 0)))
    assert plan.dtype == "float32"
    assert "auto would take bfloat16" in plan.reasons[0]


@pytest.mark.parametrize(
    ("hardware", "missing"),
    [
        (replace(OLD_CPU, compiler=""), "C++ compiler"),
        (replace(OLD_CPU, python_headers=False), "headers"),
        (replace(cuda((8, 0)), triton=False), "Triton"),
        (cuda((6, 1)), "7.0"),
    ],
)
def test_compiling_what_cannot_be_compiled_is_refused_with_what_is_missing(hardware, missing):
    with pytest.raises(UserError, match=r"device\.compile") as refused:
        plan_device(DeviceConfig(compile="on"), hardware)
    assert missing in str(refused.value)
    plan = plan_device(DeviceConfig(), hardware)
    assert not plan.compile
    assert missing in plan.compile_reason


def test_compiling_can_be_asked_for_and_forbidden():
    assert plan_device(DeviceConfig(compile="on"), OLD_CPU).compile
    assert not plan_device(DeviceConfig(compile="off"), cuda((9, 0))).compile


def test_processes_of_one_machine_share_its_cores():
    place = SimpleNamespace(local_world=2)
    assert plan_device(DeviceConfig(), OLD_CPU).threads == 4
    assert plan_device(DeviceConfig(), OLD_CPU, place).threads == 2
    assert plan_device(DeviceConfig(threads=3), OLD_CPU, place).threads == 3


def test_micro_batch_shrinks_with_the_models_appetite_and_never_below_one_row():
    plan = plan_device(DeviceConfig(), cuda((8, 0)))
    small = plan.for_model(ModelConfig(vocab_size=2048))
    large = plan.for_model(
        ModelConfig(vocab_size=150_000, n_layers=48, d_model=4096, d_ff=16_384, n_heads=32)
    )
    assert large.micro_batch_tokens < small.micro_batch_tokens <= plan.micro_batch_tokens
    assert large.micro_batch_rows(10**6) == 1
    assert small.micro_batch_rows(256) == small.micro_batch_tokens // 256
    assert small.micro_batch_rows(256, 7) == 7


def test_micro_batches_of_a_step_have_one_shape():
    plan = plan_device(DeviceConfig(), replace(cuda((8, 6)), memory_bytes=8 * 2**30))
    recipe = resolve(load_recipe("104m"), {})
    plan = plan.for_model(replace(recipe.model, vocab_size=8192))
    fits = plan.micro_batch_tokens // 1024
    assert 64 % fits, "else this test shows nothing"
    rows = plan.micro_batch_rows(1024, n_rows=64)
    assert (rows <= fits, 64 % rows) == (True, 0)
    assert plan.micro_batch_rows(1024, given=7, n_rows=64) == 7, "what is asked for is done"


@pytest.mark.parametrize(
    ("n_rows", "most", "rows"),
    [(64, 7, 4), (64, 64, 64), (64, 100, 64), (12, 5, 4), (1, 8, 1), (31, 16, 16), (37, 3, 3), (30, 16, 15)],
)
def test_rows_are_cut_evenly_where_the_parts_do_not_get_much_smaller_by_it(n_rows, most, rows):
    assert even_rows(n_rows, most) == rows


def test_rows_of_pairs_stay_together():
    plan = replace(plan_device(DeviceConfig(), cuda((8, 0))), micro_batch_tokens=5 * 64)
    assert plan.micro_batch_rows(64, n_rows=12, together=2) == 4
    assert replace(plan, most_rows=2).micro_batch_rows(64, 8, n_rows=12, together=2) == 2


def test_this_machine_is_found():
    hardware = detect()
    assert hardware.cores >= 1
    assert hardware.ram_bytes > 2**28
    assert hardware.cpu_name
    assert plan_device(DeviceConfig(), hardware).describe()


# ---- the plan at work ----------------------------------------------------------------------------------------


def cpu_plan(dtype) -> DevicePlan:
    return plan_device(DeviceConfig(device="cpu", dtype=dtype), detect())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_products_run_in_the_plans_type_and_gradients_stay_float32(dtype):
    plan = cpu_plan(dtype)
    layer, x = nn.Linear(8, 8), torch.ones(2, 8)
    with plan.autocast():
        y = layer(x)
    assert y.dtype == getattr(torch, dtype)
    y.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert (plan.make_scaler() is not None) == (dtype == "float16")


def train_step(layer, optimizer, x, target, scaler, context):
    with context:
        loss = (layer(x).float() - target).square().mean()
    (loss * (scaler.scale if scaler else 1.0)).backward()
    if scaler:
        scaler.unscale(optimizer)
    norm = optimizer.clip(1.0)
    overflow = not bool(torch.isfinite(norm))
    if not overflow:
        optimizer.step(1.0)
    optimizer.zero_grad()
    if scaler:
        scaler.update(overflow)
    return loss.item()


def test_float16_with_the_scaler_follows_float32_on_a_processor():
    results = {}
    for dtype in ("float32", "float16"):
        torch.manual_seed(0)
        plan = cpu_plan(dtype)
        layer = nn.Linear(8, 4)
        optimizer = build_optimizer(layer, OptimConfig())
        scaler = plan.make_scaler()
        x, target = torch.randn(16, 8), torch.randn(16, 4)
        results[dtype] = [train_step(layer, optimizer, x, target, scaler, plan.autocast()) for _ in range(20)]
    assert results["float16"] == pytest.approx(results["float32"], rel=0.02)
    assert results["float32"][-1] < results["float32"][0]


def test_the_scaler_rescues_gradients_that_float16_would_lose():
    """A gradient of 1e-6 per entry, squared through a float16 layer, is below float16's smallest number."""
    x = torch.full((1, 4), 1e-4)
    gradients = {}
    for scale in (1.0, 2.0**16):
        layer = nn.Linear(4, 4, bias=False)
        nn.init.constant_(layer.weight, 1e-3)
        with torch.autocast("cpu", dtype=torch.float16):
            y = layer(x)
        (y.float().sum() * 1e-5 * scale).backward()
        gradients[scale] = layer.weight.grad / scale
    assert gradients[1.0].abs().max() == 0
    torch.testing.assert_close(gradients[2.0**16], torch.full((4, 4), 1e-9), rtol=0.01, atol=0)


def test_a_gradient_that_is_not_finite_skips_the_step_and_halves_the_scale():
    layer = nn.Linear(4, 4)
    optimizer, scaler = build_optimizer(layer, OptimConfig()), LossScaler()
    before, scale = layer.weight.detach().clone(), scaler.scale
    huge = torch.full((1, 4), 3e38)
    train_step(layer, optimizer, huge, torch.zeros(1, 4), scaler, nullcontext())
    assert torch.equal(layer.weight, before)
    assert optimizer.n_steps == 0
    assert scaler.scale == scale / 2


def test_the_scale_doubles_after_many_good_steps_and_survives_a_checkpoint():
    scaler = LossScaler()
    scale = scaler.scale
    for _ in range(scaler.GROWTH_STEPS - 1):
        scaler.update(False)
    restored = LossScaler()
    restored.load_state_dict(scaler.state_dict())
    restored.update(False)
    assert (scaler.scale, restored.scale) == (scale, scale * 2)


def test_at_scale_one_an_overflow_is_a_real_failure():
    scaler = LossScaler()
    explained = [scaler.update(True) for _ in range(17)]
    assert explained == [True] * 16 + [False]
    assert scaler.scale == 1.0


def test_cuda_graphs_are_for_those_who_ask_and_for_cards_that_have_them():
    asked = plan_device(DeviceConfig(cuda_graphs="on"), cuda((9, 0)))
    assert asked.graphs
    assert "CUDA graphs: as asked for" in asked.reasons
    assert asked.describe().endswith("CUDA graphs")
    quiet = plan_device(DeviceConfig(), cuda((9, 0)))
    assert not quiet.graphs
    assert any("no CUDA graphs: whether they pay" in reason for reason in quiet.reasons)
    assert not plan_device(DeviceConfig(cuda_graphs="off"), cuda((9, 0))).graphs
    assert not any("graphs" in reason for reason in plan_device(DeviceConfig(), OLD_CPU).reasons)
    with pytest.raises(UserError, match=r"device\.cuda_graphs = 'on': cpu has no CUDA graphs"):
        plan_device(DeviceConfig(cuda_graphs="on"), OLD_CPU)


def test_a_model_that_is_not_to_be_compiled_runs_eagerly_and_the_reason_is_given():
    plan = plan_device(DeviceConfig(compile="off"), detect())
    assert compile_model(nn.Linear(2, 2), plan) == "as asked for"


def test_a_failing_compiler_leaves_the_model_eager_and_says_why(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("linker not found\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    plan = replace(plan_device(DeviceConfig(device="cpu"), detect()), compile=True)
    model = nn.Linear(2, 2)
    assert compile_model(model, plan) == "torch.compile failed here: linker not found"
    assert model(torch.zeros(1, 2)).shape == (1, 2)


FAULTS = """
import resource, sys, torch
from onesitting.train.process import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for n in range(40):
    if n == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = torch.ones(2**24)
    del tensors  # 64 MB: its memory goes back to the system at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's malloc")
def test_freed_memory_is_used_again_without_asking_the_system():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how], env=environment, text=True))
        for how in ("keep", "return")
    }
    assert faults["keep"] < 1000 < 10_000 < faults["return"]  # 20 times 16384 pages


@pytest.mark.parametrize(
    ("hardware", "kind", "dtype"),
    [
        (cuda((9, 0)), "cuda", torch.bfloat16),
        (cuda((7, 5)), "cuda", torch.float16),
        (rocm("gfx1030"), "cuda", torch.float16),
        (cuda((6, 1)), "cuda", torch.float32),
        (cuda((7, 5)), "cpu", torch.float32),
        (MPS, "mps", torch.float32),
    ],
)
def test_the_optimizer_multiplies_in_the_devices_fastest_type(monkeypatch, hardware, kind, dtype):
    monkeypatch.setattr(device_module, "detect", lambda: hardware)
    assert fast_dtype(torch.device(kind)) == dtype


@pytest.mark.parametrize(
    ("flags", "given", "left", "expected"),
    [
        ("avx512_bf16 amx_bf16 avx2", None, {"avx512_bf16"}, "AVX512_CORE_BF16"),
        ("avx512_bf16 amx_bf16", "DEFAULT", {"avx512_bf16", "amx_bf16"}, "DEFAULT"),
        ("avx512_bf16 amx_bf16", "avx2", {"avx512_bf16"}, "avx2"),
        ("avx512_bf16", None, {"avx512_bf16"}, None),
    ],
)
def test_a_server_leaves_tiles_out_where_there_are_some(flags, given, left, expected, monkeypatch):
    name = hardware_module.MAX_ISA
    monkeypatch.setenv(name, given or "")  # so that it is put back
    if given is None:
        monkeypatch.delenv(name)
    read = hardware_module._proc_lines
    lines = {"/proc/cpuinfo": [f"flags\t: fpu {flags}"]}
    monkeypatch.setattr(hardware_module, "_proc_lines", lambda path: lines.get(path) or read(path))
    detect.cache_clear()
    try:
        hardware = leave_tiles_out()
    finally:
        detect.cache_clear()
    assert hardware.cpu_flags == left
    assert (hardware.cpu_bf16_speed > 0) == ("amx_bf16" not in left)  # a product now would be one with tiles
    assert os.environ.get(name) == expected


@pytest.mark.parametrize("slow", [torch.float32, torch.bfloat16])
def test_the_slower_type_of_a_processor_is_found(slow, monkeypatch):
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: time.sleep(0.02 * (a.dtype is slow)) or product(a, b))
    assert (measure_cpu_bf16(size=64) > 1) == (slow is torch.float32)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_threads_that_wait_soon_let_others_run(given, expected):
    """As PyTorch's own library of threads says it, which reads the environment once, when it is loaded."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-c", "import onesitting, torch"],
        env={**environment, **given, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if found is None:
        pytest.skip("PyTorch's threads are not libgomp's here")
    assert found[1] == expected
