"""A command and everything it starts: watched, timed, and ended as a whole.

Memory is that of the whole process tree: proportional set size where the kernel tells it (pages that several
processes share count once), resident set size elsewhere.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

POLL_S = 0.1
"""Seconds between two looks at a command's files and its clock."""
TERM_S = 5.0
"""Seconds that a command has to end by itself after SIGTERM, before SIGKILL."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    wall_s: float
    """From its start to its end."""
    exit_code: int
    """As the shell counts: minus the signal's number for one that was killed."""
    timed_out: bool
    """Whether it was ended because its time was up."""
    peak_memory_bytes: int


def descendants(pid: int) -> list[int]:
    """`pid` and all processes below it that are alive."""
    parents: dict[int, list[int]] = {}
    for child, parent, _ in _processes():
        parents.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:  # grows while it is read
        found += parents.get(one, [])
    return found


def tree_memory_bytes(pid: int) -> int:
    """Memory of a process and all below it, now; 0 once they are gone."""
    if not Path("/proc/self/stat").exists():
        resident = {one: size for one, _, size in _processes()}
        return sum(resident.get(one, 0) for one in descendants(pid))
    return sum(_proportional_bytes(one) for one in descendants(pid))


def _processes() -> list[tuple[int, int, int]]:
    """(pid, parent, resident bytes) of every process; bytes only where there is no /proc."""
    if Path("/proc/self/stat").exists():
        found: list[tuple[int, int, int]] = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError, IndexError, ValueError):  # gone in between
                    # The name in brackets may hold spaces and brackets itself; the parent is the 2nd field after it.
                    fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                    found.append((int(entry), int(fields[1]), 0))
        return found
    lines = subprocess.run(["ps", "-axo", "pid=,ppid=,rss="], capture_output=True, text=True).stdout
    return [(int(a), int(b), 1024 * int(c)) for a, b, c in (line.split() for line in lines.splitlines())]


def _proportional_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass  # gone, not ours, or an old kernel
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


class MemoryWatch:
    """Highest memory of a process tree while the block runs: `with MemoryWatch(pid) as watch: …; watch.peak_bytes`."""

    def __init__(self, pid: int, every_s: float = 0.1) -> None:
        self.pid, self.every_s, self.peak_bytes = pid, every_s, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self.look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Take the memory of this moment into account."""
        self.peak_bytes = max(self.peak_bytes, tree_memory_bytes(self.pid))

    def _watch(self) -> None:
        while not self._done.wait(self.every_s):
            self.look()


def run_watched(
    command: Sequence[str],
    *,
    cwd: Path,
    limit_s: float,
    log: Path,
    environment: Mapping[str, str] | None = None,
    memory_every_s: float = 0.1,
    on_line: Callable[[str, float], None] = lambda line, seconds: None,
    on_poll: Callable[[float], None] = lambda seconds: None,
) -> Ended:
    """Run a command in a process group of its own; whatever of it is left at its end or at limit_s is killed.

    log: gets its output, stdout and stderr together.
    memory_every_s: between two looks at its memory; one takes the kernel some milliseconds for a large process.
    on_line: called with each line of output and the seconds since the start at which it arrived.
    on_poll: called about every POLL_S with the seconds since the start, and once after the end.
    Raises OSError if the command cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    lines: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()
    began = time.perf_counter()
    process = subprocess.Popen(
        list(command),
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_read_lines, args=(process.stdout, log, lines, began), daemon=True)
    reader.start()
    timed_out = False
    try:
        with _term_as_exit(), MemoryWatch(process.pid, memory_every_s) as watch:
            while process.poll() is None:
                _hand_over(lines, on_line)
                on_poll(time.perf_counter() - began)
                if time.perf_counter() - began > limit_s:
                    timed_out = True
                    break
                time.sleep(POLL_S)
            wall_s = time.perf_counter() - began
    finally:
        end_tree(process)
    reader.join(timeout=TERM_S)
    _hand_over(lines, on_line)
    on_poll(wall_s)
    return Ended(
        wall_s=wall_s,
        exit_code=process.returncode,
        timed_out=timed_out,
        peak_memory_bytes=watch.peak_bytes,
    )


@contextlib.contextmanager
def _term_as_exit() -> Generator[None]:
    """While entered, SIGTERM leaves by SystemExit, as Ctrl-C does by KeyboardInterrupt, so that nothing is left behind.

    Outside the main thread, where Python allows no handlers, it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def end_tree(process: "subprocess.Popen[str]") -> None:
    """End a process, its group and its descendants: SIGTERM, then SIGKILL for what does not listen."""
    # Descendants may have left the group (a compiler's workers do); their numbers are only known while they live.
    below = [pid for pid in descendants(process.pid) if pid != process.pid] if process.poll() is None else []
    _signal_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(TERM_S)
    _signal_group(process.pid, signal.SIGKILL)
    for pid in below:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _read_lines(
    stream: IO[str], log: Path, lines: "queue.SimpleQueue[tuple[str, float]]", began: float
) -> None:
    with open(log, "w", encoding="utf-8") as file:
        for line in stream:
            lines.put((line.rstrip("\n"), time.perf_counter() - began))
            file.write(line)
            file.flush()


def _hand_over(lines: "queue.SimpleQueue[tuple[str, float]]", on_line: Callable[[str, float], None]) -> None:
    while not lines.empty():
        on_line(*lines.get())
