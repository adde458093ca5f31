"""Keys and values of many texts, each in a slot of its own, read and written by ragged forward passes.

A forward pass takes any mixture of pieces: parts of prompts and single new tokens, of any slots. Its tokens are
laid in one row (1, N); norms and matrix products treat them all alike, and only attention looks at slots. So
texts join and leave at any step, and nothing is padded but the last few rows of a matrix product.

Batch invariance. The hidden state of a token is the same, bit for bit, whatever else is in the pass. Floating-point
sums depend on their order, which libraries choose by shape; here the shapes that reach a sum never depend on the
company:
- Prompts are read in pieces of CHUNK tokens that begin at multiples of CHUNK; attention of a piece has the shape
  (CHUNK queries, keys up to the end of the piece), padded at a prompt's end. Therefore it does not matter how many
  pieces one pass takes, nor whether a prefix came from a cache.
- A single token attends to a multiple of CHUNK slots; those behind its position have weight 0, which adds nothing.
  Several of one slot (speculative decoding) attend one after the other: products of more queries round otherwise.
- Matrix products have a multiple of `model.row_multiple` rows. Measured (tests/model/test_kv_cache.py repeats it): in
  float32 MKL has other kernels for 1 to 3 rows a thread; from 4 on, and in bf16 always, rows do not depend on their
  number. oneDNN's packed products (packed.py) need fewer.
Source of the idea: He et al. 2025, "Defeating nondeterminism in LLM inference", Thinking Machines Lab.

Shapes: N tokens of a pass, B slots, R pieces, C = CHUNK, S slots' positions in use, H query heads, K key/value heads,
G = H / K, D head width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from onesitting.errors import UserError
from onesitting.model.transformer import Transformer, compute_dtype

CHUNK = 64
"""Tokens of a piece of a prompt. Smaller ones starve the matrix products, larger ones pad more."""


class Piece(NamedTuple):
    """A part of a prompt: its tokens start, start + 1, …; start is a multiple of CHUNK, and at most CHUNK tokens."""

    slot: int
    start: int
    tokens: Sequence[int]


class Next(NamedTuple):
    """One new token of a text, at `position`."""

    slot: int
    position: int
    token: int


class _Group(NamedTuple):
    """Pieces with the same start, whose attention is one batched product."""

    start: int
    slots: Tensor
    """(R,) int64"""
    rows: Tensor
    """(R, C) int64, index of each token in the pass."""
    is_real: Tensor
    """(R, C) bool, False where a prompt's end is padded."""


class _Round(NamedTuple):
    """Single tokens of different slots, whose attention is one batched product."""

    rows: slice | Tensor
    """Where they stand in the pass."""
    slots: Tensor
    """(R,) int64"""
    n_busy: int
    """Slots up to the highest one with a token; those without one among them are idle."""
    in_use: int
    """Positions that take part, a multiple of CHUNK."""
    bias: Tensor
    """(n_busy, 1, 1, in_use) float32, -inf at positions behind the token."""


