"""PyTorch's compiler, which may fail on any machine and version: what it cannot do runs as it is, and that is told."""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch

Compiler = str | Callable[[Any, Any], Any]
"""What `torch.compile` takes as its backend."""
MOST_GRAPHS = 32
"""Of one function. Row lengths, last micro-batches and, in the optimizer, shapes of matrices make a few; PyTorch's own
limit of 8 would leave the rest uncompiled."""


class Compiled:
    """A function that is compiled for each shape that comes, or runs as it is once the compiler has failed.

    PyTorch's own switch for that (`suppress_errors`) is one for the whole process, says nothing to the program, and
    goes on to compile the functions within, of which some then decide as if all of it were compiled.
    """

    def __init__(self, plain: Callable[..., Any], backend: Compiler = "inductor") -> None:
        config: Any = import_module("torch._dynamo.config")
        # PyTorch 2.6 knows the older name alone.
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        setattr(config, limit, max(MOST_GRAPHS, getattr(config, limit)))
        self.plain = plain
        self.compiled = torch.compile(plain, dynamic=False, backend=backend)
        self.failure = ""
        """First line of what the compiler said; empty while all is well."""

    def __call__(self, *args: Any) -> Any:
        """What the plain function gives."""
        if not self.failure:
            failed: Any = import_module("torch._dynamo.exc").TorchDynamoException
            try:
                return self.compiled(*args)
            except failed as failure:  # raised before anything has run
                self.failure = f"{type(failure).__name__}: {first_line(failure)}"
        return self.plain(*args)


def first_line(message: object) -> str:
    """The first line of a message, cut where it is long."""
    return (str(message).strip().splitlines() or [""])[0][:200]


def failures(functions: Iterable[object]) -> list[str]:
    """What the compiler said, each failure once, of those functions that are `Compiled`."""
    found = [f.failure for f in functions if isinstance(f, Compiled) and f.failure]
    return list(dict.fromkeys(found))


def graph_breaks() -> dict[str, int]:
    """Reason -> how often the compiler cut a function into two graphs, in this process up to now."""
    counters: Any = import_module("torch._dynamo.utils").counters
    return dict(counters["graph_break"])


def added_breaks(before: dict[str, int]) -> list[str]:
    """Sentences on the graphs that were cut since then."""
    added = {reason: n - before.get(reason, 0) for reason, n in graph_breaks().items()}
    return [f"the compiler cut its graphs {n} times: {first_line(why)}" for why, n in added.items() if n > 0]
