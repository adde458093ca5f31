"""Pieces of SVG pictures: axes, ticks, lines and words, in one look."""

import math
from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

INK, FAINT, GRID = "#1f2937", "#6b7280", "#e5e7eb"

Point = tuple[float, float]
Scale = Callable[[float], float]
"""From data to picture coordinates."""


def scale(low: float, high: float, start: float, end: float, *, log: bool, margin: float = 0.06) -> Scale:
    """A function from data to picture coordinates, with a margin at both ends of the data's range."""
    warp = math.log if log else float
    first, last = warp(low), warp(high)
    span = (last - first) or 1.0
    pixels = end - start
    inner = start + (margin * pixels if low > 0 or log else 0.0)
    outer = end - margin * pixels
    return lambda value: inner + (warp(value) - first) / span * (outer - inner)


def ticks(low: float, high: float, *, log: bool) -> list[float]:
    """A handful of round numbers between low and high."""
    if log and high / low > 2.5:
        steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if high / low < 12 else (1, 2, 5)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [float(f"{step * 10.0**power:.6g}") for power in powers for step in steps]
        return [tick for tick in found if low <= tick <= high]
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= 5)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{index * step:.6g}") for index in range(first, math.floor(high / step + 1e-9) + 1)]


def path(
    points: Sequence[Point],
    x_of: Scale,
    y_of: Scale,
    colour: str,
    *,
    width: float,
    opacity: float = 1.0,
) -> str:
    """A line through points, in data coordinates."""
    places = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
    return (
        f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-opacity="{opacity}" stroke-linejoin="round"/>'
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashed: bool = False) -> str:
    """A straight line, in picture coordinates."""
    dash = ' stroke-dasharray="3 4"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dash}/>'


def text(
    x: float,
    y: float,
    words: str,
    *,
    colour: str = INK,
    anchor: str = "start",
    size: int = 11,
    weight: str = "400",
) -> str:
    """Words at a place of the picture; anchor: start, middle or end."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )
