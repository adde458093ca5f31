"""The worker process of `ToolProcess`: reads calls as JSON lines, runs them, writes results as JSON lines."""

import contextlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from onesitting.tools.protocol import ERROR


def main(limits: dict[str, int]) -> None:
    """Answer calls until stdin ends."""
    # What a tool prints must not be taken for a result: results go to a private copy of stdout.
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _limit_memory(limits["memory_mb"])
    _write(results, "ready")
    for line in sys.stdin:
        request = json.loads(line)
        _write(results, cut(run(request["function"], request["arguments"]), limits["output_chars"]))


def run(function: str, arguments: dict[str, Any]) -> str:
    """The function's result as text; whatever it raises as "error: …"."""
    try:
        result = find(function)(**arguments)
    except MemoryError:
        return f"{ERROR}out of memory"
    except BaseException as error:  # a tool that calls sys.exit has failed too, and must not end the worker
        return f"{ERROR}{str(error).strip() or type(error).__name__}"
    try:
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
    except Exception as error:  # keys that are no text, a list within itself, a __str__ that fails
        return f"{ERROR}the tool's result cannot be written as JSON ({error})"
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text


def find(function: str) -> Callable[..., Any]:
    """The function that "module:name" or "path/to/file.py:name" names."""
    place, _, name = function.rpartition(":")
    if place.endswith(".py"):
        if place not in sys.modules:
            spec = importlib.util.spec_from_file_location(place, place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[place] = module  # before it runs: dataclasses look up their module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[place]
                raise
        return getattr(sys.modules[place], name)
    return getattr(importlib.import_module(place), name)


def cut(text: str, most: int) -> str:
    """The text, cut where it is longer than `most` characters, with a note that it was."""
    return text if len(text) <= most else f"{text[:most]}… (cut, {len(text)} characters)"


def _limit_memory(memory_mb: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has none
        return
    n_bytes = memory_mb * 1024 * 1024
    # macOS refuses every such limit, and a stricter one of the user's own stays.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))


def _write(results: Any, text: str) -> None:
    results.write(json.dumps({"result": text}) + "\n")
    results.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
