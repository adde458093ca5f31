"""The outcome of a race: results.json, table.md, and a picture of time against bits per byte."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onesitting.bench.race_result import Ratio, Result, Spread, Standing, race_targets, ratios, standings
from onesitting.bench.race_spec import Race
from onesitting.bench.tables import aligned, markdown
from onesitting.evaluation import svg
from onesitting.evaluation.curves import short_number
from onesitting.runlog import write_atomic

# Okabe and Ito's colours, which colour-blind readers tell apart; ours is the first.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5d4037", "#000000")
WIDTH, HEIGHT = 920, 480
LEFT, RIGHT, TOP, BOTTOM = 64, 700, 52, 424
MISSING = "—"


def write_outcome(race: Race, course: Mapping[str, Any], results: Sequence[Result], out: Path) -> str:
    """Write results.json, table.md and curves.svg; the tables for the terminal come back."""
    targets = race_targets(race.targets, results)
    lines = standings(results, targets)
    found = ratios(lines, targets)
    record = {
        "race": race.name,
        "seconds": race.seconds,
        "corpus": dict(course),
        "targets": targets,
        "standings": [asdict(line) for line in lines],
        "ratios": [asdict(ratio) for ratio in found],
        "results": [asdict(result) for result in results],
    }
    write_atomic(out / "results.json", json.dumps(record, indent=1, default=str) + "\n")
    tables = [standing_rows(lines, targets), ratio_rows(found)]
    text = "\n\n".join(markdown(rows) for rows in tables if len(rows) > 1)
    write_atomic(out / "table.md", f"{text}\n\n![Bits per byte against seconds](curves.svg)\n")
    write_atomic(out / "curves.svg", draw_race(results, targets, race.name))
    return "\n\n".join(aligned(rows) for rows in tables if len(rows) > 1)


def standing_rows(lines: Sequence[Standing], targets: Mapping[str, float]) -> list[list[str]]:
    """One row a runner, with a head."""
    head = [f"s to {value:.3f}" for value in targets.values()]
    rows = [
        ["runner", "parameters", "final bits per byte", "after s", *head, "tokens/s", "compile s",
         "validating s", "peak memory", "runs"]
    ]  # fmt: skip
    for line in lines:
        final = line.final_bits_per_byte
        failed = f", {line.failed} failed" if line.failed else ""
        rows.append(
            [
                line.runner,
                short_number(line.n_parameters) if line.n_parameters else MISSING,
                _spread(final, 3),
                _spread(line.final_s, 0),
                *(_spread(line.seconds_to[label], 1) for label in targets),
                _spread(line.tokens_per_s, 0),
                f"{line.compile_s:.1f}",
                f"{line.validation_s:.1f}",
                _memory(line),
                f"{final.of if final else 0}{failed}",
            ]
        )
    return rows


def ratio_rows(found: Sequence[Ratio]) -> list[list[str]]:
    """One row for each target and outside runner, with a head."""
    rows = [["target", "bits per byte", "runner", "ours", "sooner by", "between"]]
    for ratio in found:
        between = f"{ratio.times.low:.2f} and {ratio.times.high:.2f}"
        cells = [ratio.target, f"{ratio.bits_per_byte:.4f}", ratio.runner, ratio.ours]
        rows.append([*cells, f"{ratio.times.mean:.2f} x", between])
    return rows


def _memory(line: Standing) -> str:
    device = f", device {line.device_memory_bytes / 1e6:,.0f} MB" if line.device_memory_bytes else ""
    return f"{line.peak_memory_bytes / 1e6:,.0f} MB{device}"


def _spread(value: Spread | None, digits: int) -> str:
    """`2.41`, with its extremes where there are several, and how many tries got there where not all did."""
    if value is None:
        return MISSING
    text = f"{value.mean:,.{digits}f}"
    if value.n > 1:
        text += f" ({value.low:,.{digits}f} to {value.high:,.{digits}f})"
    return text + (f" {value.n} of {value.of}" if value.n < value.of else "")


def draw_race(results: Sequence[Result], targets: Mapping[str, float], title: str) -> str:
    """SVG text: a line for each run, a colour a runner, time on a logarithmic axis; targets are dashed."""
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>',
        svg.text(18, 26, f"{title}: bits per byte of held-out text against time", size=14, weight="600"),
    ]
    points = [point for result in results for point in _curve(result)]
    if not points:
        return "\n".join([*head, svg.text(LEFT, 80, "nothing reported", colour=svg.FAINT), "</svg>"]) + "\n"
    x_of = svg.scale(min(x for x, _ in points), max(x for x, _ in points), LEFT, RIGHT, log=True, margin=0.03)
    y_of = svg.scale(min(y for _, y in points), max(y for _, y in points), BOTTOM, TOP, log=True, margin=0.03)
    parts = [*head, *_axes(points, x_of, y_of)]
    for value in targets.values():
        if min(y for _, y in points) <= value <= max(y for _, y in points):
            parts.append(svg.line(LEFT, y_of(value), RIGHT, y_of(value), svg.FAINT, dashed=True))
    runners = sorted({r.runner: r.is_ours for r in results}.items(), key=lambda item: not item[1])
    for index, (name, is_ours) in enumerate(runners):
        colour = COLOURS[index % len(COLOURS)]
        for result in results:
            if result.runner == name:
                curve = _curve(result)
                parts.append(svg.path(curve, x_of, y_of, colour, width=2.4 if is_ours else 1.5))
                parts += [
                    f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.4" fill="{colour}"/>'
                    for x, y in curve
                ]
        y = TOP + 16 * index + 8
        parts.append(f'<rect x="{RIGHT + 18}" y="{y - 9}" width="10" height="10" rx="2" fill="{colour}"/>')
        parts.append(svg.text(RIGHT + 34, y, name, weight="600" if is_ours else "400"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _curve(result: Result) -> list[svg.Point]:
    """(seconds, bits per byte) of the points that a logarithmic picture can show."""
    return [(p.seconds, p.bits_per_byte) for p in result.points if p.seconds > 0 and p.bits_per_byte > 0]


def _axes(points: Sequence[svg.Point], x_of: svg.Scale, y_of: svg.Scale) -> list[str]:
    parts: list[str] = []
    xs, ys = [x for x, _ in points], [y for _, y in points]
    for y in svg.ticks(min(ys), max(ys), log=True):
        parts.append(svg.line(LEFT, y_of(y), RIGHT, y_of(y), svg.GRID))
        parts.append(svg.text(LEFT - 8, y_of(y) + 4, f"{y:g}", colour=svg.FAINT, anchor="end"))
    for x in svg.ticks(min(xs), max(xs), log=True):
        parts.append(svg.line(x_of(x), TOP, x_of(x), BOTTOM, svg.GRID))
        parts.append(svg.text(x_of(x), BOTTOM + 18, f"{x:g}", colour=svg.FAINT, anchor="middle"))
    parts.append(svg.line(LEFT, BOTTOM, RIGHT, BOTTOM, svg.FAINT))
    parts.append(
        svg.text(RIGHT, BOTTOM + 36, "seconds, compilation left out", colour=svg.FAINT, anchor="end")
    )
    return parts
