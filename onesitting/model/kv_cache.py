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
  Sums over more than SUMMED positions are split at the same places whatever their length.
  Several of one slot (speculative decoding) are not queries of one product, which rounds otherwise.
- Matrix products have a multiple of `model.row_multiple` rows. Measured (tests/model/test_kv_cache.py repeats it): in
  float32 MKL has other kernels for 1 to 3 rows a thread; from 4 on, and in bf16 always, rows do not depend on their
  number, but for AMX (train/device.py leaves it out of a server). oneDNN's packed products (packed.py) need fewer.
Source of the idea: He et al. 2025, "Defeating nondeterminism in LLM inference", Thinking Machines Lab.

Shapes: N tokens of a pass, B slots, R pieces, C = CHUNK, S positions of a slot now, H query heads, K key/value heads,
G = H / K, D head width.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from onesitting.errors import UserError
from onesitting.model.rope import rope_tables
from onesitting.model.transformer import Transformer, compute_dtype

CHUNK = 64
"""Tokens of a piece of a prompt. Smaller ones starve the matrix products, larger ones pad more."""

SUMMED = 3 * CHUNK
"""Positions over which one float32 product sums. MKL splits longer sums at places that depend on their length (256:
in halves, 384 and more: at 192), so that a text would have other bits beside a longer one."""

SMALL_PRODUCT = 16**3
"""Multiplications up to which PyTorch takes another kernel than oneDNN for a batched product of bf16, however many
texts it is of; the attention of one text must be more."""


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
    """Single tokens whose attention is one batched product of B queries."""

    rows: slice | Tensor
    """Where they stand in the pass."""
    slots: Tensor | None
    """(R,) int64, those of the tokens among slots 0, 1, … B - 1, the others being idle; None: each query has one."""
    memory: list[tuple[Tensor, Tensor]]
    """Keys and values (B·K, S, D) of each layer; those of one slot, (K, S, D), if all tokens are its."""
    n_copies: int
    """Tokens of the one slot; 1: of a slot each."""
    bias: Tensor
    """(B·K, 1, S), -inf at positions behind the token."""
    out: Tensor | None
    """(B·K, G, D) of the pass's attention, where each query has a token."""


