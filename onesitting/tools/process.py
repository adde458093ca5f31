"""Tool calls in a worker process: started once, ended and started again when a call goes over a limit.

The worker reads one JSON line a call and writes one JSON line a result; nothing is pickled.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from onesitting.tools.protocol import ERROR, Tool, parsed_arguments, schemas, validate_call
from onesitting.tools.sandbox import Limits, kill

START_S = 20.0
"""Seconds that the worker may take to start, on top of the limit of its first call: busy machines start slowly."""


class ToolProcess:
    """Runs the calls of some tools in one worker process. Use it in a `with` block, or `close` it."""

    def __init__(self, tools: Sequence[Tool], limits: Limits | None = None) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self.schemas = schemas(tools)
        self.limits = limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.Queue[bytes] = queue.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, call: Mapping[str, Any]) -> str:
        """The result of one call as text; a failure is a result too ("error: …").

        call: as `parse_assistant` gives it, or {"name", "arguments"}.
        """
        problem = validate_call(call, self.schemas)
        if problem:
            return ERROR + problem
        function: Mapping[str, Any] = call.get("function", call)
        tool = self.tools[function["name"]]
        arguments = parsed_arguments(function.get("arguments", {}))
        assert isinstance(arguments, dict)
        request = {"function": tool.function, "arguments": {**arguments, **tool.context}}
        return self._ask(json.dumps(request).encode() + b"\n")

    def close(self) -> None:
        """End the worker, if it runs."""
        if self._process is not None:
            kill(self._process)
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):  # a request that a dead worker never read
                        stream.close()
            self._process = None

    def _ask(self, line: bytes) -> str:
        started = self._process is None
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            if started:
                self._lines.get(timeout=START_S)  # the worker says that it is ready
            process.stdin.write(line)
            process.stdin.flush()
            answer = self._lines.get(timeout=self.limits.seconds)
        except queue.Empty:
            self.close()
            return f"{ERROR}it took longer than {self.limits.seconds:g} s"
        except OSError:
            answer = b""
        if not answer:
            self.close()
            return f"{ERROR}the tool's process ended, perhaps for want of memory"
        return json.loads(answer)["result"]

    def _start(self) -> subprocess.Popen[bytes]:
        """A new worker; a thread of ours queues its lines, an empty one when it ends."""
        limits = {"memory_mb": self.limits.memory_mb, "output_chars": self.limits.output_chars}
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
        process = subprocess.Popen(
            [sys.executable, "-m", "onesitting.tools.worker", json.dumps(limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._process, self._lines = process, queue.Queue()
        threading.Thread(target=_read_lines, args=(process, self._lines), daemon=True).start()
        return process


def _read_lines(process: subprocess.Popen[bytes], lines: "queue.Queue[bytes]") -> None:
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.put(line)
    except (OSError, ValueError):  # closed by us
        pass
    lines.put(b"")
