"""The optimizer: Muon for the matrices of the blocks, AdamW for everything else.

Muon moves a matrix along the nearest orthogonal matrix of its momentum: every direction of the gradient gets
the same length, where gradient descent would follow the few strongest (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon). Embedding, output matrix, norms, biases and positions have no such
geometry and take AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); so do the matrices when `optim.matrices` says so.

All matrices of one shape are orthogonalised together, in one batched product; a tall matrix joins the wide ones
of its transposed shape, and a tensor of experts (E, R, C) is E matrices, each orthogonalised by itself. A gradient
that is None counts as zero, so that all processes do the same work.

Shapes: N matrices of one shape, R rows <= C columns.
"""

# torch._foreach_*: PyTorch's multi-tensor operations have no public names.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from onesitting.config import OptimConfig
from onesitting.errors import UserError
from onesitting.model.lora import is_of_adapter
from onesitting.train.device import has_fast_bfloat16
from onesitting.train.shards import gather_like, is_sharded, local, shard_like, sum_over_shards

ADAM_EPS = 1e-10
"""Added to the root of AdamW's second moment. Mean losses give rare embedding rows gradients near 1e-8, which the
usual 1e-8 would slow down."""
SMALLEST_SINGULAR_VALUE = 1e-3
"""Singular values below this fraction of the Frobenius norm need not reach 1; bfloat16 cannot tell them from 0."""
N_ITERATIONS = 5
"""Newton–Schulz steps; five reach 1 ± 0.14 from SMALLEST_SINGULAR_VALUE."""

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


def orthogonalise(matrices: Tensor, coefficients: Sequence[Coefficients] = POLAR) -> Tensor:
    """Nearest orthogonal matrices U V^T of matrices U S V^T, approximately: singular values come near 1.

    matrices: (N, R, C) with R <= C, bfloat16 or float32; overwritten. Each iteration costs 4 R² C + 2 R³ FLOPs.
    """
    assert matrices.shape[-2] <= matrices.shape[-1], matrices.shape
    # The Frobenius norm is at least the largest singular value; the first polynomial leaves 1 % for rounding.
    norm = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    x = matrices.mul_((1 / norm.clamp_min(1e-7)).to(matrices.dtype))
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


@dataclass
class MatrixGroup:
    """Matrices that are orthogonalised together."""

    names: list[str] = field(default_factory=list)
    params: list[nn.Parameter] = field(default_factory=list)
    momentum: list[Tensor] = field(default_factory=list)


@dataclass
class AdamGroup:
    """Parameters with one AdamW learning rate."""

    lr: float
    weight_decay: float = 0.0
    names: list[str] = field(default_factory=list)
    params: list[nn.Parameter] = field(default_factory=list)
    exp_avg: list[Tensor] = field(default_factory=list)
    exp_avg_sq: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)


def role(name: str, parameter: Tensor) -> str:
    """`matrix`, `embed`, `head`, `scalar` or `adapter`: which rule and learning rate a parameter has."""
    if is_of_adapter(name):
        return "adapter"
    if parameter.ndim >= 2 and ".layers." in name:
        return "matrix"
    if "embed_tokens" in name:
        return "embed"
    return "head" if parameter.ndim == 2 and "embed_positions" not in name else "scalar"


