"""The optimizer: Muon for the matrices of the blocks, AdamW for everything else.

Muon moves a matrix along the nearest orthogonal matrix of its momentum: every direction of the gradient gets
the same length, where gradient descent would follow the few strongest (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon). Embedding, output matrix, norms, biases and positions have no such
geometry and take AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); so do the matrices when `optim.matrices` says so.

The matrices' arithmetic is in muon.py; here are the groups, the shards and the state. A gradient that is None counts
as zero, so that all processes do the same work.
"""

# torch._foreach_*: PyTorch's multi-tensor operations have no public names.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from onesitting.config import OptimConfig
from onesitting.errors import UserError
from onesitting.model.lora import is_of_adapter
from onesitting.train.compiler import Compiled, Compiler
from onesitting.train.device import fast_dtype
from onesitting.train.muon import (
    POLAR,
    Coefficients,
    MatrixRule,
    apply_moves,
    directions,
    look_ahead,
    move_matrices,
)
from onesitting.train.shards import gather_like, is_sharded, local, shard_like, sum_over_shards

ADAM_EPS = 1e-10
"""Added to the root of AdamW's second moment. Mean losses give rare embedding rows gradients near 1e-8, which the
usual 1e-8 would slow down."""


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
    dtype: of the orthogonalisation; 16 bits where the device multiplies them fast, else float32.
    coefficients: of the Newton–Schulz iterations; the default is this file's, tests compare others.
    compiler: backend that compiles the update of each group of matrices; None: it runs as it is.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, nn.Parameter]],
        cfg: OptimConfig,
        *,
        dtype: torch.dtype,
        coefficients: Sequence[Coefficients] = POLAR,
        compiler: Compiler | None = None,
    ) -> None:
        self.cfg, self.dtype, self.coefficients = cfg, dtype, tuple(coefficients)
        self.move_matrices = Compiled(move_matrices, compiler) if compiler is not None else move_matrices
        self.rate: Tensor | None = None
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
        cfg, like = self.cfg, group.params
        rule = MatrixRule(
            shape=shape, momentum=cfg.momentum, weight_decay=cfg.weight_decay, dtype=self.dtype,
            coefficients=self.coefficients,
        )  # fmt: skip
        params, grads = [local(p) for p in like], gradients(like)
        if not is_sharded(like[0]):
            self.move_matrices(params, grads, group.momentum, self._rate(lr, params[0].device), rule)
            return
        look_ahead(grads, group.momentum, rule)
        whole = [gather_like(p, g) for p, g in zip(like, grads, strict=True)]
        moves = [shard_like(p, move) for p, move in zip(like, directions(whole, rule), strict=True)]
        apply_moves(params, whole, moves, lr, rule)

    def _rate(self, lr: float, device: torch.device) -> float | Tensor:
        """The rate for `move_matrices`; filling a tensor that is there waits for no device."""
        if not isinstance(self.move_matrices, Compiled):
            return lr
        if self.rate is None:
            self.rate = torch.empty((), device=device)
        return self.rate.fill_(lr)

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


def gradients(params: Sequence[nn.Parameter]) -> list[Tensor]:
    """This process's part of each gradient; zeros for a parameter that took no part in the loss."""
    return [torch.zeros_like(local(p)) if p.grad is None else local(p.grad) for p in params]


def build_optimizer(
    model: nn.Module, cfg: OptimConfig, dtype: torch.dtype | None = None, compiler: Compiler | None = None
) -> MuonAdamW:
    """The optimizer of a model whose matrices of blocks are named `….layers.…`; tied parameters count once.

    dtype: of Muon's matrix products; None: the one that the device multiplies fastest. compiler: as in MuonAdamW.
    """
    # A compiled module prefixes its parameters' names; a checkpoint must not depend on that.
    named = [(name.replace("_orig_mod.", ""), parameter) for name, parameter in model.named_parameters()]
    dtype = fast_dtype(local(named[0][1]).device) if dtype is None else dtype
    return MuonAdamW(named, cfg, dtype=dtype, compiler=compiler)
