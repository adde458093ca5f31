"""How much memory this process has used."""

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
