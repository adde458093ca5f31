"""Initial weights that already look up: a previous-token head, and a head that finds an earlier copy of a token.

Copying from the context (after `A B … A` comes `B`) needs two heads in two layers that are useless without each
other, which is why it appears late and at once in training (induction heads; Olsson et al. 2022, arXiv:2209.11895).
Here both attention patterns are there before the first step; what they copy, and everything else, is learned.
Weights that imitate trained ones are known to help (Trockman & Kolter 2023, arXiv:2305.09828). It is nothing but an
initial value: the shape and the files are those of any other model. Measured in docs/log.md.

Shapes: d width of the model, D width of a head, V vocabulary.
"""

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from onesitting.model.rope import frequencies

if TYPE_CHECKING:
    from onesitting.config import ModelConfig
    from onesitting.model.transformer import Attention, Transformer

CONSTANT = 4.0
"""Value of coordinate 0 of every token embedding, in standard deviations of the others: what all tokens share."""
N_POSITION_PAIRS = 4
"""Fastest rotary pairs, which tell one position from the next."""
SLOWEST_RAD = 0.04
"""Pairs that turn by less than this a position are left to compare contents."""
QUERY_SHARE, KEY_SHARE = 2.0, 1.0
"""How much of a query and of a key in the previous-token head is position, against 1 of content."""
SHARPNESS = 1.5
"""Gain of the first layer's query norm: 0.6 of the attention then lies on the previous token."""
WRITTEN = 2.0
"""Size of what the previous-token head writes, against an embedding of size 1 (a tied one is smaller)."""
OTHER = 0.3
"""What remains of the random weights in the coordinates of the matching head that do not match."""


def can_wire(cfg: "ModelConfig") -> bool:
    """Whether a model has what the wiring needs: two layers, rotary positions, heads with fast and slow pairs."""
    return (
        cfg.positions == "rope" and cfg.n_layers >= 2 and 16 <= cfg.head_dim <= cfg.d_model and not cfg.bias
    )


@torch.no_grad()
def wire_lookup(model: "Transformer", generator: torch.Generator) -> None:
    """Set query head 0 (and its key head) of the first two layers; the other weights stay as they are."""
    cfg = model.cfg
    first, second = (cast("Attention", model.model.layers[i].self_attn) for i in (0, 1))
    embedding = model.model.embed_tokens.weight  # (V, d)
    size = embedding[:, 1:].std()
    embedding[:, 0] = CONSTANT * size
    _attend_to_previous(first, cfg)
    d, D = cfg.d_model, cfg.head_dim
    read, written = _orthonormal(d, D, generator).T, _orthonormal(d, D, generator)  # (D, d), (d, D)
    read[:, 0], written[0] = 0.0, 0.0  # the shared coordinate says nothing about a token
    first.v_proj.weight[:D] = read
    first.o_proj.weight[:, :D] = WRITTEN * size * written
    _match(second, cfg, read, written.T)


def _attend_to_previous(layer: "Attention", cfg: "ModelConfig") -> None:
    """Query t and key t - 1 agree best: a shared direction, turned by one position in the keys."""
    D, half = cfg.head_dim, cfg.head_dim // 2
    angles = frequencies(cfg)[: min(N_POSITION_PAIRS, half // 2)]
    size = math.sqrt(D / len(angles))  # the whole has mean square 1
    query, key = torch.zeros(D), torch.zeros(D)
    query[: len(angles)] = size
    key[: len(angles)] = size * angles.cos()
    key[half : half + len(angles)] = size * angles.sin()
    # After the norm the shared coordinate is CONSTANT / sqrt(1 + CONSTANT² / d).
    shared = CONSTANT / math.sqrt(1 + CONSTANT**2 / cfg.d_model)
    layer.q_proj.weight[:D, 0] = query * QUERY_SHARE / shared
    layer.k_proj.weight[:D, 0] = key * KEY_SHARE / shared
    if layer.q_norm is not None:
        layer.q_norm.weight.fill_(SHARPNESS)
    else:
        layer.q_proj.weight[:D] *= SHARPNESS


def _match(layer: "Attention", cfg: "ModelConfig", present: Tensor, before: Tensor) -> None:
    """Query: this token, read by `present` (D, d). Key: the token before, as the first layer wrote it (`before`)."""
    D, half = cfg.head_dim, cfg.head_dim // 2
    slow = torch.zeros(D, 1)
    n_fast = int((frequencies(cfg) >= SLOWEST_RAD).sum())
    n_fast = min(n_fast, half // 2)  # half of the pairs compare in any case
    slow[n_fast:half] = slow[half + n_fast :] = 1.0
    for projection, reading in ((layer.q_proj, present), (layer.k_proj, before)):
        weight = projection.weight[:D]
        weight.copy_(weight * OTHER * (1 - slow) + reading * slow)


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) with orthonormal columns; rows >= columns."""
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator)).Q
