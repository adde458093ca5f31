"""How the next token is chosen from the model's logits.

Shapes: B rows, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onesitting.errors import UserError

TINY = 1e-10
"""Smallest number that a setting counts as: float32 has no 1e-300, and dividing by its 0 would make every token NaN."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of generation. Raises UserError when one is out of range."""

    temperature: float = 0.8
    """Logits are divided by it; 0: always the most likely token."""
    top_k: int = 0
    """Only this many most likely tokens are candidates; 0: all."""
    top_p: float = 1.0
    """Only the most likely tokens whose probabilities add up to this are candidates; 1: all."""
    min_p: float = 0.0
    """Only tokens at least this many times as likely as the most likely one are candidates; 0: all."""
    repetition_penalty: float = 1.0
    """Logits of tokens that occurred before are divided by it (multiplied where negative); 1: no change."""
    max_tokens: int = 256
    """Tokens after which a text ends."""
    stop: tuple[str, ...] = ()
    """Strings that end a text; they are not part of it."""
    seed: int | None = None
    """The text of row i is a function of (prompt, settings, seed, i); none: different each time."""

    def __post_init__(self) -> None:
        limits = {
            "temperature": (self.temperature >= 0 and math.isfinite(self.temperature), "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0; 1 changes nothing"),
            "max_tokens": (self.max_tokens >= 0, "0 or more"),
            "stop": (not isinstance(self.stop, str) and all(self.stop), "strings that are not empty"),
        }
        for name, (is_valid, wanted) in limits.items():
            if not is_valid:
                raise UserError(f"sampling setting {name} is {getattr(self, name)!r}; give {wanted}")


def adjusted_logits(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """(B, V) float32 logits after penalty and temperature, -inf for tokens that are no candidates.

    logits: (B, V) float32. seen: (B, V) bool, tokens of the row so far; needed for the repetition penalty.
    The order of steps is that of transformers: penalty, temperature, top-k, top-p, min-p.
    Sources: repetition penalty, Keskar et al. 2019, arXiv:1909.05858; top-p, Holtzman et al. 2019,
    arXiv:1904.09751; min-p, Nguyen et al. 2024, arXiv:2407.01082.
    """
    if sampling.repetition_penalty != 1.0 and seen is not None:
        penalty = min(max(sampling.repetition_penalty, TINY), 1 / TINY)
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature not in (0.0, 1.0):
        logits = logits / max(sampling.temperature, TINY)
    if 0 < sampling.top_k < logits.shape[1]:
        worst = logits.topk(sampling.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < worst, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, index = logits.sort(dim=1, descending=True)
        probs = ordered.softmax(dim=1)
        # A token stays while the tokens before it have less than top_p; so the first always stays.
        dropped = probs.cumsum(dim=1) - probs >= max(sampling.top_p, TINY)
        logits = logits.masked_fill(dropped.scatter(1, index, dropped), -torch.inf)
    if sampling.min_p > 0.0:
        # p < min_p · p_max, in logits.
        worst = logits.amax(dim=1, keepdim=True) + math.log(sampling.min_p)
        logits = logits.masked_fill(logits < worst, -torch.inf)
    return logits


def choose(logits: Tensor, sampling: Sampling, uniforms: list[float], seen: Tensor | None = None) -> Tensor:
    """(B,) int64, the next token of each row.

    uniforms: a number in [0, 1) for each row; the row's token is the inverse of its distribution function there,
    so a row's choice depends on nothing but its own logits and number.
    """
    logits = adjusted_logits(logits, sampling, seen)
    if sampling.temperature == 0.0:
        return logits.argmax(dim=1)
    return draw(logits.softmax(dim=1, dtype=torch.float64), uniforms)


def draw(weights: Tensor, uniforms: list[float]) -> Tensor:
    """(B,) int64, an index for each row of weights (B, V) float64, at least 0; with probabilities as their shares."""
    cumulative = weights.cumsum(dim=1)
    threshold = (
        torch.tensor(uniforms, dtype=torch.float64, device=weights.device)[:, None] * cumulative[:, -1:]
    )
    # right=True: a token of probability 0 covers no threshold, not even 0.
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=weights.shape[1] - 1)
