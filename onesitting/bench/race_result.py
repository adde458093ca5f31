"""What a race says: curves, time to a target, ratios. Arithmetic on what runners reported, nothing is run here.

A point's time is the wall-clock from the start of the runner's process to the arrival of its report, start-up, data
and validation included, less the compilation that the runner reported.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Point:
    """One validation."""

    wall_s: float
    compile_s: float
    validation_s: float
    tokens: int
    bits_per_byte: float

    @property
    def seconds(self) -> float:
        """The time that counts."""
        return self.wall_s - self.compile_s


@dataclass(frozen=True, kw_only=True)
class Result:
    """One runner with one seed."""

    runner: str
    is_ours: bool
    seed: int
    wall_s: float
    exit_code: int
    timed_out: bool
    peak_memory_bytes: int
    n_parameters: int = 0
    device_memory_bytes: int = 0
    points: tuple[Point, ...] = field(default_factory=tuple)
    settings: str = ""
    """Names the settings that it was run with (`race.settings_hash`)."""

    @property
    def is_done(self) -> bool:
        """Whether it reported something and was not ended by an error of its own."""
        return bool(self.points) and (self.exit_code == 0 or self.timed_out)

    @property
    def final(self) -> Point | None:
        """The last validation."""
        return self.points[-1] if self.points else None

    def seconds_to(self, target: float) -> float | None:
        """Time of the first validation at or below `target` bits per byte; None if there was none."""
        return next((p.seconds for p in self.points if p.bits_per_byte <= target), None)

    @property
    def tokens_per_s(self) -> float | None:
        """Training tokens over training time between the first and the last validation, validations left out; with
        one validation alone, over all of its time."""
        if not self.points or not self.points[-1].tokens:
            return None
        last, first = self.points[-1], self.points[0] if len(self.points) > 1 else None
        seconds = last.seconds - last.validation_s
        tokens = last.tokens
        if first is not None and tokens > first.tokens:
            seconds -= first.seconds - first.validation_s
            tokens -= first.tokens
        return tokens / seconds if seconds > 0 else None


def result_from_json(record: Mapping[str, Any]) -> Result:
    """The Result that `dataclasses.asdict` made this of."""
    values: dict[str, Any] = {**record, "points": tuple(Point(**point) for point in record["points"])}
    return Result(**values)


def bits_per_byte(nats_per_token: float, n_tokens: int, n_bytes: int) -> float:
    """Nats a token over n_tokens targets that stand for n_bytes of text, as bits a byte."""
    return nats_per_token * n_tokens / (n_bytes * math.log(2))


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean over seeds with its extremes; n of how many tries."""

    mean: float
    low: float
    high: float
    n: int
    of: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """None where no value is there."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Spread(mean=statistics.fmean(there), low=min(there), high=max(there), n=len(there), of=len(values))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One runner over its seeds."""

    runner: str
    is_ours: bool
    final_bits_per_byte: Spread | None
    final_s: Spread | None
    seconds_to: dict[str, Spread | None]
    """For each target, by its label."""
    tokens_per_s: Spread | None
    compile_s: float
    """Longest compilation."""
    validation_s: float
    """Longest time of all validations of one run."""
    peak_memory_bytes: int
    """Of the process tree, main memory."""
    device_memory_bytes: int
    n_parameters: int
    failed: int
    """Runs that ended with an error before their time was up."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times sooner this trainer reaches a target than another one."""

    target: str
    bits_per_byte: float
    runner: str
    ours: str
    """The entry of ours that reached it soonest, with every seed."""
    times: Spread
    """Their time over ours: the mean of the means; low and high from the extremes of both."""


def standings(results: Sequence[Result], targets: Mapping[str, float]) -> list[Standing]:
    """One line a runner, in the order of their first results."""
    lines: list[Standing] = []
    for name in dict.fromkeys(result.runner for result in results):
        own = [result for result in results if result.runner == name]
        points = [point for result in own for point in result.points]
        lines.append(
            Standing(
                runner=name,
                is_ours=own[0].is_ours,
                final_bits_per_byte=spread([r.final.bits_per_byte if r.final else None for r in own]),
                final_s=spread([r.final.seconds if r.final else None for r in own]),
                seconds_to={
                    label: spread([r.seconds_to(value) for r in own]) for label, value in targets.items()
                },
                tokens_per_s=spread([r.tokens_per_s for r in own]),
                compile_s=max((point.compile_s for point in points), default=0.0),
                validation_s=max((point.validation_s for point in points), default=0.0),
                peak_memory_bytes=max(r.peak_memory_bytes for r in own),
                device_memory_bytes=max(r.device_memory_bytes for r in own),
                n_parameters=max(r.n_parameters for r in own),
                failed=sum(r.exit_code != 0 and not r.timed_out for r in own),
            )
        )
    return lines


def race_targets(wanted: Sequence[float | str], results: Sequence[Result]) -> dict[str, float]:
    """Label -> bits per byte. wanted: values, or runners whose mean final value is meant.

    () is every outside runner.
    """
    names = wanted or list(dict.fromkeys(result.runner for result in results if not result.is_ours))
    found: dict[str, float] = {}
    for one in names:
        if isinstance(one, str):
            finals = [r.final.bits_per_byte for r in results if r.runner == one and r.final]
            if finals:
                found[f"final of {one}"] = statistics.fmean(finals)
        else:
            found[f"{one:g}"] = float(one)
    return found


def ratios(lines: Sequence[Standing], targets: Mapping[str, float]) -> list[Ratio]:
    """For each target and each outside runner: their time over that of our soonest entry.

    A runner's own final value is compared with the time of its last validation, which is when it had it. Entries that
    missed the target with any seed do not count, on either side.
    """
    found: list[Ratio] = []
    for label, value in targets.items():
        ours = [(line.runner, s) for line in lines if line.is_ours and (s := _whole(line.seconds_to[label]))]
        if not ours:
            continue
        best_name, best = min(ours, key=lambda entry: entry[1].mean)
        for line in lines:
            own_final = label == f"final of {line.runner}"
            theirs = _whole(line.final_s if own_final else line.seconds_to[label])
            if line.is_ours or theirs is None:
                continue
            times = Spread(
                mean=theirs.mean / best.mean,
                low=theirs.low / best.high,
                high=theirs.high / best.low,
                n=min(theirs.n, best.n),
                of=max(theirs.of, best.of),
            )
            found.append(
                Ratio(target=label, bits_per_byte=value, runner=line.runner, ours=best_name, times=times)
            )
    return found


def _whole(value: Spread | None) -> Spread | None:
    """The spread if every seed is in it."""
    return value if value is not None and value.n == value.of else None
