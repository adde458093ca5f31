"""Mixture of experts: each token is sent to the few of many MLPs that a router chooses for it, as Qwen3-MoE does.

A router gives each token a probability for each expert; the k most probable ones work on it, and their outputs are
added, weighted by those probabilities (Shazeer et al. 2017, arXiv:1701.06538). Parameters grow with the number of
experts, arithmetic with k.

Left alone, a router sends everything to a few experts, which then learn all there is. Two remedies, each a setting:

- `router_aux_loss`: a loss c · E · Σ_e f_e p_e a layer, with f_e the share of the assignments that expert e got and p_e
  the mean probability it was given (Fedus et al. 2021, arXiv:2101.03961, eq. 4). f is that of the step before, over
  all micro-batches and processes: being a constant for the gradient anyway, it then makes the loss a plain sum over
  tokens, the same for every split of a batch, and balances the whole batch rather than each part of it
  (Qiu et al. 2025, arXiv:2501.11873).
- `router_bias_rate`: no loss, but a bias of each expert that counts in the choice and not in the weight, raised for
  experts that got too little and lowered for the others after each step (Wang et al. 2024, arXiv:2408.15664).

Both count real tokens alone: what pads a row says nothing about the text.

Shapes: N tokens, E experts, k experts a token, d_model width of the residual stream, F width of an expert.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onesitting.config import ModelConfig
from onesitting.model.linear import Linear


class Experts(nn.Module):
    """E SwiGLU MLPs, each kind of matrix in one tensor; on disk they are matrices with names of their own (hf.py)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        E, d, hidden = cfg.n_experts, cfg.d_model, cfg.d_ff
        self.gate_proj = nn.Parameter(torch.empty(E, hidden, d))
        self.up_proj = nn.Parameter(torch.empty(E, hidden, d))
        self.down_proj = nn.Parameter(torch.empty(E, d, hidden))
        # Each set of sizes would be a graph of its own. Said here, not above: it loads the compiler, a second that
        # every command would pay.
        self.one_by_one: Product = torch.compiler.disable(one_by_one)  # pyright: ignore

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """(N, d_model): each token's experts, added with their weights; chosen, weights: (N, k)."""
        N, k = chosen.shape
        by_expert = chosen.flatten()  # (N·k,)
        order = by_expert.argsort(stable=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(N * k, device=x.device))
        ends = count(by_expert, len(self.gate_proj)).cumsum(0)
        rows = x[order // k]  # (N·k, d_model), the first expert's tokens first
        gate, up = (
            grouped_product(rows, matrices, ends, self.one_by_one)
            for matrices in (self.gate_proj, self.up_proj)
        )
        y = grouped_product(F.silu(gate) * up, self.down_proj, ends, self.one_by_one)[back].view(N, k, -1)
        return (y * weights[..., None]).sum(dim=1)


def count(indices: Tensor, n: int, each: Tensor | None = None) -> Tensor:
    """(n,) how often each of 0 … n - 1 is among the indices. Unlike `torch.bincount` it never waits for a device.

    each: int64, what an index counts for; None: 1.
    """
    each = torch.ones_like(indices) if each is None else each
    return torch.zeros(n, dtype=torch.int64, device=indices.device).scatter_add_(0, indices, each)


def one_by_one(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """What `grouped_product` gives, one product an expert."""
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return torch.cat(
        [part @ weight.t() for part, weight in zip(rows.split(sizes), weights.unbind(), strict=True)]
    )


Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def grouped_product(rows: Tensor, weights: Tensor, ends: Tensor, else_: Product = one_by_one) -> Tensor:
    """(M, out): rows (M, in), of which expert e has those from ends[e - 1] to ends[e], times weights[e] (out, in)ᵀ.

    One call of PyTorch for all experts where it has one (2.10 and later), else what `else_` does.
    """
    weights = weights.to(rows.dtype)
    if _has_grouped(rows, weights):
        return F.grouped_mm(rows, weights.mT, offs=ends.to(torch.int32))
    return else_(rows, weights, ends)


def _has_grouped(rows: Tensor, weights: Tensor) -> bool:
    """Whether PyTorch's kernel is there and takes these operands: it reads rows of whole 16 bytes."""
    whole = all(width * rows.element_size() % 16 == 0 for width in weights.shape[1:])
    # The compiler's description of the kernel knows bfloat16 alone, the kernel itself every type.
    known = rows.dtype == torch.bfloat16 or not torch.compiler.is_compiling()
    return whole and known and hasattr(F, "grouped_mm") and rows.device.type in ("cpu", "cuda")


class MoE(nn.Module):
    """A router and its experts, in the place of a block's MLP."""

    choice_bias: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.n_active, self.normalise = cfg.n_active_experts, cfg.norm_top_k
        self.aux_loss, self.bias_rate = cfg.router_aux_loss, cfg.router_bias_rate
        self.gate = Linear(cfg.d_model, cfg.n_experts, bias=False)
        self.experts = Experts(cfg)
        if self.bias_rate:
            self.register_buffer("choice_bias", torch.zeros(cfg.n_experts))
        self.load: Tensor | None = None
        """(E,) share of the assignments that each expert got in the step before; None before the first."""
        self.counts: Tensor | None = None
        """(E,) assignments since the last `update_routers`."""
        self.probability_sum: Tensor | None = None
        """(E,) probabilities summed over tokens since the last `take_balance_loss`, with their graph."""

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """(B, T, d_model) -> (B, T, d_model). real: (B, T) bool, the tokens that balance; None: all."""
        tokens = x.flatten(0, -2)  # (N, d_model)
        probabilities = self.gate(tokens).float().softmax(dim=-1)  # (N, E)
        scores = probabilities + self.choice_bias if self.bias_rate else probabilities
        chosen = scores.topk(self.n_active, dim=-1).indices  # (N, k)
        weights = probabilities.gather(1, chosen)
        if self.normalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        if self.training and torch.is_grad_enabled():
            self._record(probabilities, chosen, None if real is None else real.flatten())
        return self.experts(tokens, chosen, weights.to(x.dtype)).view_as(x)

    def _record(self, probabilities: Tensor, chosen: Tensor, real: Tensor | None) -> None:
        """Count one pass: probabilities (N, E), chosen (N, k), real (N,) bool."""
        k, shape = chosen.shape[1], (len(chosen), 1)
        each = None if real is None else real.long().view(shape).expand(-1, k).flatten()
        counts = count(chosen.flatten(), probabilities.shape[1], each)
        self.counts = counts if self.counts is None else self.counts + counts
        total = (probabilities if real is None else probabilities * real.view(shape)).sum(dim=0)
        self.probability_sum = total if self.probability_sum is None else self.probability_sum + total

    def take_balance_loss(self) -> Tensor | None:
        """c · E · Σ_e f_e · (sum of probabilities) over the tokens since the last call, and forget them."""
        total, self.probability_sum = self.probability_sum, None
        if total is None or not self.aux_loss:
            return None
        load = torch.full_like(total, 1 / len(total)) if self.load is None else self.load.to(total.device)
        return self.aux_loss * len(total) * (load * total).sum()


# ---- what the training loop asks ---------------------------------------------------------------------------


def moe_layers(model: nn.Module) -> list[MoE]:
    """The mixtures of a model, from the first block to the last; [] for a dense model."""
    return [module for module in model.modules() if isinstance(module, MoE)]


def take_balance_loss(model: nn.Module) -> Tensor | None:
    """The routers' balance loss, summed over layers and over the tokens of the forward passes since the last call.

    None when there is nothing to balance: a dense model, `router_aux_loss = 0`, or no pass in training mode.
    """
    losses = [loss for layer in moe_layers(model) if (loss := layer.take_balance_loss()) is not None]
    return torch.stack(losses).sum() if losses else None


def add_balance_loss(
    model: nn.Module, loss: Tensor, named: dict[str, Tensor], units_per_token: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss + balance loss, named + `balance_loss`) of one micro-batch; unchanged where there is nothing to balance.

    loss: a sum over units, which the caller divides by all units of the step; units_per_token: of the whole step. The
    balance loss is then a mean over tokens, whatever a unit is.
    """
    balance = take_balance_loss(model)
    if balance is None:
        return loss, named
    balance = balance * units_per_token
    return loss + balance, {**named, "balance_loss": balance}


@torch.no_grad()
def update_routers(model: nn.Module, sum_counts: Callable[[list[int]], list[int]]) -> dict[str, float]:
    """Take in one step's assignments: sets each layer's load for the next step and moves its biases.

    sum_counts: adds up counts over processes. Names and values for the metrics come back, {} for a dense model and
    for a step without a token. Biases of a router that is frozen, under an adapter, stay as they are.
    """
    layers = moe_layers(model)
    if not layers:
        return {}
    E = layers[0].gate.out_features
    zero = torch.zeros(E, dtype=torch.int64, device=layers[0].gate.weight.device)
    # Read at once: reading each layer's would wait for the device each time.
    mine = torch.cat([zero if layer.counts is None else layer.counts for layer in layers])
    counts = sum_counts(mine.tolist())
    for layer in layers:
        layer.counts = None
    if not any(counts):
        return {}
    load = torch.tensor(counts, dtype=torch.float32).view(len(layers), E)
    load /= load.sum(dim=1, keepdim=True).clamp_min(1)
    for layer, row in zip(layers, load, strict=True):
        layer.load = row.to(layer.gate.weight.device)
        if layer.bias_rate and layer.gate.weight.requires_grad:
            layer.choice_bias += layer.bias_rate * (1 / E - layer.load).sign()
    return {
        "expert_load_max": float(load.max()) * E,
        "expert_load_min": float(load.min()) * E,
        "experts_unused": int((load == 0).sum()),
    }


def forget_counts(model: nn.Module) -> None:
    """Drop what the forward passes of an unfinished step left in the routers."""
    for layer in moe_layers(model):
        layer.counts = layer.probability_sum = None


def router_state(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of the routers beside the weights: the load of each layer, by `router_load.LAYER`."""
    return {
        f"router_load.{index}": layer.load
        for index, layer in enumerate(moe_layers(model))
        if layer.load is not None
    }


def load_router_state(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Continue from `router_state`; takes its entries out of `tensors`."""
    for index, layer in enumerate(moe_layers(model)):
        load = tensors.pop(f"router_load.{index}", None)
        layer.load = None if load is None else load.to(layer.gate.weight.device)
    forget_counts(model)


# ---- on disk -------------------------------------------------------------------------------------------------

EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
"""Name of one expert's matrix on disk: layer, expert, kind. In the model, a kind is one tensor for all experts."""


def config_entries(cfg: ModelConfig) -> dict[str, Any]:
    """What config.json of a Qwen3-MoE has beside what Qwen3's has."""
    return {
        "num_experts": cfg.n_experts,
        "num_experts_per_tok": cfg.n_active_experts,
        "moe_intermediate_size": cfg.d_ff,
        "norm_topk_prob": cfg.norm_top_k,
        "router_aux_loss_coef": cfg.router_aux_loss,
        "decoder_sparse_step": 1,  # every block has experts
        "mlp_only_layers": [],
        "output_router_logits": False,
    }


def split_experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each expert's matrices under names of their own, as checkpoints of Qwen3-MoE have them."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".mlp.experts." not in name:
            out[name] = tensor
            continue
        experts, _, kind = name.rpartition(".")
        out |= {f"{experts}.{index}.{kind}.weight": matrix for index, matrix in enumerate(tensor.unbind())}
    return out


def stack_experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse; an expert that is missing leaves its stack out, which the reader reports."""
    out = {name: tensor for name, tensor in state.items() if not EXPERT.fullmatch(name)}
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        if found := EXPERT.fullmatch(name):
            stacks.setdefault(f"{found[1]}.{found[3]}", {})[int(found[2])] = tensor
    for name, matrices in stacks.items():
        if sorted(matrices) == list(range(len(matrices))):
            out[name] = torch.stack([matrices[index] for index in range(len(matrices))])
    return out
