"""`python -m onesitting …`, also under torchrun."""

import sys

from onesitting.cli import main

sys.exit(main())
