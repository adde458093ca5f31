"""The fit behind the size dial, from whole small runs, and its picture.

    python benchmarks/dial.py docs/dial.svg

Bits per byte = FLOOR + a / parameters^SIZE_POWER + b / tokens^TOKENS_POWER (onesitting/dial.py holds the result).
FLOOR and the powers are found on a grid, a and b by least squares for each; one run is held out.
"""

import itertools
import sys
from pathlib import Path

import numpy as np

from onesitting import dial
from onesitting.evaluation import svg

RUNS = [  # parameters, tokens, bits per byte; each a whole schedule on the same prose, one seed, the same 500 kB
    (0.37e6, 1.00e6, 2.198),
    (1.39e6, 0.50e6, 2.087),
    (1.39e6, 1.50e6, 1.973),
    (3.15e6, 0.40e6, 2.042),
    (6.41e6, 0.20e6, 2.074),
    (6.41e6, 0.40e6, 2.008),
    (6.41e6, 1.45e6, 1.854),
    (15.73e6, 0.15e6, 2.091),
    (15.73e6, 0.60e6, 1.927),
]
HELD_OUT = (3.15e6, 1.20e6, 1.931)
COLOURS = ("#2563eb", "#0d9488", "#d97706", "#dc2626", "#7c3aed")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 380, 60, 56, 330


def expected(parameters: float, tokens: float) -> float:
    """Bits per byte by the fit in use."""
    size = dial.OF_SIZE / parameters**dial.SIZE_POWER
    return dial.FLOOR + size + dial.OF_TOKENS / tokens**dial.TOKENS_POWER


def best_fit() -> tuple[float, ...]:
    """(mean squared error, floor, a, size power, b, tokens power), the least error over a grid."""
    n, d, y = np.array(RUNS).T
    fits: list[tuple[float, ...]] = []
    powers = np.arange(0.15, 0.501, 0.05)
    for floor, p, q in itertools.product(np.arange(0.8, 1.51, 0.1), powers, powers):
        columns = np.stack((n**-p, d**-q), axis=1)
        (a, b), *_ = np.linalg.lstsq(columns, y - floor, rcond=None)
        if a > 0 and b > 0:
            error = float(np.mean((columns @ (a, b) + floor - y) ** 2))
            fits.append((error, floor, float(a), float(p), float(b), float(q)))
    return min(fits)


def picture() -> str:
    """Runs as dots, the fit as a line for each size; the held-out run is a ring."""
    sizes = sorted({n for n, _, _ in RUNS})
    points = [*RUNS, HELD_OUT]
    x_of = svg.scale(1e5, 6e6, LEFT, WIDTH - 20, log=True)
    y_of = svg.scale(1.7, 2.6, BOTTOM, TOP, log=False)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        svg.text(LEFT, 22, "Bits per byte of prose by size and tokens", size=15, weight="600"),
        svg.text(LEFT, 40, "dots: whole runs; ring: a run that the fit has not seen; lines: the fit", colour=svg.FAINT),
    ]  # fmt: skip
    for tick in svg.ticks(1.7, 2.6, log=False):
        parts.append(svg.line(LEFT, y_of(tick), WIDTH - 20, y_of(tick), svg.GRID))
        parts.append(svg.text(LEFT - 8, y_of(tick) + 4, f"{tick:g}", colour=svg.FAINT, anchor="end"))
    for tick in svg.ticks(1e5, 6e6, log=True):
        parts.append(svg.text(x_of(tick), BOTTOM + 18, f"{tick / 1e6:g}M", colour=svg.FAINT, anchor="middle"))
    parts.append(svg.text((LEFT + WIDTH) / 2, BOTTOM + 38, "training tokens", anchor="middle"))
    for number, (size, colour) in enumerate(zip(sizes, COLOURS, strict=True)):
        line = [(float(d), expected(size, float(d))) for d in np.geomspace(1e5, 6e6, 50)]
        parts.append(svg.path([p for p in line if 1.7 < p[1] < 2.6], x_of, y_of, colour, width=1.6))
        parts.append(
            svg.text(WIDTH - 140, TOP + 14 + 16 * number, f"{size / 1e6:g}M parameters", colour=colour)
        )
    for n, d, bits in points:
        nearest = min(sizes, key=lambda size: abs(np.log(size / n)))
        colour = COLOURS[sizes.index(nearest)]
        fill = "#ffffff" if (n, d, bits) == HELD_OUT else colour
        parts.append(
            f'<circle cx="{x_of(d):.1f}" cy="{y_of(bits):.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="2"/>'
        )
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Print the fit beside the runs; draw it where a file is named."""
    error, floor, a, p, b, q = best_fit()
    used = float(np.mean([(expected(n, d) - bits) ** 2 for n, d, bits in RUNS]))
    print(f"best on the grid: {floor:g} + {a:.3g} / parameters^{p:.2f} + {b:.3g} / tokens^{q:.2f}")
    print(f"root of the mean squared error: {error**0.5:.4f}; of the fit in use: {used**0.5:.4f}")
    for run in [*RUNS, HELD_OUT]:
        n, d, bits = run
        note = ", held out" if run == HELD_OUT else ""
        print(f"{n / 1e6:.2f}M parameters, {d / 1e6:.2f}M tokens: {bits:.3f}, fit {expected(n, d):.3f}{note}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    main()
