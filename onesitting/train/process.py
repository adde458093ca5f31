"""What a process is told before its first step: what to do with freed memory, which instructions to leave alone."""

import ctypes
import os

from onesitting.train.hardware import MAX_ISA, Hardware, detect

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3), from glibc's malloc.h."""
TILELESS_ISA = "AVX512_CORE_BF16"
"""oneDNN's name of the instructions below AMX."""


def keep_freed_memory() -> bool:
    """Keep the memory of freed tensors for the next ones; whether this C library (glibc) can be told so.

    By default glibc gives memory back to the system whenever much of it is free, and large blocks at once, so each
    step takes all its activations from the system anew: 11,000 to 18,000 page faults in a step of the demo, a fifth
    of its time on one core (docs/log.md). What is in use at the most stays the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    is_set = any(mallopt(M_MMAP_THRESHOLD, size) for size in (2**30, 2**25))  # older ones take 32 MB at most
    return is_set and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def leave_tiles_out() -> Hardware:
    """This machine without its matrix tiles (AMX), if it has any; to be called before the process's first product.

    With them, how oneDNN cuts a bfloat16 sum of 512 and more terms depends on the number of rows, so a text's bits
    would depend on its company (docs/engine.md). ONEDNN_MAX_CPU_ISA, where it is set, is left as it is.
    """
    if "amx_bf16" in detect().cpu_flags and MAX_ISA not in os.environ:
        os.environ[MAX_ISA] = TILELESS_ISA
        detect.cache_clear()
    return detect()
