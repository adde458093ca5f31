"""The picture of a run as one SVG file: loss, bits per byte and learning rate against tokens, then a row of panels for
each stage that has another goal: rewards, preferences, agreement with a teacher.

Written by hand: a drawing library would be the largest dependency of the core (matplotlib brings 100 MB
and takes 1.3 s for this picture, this file a few milliseconds), and an SVG stays sharp everywhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onesitting.evaluation import svg
from onesitting.evaluation.svg import FAINT, GRID, INK, Point

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea")  # one a stage, told apart by colour-blind readers too
WIDTH, ROW = 1080, 300
PANEL_WIDTH, PANEL_HEIGHT, TOP = 288, 210, 62
LEFTS = (58, 58 + 348, 58 + 2 * 348)
MAX_POINTS = 300  # a panel is 288 units wide: more points than that cannot be told apart

_PREFERENCES = (("right pairs", "preference_accuracy"), ("reward margin", "reward_margin"))
_ATTEMPTS = (
    ("reward", "reward"),
    ("entropy, nats per token", "entropy"),
    ("tokens of attempts", "attempt_tokens"),
)
GOALS: dict[str, tuple[tuple[str, str], ...]] = {
    "dpo": (*_PREFERENCES, ("chosen reply likelier", "ranking_accuracy")),
    "reward": _PREFERENCES,
    "grpo": _ATTEMPTS,
    "ppo": _ATTEMPTS,
    "distill": (
        ("divergence from the teacher", "teacher_kl_nats"),
        ("tokens where both agree", "agreement"),
    ),
}
"""Stage -> up to three (title, name in its metrics) that tell whether it does what it is for."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What one stage adds to the picture; x is tokens trained on since the stage began."""

    name: str
    loss: Sequence[Point]
    """(tokens, nats per token) of each optimizer step; none where the loss tells nothing, as a policy's does not."""
    bits_per_byte: Sequence[Point]
    """(tokens, bits per byte) of each validation."""
    lr_factor: Sequence[Point]
    """(tokens, fraction of the peak learning rate) of each optimizer step."""
    goals: Sequence["Goal"] = ()
    """The stage's own row of panels."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One panel of a stage: what it is for, in training and on held-out data."""

    title: str
    training: Sequence[Point]
    """(tokens, value) of each optimizer step that has one."""
    held_out: Sequence[Point]
    """(tokens, value) of each validation that has one."""


def draw_curves(curves: Sequence[Curve], title: str) -> str:
    """The SVG text; stages follow each other on the x axis. Panels without points say so."""
    offsets, end = [], 0.0
    for curve in curves:
        offsets.append(end)
        end += _last_token(curve)
    height = 30 + ROW * (1 + sum(bool(curve.goals) for curve in curves))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>',
        svg.text(18, 26, title, size=14, weight="600"),
        *_legend([curve.name for curve in curves]),
    ]
    smooth = [_shift(_smooth(curve.loss), offset) for curve, offset in zip(curves, offsets, strict=True)]
    raw = [_shift(curve.loss, offset) for curve, offset in zip(curves, offsets, strict=True)]
    bits = [_shift(curve.bits_per_byte, offset) for curve, offset in zip(curves, offsets, strict=True)]
    rates = [_shift(curve.lr_factor, offset) for curve, offset in zip(curves, offsets, strict=True)]
    row = _Row(TOP, end, offsets[1:])
    parts += row.panel(LEFTS[0], "loss, nats per token", smooth, faint=raw, log=True)
    parts += row.panel(LEFTS[1], "bits per byte, held-out text", bits, dots=bits, log=True)
    parts += row.panel(LEFTS[2], "learning rate, fraction of its peak", rates, zero=True)
    for index, curve in enumerate(curves):
        if curve.goals:
            row = _Row(row.top + ROW, _last_token(curve), ())
            parts += _goal_panels(row, curve, index)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _last_token(curve: Curve) -> float:
    points = (*curve.loss, *curve.bits_per_byte, *curve.lr_factor)
    return max((x for x, _ in points), default=0.0)


