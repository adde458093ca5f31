"""How much memory this process has used, and how long it has compiled."""

import contextlib
import sys

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None


COUNTING = ("cuda", "xpu")
"""Devices whose memory PyTorch counts; for others the process's own stands in."""


def reset_peak_memory(device: torch.device) -> None:
    """Count the highest memory from here on, where PyTorch counts it; a process's own peak cannot be reset."""
    if device.type in COUNTING:
        with contextlib.suppress(RuntimeError):  # a device that has not been used yet
            torch.get_device_module(device).reset_peak_memory_stats()


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory in bytes since the last reset on a GPU, else ever resident in this process; 0: not known."""
    if device.type in COUNTING:
        return torch.get_device_module(device).max_memory_allocated()
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB, macOS bytes


def compile_seconds() -> float:
    """Seconds that torch.compile has worked in this process so far, by its own account; 0.0: nothing was compiled."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is None:
        return 0.0
    # Wall time of whole frames, forward and backward; within PyTorch, and so not promised to stay.
    count = getattr(dynamo, "calculate_time_spent", dict[str, float])
    return float(count().get("total_wall_time", 0.0))
