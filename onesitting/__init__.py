"""onesitting: a GPT, from raw text to a model you can chat with, in one sitting."""

import os

__version__ = "0.1.0"

# Threads that share an operation wait for each other thousands of times a step, and PyTorch's (libgomp) turn in circles
# 300,000 times before they sleep. Where another program has a core, that keeps the one waited for from running: down to
# a fortieth of the speed. 10,000 turns lose nothing on a quiet machine (docs/devices.md). Read when libgomp is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