def _goal_panels(row: "_Row", curve: Curve, index: int) -> list[str]:
    """A stage's own row, in its colour: a line for training, dots for held-out data."""
    parts: list[str] = []
    before: list[Sequence[Point]] = [()] * index  # so that the colour is the stage's
    for left, goal in zip(LEFTS, curve.goals, strict=False):
        title = f"{curve.name}: {goal.title}{' (● held out)' if goal.training and goal.held_out else ''}"
        trained = _shift(_smooth(goal.training, share=1 / 15), 0.0)
        dots = [*before, _shift(goal.held_out, 0.0)]
        lines = [*before, trained] if trained else dots
        parts += row.panel(left, title, lines, faint=[*before, _shift(goal.training, 0.0)], dots=dots)
    return parts


@dataclass(frozen=True)
class _Row:
    """A row of panels over the same tokens."""

    top: float
    x_end: float
    """Tokens at the right end."""
    starts: Sequence[float]
    """Tokens at which later stages begin."""

    def panel(
        self,
        left: float,
        title: str,
        series: Sequence[Sequence[Point]],
        *,
        faint: Sequence[Sequence[Point]] = (),
        dots: Sequence[Sequence[Point]] = (),
        log: bool = False,
        zero: bool = False,
    ) -> list[str]:
        """One panel. Series of a stage each: as lines; faint: drawn thin below them; dots. log, zero: the y axis."""
        top, right, bottom = self.top, left + PANEL_WIDTH, self.top + PANEL_HEIGHT
        parts = [svg.text(left, top - 12, title, colour=INK, weight="600")]
        values = [y for points in [*series, *faint, *dots] for _, y in points if math.isfinite(y)]
        if not values or self.x_end <= 0:
            return [*parts, svg.text(left, top + PANEL_HEIGHT / 2, "nothing recorded", colour=FAINT)]
        log = log and min(values) > 0
        low, high = (0.0 if zero else min(values)), max(values)
        y_of = svg.scale(low, high, bottom, top, log=log)
        x_of = svg.scale(0.0, self.x_end, left, right, log=False, margin=0.0)
        for y in svg.ticks(low, high, log=log):
            parts.append(svg.line(left, y_of(y), right, y_of(y), GRID))
            parts.append(svg.text(left - 6, y_of(y) + 4, f"{y:g}", colour=FAINT, anchor="end"))
        for x in svg.ticks(0.0, self.x_end, log=False):
            parts.append(svg.text(x_of(x), bottom + 17, short_number(x), colour=FAINT, anchor="middle"))
        parts.append(svg.line(left, bottom, right, bottom, FAINT))
        parts.append(svg.text(right, bottom + 34, "tokens", colour=FAINT, anchor="end"))
        for x in self.starts:
            parts.append(svg.line(x_of(x), top, x_of(x), bottom, FAINT, dashed=True))
        for index, points in enumerate(faint):
            parts.append(svg.path(points, x_of, y_of, _colour(index), width=0.7, opacity=0.3))
        for index, points in enumerate(series):
            parts.append(svg.path(points, x_of, y_of, _colour(index), width=1.8))
        for index, points in enumerate(dots):
            parts += [
                f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.6" fill="{_colour(index)}"/>'
                for x, y in points
            ]
        return parts if zero else [*parts, *_last_values(right, top, series)]


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _last_values(right: float, top: float, series: Sequence[Sequence[Point]]) -> list[str]:
    """The last value of each curve in its colour, at the right of a panel's title."""
    last = [(_colour(index), points[-1][1]) for index, points in enumerate(series) if points]
    return [
        svg.text(right - 42 * place, top - 12, f"{value:.3g}", colour=colour, anchor="end", weight="600")
        for place, (colour, value) in enumerate(reversed(last))
    ]


def _legend(names: Sequence[str]) -> list[str]:
    """Stage names in their colours, right-aligned in the first line."""
    parts: list[str] = []
    x = WIDTH - 18.0
    for index, name in reversed(list(enumerate(names))):
        parts.append(svg.text(x, 26, name, colour=INK, anchor="end"))
        x -= 6 * len(name) + 15
        parts.append(f'<rect x="{x:.1f}" y="17" width="10" height="10" rx="2" fill="{_colour(index)}"/>')
        x -= 18
    return parts


def _smooth(points: Sequence[Point], share: float = 1 / 100) -> list[Point]:
    """Exponential average over about a share of the points, started without bias."""
    decay = 1.0 - 1.0 / max(2.0, min(50.0, len(points) * share))
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
