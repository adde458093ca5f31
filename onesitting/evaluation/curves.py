"""The picture of a run: loss, bits per byte and learning rate against tokens, as one SVG file.

Written by hand: a drawing library would be the largest dependency of the core (matplotlib brings 100 MB
and takes 1.3 s for this picture, this file a few milliseconds), and an SVG stays sharp everywhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onesitting.evaluation import svg
from onesitting.evaluation.svg import FAINT, GRID, INK, Point

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea")  # one a stage, told apart by colour-blind readers too
WIDTH, HEIGHT = 1080, 330
PANEL_WIDTH, PANEL_HEIGHT, TOP = 288, 210, 62
LEFTS = (58, 58 + 348, 58 + 2 * 348)
MAX_POINTS = 300  # a panel is 288 units wide: more points than that cannot be told apart


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What one stage adds to the picture; x is tokens trained on since the stage began."""

    name: str
    loss: Sequence[Point]
    """(tokens, nats per token) of each optimizer step."""
    bits_per_byte: Sequence[Point]
    """(tokens, bits per byte) of each validation."""
    lr_factor: Sequence[Point]
    """(tokens, fraction of the peak learning rate) of each optimizer step."""


def draw_curves(curves: Sequence[Curve], title: str) -> str:
    """The SVG text; stages follow each other on the x axis. Panels without points say so."""
    offsets, end = [], 0.0
    for curve in curves:
        offsets.append(end)
        end += max((x for points in (curve.loss, curve.bits_per_byte) for x, _ in points), default=0.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>',
        svg.text(18, 26, title, size=14, weight="600"),
        *_legend([curve.name for curve in curves]),
    ]
    smooth = [_shift(_smooth(curve.loss), offset) for curve, offset in zip(curves, offsets, strict=True)]
    raw = [_shift(curve.loss, offset) for curve, offset in zip(curves, offsets, strict=True)]
    bits = [_shift(curve.bits_per_byte, offset) for curve, offset in zip(curves, offsets, strict=True)]
    rates = [_shift(curve.lr_factor, offset) for curve, offset in zip(curves, offsets, strict=True)]
    starts = offsets[1:]
    parts += _panel(LEFTS[0], "training loss, nats per token", smooth, end, starts, faint=raw, log=True)
    parts += _panel(LEFTS[1], "bits per byte, held-out text", bits, end, starts, dots=True, log=True)
    parts += _panel(LEFTS[2], "learning rate, fraction of its peak", rates, end, starts, zero=True)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    left: float,
    title: str,
    series: Sequence[Sequence[Point]],
    x_end: float,
    starts: Sequence[float],
    *,
    faint: Sequence[Sequence[Point]] = (),
    dots: bool = False,
    log: bool = False,
    zero: bool = False,
) -> list[str]:
    """One panel. starts: x where later stages begin. faint: drawn thin below the series. log: y axis."""
    parts = [svg.text(left, TOP - 12, title, colour=INK, weight="600")]
    values = [y for points in [*series, *faint] for _, y in points if math.isfinite(y)]
    if not values or x_end <= 0:
        return [*parts, svg.text(left, TOP + PANEL_HEIGHT / 2, "nothing recorded", colour=FAINT)]
    log = log and min(values) > 0
    low, high = (0.0 if zero else min(values)), max(values)
    y_of = svg.scale(low, high, TOP + PANEL_HEIGHT, TOP, log=log)
    x_of = svg.scale(0.0, x_end, left, left + PANEL_WIDTH, log=False, margin=0.0)
    for y in svg.ticks(low, high, log=log):
        parts.append(svg.line(left, y_of(y), left + PANEL_WIDTH, y_of(y), GRID))
        parts.append(svg.text(left - 6, y_of(y) + 4, f"{y:g}", colour=FAINT, anchor="end"))
    for x in svg.ticks(0.0, x_end, log=False):
        parts.append(
            svg.text(x_of(x), TOP + PANEL_HEIGHT + 17, short_number(x), colour=FAINT, anchor="middle")
        )
    parts.append(svg.line(left, TOP + PANEL_HEIGHT, left + PANEL_WIDTH, TOP + PANEL_HEIGHT, FAINT))
    parts.append(svg.text(left + PANEL_WIDTH, TOP + PANEL_HEIGHT + 34, "tokens", colour=FAINT, anchor="end"))
    for x in starts:
        parts.append(svg.line(x_of(x), TOP, x_of(x), TOP + PANEL_HEIGHT, FAINT, dashed=True))
    for index, points in enumerate(faint):
        parts.append(svg.path(points, x_of, y_of, COLOURS[index % len(COLOURS)], width=0.7, opacity=0.3))
    for index, points in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        parts.append(svg.path(points, x_of, y_of, colour, width=1.8))
        if dots:
            parts += [
                f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.6" fill="{colour}"/>' for x, y in points
            ]
    if not zero:
        parts += _last_values(left + PANEL_WIDTH, series)
    return parts


def _last_values(right: float, series: Sequence[Sequence[Point]]) -> list[str]:
    """The last value of each curve in its colour, at the right of a panel's title."""
    last = [(COLOURS[index % len(COLOURS)], points[-1][1]) for index, points in enumerate(series) if points]
    return [
        svg.text(right - 42 * place, TOP - 12, f"{value:.3g}", colour=colour, anchor="end", weight="600")
        for place, (colour, value) in enumerate(reversed(last))
    ]


def _legend(names: Sequence[str]) -> list[str]:
    """Stage names in their colours, right-aligned in the first line."""
    parts: list[str] = []
    x = WIDTH - 18.0
    for index, name in reversed(list(enumerate(names))):
        parts.append(svg.text(x, 26, name, colour=INK, anchor="end"))
        x -= 6 * len(name) + 15
        parts.append(
            f'<rect x="{x:.1f}" y="17" width="10" height="10" rx="2" fill="{COLOURS[index % len(COLOURS)]}"/>'
        )
        x -= 18
    return parts


def _smooth(points: Sequence[Point]) -> list[Point]:
    """Exponential average over about a hundredth of the points, started without bias."""
    decay = 1.0 - 1.0 / max(2.0, min(50.0, len(points) / 100))
    total, weight, smooth = 0.0, 0.0, list[Point]()
    for x, y in points:
        total, weight = decay * total + (1 - decay) * y, decay * weight + (1 - decay)
        smooth.append((x, total / weight))
    return smooth


def _shift(points: Sequence[Point], offset: float) -> list[Point]:
    """At most MAX_POINTS of the points, the last among them, moved right by offset."""
    stride = max(1, math.ceil(len(points) / MAX_POINTS))
    kept = list(points[::stride])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return [(x + offset, y) for x, y in kept]


def short_number(value: float) -> str:
    """`1234567` -> `1.2M`: three digits at most, for people."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
