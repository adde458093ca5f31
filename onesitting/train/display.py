"""What a person sees while a stage trains: one live line on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from onesitting.config import LogConfig

LOG_EVERY_S = 10.0
"""Seconds between lines when the output is no terminal, at least."""


class Target(Protocol):
    """What the display asks of the step target."""

    @property
    def n_steps(self) -> int | None:
        """Steps of the stage; None while unknown."""
        ...

    def eta_s(self, step: int, elapsed_s: float) -> float | None:
        """Seconds to the end; None while unknown."""
        ...


class Display:
    """Shows steps, validations, samples and notes of one stage."""

    def __init__(self, name: str, unit: str, log: LogConfig, *, quiet: bool) -> None:
        self.name, self.unit, self.log, self.quiet = name, unit, log, quiet
        self.console = Console(file=sys.stdout, highlight=False, quiet=quiet)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.last_shown = 0.0
        self.speed = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.quiet:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live.is_started:
            self.live.stop()

    def step(self, record: dict[str, Any], target: Target, fraction: float | None) -> None:
        """Show a step, at most every `log.every_s` seconds; the speed is smoothed over about ten steps."""
        speed = record["tokens_per_s"]
        self.speed = speed if self.speed == 0.0 else 0.9 * self.speed + 0.1 * speed
        interval = self.log.every_s if self.live.is_started else max(self.log.every_s, LOG_EVERY_S)
        now = time.monotonic()
        last = target.n_steps is not None and record["step"] >= target.n_steps
        if self.quiet or (now - self.last_shown < interval and not last):
            return
        self.last_shown = now
        line = Text(self.line(record, target, fraction, speed))
        if self.live.is_started:
            self.live.update(line, refresh=True)
        else:
            self.console.print(line, soft_wrap=True)

    def line(self, record: dict[str, Any], target: Target, fraction: float | None, speed: float) -> str:
        """One line: stage, bar, step, loss, rate, tokens a second, fraction of the limit, time left."""
        progress = record["progress"] or 0.0
        done = round(20 * progress)
        bar = "━" * done + "╌" * (20 - done)
        total = f"/{target.n_steps}" if target.n_steps else ""
        loss = "–" if record["loss"] is None else f"{record['loss']:.3f}"
        eta = target.eta_s(record["step"], record["elapsed_s"])
        limit = "" if fraction is None else f" · {fraction * self.speed / max(speed, 1e-9):.0%} of limit"
        left = "" if eta is None else f" · {format_seconds(eta)} left"
        return (
            f"{self.name:8} {bar} {progress:4.0%} · step {record['step']}{total} · loss {loss}"
            f" · lr ×{record['lr_factor']:.2f} · {self.speed / 1000:.1f}k tok/s{limit}{left}"
        )

    def evaluation(self, step: int, results: dict[str, float], texts: list[dict[str, Any]]) -> None:
        """Show what was measured on held-out data, and the samples."""
        values = " · ".join(f"{key} {value:.4g}" for key, value in results.items())
        self.console.print(Text(f"{self.name:8} validation at step {step}: {values}"), soft_wrap=True)
        for text in texts:
            prompt, shown = (" ".join(str(text[key]).split()) for key in ("prompt", "text"))
            prompt = prompt if len(prompt) <= 100 else f"… {prompt[-100:]}"
            self.console.print(Text(f"         “{prompt}” → {shown[:200]}", style="dim"), soft_wrap=True)

    def note(self, message: str) -> None:
        """Show a line that a person should read."""
        self.console.print(Text(message, style="yellow"), soft_wrap=True)


def format_seconds(seconds: float) -> str:
    """`75` -> `1m15s`."""
    seconds = max(0, round(seconds))
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
