"""The type of the `cli` fixture; in a module of its own because several folders have a conftest."""

import subprocess
from collections.abc import Callable

Cli = Callable[..., subprocess.CompletedProcess[str]]
