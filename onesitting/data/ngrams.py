"""What follows what in a text, counted: pairs for a new model's first weights, triples for softer targets.

A target says which token came once. In a text of millions of tokens the same two tokens stand before this place
thousands of times, and how often each token followed them is a better estimate of what a model should say there than
the one that happened to come. Mixed into the targets it takes noise out of the gradient (pretrain.md).

Probabilities are interpolated Kneser–Ney (Chen & Goodman 1999, section 3): each count gives up DISCOUNT, and what was
given up goes to the shorter context, where a token counts once for each different token before it. Of each context
only the likeliest followers are kept.

Shapes: V vocabulary, P different pairs, C contexts of two tokens, E their followers, B rows, T places,
L = AFTER_ONE + AFTER_TWO.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

N_PAIRS = 16_000_000
"""Pairs that are counted; with V = 4,096, 4 million leave 0.03 bits per byte, 48 million give 0.01 more."""
N_TRIPLES = 48_000_000
"""Triples that are counted; with V = 4,096 and 5.5 million parameters, 16 million take a quarter of the gain."""
DISCOUNT = 0.75
"""Taken from each count above zero, as usual for text."""
N_PARTS = 16
"""Parts in which triples are counted, as many at once as there are workers: one part is as fast and takes 1.3 GB."""
AFTER_ONE, AFTER_TWO = 512, 128
"""Followers of one token, and of two, that are named, the likeliest first; with 32 and 32 half of the gain is lost."""
HIDDEN, UNKNOWN = -2, -1
"""Contexts that have no followers: of a place where nothing is said, and of two tokens that were not seen together."""
N_RUNS = 256
"""Runs of tokens, evenly over a file, that are counted: the files of a corpus lie behind each other in it."""

Array = npt.NDArray[Any]
Sources = Sequence[tuple[Array, float]]
"""Token files and the share of each in training."""


class Bigrams(NamedTuple):
    """How often each token followed each other one."""

    starts: Array
    """(V + 1,) int64: the followers of token a are `followers[starts[a] : starts[a + 1]]`."""
    followers: Array
    """(P,) int64, in order."""
    counts: Array
    """(P,) int64."""


def sample(tokens: Array, n: int) -> Array:
    """At most n tokens in N_RUNS runs from all over a file."""
    if len(tokens) <= n:
        return np.asarray(tokens)
    length = max(3, n // N_RUNS)
    firsts = np.linspace(0, len(tokens) - length, n // length).astype(np.int64)
    return np.concatenate([tokens[first : first + length] for first in firsts])


def samples(sources: Sources, n_tokens: int) -> list[Array]:
    """From each source its share of n_tokens, or all that it has: a small one must not make the counts small."""
    used = [(tokens, part) for tokens, part in sources if part > 0 and len(tokens)]
    return [sample(tokens, int(n_tokens * part)) for tokens, part in used]


def pair_number(vocab_size: int) -> type[np.uint32] | type[np.uint64]:
    """dtype of two tokens in one number: half the bytes, where they are enough, are sorted in half the time."""
    return np.uint32 if vocab_size**2 <= 2**32 else np.uint64


def count_bigrams(sources: Sources, vocab_size: int, n_tokens: int = N_PAIRS) -> Bigrams:
    """Pairs of neighbours in at most n_tokens tokens."""
    number = pair_number(vocab_size)
    kept = [tokens.astype(number) for tokens in samples(sources, n_tokens)]
    pairs, counts = counted(np.concatenate([ids[:-1] * number(vocab_size) + ids[1:] for ids in kept]))
    firsts, followers = np.divmod(pairs.astype(np.int64), vocab_size)
    return Bigrams(np.searchsorted(firsts, np.arange(vocab_size + 1)), followers, counts)


class Ngrams:
    """The likeliest tokens after each one and after each two, in at most n_tokens tokens."""

    def __init__(
        self, sources: Sources, vocab_size: int, n_tokens: int = N_TRIPLES, workers: int = 1
    ) -> None:
        assert vocab_size <= 2**21, "three tokens in a number of 64 bits"
        V = self.vocab_size = vocab_size
        kept = [ids for ids in samples(sources, n_tokens) if len(ids) >= 3]
        counts = np.sum([np.bincount(ids[:-2], minlength=V) for ids in kept], axis=0)
        # A part of the first tokens at a time, so that a fraction of the triples is in memory.
        part_of = ((np.cumsum(counts) - counts) * N_PARTS // max(1, counts.sum())).astype(np.uint8)
        parts_of = [part_of[ids[:-2]] for ids in kept]
        with ThreadPoolExecutor(workers) as pool:  # sorting, which is most of it, lets other threads run
            parts = list(pool.map(lambda n: _after_two(_triples(kept, parts_of, n, V), V), range(N_PARTS)))
        pairs = np.concatenate([part.pairs for part in parts])
        pairs, before = counted(pairs)  # how many different tokens stood before each pair
        after_one, p_after_one = _padded(*_likeliest(pairs // V, pairs % V, before, AFTER_ONE), V)
        self.after_one, self.p_after_one = torch.from_numpy(after_one), torch.from_numpy(p_after_one)
        self.contexts = np.concatenate([part.contexts for part in parts])  # (C,), in order
        # Two contexts more at the end, without followers of their own: HIDDEN and UNKNOWN, as negative indices.
        left = np.concatenate([*(part.left for part in parts), np.array([0.0, 1.0], np.float32)])
        lengths = np.concatenate([*(part.lengths for part in parts), [0, 0]])
        self.left, self.lengths = torch.from_numpy(left), torch.from_numpy(lengths)
        self.starts = torch.from_numpy(lengths.cumsum() - lengths)  # (C + 2,)
        # As many entries more as are read beyond the last context's own.
        beyond = np.zeros(AFTER_TWO, np.int32)
        self.after_two = torch.from_numpy(np.concatenate([*(part.followers for part in parts), beyond]))
        self.p_after_two = torch.from_numpy(
            np.concatenate([*(part.p for part in parts), beyond.astype(np.float32)])
        )

    def to(self, device: torch.device) -> "Ngrams":
        """The same object, which says what is likely on a device."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def contexts_of(self, tokens: Array) -> Array:
        """(B, T) int64, which context the last two tokens are at each place of rows (B, T); UNKNOWN if none."""
        found = np.full(tokens.shape, UNKNOWN, np.int64)
        pairs = tokens[:, :-1].astype(np.int64) * self.vocab_size + tokens[:, 1:]  # (B, T - 1)
        nth = np.minimum(np.searchsorted(self.contexts, pairs), len(self.contexts) - 1)
        found[:, 1:] = np.where(self.contexts[nth] == pairs, nth, UNKNOWN)
        return found

    def likely(self, tokens: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """After tokens (N,) and their contexts (N,): ids (N, L) int64 of likely next tokens, and their probabilities.

        Those of a place add up to less than 1: what is missing belongs to tokens that are not named. A token may be
        named twice, after two and after one; its probability is the sum. All are 0 in the context HIDDEN.
        """
        nth = torch.arange(AFTER_TWO, device=tokens.device)
        place = self.starts[contexts][:, None] + nth  # (N, AFTER_TWO)
        p_after_two = self.p_after_two[place].masked_fill_(nth >= self.lengths[contexts][:, None], 0.0)
        ids = torch.cat((self.after_two[place], self.after_one[tokens]), dim=1).long()
        p_after_one = self.p_after_one[tokens].mul_(self.left[contexts][:, None])
        return ids, torch.cat((p_after_two, p_after_one), dim=1)


class _AfterTwo(NamedTuple):
    """What followed the contexts of two tokens of a part of the triples."""

    contexts: Array
    left: Array
    lengths: Array
    """Followers of each context."""
    followers: Array
    p: Array
    pairs: Array
    """The last two tokens of each different triple, as numbers."""


def _triples(texts: Sequence[Array], parts_of: Sequence[Array], part: int, V: int) -> Array:
    """(N,) int64, the triples of one part as numbers; parts_of: of each triple of each text."""
    found: list[Array] = []
    for ids, part_of in zip(texts, parts_of, strict=True):
        place = np.flatnonzero(part_of == part)
        keys = ids[place].astype(np.int64)
        for nth in (1, 2):
            keys *= V
            keys += ids[place + nth]
        found.append(keys)
    return np.concatenate(found)


def _after_two(triples: Array, V: int) -> _AfterTwo:
    """Counts of triples (N,), which are sorted in place."""
    triples, counts = counted(triples)
    context = triples // V
    is_first = np.ones(len(context), dtype=bool)
    is_first[1:] = context[1:] != context[:-1]
    nth, contexts = is_first.cumsum() - 1, context[is_first]
    n_followers = np.bincount(nth, minlength=len(contexts))
    left = (DISCOUNT * n_followers / np.bincount(nth, weights=counts)).astype(np.float32)
    kept, followers, p = _likeliest(nth, (triples % V).astype(np.int32), counts, AFTER_TWO)
    lengths = np.bincount(kept, minlength=len(contexts))
    return _AfterTwo(contexts, left, lengths, followers, p, (triples % V**2).astype(pair_number(V)))


def counted(keys: Array) -> tuple[Array, Array]:
    """Different numbers in order, and how often each is there; sorts keys in place."""
    keys.sort()
    is_first = np.ones(len(keys), dtype=bool)
    is_first[1:] = keys[1:] != keys[:-1]
    edges = np.flatnonzero(is_first)
    return keys[edges], np.diff(edges, append=len(keys))


def _likeliest(contexts: Array, followers: Array, counts: Array, most: int) -> tuple[Array, Array, Array]:
    """(context, follower, discounted probability) of at most `most` followers of each context, the likeliest.

    contexts: in order, numbered from 0.
    """
    n_followers, totals = np.bincount(contexts), np.bincount(contexts, weights=counts)
    p = ((counts - DISCOUNT) / totals[contexts]).astype(np.float32)
    crowded = np.flatnonzero(
        n_followers[contexts] > most
    )  # few contexts: sorting all would take most of the time
    order = crowded[np.lexsort((-counts[crowded], contexts[crowded]))]
    kept = np.ones(len(contexts), dtype=bool)
    kept[order[_rank(contexts[order]) >= most]] = False
    return contexts[kept], followers[kept], p[kept]


def _rank(contexts: Array) -> Array:
    """How many of the same context stand before each; contexts in order."""
    return np.arange(len(contexts)) - np.searchsorted(contexts, contexts)


def _padded(contexts: Array, followers: Array, p: Array, n_contexts: int) -> tuple[Array, Array]:
    """(n_contexts, K) followers and their probabilities, 0 where there are fewer."""
    rank = _rank(contexts)
    shape = n_contexts, int(rank.max(initial=0)) + 1
    ids, parts = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    ids[contexts, rank], parts[contexts, rank] = followers, p
    return ids, parts
