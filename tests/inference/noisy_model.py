"""A small model whose every weight matters, for the tests of inference."""

import torch

from onesitting.config import ModelConfig
from onesitting.model.transformer import Transformer


def noisy_model(vocab_size: int, context_length: int) -> Transformer:
    """Fresh output matrices are zero and would hide what attention does, so noise is added to all weights."""
    cfg = ModelConfig(
        n_layers=2, d_model=48, n_heads=4, n_kv_heads=2, head_dim=12, d_ff=64,
        vocab_size=vocab_size, context_length=context_length,
    )  # fmt: skip
    model = Transformer(cfg).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model
