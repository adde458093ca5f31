"""What every outside trainer shares in a race: the token files, the clock, and validation in the race's form.

An adapter (nanogpt.py, minimind.py, nanochat.py) brings the peer's own model, optimizer and settings, taken from a
checkout of the peer; this file reads our tokens and reports. Nothing of a peer is copied here.

Reports are JSON lines in `--results`; the race takes the time at which a line arrives.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIRST_VALIDATION = 1 / 40
"""Part of the time after which the loss is first measured; the following ones are spaced evenly in its logarithm."""


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all adapters share."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--peer", type=Path, required=True, help="checkout of the peer")
    made.add_argument("--train", type=Path, required=True, help="training tokens")
    made.add_argument("--val", type=Path, required=True, help="validation tokens")
    made.add_argument("--tokens-json", type=Path, required=True, help="dtype and end-of-text token of both")
    made.add_argument("--n-val-tokens", type=int, required=True, help="targets of a validation")
    made.add_argument("--vocab-size", type=int, required=True)
    made.add_argument("--seconds", type=float, required=True, help="training ends after this time")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--results", type=Path, required=True, help="JSON lines for the race")
    made.add_argument("--context", type=int, default=256, help="tokens in a window of validation [256]")
    made.add_argument("--validations", type=int, default=8, help="how often the loss is measured [8]")
    made.add_argument("--epochs", type=float, default=0.0, help="end after so many passes, not by the time")
    made.add_argument("--fast", action="store_true", help="bfloat16 and torch.compile, whatever its defaults")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return made


def parse(made: argparse.ArgumentParser, on_gpu: tuple[str, ...]) -> argparse.Namespace:
    """The options, with `bf16` and `compiled` set. On a processor peers run in float32, not compiled, unless --fast.

    on_gpu: which of bf16 and compiled are the peer's default on a GPU.
    """
    options = made.parse_args()
    default = on_gpu if options.device.startswith("cuda") else ()
    options.bf16, options.compiled = (options.fast or name in default for name in ("bf16", "compiled"))
    return options


@dataclass
class Tokens:
    """The race's token files, memory-mapped."""

    train: np.ndarray
    val: np.ndarray
    """(n,) the targets of a validation."""
    eos_id: int

    @classmethod
    def load(cls, options: argparse.Namespace) -> "Tokens":
        """As the options name them."""
        info = json.loads(options.tokens_json.read_text())
        dtype = np.dtype(info["dtype"]).newbyteorder("<")
        train = np.memmap(options.train, dtype=dtype, mode="r")
        val = np.memmap(options.val, dtype=dtype, mode="r")[: options.n_val_tokens]
        return cls(train, val, info["eos_id"])

    def windows(self, rows: int, length: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and next tokens, each (rows, length) int64, from random places."""
        starts = rng.integers(0, len(self.train) - length - 1, rows)
        cut = np.stack([self.train[start : start + length + 1] for start in starts]).astype(np.int64)
        both = torch.from_numpy(cut)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def epoch_rows(self, length: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Endless (length + 1,) int64 rows: the text laid end to end and cut, each epoch at other places, the rows in
        random order. Every token is a target about once an epoch; nothing is cropped or padded."""
        while True:
            starts = np.arange(rng.integers(length), len(self.train) - length - 1, length)
            for start in rng.permutation(starts):
                yield torch.from_numpy(self.train[start : start + length + 1].astype(np.int64))


class Run:
    """One peer's run: the clock, the schedule's progress, validation and reports."""

    def __init__(self, options: argparse.Namespace, tokens: Tokens, n_parameters: int) -> None:
        self.options, self.tokens = options, tokens
        self.n_tokens = 0
        self.compile_s = self.validation_s = 0.0
        self.began = time.perf_counter()
        first, n = math.log(FIRST_VALIDATION), max(1, options.validations)
        self.due = [math.exp(first * (1 - k / max(1, n - 1))) for k in range(n)] if n > 1 else [1.0]
        self.report({"n_parameters": n_parameters})

    @property
    def progress(self) -> float:
        """Part of the run that is done, in [0, 1], by tokens with --epochs, else by the time, compilation left out; the
        schedules of peers follow it."""
        if self.options.epochs:
            return min(1.0, self.n_tokens / (self.options.epochs * len(self.tokens.train)))
        used = time.perf_counter() - self.began - self.compile_s
        return min(1.0, used / self.options.seconds)

    def total_steps(self, step: int) -> int:
        """How many steps there will be, at the mean speed so far: peers' schedules are functions of it."""
        return max(step + 1, round(step / self.progress)) if step and self.progress > 0 else 10**6

    def train(
        self, model: nn.Module, step: Callable[[], None], loss_of: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        """Do steps until the time is up, with validations between them and one at the end.

        Where it is compiled, the first step does that: what it takes longer than the second is the compilation.
        """
        times: list[float] = []
        while self.progress < 1.0 or len(times) < 2:
            began = time.perf_counter()
            step()
            if len(times) < 2:
                times.append(time.perf_counter() - began)
            if len(times) < 2:
                continue
            self.compile_s = max(0.0, times[0] - times[1]) if self.options.compiled else 0.0
            model.eval()
            self.validate_if_due(loss_of)
            model.train()

    def validate_if_due(self, loss_of: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Measure and report when the next point in time has come, and at the end."""
        if self.due and self.progress >= self.due[0]:
            while self.due and self.progress >= self.due[0]:
                self.due.pop(0)
            began = time.perf_counter()
            nats = validation_loss(self.tokens, self.options, loss_of)
            self.validation_s += time.perf_counter() - began
            record: dict[str, Any] = {"val_nats_per_token": nats, "tokens": self.n_tokens}
            if self.options.device.startswith("cuda"):
                record["device_memory_bytes"] = torch.cuda.max_memory_allocated()
            self.report({**record, "validation_s": self.validation_s, "compile_s": self.compile_s})

    def report(self, record: dict[str, Any]) -> None:
        """Write one line for the race, and show it."""
        line = json.dumps(record)
        with open(self.options.results, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


@torch.no_grad()
def validation_loss(
    tokens: Tokens, options: argparse.Namespace, loss_of: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """Mean nats over the validation tokens, read in consecutive windows of `context` inputs.

    Each token is a target once; the first input is an end-of-text token. The same text and windows for everyone.
    loss_of: (rows, T) inputs and targets -> mean cross-entropy. Targets of -1 do not count.
    """
    context = options.context
    ids = np.append(tokens.eos_id, np.asarray(tokens.val)).astype(np.int64)
    n = len(ids) - 1
    nats = 0.0
    # Whole windows in batches; the last, shorter one alone, so that no padding is needed.
    whole = n // context
    x = torch.from_numpy(ids[: whole * context]).view(whole, context)
    y = torch.from_numpy(ids[1 : whole * context + 1]).view(whole, context)
    rows = 16
    for first in range(0, whole - whole % rows, rows):
        part = slice(first, first + rows)
        nats += float(loss_of(x[part].to(options.device), y[part].to(options.device))) * rows * context
    for row in range(whole - whole % rows, whole):
        nats += (
            float(loss_of(x[row : row + 1].to(options.device), y[row : row + 1].to(options.device))) * context
        )
    rest = n - whole * context
    if rest > 1:
        a, b = (
            torch.from_numpy(ids[whole * context : -1])[None],
            torch.from_numpy(ids[whole * context + 1 :])[None],
        )
        nats += float(loss_of(a.to(options.device), b.to(options.device))) * rest
        whole_targets = n
    else:
        whole_targets = n - rest
    return nats / whole_targets


def autocast(options: argparse.Namespace) -> AbstractContextManager[Any]:
    """bfloat16 where it is on, else the model's own float32."""
    return torch.autocast(options.device, dtype=torch.bfloat16) if options.bf16 else nullcontext()


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of (B, T, V) logits and (B, T) targets, in float32."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def count(model: nn.Module) -> int:
    """Parameters; a tied one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
