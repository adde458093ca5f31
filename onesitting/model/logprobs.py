"""From hidden states to losses, without holding the logits of a whole batch.

Shapes: N tokens, C tokens of one chunk, d model width, V vocabulary. Targets equal to IGNORE take no part.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""Target of a token that is not trained, PyTorch's own convention."""

CHUNK_LOGITS = 2**20
"""Logits held at once on a CPU: 4 MB of float32 stay in its cache. Measured on one AVX-512 core in bf16, loss and
gradient of 4096 tokens, d = 192, V = 4096: 136 ms in such chunks, 214 ms as one, 274 ms by autograd."""

CHUNKS_OF_A_GROUP = 16
"""Chunks whose logits' gradients (32 MB of bf16) go into one product for the output matrix's gradient, which is then
written once. Measured as above, 4096 tokens, d = 256, V = 4096: 181 -> 169 ms; 2048, d = 512, V = 6400: 270 -> 241."""

DEVICE_CHUNK_LOGITS = 2**26
"""Logits held at once on other devices: 256 MB of float32, enough to keep one busy."""


LARGEST_FLOAT16 = 65_504.0


class Adviser(Protocol):
    """Knows which tokens are likely (data/ngrams.py)."""

    def likely(self, tokens: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """After inputs (C,) in contexts (C,): (C, L) int64 likely tokens and (C, L) float32 their probabilities, which
        are 0 where there is no target or fewer than L are likely."""
        ...


class SoftTargets(NamedTuple):
    """Likely tokens that take a part of a target; the rest is that of the token that came.

    They are looked up for a chunk of tokens at a time, while its logits are in the cache: for a whole batch they are
    several times the memory of its activations.
    """

    adviser: Adviser
    tokens: Tensor
    """(...) int64 inputs."""
    contexts: Tensor
    """(...) int64, the adviser's numbers of their contexts."""
    weight: float
    """The largest part that advice takes, in [0, 1]."""

    def flat(self) -> "SoftTargets":
        """(B, T) as (B·T,)."""
        return self._replace(tokens=self.tokens.flatten(), contexts=self.contexts.flatten())

    def at(self, rows: slice | Tensor) -> "SoftTargets":
        """Those of some of the tokens."""
        return self._replace(tokens=self.tokens[rows], contexts=self.contexts[rows])

    def soften(self, d_logits: Tensor, targets: Tensor) -> Tensor:
        """Gradient by the logits (C, V) for hard targets (C, 1), in place made the one for these, (C,) here.

        Advice a is followed as far as it knew the token that came better than the model m did, which knows more of
        the context: by a² / (a² + m²). So it fades where a model has outgrown it, token by token.
        """
        ids, probabilities = self.adviser.likely(self.tokens, self.contexts)  # (C, L)
        known = d_logits.gather(1, targets).float() + 1.0  # (C, 1): the gradient there is m - 1
        told = torch.where(ids == targets, probabilities, 0.0).sum(1, keepdim=True)
        trust = told.square() / (told.square() + known.square()).clamp_min(1e-12)
        parts = probabilities.mul_(trust.mul_(-self.weight)).to(d_logits.dtype)
        d_logits.scatter_add_(1, targets, -parts.sum(1, keepdim=True))
        return d_logits.scatter_add_(1, ids, parts)


def cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: "LossChunk | None" = None,
    soft: SoftTargets | None = None,
) -> Tensor:
    """Sum of the cross-entropies in nats over the tokens that have a target; a float32 scalar.

    hidden: (N, d) in any dtype, which is also the dtype of the matrix products; weight: (V, d); targets: (N,).
    chunk: a compiled `masked_chunk`, for devices other than a CPU.
    soft: (N,) likely tokens; the gradient is then that of the cross-entropy with softened targets, the value stays
        that of the tokens which came, so that losses compare.
    Exponentials and sums are float32. Without a single target the result is exactly 0, its gradients too.
    The gradient is computed chunk by chunk on the way forward, while a chunk's logits are at hand.
    """
    if not torch.is_grad_enabled():  # the functions below see parameters, not whether a gradient is wanted
        hidden, weight = hidden.detach(), weight.detach()
    if _gathers(hidden):
        return _CrossEntropySum.apply(hidden, weight.to(hidden.dtype), targets, soft)  # pyright: ignore
    return _MaskedCrossEntropySum.apply(hidden, weight, targets, chunk or masked_chunk, soft)  # pyright: ignore


def _gathers(hidden: Tensor) -> bool:
    """Whether tokens without a target are left out: elsewhere their number is not known without a wait for the device,
    and each number would be a shape of its own to compile."""
    return hidden.device.type == "cpu" and not torch.compiler.is_compiling()


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, soft: SoftTargets | None
    ) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        rows = torch.nonzero(targets != IGNORE).squeeze(1)  # untrained tokens cost nothing
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.zeros_like(hidden) if need_hidden else None
        d_weight: Tensor | None = None
        for group in rows.split(group_rows(weight)):
            h, target = hidden[group], targets[group][:, None]
            wanted = need_hidden or need_weight
            d_logits = h.new_empty(len(h), len(weight)) if wanted else None
            loss += _chunked_loss(h, weight, target, d_logits, None if soft is None else soft.at(group))
            if d_logits is not None and d_hidden is not None:
                d_hidden[group] = d_logits @ weight
            if d_logits is not None and need_weight:
                part = d_logits.t() @ h
                d_weight = part if d_weight is None else d_weight.float().add_(part)
        if need_weight and d_weight is None:
            d_weight = torch.zeros_like(weight)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # pyright: ignore
        d_hidden, d_weight = ctx.saved_tensors
        d_hidden = None if d_hidden is None else (d_hidden * grad).to(d_hidden.dtype)
        d_weight = None if d_weight is None else (d_weight * grad).to(ctx.weight_dtype)
        return d_hidden, d_weight, None, None