class MuonAdamW:
    """Muon and AdamW over the named parameters of a model; the state is a flat dict of tensors.

    named: (name, parameter) pairs, each parameter once; frozen ones (requires_grad false) are left alone.
    dtype: of the orthogonalisation; bfloat16 where the processor multiplies it fast, else float32.
    coefficients: of the Newton–Schulz iterations; the default is this file's, tests compare others.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, nn.Parameter]],
        cfg: OptimConfig,
        *,
        dtype: torch.dtype,
        coefficients: Sequence[Coefficients] = POLAR,
    ) -> None:
        self.cfg, self.dtype, self.coefficients = cfg, dtype, coefficients
        self.n_steps = 0
        self.matrices: dict[tuple[int, int], MatrixGroup] = {}
        self.others = {
            "matrix": AdamGroup(cfg.matrix_lr, cfg.weight_decay),
            "embed": AdamGroup(cfg.embed_lr),
            "head": AdamGroup(cfg.head_lr),
            "scalar": AdamGroup(cfg.scalar_lr),
            "adapter": AdamGroup(cfg.adapter_lr),
        }
        self.params: list[nn.Parameter] = []
        for name, parameter in named:
            if parameter.requires_grad:
                self.params.append(parameter)
                self._add(name, parameter)

    def _add(self, name: str, parameter: nn.Parameter) -> None:
        which = role(name, parameter)
        zeros = torch.zeros_like(local(parameter), memory_format=torch.contiguous_format)
        if which == "matrix" and self.cfg.matrices == "muon":
            rows, columns = parameter.shape[-2:]
            key = (min(rows, columns), max(rows, columns))
            group = self.matrices.setdefault(key, MatrixGroup())
            group.momentum.append(zeros)
        else:
            group = self.others[which]
            group.exp_avg.append(zeros)
            group.exp_avg_sq.append(zeros.clone())
            group.steps.append(torch.zeros((), dtype=torch.float32, device=zeros.device))
        group.names.append(name)
        group.params.append(parameter)

    # ---- one update ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """Global L2 norm of all gradients, float32 scalar, over all shards; then scale them to max_norm at most.

        max_norm: 0 leaves the gradients as they are. A norm that is not finite makes the gradients useless: the
        caller must check it and skip the step.
        """
        grads = [local(p.grad) for p in self.params if p.grad is not None]
        if not grads:
            return torch.zeros(())
        norm = torch.stack(torch._foreach_norm(grads)).float()
        squares = norm.square().sum()
        norm = (sum_over_shards(squares) if is_sharded(self.params[0]) else squares).sqrt()
        if max_norm > 0:
            torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, lr_factor: float) -> None:
        """Update every parameter with its peak rate times lr_factor. Gradients of matrices are overwritten."""
        for shape, group in self.matrices.items():
            self._step_matrices(shape, group, self.cfg.matrix_lr * lr_factor)
        for group in self.others.values():
            self._step_others(group, group.lr * lr_factor)
        self.n_steps += 1

    def zero_grad(self) -> None:
        """Drop the gradients; the next backward pass makes new ones."""
        for parameter in self.params:
            parameter.grad = None

    def _step_matrices(self, shape: tuple[int, int], group: MatrixGroup, lr: float) -> None:
        params = [local(p) for p in group.params]
        grads = gradients(group.params)
        beta = self.cfg.momentum
        torch._foreach_lerp_(group.momentum, grads, 1 - beta)
        torch._foreach_lerp_(grads, group.momentum, beta)  # Nesterov: look one step of momentum ahead
        whole = [gather_like(p, g) for p, g in zip(group.params, grads, strict=True)]
        flipped = [matrix.shape[-2] > matrix.shape[-1] for matrix in whole]
        counts = [matrix.shape[:-2].numel() for matrix in whole]  # a tensor of experts is as many matrices
        stack = torch.empty(sum(counts), *shape, dtype=self.dtype, device=whole[0].device)
        torch._foreach_copy_(
            list(stack.split(counts)),
            [as_stack(m.mT if flip else m) for m, flip in zip(whole, flipped, strict=True)],
        )
        updates = orthogonalise(stack, self.coefficients).split(counts)
        if self.cfg.weight_decay:
            torch._foreach_mul_(params, 1 - lr * self.cfg.weight_decay)
        for flip in (False, True):  # tall matrices share one rate scale, wide and square ones the other
            chosen = [i for i, is_flipped in enumerate(flipped) if is_flipped == flip]
            if chosen:
                rows, columns = shape[::-1] if flip else shape
                moves = [updates[i].mT if flip else updates[i] for i in chosen]
                moves = [move.view_as(whole[i]) for i, move in zip(chosen, moves, strict=True)]
                moves = [shard_like(group.params[i], move) for i, move in zip(chosen, moves, strict=True)]
                torch._foreach_add_([params[i] for i in chosen], moves, alpha=-lr * rate_scale(rows, columns))

    def _step_others(self, group: AdamGroup, lr: float) -> None:
        if not group.params:
            return
        adamw(
            [local(p) for p in group.params], gradients(group.params),
            group.exp_avg, group.exp_avg_sq, [], group.steps,
            fused=True, amsgrad=False, maximize=False, lr=lr, weight_decay=group.weight_decay, eps=ADAM_EPS,
            beta1=self.cfg.adam_beta1, beta2=self.cfg.adam_beta2,
        )  # fmt: skip

    # ---- state -----------------------------------------------------------------------------------------------

    def state_tensors(self) -> dict[str, Tensor]:
        """Name -> tensor: `n_steps`, `momentum.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`.

        Tensors are the live state, not copies. With sharded parameters they are gathered: every process must call.
        """
        state = {"n_steps": torch.tensor(self.n_steps)}
        for name, (parameter, tensor) in self._named_state().items():
            state[name] = gather_like(parameter, tensor)
        return state

    @torch.no_grad()
    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_tensors()`, of any number of processes.

        Raises UserError when the state is that of another model.
        """
        named = self._named_state()
        differing = sorted(set(state) ^ {"n_steps", *named})
        differing += [n for n, (p, _) in named.items() if n in state and state[n].shape != p.shape]
        if differing:
            raise UserError(
                f"the optimizer state of this checkpoint does not fit the model: {', '.join(differing[:3])} "
                f"({len(differing)} entries differ); train into a new run folder"
            )
        self.n_steps = int(state["n_steps"])
        for name, (parameter, tensor) in named.items():
            tensor.copy_(shard_like(parameter, state[name].to(tensor.device)))
        for group in self.others.values():
            for steps in group.steps:
                steps.fill_(self.n_steps)

    def _named_state(self) -> dict[str, tuple[nn.Parameter, Tensor]]:
        """State name -> (its parameter, the local tensor)."""
        named: dict[str, tuple[nn.Parameter, Tensor]] = {}
        for group in self.matrices.values():
            for name, parameter, momentum in zip(group.names, group.params, group.momentum, strict=True):
                named[f"momentum.{name}"] = (parameter, momentum)
        for group in self.others.values():
            for i, (name, parameter) in enumerate(zip(group.names, group.params, strict=True)):
                named[f"exp_avg.{name}"] = (parameter, group.exp_avg[i])
                named[f"exp_avg_sq.{name}"] = (parameter, group.exp_avg_sq[i])
        return named


def as_stack(matrix: Tensor) -> Tensor:
    """(N, R, C): matrices as they are, a single one as the only one of its stack."""
    return matrix if matrix.ndim == 3 else matrix[None]


def gradients(params: Sequence[nn.Parameter]) -> list[Tensor]:
    """This process's part of each gradient; zeros for a parameter that took no part in the loss."""
    return [torch.zeros_like(local(p)) if p.grad is None else local(p.grad) for p in params]


def build_optimizer(model: nn.Module, cfg: OptimConfig, dtype: torch.dtype | None = None) -> MuonAdamW:
    """The optimizer of a model whose matrices of blocks are named `….layers.…`; tied parameters count once.

    dtype: of Muon's matrix products; None: bfloat16 where the device multiplies it fast, else float32.
    """
    # A compiled module prefixes its parameters' names; a checkpoint must not depend on that.
    named = [(name.replace("_orig_mod.", ""), parameter) for name, parameter in model.named_parameters()]
    if dtype is None:
        device = local(named[0][1]).device
        dtype = torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return MuonAdamW(named, cfg, dtype=dtype)
