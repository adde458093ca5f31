"""Muon's update: matrices move along the nearest orthogonal ones of their momentum.

All matrices of one shape are orthogonalised together, in one batched product; a tall matrix joins the wide ones
of its transposed shape, and a tensor of experts (E, R, C) is E matrices, each orthogonalised by itself. Everything
here is a function of tensors, so that it can be compiled.

Shapes: N matrices of one shape, R rows <= C columns.
"""

# torch._foreach_*: PyTorch's multi-tensor operations have no public names.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SINGULAR_VALUE = 3e-3
"""Singular values below this fraction of the Frobenius norm need not reach 1."""
N_ITERATIONS = 4
"""Newton–Schulz steps; four reach 1 ± 0.22 from SMALLEST_SINGULAR_VALUE. Five, which reach 1 ± 0.14 from a third of it,
taught no model more (docs/optimizer.md) and cost a quarter more."""

Coefficients = tuple[float, float, float]
"""(a, b, c) of the odd polynomial a x + b x³ + c x⁵."""


def best_quintic(low: float, high: float) -> Coefficients:
    """(a, b, c) of the odd quintic whose largest distance from 1 on [low, high] is smallest.

    0 < low < high. Remez exchange: the error takes the same size with changing sign at low, at the two extrema of
    the polynomial and at high (Chebyshev); the extrema are roots of a quadratic in x².
    """
    points = torch.tensor(
        [low, low + (high - low) / 3, low + (high - low) * 2 / 3, high], dtype=torch.float64
    )
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    a = b = c = 0.0
    for _ in range(50):  # converges quadratically; a handful is enough
        powers = torch.stack((points, points**3, points**5, signs), dim=1)
        a, b, c, _ = torch.linalg.solve(powers, torch.ones(4, dtype=torch.float64)).tolist()
        root = math.sqrt(max(0.0, 9 * b * b - 20 * a * c))
        inner = sorted(math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1))
        points[1], points[2] = inner[0], inner[1]
    return a, b, c


def polar_coefficients(n_iterations: int, smallest: float) -> tuple[Coefficients, ...]:
    """One quintic an iteration; together they bring singular values in [smallest, 1] closest to 1.

    Each is the best for the interval that the one before leaves (Amsel et al. 2025, arXiv:2505.16932, "Polar
    Express"). As there, an interval is not taken narrower than [upper/40, upper], which costs little and lets the
    small values catch up, and all but the last are fed values 1 % smaller, so that rounding in bfloat16 cannot
    leave the interval, outside of which the polynomials explode.
    """
    low, high = smallest, 1.0
    found: list[Coefficients] = []
    for index in range(n_iterations):
        a, b, c = best_quintic(max(low, high / 40), high)
        ends = [a * x + b * x**3 + c * x**5 for x in (low, high)]
        centre = 2 / sum(ends)  # 1 unless the interval was widened
        margin = 1.01 if index < n_iterations - 1 else 1.0
        a, b, c = a * centre / margin, b * centre / margin**3, c * centre / margin**5
        found.append((a, b, c))
        low = a * low + b * low**3 + c * low**5
        high = 2 - low
    return tuple(found)


POLAR = polar_coefficients(N_ITERATIONS, SMALLEST_SINGULAR_VALUE)


def orthogonalise(
    matrices: Tensor, coefficients: Sequence[Coefficients] = POLAR, dtype: torch.dtype | None = None
) -> Tensor:
    """Nearest orthogonal matrices U V^T of matrices U S V^T, approximately: singular values come near 1.

    matrices: (N, R, C) with R <= C, bfloat16 or float32; overwritten. Each iteration costs 4 R² C + 2 R³ FLOPs.
    dtype: of the products and the result; None: that of the matrices.
    """
    assert matrices.shape[-2] <= matrices.shape[-1], matrices.shape
    # The Frobenius norm is at least the largest singular value; the first polynomial leaves 1 % for rounding.
    norm = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    x = matrices.mul_((1 / norm.clamp_min(1e-7)).to(matrices.dtype)).to(dtype or matrices.dtype)
    for a, b, c in coefficients:
        gram = torch.bmm(x, x.mT)  # (N, R, R)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)  # (N, R, C)
    return x


