"""Counts of pairs and triples, against counting by hand; the likely tokens that they name."""

from collections import Counter

import numpy as np
import pytest
import torch

from onesitting.data import ngrams as module
from onesitting.data.ngrams import DISCOUNT, HIDDEN, Ngrams, count_bigrams, sample


def text(n: int, vocab_size: int, seed: int = 0) -> np.ndarray:
    """Tokens that repeat themselves: a few phrases in random order, with single tokens between them."""
    rng = np.random.default_rng(seed)
    phrases = [rng.integers(0, vocab_size, size=6) for _ in range(12)]
    found: list[int] = []
    while len(found) < n:
        found += phrases[rng.integers(12)].tolist() + rng.integers(0, vocab_size, size=2).tolist()
    return np.array(found[:n], dtype=np.uint16)


@pytest.mark.parametrize("vocab_size", [40, 70_000])
def test_pairs_are_counted_as_a_counter_counts_them(vocab_size: int):
    tokens = text(3000, 40).astype(np.uint32) * np.uint32(vocab_size // 40)
    starts, followers, counts = count_bigrams([(tokens, 1.0)], vocab_size)
    expected = Counter(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    found = {
        (a, int(followers[i])): int(counts[i])
        for a in range(vocab_size)
        if starts[a] < starts[a + 1]
        for i in range(int(starts[a]), int(starts[a + 1]))
    }
    assert found == expected


def test_sources_are_counted_in_their_shares_and_a_small_one_with_all_it_has():
    first, second = np.zeros(1000, dtype=np.uint16), np.ones(90_000, dtype=np.uint16)
    shared = count_bigrams([(first, 0.25), (second, 0.75)], 2, n_tokens=3000)
    assert shared.counts.tolist() == [pytest.approx(749, abs=20), pytest.approx(2249, abs=20)]
    small = count_bigrams([(first, 0.25), (second, 0.75)], 2, n_tokens=50_000)
    assert small.counts.tolist() == [999, pytest.approx(37_499, abs=300)]


def test_a_sample_comes_from_all_over_a_file():
    tokens = np.arange(1_000_000)
    found = sample(tokens, 10_000)
    assert len(found) <= 10_000
    assert found[0] == 0
    assert found[-1] == 999_999
    assert np.abs(np.sort(found) - np.linspace(0, 999_999, len(found))).max() < 5_000
    assert np.array_equal(sample(tokens, 2_000_000), tokens)


def kneser_ney(tokens: list[int], V: int, a: int | None, b: int) -> dict[int, float]:
    """Parts of the followers of (a, b) as the class promises, counted one by one."""
    triples = Counter(zip(tokens, tokens[1:], tokens[2:], strict=False))
    ones = Counter((y, z) for _, y, z in triples)  # different tokens before each pair
    after_one = {z: n for (y, z), n in ones.items() if y == b}
    parts: dict[int, float] = {}
    after_two = {z: n for (x, y, z), n in triples.items() if (x, y) == (a, b)}
    left = 1.0
    if after_two:
        total = sum(after_two.values())
        left = DISCOUNT * len(after_two) / total
        for z, n in after_two.items():
            parts[z] = (n - DISCOUNT) / total
    for z, n in after_one.items():
        parts[z] = parts.get(z, 0.0) + left * (n - DISCOUNT) / sum(after_one.values())
    return parts


def likely(ngrams: Ngrams, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids and probabilities (B, T, L) after the inputs of rows (B, T)."""
    inputs, contexts = torch.from_numpy(rows.astype(np.int64)), torch.from_numpy(ngrams.contexts_of(rows))
    ids, parts = ngrams.likely(inputs.flatten(), contexts.flatten())
    return ids.view(*rows.shape, -1).numpy(), parts.view(*rows.shape, -1).numpy()


def test_nothing_is_said_where_there_is_no_target():
    ngrams, hidden = Ngrams([(text(800, 25), 1.0)], 25), torch.full((5,), HIDDEN)
    assert not ngrams.likely(torch.arange(5), hidden)[1].any()
    assert ngrams.likely(torch.arange(5), hidden + 1)[1].any(), "a context that is unknown has a shorter one"


def test_likely_tokens_are_those_of_interpolated_kneser_ney():
    V, tokens = 25, text(800, 25)
    ngrams = Ngrams([(tokens, 1.0)], V)
    rows = np.concatenate([text(40, V, seed=0), text(40, V, seed=9)]).reshape(4, 20).astype(np.int64)
    ids, parts = likely(ngrams, rows)
    assert ids.shape == parts.shape
    assert ids.shape[:2] == (4, 20)
    n_known = 0
    for i in range(4):
        for t in range(20):
            before = int(rows[i, t - 1]) if t else None
            expected = kneser_ney(tokens.tolist(), V, before, int(rows[i, t]))
            found: dict[int, float] = {}
            for token, part in zip(ids[i, t].tolist(), parts[i, t].tolist(), strict=True):
                if part:
                    found[token] = found.get(token, 0.0) + part
            assert found == pytest.approx(expected, abs=1e-6)
            assert sum(found.values()) < 1
            n_known += len(found) > 0
    assert n_known > 60


def test_at_most_the_likeliest_followers_of_a_context_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "AFTER_ONE", 40)
    monkeypatch.setattr(module, "AFTER_TWO", 30)
    V = 200
    tokens = np.tile(np.stack([np.full(V, 1), np.full(V, 2), np.arange(V)], axis=1).ravel(), 5)
    tokens = np.concatenate([tokens, np.tile([1, 2, 77], 50)]).astype(np.uint16)
    ids, parts = likely(Ngrams([(tokens, 1.0)], V), np.array([[1, 2]]))
    own, shorter = ids[0, 1, :30], ids[0, 1, 30:]
    assert 77 in own
    assert len(set(own.tolist())) == 30
    assert len(set(shorter.tolist())) == 40
    assert parts[0, 1, :30][own == 77] == pytest.approx((55 - DISCOUNT) / (5 * V + 50))
    assert parts[0, 1].sum() < 1


def test_sources_with_nothing_to_give_are_left_out():
    tokens = text(300, 25)
    both = Ngrams([(tokens, 1.0), (np.zeros(0, dtype=np.uint16), 0.0)], 25)
    alone = Ngrams([(tokens, 1.0)], 25)
    for x, y in zip(likely(both, tokens[None, :50]), likely(alone, tokens[None, :50]), strict=True):
        assert np.array_equal(x, y)