def _chunked_loss(
    h: Tensor, weight: Tensor, target: Tensor, d_logits: Tensor | None, soft: SoftTargets | None
) -> Tensor:
    """Summed loss of tokens h (G, d) with targets (G, 1); its gradient goes into d_logits (G, V) where given."""
    loss = torch.zeros((), dtype=torch.float32, device=h.device)
    n = chunk_rows(weight)
    for start in range(0, len(h), n):
        chunk = slice(start, start + n)
        logits = F.linear(h[chunk], weight).float()  # (C, V)
        probs = logits.softmax(dim=1)
        # One exponential a logit: the largest probability, never below 1/V, gives log Z = max - log(p_max).
        log_z = logits.amax(dim=1, keepdim=True) - probs.amax(dim=1, keepdim=True).log()
        loss += (log_z - logits.gather(1, target[chunk])).sum()
        if d_logits is not None:  # the probabilities, less one at the target
            minus = probs.new_full((len(probs), 1), -1.0)
            probs.scatter_add_(1, target[chunk], minus)
            d_logits[chunk] = probs if soft is None else soft.at(chunk).soften(probs, target[chunk])
    return loss


LossChunk = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


def masked_chunk(h: Tensor, weight: Tensor, targets: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """Summed loss of tokens h (C, d) with targets (C,), and, if wanted, its gradient by the logits (C, V) in h's dtype.

    Tokens without a target take part in the products and count nothing: all shapes are known beforehand.
    """
    keep, at = (targets != IGNORE)[:, None], targets.clamp_min(0)[:, None]  # (C, 1)
    logits = F.linear(h, weight).float()  # (C, V)
    log_z = logits.logsumexp(1, keepdim=True)
    loss = torch.where(keep, log_z - logits.gather(1, at), 0.0).sum()
    if not wanted:
        return loss, None
    probs = torch.where(keep, (logits - log_z).exp(), 0.0)
    return loss, probs.scatter_add(1, at, torch.where(keep, -1.0, 0.0)).to(h.dtype)


class _MaskedCrossEntropySum(torch.autograd.Function):
    """The same sum where all tokens take part; the output matrix's gradient is float32 throughout."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: LossChunk, soft: SoftTargets | None
    ) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        w = weight.to(hidden.dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        n = chunk_rows(weight)
        for start in range(0, len(hidden), n):
            here = slice(start, start + n)
            h = hidden[here]
            part, d_logits = chunk(h, w, targets[here], need_hidden or need_weight)
            loss += part
            if d_logits is not None and soft is not None:
                soft.at(here).soften(d_logits, targets[here, None].clamp_min(0))
            if d_logits is not None and d_hidden is not None:
                d_hidden[start : start + n] = d_logits @ w
            if d_logits is not None and d_weight is not None:
                d_weight += weight_gradient(d_logits, h)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # pyright: ignore
        d_hidden, d_weight = ctx.saved_tensors
        d_hidden = None if d_hidden is None else (d_hidden * grad).to(d_hidden.dtype)
        d_weight = None if d_weight is None else (d_weight * grad).to(ctx.weight_dtype)
        return d_hidden, d_weight, None, None, None


def weight_gradient(d_logits: Tensor, h: Tensor) -> Tensor:
    """(V, d): d_logits (C, V) transposed times h (C, d); float32 where the inputs are float16.

    No entry of d_logits is larger than 1, so a sum is at most C times the largest of h. In float16, which ends at
    65,504, h is divided before by the power of two that makes this fit, and the product multiplied by it.
    """
    if h.dtype is not torch.float16:
        return d_logits.t() @ h
    excess = h.abs().amax().float() * (len(h) / LARGEST_FLOAT16)
    scale = torch.exp2(excess.clamp_min(1.0).log2().ceil())
    return (d_logits.t() @ (h / scale)).float() * scale


def group_rows(weight: Tensor) -> int:
    """Tokens whose logits' gradients are held at once, in the compute dtype; off a CPU a chunk is large enough."""
    return chunk_rows(weight) * (CHUNKS_OF_A_GROUP if weight.device.type == "cpu" else 1)


def chunk_rows(weight: Tensor) -> int:
    """Tokens whose logits are held at once; fewer than 64 would starve the matrix products."""
    logits = CHUNK_LOGITS if weight.device.type == "cpu" else DEVICE_CHUNK_LOGITS
    return max(64, logits // weight.shape[0])


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """(N,) float32 log-probability in nats of each target under softmax(logits / temperature); 0 where ignored.

    hidden: (N, d); weight: (V, d); targets: (N,). Differentiable; keeps its logits for the way back.
    Raises ValueError if temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; log-probabilities need a positive one")
    weight = weight.to(hidden.dtype)
    rows = chunk_rows(weight)
    pieces: list[Tensor] = []
    for h, target in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = F.linear(h, weight).float() / temperature  # (C, V)
        pieces.append(-F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none"))
    return torch.cat(pieces) if pieces else hidden.new_zeros(0, dtype=torch.float32)


def logprob_sums(hidden: Tensor, weight: Tensor, targets: Tensor, owner: Tensor, n_owners: int) -> Tensor:
    """(n_owners,) float32, for each owner the sum of its targets' log-probabilities in nats.

    hidden: (N, d); weight: (V, d); targets: (N,); owner: (N,) whose target it is, -1 for nobody's, whose logits are
    not computed.
    """
    owned = owner >= 0
    logprobs = token_logprobs(hidden[owned], weight, targets[owned])
    return logprobs.new_zeros(n_owners).index_add(0, owner[owned], logprobs)