class KVCache:
    """Memory for `n_slots` texts of at most `max_tokens` tokens each, allocated once.

    Raises UserError when max_tokens is beyond a learned position table.
    """

    def __init__(self, model: Transformer, n_slots: int, max_tokens: int) -> None:
        cfg = model.cfg
        if cfg.positions == "learned" and max_tokens > cfg.context_length:
            raise UserError(
                f"{max_tokens} tokens do not fit this model's learned positions "
                f"(model.context_length is {cfg.context_length}); shorten the prompt or max_tokens"
            )
        weight = model.model.embed_tokens.weight
        self.n_slots, self.max_tokens, self.row_multiple = n_slots, max_tokens, model.row_multiple
        length = -(-max_tokens // CHUNK) * CHUNK
        # One slot more than asked for receives the padding. Zeros, since an unseen position takes part with
        # weight 0, and 0 · NaN is NaN.
        shape = (cfg.n_layers, n_slots + 1, cfg.n_kv_heads, length, cfg.head_dim)
        self.keys = torch.zeros(shape, dtype=compute_dtype(weight), device=weight.device)
        self.values = torch.zeros_like(self.keys)

    def read(self, model: Transformer, pieces: Sequence[Piece], nexts: Sequence[Next]) -> Tensor:
        """(len(pieces) + len(nexts), d_model): hidden state of each piece's last token, then of each next token.

        Stores keys and values of all tokens. A slot's pieces must come in order, of one pass or of several. A slot
        may have several next tokens, at different positions: each sees those before it, and has the state that a
        pass of its own would give it. A position that is read again holds the new token.
        """
        tokens, slots, positions, last = self._lay_out(pieces, nexts)
        device = self.keys.device
        self.positions = torch.tensor([positions], device=device)  # (1, N)
        self._places = self._places_of(torch.tensor(slots, device=device))
        self._groups = _groups(pieces, device)
        n_read = sum(len(piece.tokens) for piece in pieces)
        self._rounds = self._rounds_of(nexts, n_read)
        hidden = model.hidden(torch.tensor([tokens], device=device), cache=self)[0]  # (N, d_model)
        return hidden[torch.tensor(last, device=device)]

    def _lay_out(
        self, pieces: Sequence[Piece], nexts: Sequence[Next]
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        """Tokens, slots and positions of a pass, padded, and the indices whose hidden states are wanted."""
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        for slot, start, part in pieces:
            assert start % CHUNK == 0, "a piece begins at a multiple of CHUNK"
            assert 0 < len(part) <= CHUNK, "a piece has 1 to CHUNK tokens"
            tokens += part
            slots += [slot] * len(part)
            positions += range(start, start + len(part))
            last.append(len(tokens) - 1)
        for slot, position, token in nexts:
            last.append(len(tokens))
            tokens.append(token)
            slots.append(slot)
            positions.append(position)
        if positions and max(positions) >= self.max_tokens:
            raise ValueError(f"position {max(positions)} in a cache of {self.max_tokens} tokens a slot")
        n_padding = -len(tokens) % self.row_multiple
        return (
            tokens + [0] * n_padding,
            slots + [self.n_slots] * n_padding,
            positions + [0] * n_padding,
            last,
        )

    def _places_of(self, slots: Tensor) -> Tensor:
        """(N·K,) where the keys of each token go, counted in heads of D numbers; slots (N,)."""
        _, _, n_heads, length, _ = self.keys.shape
        heads = slots[:, None] * n_heads + torch.arange(n_heads, device=slots.device)
        return (heads * length + self.positions[0, :, None]).flatten()

    def _rounds_of(self, nexts: Sequence[Next], first: int) -> list[_Round]:
        """The single tokens, which stand in the pass from `first` on, so that no slot is twice in a round."""
        members: list[list[int]] = []
        n_before: dict[int, int] = {}
        for index, it in enumerate(nexts):
            number = n_before[it.slot] = n_before.get(it.slot, -1) + 1
            if number == len(members):
                members.append([])
            members[number].append(index)
        rounds = [self._round([nexts[i] for i in indices]) for indices in members]
        if len(rounds) == 1:  # a slice costs nothing
            return [rounds[0]._replace(rows=slice(first, first + len(nexts)))]
        device = self.keys.device
        return [
            one._replace(rows=torch.tensor(indices, device=device) + first)
            for one, indices in zip(rounds, members, strict=True)
        ]

    def _round(self, nexts: Sequence[Next]) -> _Round:
        """Single tokens of different slots, and which positions they see."""
        device = self.keys.device
        slots, positions = [it.slot for it in nexts], [it.position for it in nexts]
        n_busy, in_use = max(slots) + 1, (max(positions) // CHUNK + 1) * CHUNK
        next_slots = torch.tensor(slots, device=device)
        ends = torch.zeros(n_busy, dtype=torch.int64, device=device)
        ends[next_slots] = torch.tensor(positions, device=device)
        unseen = torch.arange(in_use, device=device) > ends[:, None]  # (B, S)
        bias = torch.zeros(unseen.shape, device=device).masked_fill_(unseen, -torch.inf)[:, None, None]
        return _Round(slice(0), next_slots, n_busy, in_use, bias)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention (1, N, H·D) of q (1, N, H, D) to the slots, after k and v (1, N, K, D) are stored."""
        keys, values = self.keys[layer], self.values[layer]  # (B, K, max_tokens, D)
        keys.view(-1, keys.shape[3]).index_copy_(0, self._places, k.reshape(-1, keys.shape[3]))
        values.view(-1, keys.shape[3]).index_copy_(0, self._places, v.reshape(-1, keys.shape[3]))
        y = torch.zeros_like(q[0])  # (N, H, D)
        for group in self._groups:
            seen = _attend_pieces(q[0][group.rows], keys, values, group)
            y[group.rows[group.is_real]] = seen[group.is_real]
        for one in self._rounds:
            idle = q.new_zeros(one.n_busy, *q.shape[2:])
            alone = idle.index_copy(0, one.slots, q[0, one.rows])  # (B, H, D)
            used = (slice(one.n_busy), slice(None), slice(one.in_use))
            y[one.rows] = _attend_one(alone, keys[used], values[used], one.bias)[one.slots]
        return y.flatten(1)[None]

    def prefix(self, slot: int, start: int) -> tuple[Tensor, Tensor]:
        """Copies (L, K, CHUNK, D) of the keys and values of one whole piece."""
        part = (slice(None), slot, slice(None), slice(start, start + CHUNK))
        return self.keys[part].clone(), self.values[part].clone()

    def restore(self, slot: int, start: int, prefix: tuple[Tensor, Tensor]) -> None:
        """Put back what `prefix` gave, into any slot."""
        part = (slice(None), slot, slice(None), slice(start, start + CHUNK))
        self.keys[part], self.values[part] = prefix


def _groups(pieces: Sequence[Piece], device: torch.device) -> list[_Group]:
    """The pieces of a pass by their start; they are the first tokens of the pass, one piece after the other."""
    by_start: dict[int, list[tuple[int, int, int]]] = {}
    first = 0
    for slot, start, part in pieces:
        by_start.setdefault(start, []).append((slot, first, len(part)))
        first += len(part)
    index = torch.arange(CHUNK, device=device)
    groups: list[_Group] = []
    for start, members in by_start.items():
        slots, firsts, lengths = torch.tensor(members, device=device).unbind(1)
        is_real = index < lengths[:, None]
        groups.append(_Group(start, slots, torch.where(is_real, firsts[:, None] + index, 0), is_real))
    return groups


def _attend_pieces(q: Tensor, keys: Tensor, values: Tensor, group: _Group) -> Tensor:
    """(R, C, H, D) attention of the pieces' queries q (R, C, H, D), causal within the piece."""
    R, C, H, D = q.shape
    K, S = keys.shape[1], group.start + C
    queries = q.view(R, C, K, -1, D).permute(0, 2, 3, 1, 4).reshape(R, K, -1, D)  # (R, K, G·C, D)
    seen_keys, seen_values = keys[group.slots, :, :S], values[group.slots, :, :S]  # (R, K, S, D)
    scores = (queries @ seen_keys.transpose(2, 3)).float().view(R, H, C, S).mul_(D**-0.5)
    scores[..., group.start :] += torch.full((C, C), -torch.inf, device=q.device).triu_(1)
    probs = scores.softmax(dim=-1).to(q.dtype).view(R, K, -1, S)
    return (probs @ seen_values).view(R, K, -1, C, D).permute(0, 3, 1, 2, 4).reshape(R, C, H, D)


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """(B, H, D) attention of one query a slot, q (B, H, D), to keys and values (B, K, S, D).

    Two matrix products a slot and key head. In bf16 on a CPU, 64 slots of 160 positions take 0.6 ms, where PyTorch's
    fused kernel takes 4 ms. bias: (B, 1, 1, S) float32.
    """
    B, K, _, D = keys.shape
    scores = (q.view(B, K, -1, D) @ keys.transpose(2, 3)).float()  # (B, K, G, S)
    probs = scores.mul_(D**-0.5).add_(bias).softmax(dim=-1).to(q.dtype)
    return (probs @ values).view(B, -1, D)