def rate_scale(rows: int, columns: int) -> float:
    """Factor of Muon's learning rate for a (rows, columns) matrix: sqrt(max(1, rows / columns)).

    An orthogonal update of a tall matrix changes its output by less per entry; this evens the RMS of the change of
    the output out over shapes and widths, so that one rate serves all model sizes (Bernstein & Newhouse 2024,
    arXiv:2409.20325). The other known choice, 0.2 sqrt(max(rows, columns)), matches AdamW's RMS per entry and so
    takes over AdamW's rates, but those must fall as models widen.
    """
    return math.sqrt(max(1.0, rows / columns))


@dataclass(frozen=True, kw_only=True)
class MatrixRule:
    """How matrices of one shape, or of its transpose, are moved."""

    shape: tuple[int, int]
    """(R, C)."""
    momentum: float
    weight_decay: float
    dtype: torch.dtype
    coefficients: Sequence[Coefficients]


def move_matrices(
    params: list[Tensor], grads: list[Tensor], momentum: list[Tensor], lr: float | Tensor, rule: MatrixRule
) -> None:
    """One update of whole matrices, in place; gradients are overwritten. lr: a tensor where this is compiled, which
    takes each number as a constant."""
    look_ahead(grads, momentum, rule)
    apply_moves(params, grads, directions(grads, rule), lr, rule)


def look_ahead(grads: list[Tensor], momentum: list[Tensor], rule: MatrixRule) -> None:
    """Take the gradients into the momentum, and put into their place the momentum one step ahead (Nesterov)."""
    torch._foreach_lerp_(momentum, grads, 1 - rule.momentum)
    torch._foreach_lerp_(grads, momentum, rule.momentum)


def directions(matrices: list[Tensor], rule: MatrixRule) -> list[Tensor]:
    """The nearest orthogonal matrix of each, in its shape; in float32 off a CPU, whose weights are."""
    flipped = [is_tall(matrix) for matrix in matrices]
    counts = [matrix.shape[:-2].numel() for matrix in matrices]  # a tensor of experts is as many matrices
    parts = [as_stack(m.mT if flip else m) for m, flip in zip(matrices, flipped, strict=True)]
    # Small gradients are below float16's range until they are divided by their norm.
    dtype = torch.float32 if rule.dtype is torch.float16 else rule.dtype
    if torch.compiler.is_compiling():
        stack = torch.cat([part.to(dtype) for part in parts])
    else:
        stack = torch.empty(sum(counts), *rule.shape, dtype=dtype, device=parts[0].device)
        torch._foreach_copy_(list(stack.split(counts)), parts)
    moves = orthogonalise(stack, rule.coefficients, rule.dtype)
    if moves.device.type != "cpu":  # one conversion; adding to another type goes tensor by tensor there
        moves = moves.float()
    return [
        (move.mT if flip else move).view_as(matrix)
        for matrix, move, flip in zip(matrices, moves.split(counts), flipped, strict=True)
    ]


def apply_moves(
    params: list[Tensor], whole: list[Tensor], moves: list[Tensor], lr: float | Tensor, rule: MatrixRule
) -> None:
    """Shrink and move the parameters. whole: tensors of the whole matrices' shapes, of which params may be parts."""
    if rule.weight_decay:
        torch._foreach_mul_(params, 1 - lr * rule.weight_decay)
    for tall in (False, True):  # tall matrices share one rate scale, wide and square ones the other
        chosen = [i for i, matrix in enumerate(whole) if is_tall(matrix) == tall]
        if not chosen:
            continue
        scale = rate_scale(*(rule.shape[::-1] if tall else rule.shape))
        ours, theirs = [params[i] for i in chosen], [moves[i] for i in chosen]
        if isinstance(lr, Tensor):
            torch._foreach_add_(ours, torch._foreach_mul([move.float() for move in theirs], -lr * scale))
        else:
            torch._foreach_add_(ours, theirs, alpha=-lr * scale)


def is_tall(matrix: Tensor) -> bool:
    """Whether a matrix, or each of a stack, has more rows than columns."""
    return matrix.shape[-2] > matrix.shape[-1]


def as_stack(matrix: Tensor) -> Tensor:
    """(N, R, C): matrices as they are, a single one as the only one of its stack."""
    return matrix if matrix.ndim == 3 else matrix[None]
