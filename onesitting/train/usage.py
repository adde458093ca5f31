"""How much memory this process has used."""

import resource
import sys

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory in bytes so far: on the GPU if `device` is one, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB, macOS bytes
