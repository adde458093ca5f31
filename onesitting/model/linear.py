"""The linear layer of the model; transformer.py says how dtypes work."""

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`x W^T + b` in the dtype of x; the weight is left unset, `init_weights` or a checkpoint fills it."""

    def reset_parameters(self) -> None:
        """Nothing: PyTorch's default would draw from the global random state."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., out) for input (..., in)."""
        bias = None if self.bias is None else self.bias.to(input.dtype)  # pyright: ignore[reportUnnecessaryComparison]
        return F.linear(input, self.weight.to(input.dtype), bias)

    def effective_weight(self) -> Tensor:
        """(out, in): what the layer multiplies with, adapters included (lora.py)."""
        return self.weight
