"""Weights in 8 bits: a quarter of float32's memory, for models whose weights are most of what they read.

Each row of a matrix is scaled so that its largest weight is 127, and rounded (Dettmers et al. 2022,
arXiv:2208.07339, without the outlier columns, which models below some billions of parameters do not have).
Activations keep their dtype; a product converts the row's weights on the way.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onesitting.model.transformer import Linear, Transformer


class Int8Linear(nn.Module):
    """`x W^T + b` with W as int8 (out, in) and one scale a row."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()  # (out, in)
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) for x (..., in)."""
        weight, scale = self.get_buffer("weight"), self.get_buffer("scale")
        y = F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)  # pyright: ignore[reportUnnecessaryComparison]


def quantise_int8(model: Transformer) -> Transformer:
    """A copy of a model whose block matrices are int8; embedding, output matrix and norms stay as they are."""
    model = copy.deepcopy(model)
    for block in model.model.layers:
        for part in block.children():
            for name, child in list(part.named_children()):
                if isinstance(child, Linear):
                    setattr(part, name, Int8Linear(child))
    return model
