"""A copy of a model laid out for writing text: fewer and larger matrix products, their weights in the CPU's own layout.

A step of decoding multiplies few rows with every weight of the model, so it takes as long as reading the weights
and starting the operations. Two things make it shorter:
- Query, key and value are one product, and so are gate and up.
- On a CPU, oneDNN keeps each matrix in the blocked layout that its kernels read (`PackedLinear`). Measured on two
  AVX-512 cores, 16 rows, 512 x 1408: float32 412 -> 222 µs, bf16 173 -> 106 µs; 4 rows then cost what one does.
The results are those of the model itself; bf16 products are equal to the bit.
"""

import copy
import functools
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onesitting.model.kernels import attention
from onesitting.model.linear import Linear
from onesitting.model.transformer import GELU, Attention, Context, RMSNorm, SwiGLU, Transformer

PACKED_ROWS = 4
"""A packed product has the same rows, bit for bit, for every number of rows from 2 on (tests/model/test_packed.py);
of bfloat16 with matrix tiles (AMX) only up to a number that depends on its shape."""


@functools.cache
def can_pack(device: str, dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights here; found by trial, as these operations are not PyTorch's public ones."""
    if device != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        weight, x = torch.eye(16, dtype=dtype), torch.arange(64.0).view(4, 16).to(dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
        return torch.equal(torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""), x)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


class PackedLinear(nn.Module):
    """`x W^T + b` for several matrices of the same input at once: W (out, in) is one above the other."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        weight = weight.detach().contiguous()
        self.shape = weight.shape[0], weight.shape[1]
        self.is_packed = can_pack(weight.device.type, weight.dtype)
        # Not a buffer: nothing saves or moves a weight in this layout.
        self.weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS) if self.is_packed else weight
        )
        self.bias = None if bias is None else bias.detach().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) for x (..., in)."""
        if self.is_packed:
            return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


@functools.cache
def rows_are_alike(shape: tuple[int, int], dtype: torch.dtype, most: int) -> bool:
    """Whether up to `most` rows of a packed product with a matrix (out, in) have the bits of PACKED_ROWS, by trial."""
    source = torch.Generator().manual_seed(0)
    layer = PackedLinear(torch.randn(shape, generator=source).to(dtype), None)
    x = torch.randn(most, shape[1], generator=source).to(dtype)
    few = torch.cat([layer(part) for part in x.split(PACKED_ROWS)])
    return all(torch.equal(layer(x[:n]), few[:n]) for n in range(PACKED_ROWS, most + 1, PACKED_ROWS))


class PackedNorm(nn.Module):
    """`RMSNorm` in fewer operations; also of several heads at once, each with a weight of its own."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        # Float32, so that a short dtype is rounded to once.
        self.weight = weight.detach().float()  # (D,) or (heads, D)
        self.eps = torch.tensor([eps], device=weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) in x's dtype."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self.eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()
        return (x * scale).mul_(self.weight).to(x.dtype)


def together(*layers: Linear) -> PackedLinear:
    """One product for layers that read the same input."""
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]  # pyright: ignore[reportUnnecessaryComparison]
    weights: list[Tensor] = [layer.weight for layer in layers]
    weight = torch.cat(weights)
    return PackedLinear(weight, torch.cat(biases) if biases else None)


class PackedAttention(nn.Module):
    """`Attention` with query, key and value in one product, one norm and one rotation."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.head_dim = attention.head_dim
        self.n_heads = attention.q_proj.out_features // self.head_dim
        self.n_kv_heads = attention.k_proj.out_features // self.head_dim
        self.qkv_proj = together(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o_proj = together(attention.o_proj)
        self.norm = None
        if attention.q_norm is not None and attention.k_norm is not None:
            weights = [attention.q_norm.weight.expand(self.n_heads, -1)]
            weights.append(attention.k_norm.weight.expand(self.n_kv_heads, -1))
            self.norm = PackedNorm(torch.cat(weights), attention.q_norm.eps)  # (H + K, D)

    def forward(self, x: Tensor, layer: int, context: Context) -> Tensor:
        """(B, T, d_model) to add to the residual stream; x is normed."""
        qkv = self.qkv_proj(x).view(*x.shape[:2], -1, self.head_dim)  # (B, T, H + 2K, D)
        qk = turned = qkv[:, :, : self.n_heads + self.n_kv_heads]
        if self.norm is not None:
            turned = self.norm(turned)
        if context.rope is not None:
            cos, sin = context.rope
            # In the place of what was turned, so that keys and values stand together.
            torch.addcmul(turned * cos, turned.roll(self.head_dim // 2, -1), sin, out=qk)
        elif turned is not qk:
            qk.copy_(turned)
        if context.cache is not None:
            return self.o_proj(context.cache.attend(layer, qkv))
        q, k, v = qkv.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=2)
        return self.o_proj(attention(q, k, v, context.mask, context.route))


class PackedSwiGLU(nn.Module):
    """`SwiGLU` with gate and up in one product."""

    def __init__(self, mlp: SwiGLU) -> None:
        super().__init__()
        self.gate_up_proj = together(mlp.gate_proj, mlp.up_proj)
        self.down_proj = together(mlp.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_model) -> (..., d_model)."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate).mul_(up))


def packed(model: Transformer, dtype: torch.dtype) -> Transformer:
    """A copy of the model for decoding, in `dtype`; it does not follow later changes of the weights.

    Layers that are not plain matrices (adapters, experts, int8) stay as they are; so does a model that is packed.
    """
    if model.packed_head is not None:
        return model
    model = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
    is_whole = can_pack(model.device.type, dtype)
    for block in model.model.layers:
        for name, part in list(block.named_children()):
            layers = [layer for layer in part.children() if not isinstance(layer, RMSNorm)]
            if isinstance(part, RMSNorm):
                setattr(block, name, PackedNorm(part.weight, part.eps))
            elif not all(type(layer) is Linear for layer in layers):
                is_whole = False
            elif isinstance(part, Attention):
                setattr(block, name, PackedAttention(part))
            elif isinstance(part, SwiGLU):
                setattr(block, name, PackedSwiGLU(part))
            elif isinstance(part, GELU):
                for layer_name, layer in list(part.named_children()):
                    setattr(part, layer_name, together(cast(Linear, layer)))
    if isinstance(model.model.norm, RMSNorm):
        model.model.add_module("norm", PackedNorm(model.model.norm.weight, model.model.norm.eps))
    if model.score is None:
        model.packed_head = PackedLinear(model.output_weight, None)
    if is_whole:
        model.row_multiple = PACKED_ROWS
        shapes = {layer.shape for layer in model.modules() if isinstance(layer, PackedLinear)}
        if not all(rows_are_alike(shape, dtype, model.alike_rows) for shape in shapes):
            model.alike_rows = PACKED_ROWS
    return model
