"""Small random models of each standard shape."""

from dataclasses import replace
from typing import NamedTuple

import torch

from onesitting.config import ModelConfig
from onesitting.model.transformer import Transformer

TEXTS = [
    "The cat sat on the mat and the dog ran to the old house by the river. ",
    "naïve café, über, 日本語, 😀 and 1 + 2 = 3, 1234567 don't we'll ",
    "user\nassistant\nsystem\n# Tools\n\tindented\r\n  two  blanks ",
]

QWEN3 = ModelConfig(
    n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, head_dim=24, d_ff=96, context_length=160,
    tie_embeddings=False, rope_theta=50_000.0,
)  # fmt: skip
SHAPES = {
    "qwen3": QWEN3,
    "qwen3_tied": replace(QWEN3, tie_embeddings=True),
    "llama": replace(QWEN3, qk_norm=False, norm_eps=1e-5),
    "llama_bias": replace(QWEN3, qk_norm=False, bias=True, tie_embeddings=True),
    # A context of 40 stretched to 160, so that 100 tokens lead far beyond the original one.
    "qwen3_yarn": replace(QWEN3, rope_factor=4.0),
    "llama_yarn": replace(QWEN3, rope_factor=4.0, qk_norm=False),
    "gpt2": replace(
        QWEN3, norm="layer", positions="learned", mlp="gelu", bias=True, qk_norm=False, n_kv_heads=4,
        head_dim=16, tie_embeddings=True,
    ),
}  # fmt: skip


class Done(NamedTuple):
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def random_model(cfg: ModelConfig) -> Transformer:
    """Weights that give varied predictions, and that betray any swapped or forgotten tensor.

    The seed is one whose closest decision in 100 greedy tokens is wide in the GPT-2 shape too, since llama.cpp looks
    GELU up in a table of half-precision numbers.
    """
    model = Transformer(cfg, seed=1).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        model.output_weight[[0, 2]] = 0.0  # the tokens at which llama.cpp stops are never the likeliest
    return model
