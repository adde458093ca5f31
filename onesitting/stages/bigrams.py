"""First weights that know which token follows which: embedding and output matrix, fitted to counted pairs of tokens.

The first hundreds of steps of any language model learn how likely each token is after the one before it, from a few
thousand tokens a step. That table can be counted: sixteen million pairs in half a second. The blocks of a new model
add nothing to the residual stream, so a new model *is* a table of pairs, the output matrix times the normed
embedding, and fitting that product to the counts needs no attention, no MLP and no rows of text. The model that comes
out has the shape of any other; docs/pretrain.md has what it gains.

The counts are smoothed as in data/ngrams.py.

Shapes: V vocabulary, d width of the model, C different first tokens of a step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from onesitting.config import ModelConfig
from onesitting.data.ngrams import DISCOUNT, Bigrams
from onesitting.model.transformer import Transformer
from onesitting.train.device import DevicePlan

MOST_DRAWN, LEAST_DRAWN, DRAWN_LOGITS = 4096, 256, 2**24
"""First tokens drawn for a step, by their frequency, so that their logits fit; a quarter of many are different ones."""
EMBED_LR, HEAD_LR = 0.06, 0.012
"""AdamW's peak rates here: some hundred steps, so large ones."""
WARMUP_STEPS = 5
"""Steps to the peak rate."""


def expected_seconds(cfg: ModelConfig, n_steps: int, limit_flops_per_s: float) -> float:
    """About what counting and fitting take; 0 where there is nothing to fit. Half of the limit is reached."""
    if cfg.tie_embeddings or not n_steps:
        return 0.0
    n_different = n_drawn(cfg.vocab_size) / 4
    return 1.0 + n_steps * 6.0 * n_different * cfg.d_model * cfg.vocab_size / (0.5 * limit_flops_per_s)


def n_drawn(vocab_size: int) -> int:
    """First tokens of a step, some of them the same."""
    return min(MOST_DRAWN, max(LEAST_DRAWN, DRAWN_LOGITS // vocab_size))


class SmoothedBigrams:
    """Probabilities of the next token from counts, on a device."""

    def __init__(self, bigrams: Bigrams, device: torch.device) -> None:
        self.starts, self.followers = (torch.from_numpy(part).to(device) for part in bigrams[:2])
        counts = torch.from_numpy(bigrams.counts).to(device).float()
        V = len(self.starts) - 1
        firsts = torch.repeat_interleave(torch.arange(V, device=device), self.starts.diff())
        self.totals = torch.zeros(V, device=device).index_add_(0, firsts, counts)  # (V,)
        self.probabilities = (counts - DISCOUNT) / self.totals[
            firsts
        ]  # (P,), what each pair gives up taken off
        preceders = torch.bincount(self.followers, minlength=V).float() + 0.1  # no token is impossible
        self.lower = preceders / preceders.sum()  # (V,)

    def subtract(self, firsts: Tensor, from_: Tensor) -> Tensor:
        """from_ (C, V) less the probabilities after first tokens (C,) that were counted; in place."""
        begin, C, V = self.starts[firsts], len(firsts), len(self.lower)
        lengths = self.starts[firsts + 1] - begin
        given_up = DISCOUNT * lengths / self.totals[firsts]
        from_.addcmul_(given_up[:, None], self.lower, value=-1)
        # The pairs of all rows behind each other: how far they lie before their places in the table, and in from_.
        shifts = torch.stack((begin - lengths.cumsum(0) + lengths, torch.arange(C, device=begin.device) * V))
        there, row = torch.repeat_interleave(shifts, lengths, dim=1)
        place = there.add_(torch.arange(len(there), device=begin.device))
        flat, entry = from_.view(-1), row.add_(self.followers[place])
        flat[entry] -= self.probabilities[place]  # no entry is there twice
        return from_


def fit_bigrams(model: Transformer, bigrams: Bigrams, *, n_steps: int, seed: int, plan: DevicePlan) -> None:
    """Fit embedding and output matrix of a new model in place, by the cross-entropy of the counted pairs.

    The model must have an output matrix of its own. Everything else in it stays as it is.
    """
    assert model.lm_head is not None, "a tied table cannot say what follows what"
    embed, head, device = model.model.embed_tokens.weight, model.lm_head.weight, model.device
    table = SmoothedBigrams(bigrams, device)
    rates = ((embed, EMBED_LR), (head, HEAD_LR))
    optimizer = torch.optim.AdamW(
        [{"params": [weight], "lr": lr} for weight, lr in rates],
        betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    shares, n = table.totals.cpu(), n_drawn(len(head))
    for step in range(n_steps):
        # Up, then from the middle on down to 0.
        factor = min(1.0, (step + 1) / WARMUP_STEPS, 2.0 * (n_steps - step) / (n_steps + 1))
        for group, (_, lr) in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr * factor
        drawn = torch.multinomial(shares, n, replacement=True, generator=generator)
        firsts, times = (part.to(device) for part in drawn.unique(return_counts=True))
        with plan.autocast():
            hidden = model.model.norm(embed[firsts].to(plan.torch_dtype))  # (C, d): new blocks add nothing
        with torch.no_grad():
            output = head.to(hidden.dtype)
            # The gradient of the cross-entropy: the model's probabilities less those that were counted.
            d_logits = table.subtract(firsts, F.linear(hidden, output).float().softmax(dim=1))  # (C, V)
            d_logits = d_logits.mul_((times / n)[:, None]).to(hidden.dtype)
            head.grad = (d_logits.T @ hidden).float()
            d_hidden = d_logits @ output
        (embed.grad,) = torch.autograd.grad(hidden, embed, d_hidden)
        optimizer.step()
    optimizer.zero_grad()
