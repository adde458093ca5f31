"""`python -m onesitting …`, also under torchrun."""

import os
import sys

from onesitting.cli import main

code = main()
if int(os.environ.get("WORLD_SIZE", "1")) > 1:
    # Threads of process groups that are still referred to (FSDP's) may abort Python's own shutdown: seen once in CI,
    # after all work was done, and torchrun then calls the run failed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
