"""What this machine has, as a table. Looking only; device.py decides what follows from it."""

import os
import platform
import shutil
import sysconfig
import time
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

MAX_ISA = "ONEDNN_MAX_CPU_ISA"
"""Environment variable that keeps oneDNN, which multiplies matrices on a processor, to older instructions."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A machine as a table. The defaults are a processor without any extras."""

    accelerator: str = ""
    """`cuda`, `rocm`, `mps`, `xpu`, or empty."""
    name: str = ""
    """Accelerator's name."""
    capability: tuple[int, int] = (0, 0)
    """CUDA compute capability: (7, 0) Volta, (7, 5) Turing, (8, 0) Ampere, (8, 9) Ada, (9, 0) Hopper."""
    arch: str = ""
    """ROCm architecture: gfx90a, gfx942, gfx1100."""
    kernels: tuple[str, ...] = ()
    """What this build of PyTorch holds code for: sm_75, compute_90, gfx90a; empty: not known."""
    n_devices: int = 0
    """Accelerators on this machine."""
    memory_bytes: int = 0
    """Memory of one accelerator."""
    cpu_name: str = "processor"
    """Processor's name."""
    cpu_flags: frozenset[str] = frozenset()
    """Instruction sets that matter here: avx512_bf16, amx_bf16, bf16 (ARM)."""
    cpu_bf16_speed: float = 0.0
    """Speed of the processor's bfloat16 products, in those of float32; 0: not measured."""
    cores: int = 1
    """Cores that this process may use."""
    ram_bytes: int = 8 * 2**30
    """Main memory that this process may use."""
    compiler: str = ""
    """Path of a C++ compiler; empty: none."""
    python_headers: bool = False
    """Whether Python.h is there; compiled processor code includes it."""
    triton: bool = False
    """Whether Triton, which compiles for GPUs, is installed."""

    def lacks_kernels(self) -> str:
        """Why this build of PyTorch cannot compute on the accelerator; empty if it can, or if that is not known.

        Code for sm_XY runs on cards of the same generation X from XY on; compute_XY is compiled by the driver for
        any later one; a letter at the end (sm_90a) means that one card alone.
        Source: CUDA C++ programming guide, "binary compatibility" and "PTX compatibility".
        """
        if self.accelerator == "rocm":
            fits = any(self.arch == name.split(":")[0] for name in self.kernels)
            mine = self.arch
        else:
            fits = any(_runs_on(name, self.capability) for name in self.kernels)
            mine = f"compute capability {'.'.join(map(str, self.capability))}"
        if not self.kernels or fits:
            return ""
        version = torch.version.hip or torch.version.cuda or ""
        older = self.accelerator == "cuda" and self.capability < (7, 5)
        advice = "a build for CUDA 12.6 has them" if older else "a newer or an older build may have them"
        return (
            f"this PyTorch ({torch.__version__}{f', {version}' if version else ''}) has no kernels for {self.name} "
            f"({mine}), only for {', '.join(self.kernels)}; {advice} (https://pytorch.org/get-started)"
        )


def _runs_on(name: str, capability: tuple[int, int]) -> bool:
    """Whether code named sm_XY or compute_XY runs on a card of this compute capability."""
    kind, _, number = name.partition("_")
    if not number.isdigit():  # sm_90a
        return kind == "sm" and number[:-1] == "".join(map(str, capability))
    version = int(number[:-1]), int(number[-1])
    if kind == "compute":
        return version <= capability
    return version[0] == capability[0] and version[1] <= capability[1]


@cache
def detect() -> Hardware:
    """This machine. Looks once a process."""
    cpu_flags = _cpu_flags()
    # Matrix tiles (AMX) are many times faster, and a product would keep a server from leaving them out.
    may_be_slow = cpu_flags and "amx_bf16" not in cpu_flags
    return Hardware(
        **_accelerator(),
        cpu_name=_cpu_name(),
        cpu_flags=cpu_flags,
        cpu_bf16_speed=measure_cpu_bf16() if may_be_slow else 0.0,
        cores=_cores(),
        ram_bytes=_ram_bytes(),
        compiler=next(
            (found for name in ("g++", "clang++", "c++", "cl") if (found := shutil.which(name))), ""
        ),
        python_headers=(Path(sysconfig.get_paths()["include"]) / "Python.h").is_file(),
        triton=find_spec("triton") is not None,
    )


def _accelerator() -> dict[str, Any]:
    """Fields of Hardware that tell of the first accelerator PyTorch can use."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return {
            "accelerator": "rocm" if torch.version.hip else "cuda",
            "name": properties.name,
            "capability": (properties.major, properties.minor),
            "arch": getattr(properties, "gcnArchName", "").split(":")[0] if torch.version.hip else "",
            "kernels": tuple(torch.cuda.get_arch_list()),
            "n_devices": torch.cuda.device_count(),
            "memory_bytes": properties.total_memory,
        }
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        properties = torch.xpu.get_device_properties(0)
        return {
            "accelerator": "xpu",
            "name": properties.name,
            "n_devices": torch.xpu.device_count(),
            "memory_bytes": properties.total_memory,
        }
    if torch.backends.mps.is_available():
        return {"accelerator": "mps", "name": f"Apple GPU ({platform.processor()})", "n_devices": 1}
    return {}


def _proc_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _cpu_name() -> str:
    for line in _proc_lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "processor"


def _cpu_flags() -> frozenset[str]:
    """Names as Linux lists them, without tiles that MAX_ISA forbids.

    Other systems report none and get float32, which is always right.
    """
    isa = (os.environ.get(MAX_ISA) or "DEFAULT").upper()
    used = {"avx512_bf16", "bf16"}
    if isa in ("ALL", "DEFAULT") or "AMX" in isa:
        used.add("amx_bf16")
    for line in _proc_lines("/proc/cpuinfo"):
        if line.startswith(("flags", "Features")):  # x86, ARM
            return frozenset(used.intersection(line.split(":", 1)[1].split()))
    return frozenset()


def measure_cpu_bf16(size: int = 512, repeats: int = 5) -> float:
    """Speed of a bfloat16 product of two (size, size) matrices on the processor, in that of a float32 one.

    Having the instructions does not say: AVX-512 has twice as many multiplications in bfloat16 on Zen 4, and half as
    many on Xeons whose tiles the host hides (docs/devices.md). The fastest of `repeats`, in turns, after one that
    does not count; 20 ms.
    """
    factor = torch.ones(size, size)
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(1 + repeats):
        for dtype, times in seconds.items():
            matrix = factor.to(dtype)
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            times.append(time.perf_counter() - start)
    return min(seconds[torch.float32][1:]) / min(seconds[torch.bfloat16][1:])


def _cores() -> int:
    """Cores that this process may use: affinity, container quota and OMP_NUM_THREADS respected."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = " ".join(_proc_lines("/sys/fs/cgroup/cpu.max")).split()  # "200000 100000": 2 cores
    if len(quota) == 2 and quota[0] != "max":
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    # torchrun sets it to 1 for several processes, where nobody asked: the cores are then shared out by the plan.
    if asked.isdigit() and int(asked) > 0 and "TORCHELASTIC_RUN_ID" not in os.environ:
        cores = min(cores, int(asked))
    return cores


def _ram_bytes() -> int:
    """Main memory, or the container's limit where that is lower."""
    limits = [line for line in _proc_lines("/sys/fs/cgroup/memory.max") if line.isdigit()]
    totals = [
        int(line.split()[1]) * 1024 for line in _proc_lines("/proc/meminfo") if line.startswith("MemTotal")
    ]
    return min([*totals, *map(int, limits)], default=8 * 2**30)
