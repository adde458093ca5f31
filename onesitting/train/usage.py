"""How much memory this process has used."""

import sys

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory in bytes so far: on the GPU if `device` is one, else resident in this process; 0: not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB, macOS bytes
