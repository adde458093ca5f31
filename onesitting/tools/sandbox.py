"""Programs in a process of their own, with limits of time, memory and output.

The parent keeps the clock and kills; no POSIX timer signal is used, so it works in any thread and on any system.
Memory is limited by the operating system where Python's `resource` exists. This guards against accidents (endless
loops, floods of output, runaway memory), not against an attacker: for hostile code run everything in a container.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import IO, Literal


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a process may use."""

    seconds: float = 5.0
    """Wall-clock time, starting Python (about 0.05 s) included."""
    memory_mb: int = 512
    """Megabytes of address space, on systems that can limit it."""
    output_chars: int = 4000
    """Characters of a result; a longer one is cut, a process that writes far more is ended."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    status: Literal["ok", "failed", "timeout", "output"]
    """ok: exit code 0; failed: another one; timeout and output: ended because it went over a limit."""
    output: str
    """What it wrote to stdout."""
    errors: str
    """What it wrote to stderr."""


# Runs before the program, in its process: limits that a system without `resource` (Windows) does not have.
_PREAMBLE = """
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
"""


def run_python(program: str, *, limits: Limits | None = None, stdin: str = "") -> Outcome:
    """Run a Python program in an empty folder of its own, with no environment and no site packages.

    Its children are ended with it, where the system has process groups.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="onesitting-") as folder:
        source = os.path.join(folder, "program.py")
        with open(source, "w", encoding="utf-8") as file:
            file.write(program)
        starter = preamble(limits) + f"import runpy; runpy.run_path({source!r}, run_name='__main__')"
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", starter],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", **_needed_environment()},
            start_new_session=True,
        )
        return _watch(process, stdin, limits)


def preamble(limits: Limits) -> str:
    """Python source that sets the limits of its own process."""
    return _PREAMBLE.format(memory=limits.memory_mb * 1024 * 1024)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started with start_new_session=True, and its children, at once."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _needed_environment() -> dict[str, str]:
    """Windows programs do not start without these."""
    return {name: os.environ[name] for name in ("SYSTEMROOT", "TEMP") if name in os.environ}


def _watch(process: subprocess.Popen[bytes], stdin: str, limits: Limits) -> Outcome:
    """Feed the process, read at most the limit of its output, and end it when a limit is reached."""
    assert process.stdout is not None
    assert process.stderr is not None
    flooded = threading.Event()
    texts: dict[str, bytes] = {}
    most = 4 * limits.output_chars  # a character of UTF-8 has at most 4 bytes

    def read(name: str, stream: IO[bytes]) -> None:
        texts[name] = stream.read(most)
        if stream.read(1):
            flooded.set()
            kill(process)

    streams = {"output": process.stdout, "errors": process.stderr}
    readers = [threading.Thread(target=read, args=item, daemon=True) for item in streams.items()]
    readers.append(threading.Thread(target=_feed, args=(process, stdin), daemon=True))
    for reader in readers:
        reader.start()
    timed_out = False
    try:
        process.wait(limits.seconds)
    except subprocess.TimeoutExpired:
        timed_out = True
    kill(process)  # what it left running holds the pipes open
    for reader in readers:
        reader.join(1.0)
    decoded = {
        name: texts.get(name, b"").decode("utf-8", "replace")[: limits.output_chars] for name in streams
    }
    status = (
        "timeout" if timed_out else "output" if flooded.is_set() else "failed" if process.returncode else "ok"
    )
    return Outcome(status, decoded["output"], decoded["errors"])


def _feed(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(text.encode())
        process.stdin.close()
    except OSError:  # the program ended without reading
        pass