class KVCache:
    """Memory for `n_slots` texts of at most `max_tokens` tokens each, allocated once.

    Slots are laid out no longer than the longest text that is there, and anew when that changes (once in CHUNK steps
    of a lonely text): oneDNN copies the operands of a product that are not whole tensors, which took a tenth of a step.

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
        dtype, device = compute_dtype(weight), weight.device
        self.n_slots, self.max_tokens, self.row_multiple = n_slots, max_tokens, model.row_multiple
        self._n_query_heads, self._least = cfg.n_heads, CHUNK
        if dtype != torch.float32:
            self._least *= 1 + SMALL_PRODUCT // (CHUNK * cfg.n_heads * cfg.head_dim)
        longest = max(-(-max_tokens // CHUNK) * CHUNK, self._least)
        # One slot more than asked for receives the padding. Zeros, since an unseen position takes part with
        # weight 0, and 0 · NaN is NaN. Keys and values in one tensor, so that one operation stores both.
        self._shape = (2, n_slots + 1, cfg.n_kv_heads, longest, cfg.head_dim)
        self._memory = torch.zeros(cfg.n_layers, math.prod(self._shape), dtype=dtype, device=device)
        self._index = torch.arange(longest, device=device)
        self._rope = rope_tables(self._index, cfg, dtype) if cfg.positions == "rope" else None  # (S, 1, D)
        self._ends = [0] * (n_slots + 1)
        """Positions that the text of each slot has used."""
        self._arrange(self._least)

    def free(self, slot: int) -> None:
        """Forget the text of a slot."""
        self._ends[slot] = 0

    def clear(self) -> None:
        """Forget everything, in place: nothing that a failed pass left is read again."""
        self._memory.zero_()
        self._ends = [0] * len(self._ends)
        self._arrange(self._least)

    def _views(self, length: int) -> Tensor:
        """(L, 2, B, K, length, D): the memory as slots of so many positions."""
        kinds, n_slots, n_heads, _, width = self._shape
        used = self._memory[:, : kinds * n_slots * n_heads * length * width]
        return used.view(len(used), kinds, n_slots, n_heads, length, width)

    def _arrange(self, length: int) -> None:
        """Lay the slots out with `length` positions each, whatever the memory holds."""
        _, n_slots, n_heads, _, width = self._shape
        self._whole, self.length = self._views(length), length
        self.keys, self.values = self._whole.unbind(1)  # (L, B, K, S, D)
        self._rows = [layer.view(-1, width) for layer in self._whole]
        """Of each layer, (2·B·K·S, D)."""
        self._heads = [(layer[0].flatten(0, 1), layer[1].flatten(0, 1)) for layer in self._whole]
        """Keys and values of each layer, (B·K, S, D)."""
        heads = torch.arange(n_heads, device=self._memory.device)
        self._offsets = length * torch.cat((heads, n_slots * n_heads + heads))
        self._used = (0, 0), self._heads

    def _fit(self) -> None:
        """Lay the slots out as long as the longest text needs; what they hold moves with them."""
        length = max(-(-max(self._ends) // CHUNK) * CHUNK, self._least)
        if length == self.length:
            return
        n = min(length, self.length)
        for before, after in zip(self._whole, self._views(length), strict=True):
            kept = before[..., :n, :].clone()  # the two lie over each other
            after[..., :n, :] = kept
            after[..., n:, :] = 0
        self._arrange(length)

    def read(self, model: Transformer, pieces: Sequence[Piece], nexts: Sequence[Next]) -> Tensor:
        """(len(pieces) + len(nexts), d_model): hidden state of each piece's last token, then of each next token.

        Stores keys and values of all tokens. A slot's pieces must come in order, of one pass or of several. A slot
        may have several next tokens, at different positions: each sees those before it, and has the state that a
        pass of its own would give it. A position that is read again holds the new token.
        """
        tokens, slots, positions, last = self._lay_out(pieces, nexts)
        for slot, position in zip(slots, positions, strict=True):
            self._ends[slot] = max(self._ends[slot], position + 1)
        self._fit()
        device = self.keys.device
        laid_out = torch.tensor([tokens, slots, positions], device=device)  # (3, N)
        self.positions = laid_out[2:]  # (1, N)
        self.rope = None
        if self._rope is not None:
            cos, sin = self._rope
            self.rope = cos[self.positions], sin[self.positions]  # (1, N, 1, D)
        self._places = self._places_of(laid_out[1], laid_out[2])
        self._groups = _groups(pieces, device)
        # One for all layers: each writes the same rows; those of the padding stay 0.
        self._y = self.keys.new_zeros(len(tokens), self._n_query_heads, self.keys.shape[-1])  # (N, H, D)
        self._rounds = self._rounds_of(nexts, sum(len(piece.tokens) for piece in pieces))
        hidden = model.hidden(laid_out[:1], cache=self)[0]  # (N, d_model)
        return hidden[torch.tensor(last, device=device)] if pieces else hidden[: len(nexts)]

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

    def _places_of(self, slots: Tensor, positions: Tensor) -> Tensor:
        """(N·2K,) where the keys and values of each token go, counted in heads of D numbers; both (N,)."""
        _, _, n_heads, length, _ = self.keys.shape
        return ((slots * (n_heads * length) + positions)[:, None] + self._offsets).flatten()

    def _rounds_of(self, nexts: Sequence[Next], first: int) -> list[_Round]:
        """The single tokens, which stand in the pass from `first` on, as few batched products."""
        if not nexts:
            return []
        n, slots = len(nexts), [it.slot for it in nexts]
        rows = slice(first, first + n)
        one_slot = slots.count(slots[0]) == n
        if one_slot or slots == list(range(slots[0], slots[0] + n)):
            positions = [it.position for it in nexts]
            memory = self._heads_of(slots[0], 1 if one_slot else n)
            group = (self.keys.shape[2] * n, -1, self.keys.shape[-1])
            out = self._y[rows].view(group)
            return [_Round(rows, None, memory, n if one_slot else 1, self._bias(positions), out)]
        members: list[list[int]] = []
        n_before: dict[int, int] = {}
        for index, slot in enumerate(slots):
            number = n_before[slot] = n_before.get(slot, -1) + 1
            if number == len(members):
                members.append([])
            members[number].append(index)
        rounds = [self._round([nexts[i] for i in indices]) for indices in members]
        if len(rounds) == 1:  # a slice costs nothing
            return [rounds[0]._replace(rows=rows)]
        device = self.keys.device
        return [
            one._replace(rows=torch.tensor(indices, device=device) + first)
            for one, indices in zip(rounds, members, strict=True)
        ]

    def _round(self, nexts: Sequence[Next]) -> _Round:
        """Single tokens of different slots between which others may be idle."""
        slots = [it.slot for it in nexts]
        ends = [0] * (max(slots) + 1)
        for slot, position, _ in nexts:
            ends[slot] = position
        memory, bias = self._heads_of(0, len(ends)), self._bias(ends)
        return _Round(slice(0), torch.tensor(slots, device=self.keys.device), memory, 1, bias, None)

    def _heads_of(self, slot: int, n: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (n·K, S, D) of each layer, of n slots from `slot` on."""
        if self._used[0] != (slot, n):  # the same for many steps
            n_heads = self.keys.shape[2]
            heads = slice(slot * n_heads, (slot + n) * n_heads)
            self._used = (slot, n), [(k[heads], v[heads]) for k, v in self._heads]
        return self._used[1]

    def _bias(self, ends: Sequence[int]) -> Tensor:
        """(B·K, 1, S) in the cache's dtype, -inf behind each end, else 0."""
        by_head = [end for end in ends for _ in range(self.keys.shape[2])]
        index = self._index[: self.length]
        seen = index <= index.new_tensor(by_head)[:, None, None]
        return self.keys.new_full(seen.shape, -torch.inf).masked_fill_(seen, 0.0)

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Attention (1, N, H·D) of the queries to the slots, after keys and values are stored.

        qkv: (1, N, H + 2K, D), each token's queries, keys and values. The next call overwrites what comes back.
        """
        H, y = self._n_query_heads, self._y
        q, kv = qkv[0, :, :H], qkv[0, :, H:]
        self._rows[layer].index_copy_(0, self._places, kv.reshape(-1, kv.shape[-1]))
        for group in self._groups:
            seen = _attend_pieces(q[group.rows], self.keys[layer], self.values[layer], group)
            y[group.rows[group.is_real]] = seen[group.is_real]
        for one in self._rounds:
            keys, values = one.memory[layer]
            if one.n_copies > 1:
                keys, values = keys.repeat(one.n_copies, 1, 1), values.repeat(one.n_copies, 1, 1)
            if one.slots is None:
                _attend_one(q[one.rows], keys, values, one.bias, one.out)
                continue
            n_busy = len(keys) // self.keys.shape[2]
            alone = q.new_zeros(n_busy, *q.shape[1:]).index_copy_(0, one.slots, q[one.rows])  # (B, H, D)
            y[one.rows] = _attend_one(alone, keys, values, one.bias).view_as(alone)[one.slots]
        return y.view(1, len(y), -1)

    def prefix(self, slot: int, start: int) -> tuple[Tensor, Tensor]:
        """Copies (L, K, CHUNK, D) of the keys and values of one whole piece."""
        part = (slice(None), slot, slice(None), slice(start, start + CHUNK))
        return self.keys[part].clone(), self.values[part].clone()

    def restore(self, slot: int, start: int, prefix: tuple[Tensor, Tensor]) -> None:
        """Put back what `prefix` gave, into any slot."""
        self._ends[slot] = max(self._ends[slot], start + CHUNK)
        self._fit()
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


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """(B·K, G, D) attention of one query a slot, q (B, H, D), to keys and values (B·K, S, D), also written to `out`.

    Two matrix products a slot and key head. In bf16 on a CPU, 64 slots of 160 positions take 0.6 ms, where PyTorch's
    fused kernel takes 4 ms. bias: (B·K, 1, S) in q's dtype.
    """
    D = q.shape[-1]
    queries = q.reshape(len(keys), -1, D)  # (B·K, G, D)
    if q.dtype == torch.float32:
        scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=D**-0.5)  # (B·K, G, S)
    else:
        # Keys first: oneDNN copies a transposed right operand, and the queries are the smaller one. 32 slots of 128
        # positions: 480 -> 350 µs.
        turned = torch.bmm(keys, (queries * D**-0.5).transpose(1, 2)).transpose(1, 2)
        scores = torch.add(turned, bias, out=turned.new_empty(turned.shape))
    probs = scores.softmax(dim=-1)  # its sums are float32 inside
    S = probs.shape[-1]
    block = SUMMED if q.dtype == torch.float32 else S
    if block >= S:
        return torch.bmm(probs, values, out=out)
    y = torch.bmm(probs[..., :block], values[:, :block], out=out)
    for start in range(block, S, block):
        y.baddbmm_(probs[..., start : start + block], values[:, start : start + block])
    return y
