"""The model: a decoder in the Qwen3 shape, with switches that reach Llama and GPT-2.

Read it from top to bottom: norms, masks, attention, MLP, block, model, initial weights.

Shapes: B batch, T time, S stored (key) time, H query heads, K key/value heads, D head width, F width of the
MLP's hidden layer, V vocabulary, d_model width of the residual stream.

Precision. Parameters are float32 while training. A forward pass runs in the dtype that `torch.autocast` names
(float32 without it): `hidden` reads that dtype once and each layer casts its own weight to the dtype of its
input, so a weight is cast once a forward pass and an activation never twice. Autocast is off within, as it has
rules of its own: on CUDA, from PyTorch 2.12 on, its norms give float32. Sums inside norms, softmax and rotations
are float32 whatever the dtype.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onesitting.config import ModelConfig
from onesitting.errors import UserError
from onesitting.model.documents import UNUSED, document_bias, document_blocks, document_positions
from onesitting.model.kernels import Route, attention, fits_flex, rms_norm, rotate, route_on
from onesitting.model.linear import Linear
from onesitting.model.logprobs import IGNORE, LossChunk, SoftTargets, cross_entropy_sum, masked_chunk
from onesitting.model.moe import MoE
from onesitting.model.rope import resolved, rope_tables
from onesitting.model.wiring import can_wire, wire_lookup

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from onesitting.model.kv_cache import KVCache


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` over the last dimension (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) in x's dtype."""
        return rms_norm(x, self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.Module):
    """`(x - mean) / std * weight + bias` over the last dimension (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) in x's dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, (x.shape[-1],), self.weight.to(x.dtype), bias, self.eps)


def make_norm(cfg: ModelConfig) -> RMSNorm | LayerNorm:
    """The norm of the residual stream that the configuration names."""
    if cfg.norm == "rms":
        return RMSNorm(cfg.d_model, cfg.norm_eps)
    return LayerNorm(cfg.d_model, cfg.norm_eps, cfg.bias)


class Attention(nn.Module):
    """Causal self-attention with grouped queries (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.head_dim = cfg.head_dim
        self.q_proj = Linear(cfg.d_model, cfg.n_heads * cfg.head_dim, bias=cfg.bias)
        self.k_proj = Linear(cfg.d_model, cfg.n_kv_heads * cfg.head_dim, bias=cfg.bias)
        self.v_proj = Linear(cfg.d_model, cfg.n_kv_heads * cfg.head_dim, bias=cfg.bias)
        self.o_proj = Linear(cfg.n_heads * cfg.head_dim, cfg.d_model, bias=cfg.bias)
        # Per-head norms keep attention logits bounded at high learning rates (Henry et al. 2020, arXiv:2010.04245).
        self.q_norm = RMSNorm(cfg.head_dim, cfg.norm_eps) if cfg.qk_norm else None
        self.k_norm = RMSNorm(cfg.head_dim, cfg.norm_eps) if cfg.qk_norm else None

    def forward(self, x: Tensor, layer: int, context: "Context") -> Tensor:
        """(B, T, d_model) to add to the residual stream; x is normed."""
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim)  # (B, T, H, D)
        k = self.k_proj(x).view(B, T, -1, self.head_dim)  # (B, T, K, D)
        v = self.v_proj(x).view(B, T, -1, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if context.rope is not None:
            q, k = rotate(q, *context.rope), rotate(k, *context.rope)
        if context.cache is None:
            return self.o_proj(attention(q, k, v, context.mask, context.route))
        return self.o_proj(context.cache.attend(layer, torch.cat((q, k, v), dim=2)))


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(cfg.d_model, cfg.d_ff, bias=cfg.bias)
        self.up_proj = Linear(cfg.d_model, cfg.d_ff, bias=cfg.bias)
        self.down_proj = Linear(cfg.d_ff, cfg.d_model, bias=cfg.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d_model) -> (B, T, d_model)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class GELU(nn.Module):
    """`down(gelu(up(x)))` with the tanh approximation, as GPT-2 has it."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.up_proj = Linear(cfg.d_model, cfg.d_ff, bias=cfg.bias)
        self.down_proj = Linear(cfg.d_ff, cfg.d_model, bias=cfg.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d_model) -> (B, T, d_model)."""
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Context(NamedTuple):
    """What all blocks of one forward pass share."""

    rope: tuple[Tensor, Tensor] | None
    """Rotation tables of the tokens' positions; None where positions are learned."""
    mask: "Tensor | BlockMask | None"
    """(B, 1, T, T) to add to attention scores, or the same for FlexAttention; None: causal attention within the row."""
    route: Route
    """How attention is computed."""
    cache: "KVCache | None"
    """Keys and values of earlier tokens."""
    run: "Callable[[Block, Tensor, int, Context], Tensor]"
    """What a block does: `Block.compute`, or that compiled."""
    real: Tensor | None = None
    """(B, T) bool, the tokens that a mixture's balance counts; None: all."""


class Block(nn.Module):
    """Attention, then MLP, each on the normed residual stream and added to it."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = make_norm(cfg)
        self.self_attn = Attention(cfg)
        self.post_attention_layernorm = make_norm(cfg)
        self.mlp = MoE(cfg) if cfg.n_experts else SwiGLU(cfg) if cfg.mlp == "swiglu" else GELU(cfg)

    def forward(self, x: Tensor, layer: int, context: Context) -> Tensor:
        """(B, T, d_model) -> (B, T, d_model)."""
        return context.run(self, x, layer, context)

    def compute(self, x: Tensor, layer: int, context: Context) -> Tensor:
        """What `forward` gives; apart from it, so that hooks (FSDP's) stay outside of what is compiled."""
        x = x + self.self_attn(self.input_layernorm(x), layer, context)
        normed = self.post_attention_layernorm(x)
        return x + (self.mlp(normed, context.real) if isinstance(self.mlp, MoE) else self.mlp(normed))


def apply_norm(norm: RMSNorm | LayerNorm, x: Tensor) -> Tensor:
    """(..., width) normed."""
    return norm(x)


class Parts(NamedTuple):
    """What a forward pass is made of, each part a function that can be compiled: one graph serves all blocks."""

    block: Callable[[Block, Tensor, int, Context], Tensor] = Block.compute
    norm: Callable[[RMSNorm | LayerNorm, Tensor], Tensor] = apply_norm
    loss_chunk: LossChunk = masked_chunk


PLAIN = Parts()


class Trunk(nn.Module):
    """Everything but the output matrix; named `model` in Hugging Face's state dict."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(
            cfg.vocab_size, cfg.d_model, _weight=torch.empty(cfg.vocab_size, cfg.d_model)
        )
        self.embed_positions = None
        if cfg.positions == "learned":
            table = torch.empty(cfg.context_length, cfg.d_model)
            self.embed_positions = nn.Embedding(cfg.context_length, cfg.d_model, _weight=table)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = make_norm(cfg)


class Transformer(nn.Module):
    """A causal language model of the shape `cfg`.

    seed: initial weights are a function of (cfg, seed) alone; None leaves them unset, for a checkpoint to fill.
    Raises UserError naming the setting when the shape is impossible.
    """

    def __init__(self, cfg: ModelConfig, seed: int | None = 0) -> None:
        super().__init__()
        check_shape(cfg)
        self.cfg = resolved(cfg)
        self.model = Trunk(cfg)
        untied = not cfg.tie_embeddings and not cfg.n_scores
        self.lm_head = Linear(cfg.d_model, cfg.vocab_size, bias=False) if untied else None
        self.score = Linear(cfg.d_model, cfg.n_scores, bias=False) if cfg.n_scores else None
        self.value: Linear | None = None
        """(1, d_model), a value head: there while PPO trains (stages/ppo.py)."""
        self.frozen_base: tuple[str, str] | None = None
        """(folder, SHA-256) of the weights under adapters (lora.py): checkpoints refer to them."""
        self.packed_head: nn.Module | None = None
        """The output matrix of a copy for decoding (packed.py)."""
        self.training_parts = PLAIN
        """What passes that keep gradients are made of; all others are plain, as each of their shapes comes seldom."""
        self.row_multiple = 16
        """A row of a matrix product has the same bits in any company, if their number is a multiple of this."""
        self.alike_rows = 16
        """Most rows whose bits are those in a product of row_multiple: a text alone reads so many at once."""
        if seed is not None:
            self.init_weights(seed)

    @property
    def output_weight(self) -> Tensor:
        """(V, d_model): the token embedding where tied, else the output matrix."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.effective_weight()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embed_tokens.weight.device

    @property
    def parts(self) -> Parts:
        """What the next pass is made of."""
        return self.training_parts if torch.is_grad_enabled() else PLAIN

    def forward(
        self,
        tokens: Tensor,
        *,
        targets: Tensor | None = None,
        soft: SoftTargets | None = None,
        doc_ids: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) float32 for tokens (B, T), or with targets the sum of their losses, a float32 scalar.

        targets: (B, T) ids of the tokens to predict, -100 where nothing is trained; the sum is in nats.
        soft: (B, T) likely tokens that take a part of each target in the gradient.
        The other arguments are those of `hidden`.
        """
        real = None
        if self.cfg.n_experts and targets is not None and doc_ids is None:
            real = targets != IGNORE  # in open rows all but the unused end of the last one is trained
        x = self.hidden(tokens, doc_ids=doc_ids, positions=positions, real=real)
        if targets is not None:
            weight, chunk = self.output_weight, self.parts.loss_chunk
            soft = None if soft is None else soft.flat()
            with without_autocast(x.device):
                return cross_entropy_sum(x.flatten(0, 1), weight, targets.flatten(), chunk, soft)
        return self.logits(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) float32 for what `hidden` gives, (..., d_model)."""
        if self.packed_head is not None:
            return self.packed_head(hidden).float()
        return F.linear(hidden, self.output_weight.to(hidden.dtype)).float()

    def hidden(
        self,
        tokens: Tensor,
        *,
        doc_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: "KVCache | None" = None,
        real: Tensor | None = None,
    ) -> Tensor:
        """Normed residual stream (B, T, d_model) after the last block, in the compute dtype.

        tokens: (B, T) integers in [0, V).
        doc_ids: (B, T) integers; a token sees only earlier tokens of its row with the same id, ids being
            constant over a document's run of tokens, or the id SHARED. None: the row is one document.
        positions: (B, T) integers; None: counted from the start of the row or of the document.
        cache: tokens are then those of `KVCache.read`, which knows their texts and positions.
        real: (B, T) bool, False for padding, which a mixture does not count; None: by doc_ids, or all are real.
        """
        x = self.model.embed_tokens(tokens)  # (B, T, d_model)
        dtype = compute_dtype(x)
        rope = mask = None
        parts = self.parts if cache is None else PLAIN
        fits = parts is not PLAIN and fits_flex(tokens.shape[-1], self.cfg.head_dim)
        gqa = self.cfg.n_kv_heads != self.cfg.n_heads
        route = route_on(x.device, dtype, masked=doc_ids is not None, gqa=gqa, compiled=fits)
        if cache is not None:
            positions, rope = cache.positions, cache.rope
        elif doc_ids is not None:
            positions = document_positions(doc_ids) if positions is None else positions
            mask = document_blocks(doc_ids) if route == "flex" else document_bias(doc_ids, dtype)
            real = doc_ids != UNUSED
        elif positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        if self.model.embed_positions is not None:
            x = x + self.model.embed_positions(positions)
        elif rope is None:
            rope = rope_tables(positions, self.cfg, dtype)
        context = Context(rope, mask, route, cache, parts.block, real if self.cfg.n_experts else None)
        x = x.to(dtype)
        with without_autocast(x.device):
            for layer, block in enumerate(self.model.layers):
                x = block(x, layer, context)
            return parts.norm(self.model.norm, x)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill every parameter from one generator; the result depends on (cfg, seed) only, not on the device."""
        generator = torch.Generator().manual_seed(seed)

        def normal_(weight: Tensor, std: float) -> None:
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)

        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            elif "o_proj" in name or "down_proj" in name:
                parameter.zero_()
            elif "embed" in name:
                normal_(parameter, 0.02 if self.cfg.tie_embeddings else 1.0)
            elif name == "score.weight":
                normal_(parameter, 0.02)
            elif name == "lm_head.weight":
                normal_(parameter, 0.001)
            else:
                normal_(parameter, parameter.shape[-1] ** -0.5)
        if self.cfg.initial_weights == "lookup" and can_wire(self.cfg):
            wire_lookup(self, generator)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of this forward pass: autocast's where it is on, else that of the weights."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Context in which operations run in the dtype of what they are given."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def check_shape(cfg: ModelConfig) -> None:
    """Raise UserError when the numbers of a ModelConfig cannot make a model."""
    sizes = "n_layers d_model n_heads n_kv_heads head_dim d_ff vocab_size context_length"
    for name in sizes.split():
        if getattr(cfg, name) < 1:
            raise UserError(f"model.{name} is {getattr(cfg, name)}; give a whole number of at least 1")
    if cfg.n_heads % cfg.n_kv_heads:
        raise UserError(
            f"model.n_kv_heads is {cfg.n_kv_heads}, which does not divide model.n_heads ({cfg.n_heads}); "
            f"set model.n_kv_heads to a divisor of {cfg.n_heads}"
        )
    if cfg.n_experts and not 1 <= cfg.n_active_experts <= cfg.n_experts:
        raise UserError(
            f"model.n_active_experts is {cfg.n_active_experts} of {cfg.n_experts} experts; give 1 to {cfg.n_experts}"
        )
    if cfg.n_experts and (cfg.mlp != "swiglu" or cfg.bias):
        raise UserError(
            f"model.n_experts is {cfg.n_experts}: experts are SwiGLU without biases; "
            "set model.mlp=swiglu and model.bias=false, or model.n_experts=0"
        )
    if cfg.positions == "rope" and cfg.head_dim % 2:
        raise UserError(f"model.head_dim is {cfg.head_dim}; rotary positions need an even number")
    if cfg.positions == "learned" and cfg.rope_factor != 1.0:
        raise UserError(
            f"model.rope_factor is {cfg.rope_factor:g}: learned positions cannot be stretched; "
            "set model.rope_factor=1 or model.positions=rope"
        )
    if not (math.isfinite(cfg.norm_eps) and cfg.norm_eps > 0):
        raise UserError(f"model.norm_eps is {cfg.norm_eps}; give a positive number such as 1e-6")
