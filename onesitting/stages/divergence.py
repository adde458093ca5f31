"""How far a student's next-token distributions are from a teacher's, without holding all logits at once.

Shapes: N tokens, C tokens of one chunk, d and e the widths of student and teacher, V vocabulary, K kept logits.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from onesitting.model.logprobs import chunk_rows

Divergence = Literal["forward", "reverse", "jsd"]


class TopK(NamedTuple):
    """A teacher's likeliest tokens: ids (N, K) int64, logprobs (N, K) float32 in nats at training's temperature."""

    ids: Tensor
    logprobs: Tensor


def divergence(student: Tensor, teacher: Tensor, kind: Divergence, beta: float = 0.5) -> Tensor:
    """(N,) divergences in nats of distributions over M outcomes, from log-probabilities (N, M).

    forward: KL(teacher, student), covers all that the teacher does. reverse: KL(student, teacher), keeps to what the
    teacher finds likely. jsd: beta KL(teacher, m) + (1 - beta) KL(student, m) with m = beta teacher + (1 - beta)
    student (Agarwal et al. 2023, arXiv:2306.13649, section 2).
    """
    if kind == "forward":
        return _kl(teacher, student)
    if kind == "reverse":
        return _kl(student, teacher)
    weights = torch.tensor([beta, 1 - beta], device=student.device).log()
    middle = torch.logsumexp(torch.stack([teacher + weights[0], student + weights[1]]), dim=0)
    return beta * _kl(teacher, middle) + (1 - beta) * _kl(student, middle)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """(N,) KL(p, q) in nats from log-probabilities; an outcome with p = 0 adds nothing."""
    terms = p.exp() * (p - q)
    return torch.where(p > -torch.inf, terms, 0.0).sum(dim=-1)


def with_rest(kept: Tensor) -> Tensor:
    """(N, K + 1) log-probabilities: those of K outcomes (N, K), and of all others together."""
    total = kept.exp().sum(dim=-1, keepdim=True)
    # Rounding may leave a little more than 1; a floor of 1e-6 keeps the logarithm and its gradient finite.
    return torch.cat([kept, (1 - total).clamp_min(1e-6).log()], dim=-1)


def top_k(hidden: Tensor, weight: Tensor, k: int, temperature: float) -> TopK:
    """The K likeliest tokens after each of (N, e) hidden states of a teacher with output matrix (V, e)."""
    ids: list[Tensor] = []
    logprobs: list[Tensor] = []
    for h in hidden.split(chunk_rows(weight)):
        best = _log_softmax(h, weight, temperature).topk(min(k, weight.shape[0]), dim=-1)
        ids.append(best.indices)
        logprobs.append(best.values)
    return TopK(torch.cat(ids), torch.cat(logprobs))


def distillation_sums(
    student: Tensor,
    student_weight: Tensor,
    teacher: Tensor | TopK,
    teacher_weight: Tensor,
    targets: Tensor,
    *,
    kind: Divergence,
    temperature: float,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """(sum of cross-entropies at temperature 1, sum of divergences at the temperature) over N tokens, in nats.

    student: (N, d) hidden states; student_weight: (V, d). teacher: (N, e) hidden states with teacher_weight (V, e),
    or what is kept of them. targets: (N,). Logits are computed chunk by chunk, and again on the way back.
    """
    zero = (
        student[:0].float().sum()
    )  # 0, on the graph: without a token the sums still have a gradient, of zeros
    sums = [zero, zero]
    size = chunk_rows(student_weight)
    for first in range(0, len(targets), size):
        part = slice(first, first + size)
        taught: Any = (
            TopK(teacher.ids[part], teacher.logprobs[part]) if isinstance(teacher, TopK) else teacher[part]
        )
        found = checkpoint(
            _chunk_sums, student[part], student_weight, taught, teacher_weight, targets[part], kind, temperature,
            beta, use_reentrant=False,
        )  # fmt: skip
        sums = [total + new for total, new in zip(sums, found, strict=True)]  # pyright: ignore
    return sums[0], sums[1]


def _chunk_sums(
    h: Tensor,
    weight: Tensor,
    teacher: Tensor | TopK,
    teacher_weight: Tensor,
    targets: Tensor,
    kind: Divergence,
    temperature: float,
    beta: float,
) -> tuple[Tensor, Tensor]:
    logits = F.linear(h, weight.to(h.dtype)).float()  # (C, V)
    cross_entropy = F.cross_entropy(logits, targets, reduction="sum")
    logprobs = (logits / temperature).log_softmax(dim=-1)
    if isinstance(teacher, TopK):
        ours, theirs = with_rest(logprobs.gather(1, teacher.ids)), with_rest(teacher.logprobs)
    else:
        ours, theirs = logprobs, _log_softmax(teacher, teacher_weight, temperature)
    return cross_entropy, divergence(ours, theirs, kind, beta).sum()


def _log_softmax(h: Tensor, weight: Tensor, temperature: float) -> Tensor:
    return (F.linear(h, weight.to(h.dtype)).float() / temperature).log_softmax(dim=-1)
