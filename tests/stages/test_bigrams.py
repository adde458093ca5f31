"""First weights from counted pairs of tokens, against counting and smoothing by hand."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from tiny import config, plan, shape

from onesitting.data.ngrams import DISCOUNT, count_bigrams
from onesitting.model.transformer import Transformer
from onesitting.stages.bigrams import SmoothedBigrams, fit_bigrams


def text(n: int, vocab_size: int, seed: int = 0) -> np.ndarray:
    """Tokens of which each depends on the one before it: three likely followers and now and then any other."""
    rng = np.random.default_rng(seed)
    likely = rng.integers(0, vocab_size, size=(vocab_size, 3))
    tokens = [0]
    for _ in range(n - 1):
        tokens.append(int(rng.choice(likely[tokens[-1]]) if rng.random() < 0.9 else rng.integers(vocab_size)))
    return np.array(tokens, dtype=np.uint16)


def test_smoothed_probabilities_are_kneser_ney():
    tokens = text(500, 12)
    table = SmoothedBigrams(count_bigrams([(tokens, 1.0)], 12), torch.device("cpu"))
    counts = Counter(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    firsts = torch.tensor(sorted({a for a, _ in counts}))
    found = -table.subtract(firsts, torch.zeros(len(firsts), 12))
    preceders = [sum((a, c) in counts for a in range(12)) + 0.1 for c in range(12)]
    for row, a in zip(found.tolist(), firsts.tolist(), strict=True):
        total, kinds = sum(n for (x, _), n in counts.items() if x == a), sum(x == a for x, _ in counts)
        for c in range(12):
            own = max(counts.get((a, c), 0) - DISCOUNT, 0) / total
            expected = own + DISCOUNT * kinds / total * preceders[c] / sum(preceders)
            assert row[c] == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(len(firsts)), atol=1e-5)


def test_a_fitted_model_predicts_the_next_token_about_as_well_as_the_table_of_pairs():
    V, tokens = 48, text(20_000, 48)
    cfg = config(shape(V, d_model=64, n_heads=4, tie_embeddings=False, initial_weights="plain"))
    model = Transformer(cfg.model, seed=0)
    others = {n: p.clone() for n, p in model.named_parameters() if "embed" not in n and "lm_head" not in n}
    bigrams = count_bigrams([(tokens[:-2048], 1.0)], V)
    fit_bigrams(model, bigrams, n_steps=100, seed=0, plan=plan(cfg))
    held_out = torch.from_numpy(tokens[-2048:].astype(np.int64)).view(16, 128)
    with torch.no_grad():
        loss = float(model(held_out[:, :-1], targets=held_out[:, 1:])) / held_out[:, 1:].numel()
    table = -SmoothedBigrams(bigrams, torch.device("cpu")).subtract(torch.arange(V), torch.zeros(V, V))
    best = float(-table[held_out[:, :-1], held_out[:, 1:]].log().mean())
    assert best < math.log(V) - 1
    assert loss < best + 0.1
    assert all(torch.equal(p, others[n]) for n, p in model.named_parameters() if n in others)


def test_the_fit_is_a_function_of_counts_and_seed():
    cfg = config(shape(320, tie_embeddings=False))
    bigrams = count_bigrams([(text(5000, 320), 1.0)], 320)
    weights = []
    for seed in (0, 0, 1):
        model = Transformer(cfg.model, seed=0)
        fit_bigrams(model, bigrams, n_steps=5, seed=seed, plan=plan(cfg))
        weights.append(model.output_weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_every_step_of_the_fit_follows_the_gradient_of_the_cross_entropy():
    # One step over every first token, each drawn in proportion: AdamW's first step is a sign of the gradient.
    V = 12
    cfg = config(shape(V, tie_embeddings=False, initial_weights="plain"))
    bigrams = count_bigrams([(text(4000, V), 1.0)], V)
    model, other = Transformer(cfg.model, seed=0), Transformer(cfg.model, seed=0)
    fit_bigrams(model, bigrams, n_steps=1, seed=0, plan=plan(cfg))
    table = SmoothedBigrams(bigrams, torch.device("cpu"))
    wanted = -table.subtract(torch.arange(V), torch.zeros(V, V))
    logits = other.logits(other.model.norm(other.model.embed_tokens.weight))
    drawn = torch.multinomial(
        table.totals, 4096, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    share = torch.bincount(drawn, minlength=V)[:, None] / 4096
    loss = -(share * wanted * logits.log_softmax(1)).sum()
    expected = torch.autograd.grad(loss, other.output_weight)[0]
    moved = model.output_weight - other.output_weight
    clear = expected.abs() > 1e-5
    assert torch.equal(moved[clear].sign(), -expected[clear].sign())
