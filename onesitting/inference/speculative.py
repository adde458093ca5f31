"""Speculative decoding: a small model writes a few tokens ahead, and the large one reads them all in one pass.

What comes out is the large model's own text (Leviathan et al. 2022, arXiv:2211.17192): at temperature 0 the same
tokens, else tokens of the same distribution. It is faster where the large model's step takes as long for a few tokens
as for one, the small one's is much shorter, and the two mostly agree.

Shapes: N tokens of a pass, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from onesitting.inference.batch import logits_of, record_logprobs
from onesitting.inference.row import Row
from onesitting.inference.sampling import Sampling, adjusted_logits, draw
from onesitting.model.kv_cache import CHUNK, KVCache, Next, Piece
from onesitting.model.transformer import Transformer

DRAFT_TOKENS = 2
"""Tokens guessed for each pass of the large model. With the last token they are three rows, for which packed products
take little longer than for one (model/packed.py). Of 1, 2, 3, 4 and 7, two were best or near it (docs/log.md)."""

PIECES = 16
"""Pieces of a prompt that are read in one pass."""


class _Reader:
    """A model and its memory of the one text."""

    def __init__(self, model: Transformer, max_tokens: int) -> None:
        self.model, self.max_tokens = model, max_tokens
        self.cache = KVCache(model, 1, max_tokens)
        self.n_read = 0

    def read_prompt(self, prompt: Sequence[int]) -> Tensor:
        """(1, V) logits behind a prompt."""
        pieces = [Piece(0, at, prompt[at : at + CHUNK]) for at in range(0, len(prompt), CHUNK)]
        hidden = [
            self.cache.read(self.model, pieces[i : i + PIECES], []) for i in range(0, len(pieces), PIECES)
        ]
        self.n_read = len(prompt)
        return logits_of(self.model, hidden[-1], [len(hidden[-1]) - 1])

    def read(self, tokens: Sequence[int]) -> Tensor:
        """(N, V) logits behind each of the next tokens."""
        nexts = [Next(0, self.n_read + i, token) for i, token in enumerate(tokens)]
        self.n_read += len(tokens)
        return logits_of(self.model, self.cache.read(self.model, [], nexts), range(len(tokens)))


class Pair:
    """A model and its draft, both laid out for decoding, and the one row that they write; call in inference mode.

    Both must have the same vocabulary. Of the row's settings, penalties by frequency, biases and grammars are not here.
    """

    def __init__(self, model: Transformer, draft: Transformer, row: Row) -> None:
        assert draft.cfg.vocab_size == model.cfg.vocab_size
        self.row, self.n_drafted, self.n_accepted = row, 0, 0
        length = len(row.prompt) + row.limit
        self._model = _Reader(model, length)
        # What the draft cannot read, the model writes alone.
        self._draft = _Reader(draft, min(length, draft.cfg.context_length))

    def step(self) -> None:
        """Give the row one token or more."""
        row = self.row
        if not row.ids:
            self._take([], torch.empty(0), self._model.read_prompt(row.prompt))
            if len(row.prompt) < self._draft.max_tokens:
                self._draft.read_prompt(row.prompt)
            return
        text = row.prompt + row.ids
        # The last token that fits follows one that is read, not a guess.
        n = min(DRAFT_TOKENS, row.limit - len(row.ids) - 1, self._draft.max_tokens - len(text))
        guesses, chances = self._guess(text, n) if n > 0 else ([], torch.empty(0))
        n_accepted = self._take(guesses, chances, self._model.read([row.ids[-1], *guesses]))
        self._model.n_read = len(text) + n_accepted
        self._draft.n_read = min(self._draft.n_read, len(text) + n_accepted)
        self.n_drafted, self.n_accepted = self.n_drafted + len(guesses), self.n_accepted + n_accepted

    def _guess(self, text: list[int], n: int) -> tuple[list[int], Tensor]:
        """n tokens of the draft behind a text, and the distributions (n, V) that they are from."""
        guesses: list[int] = []
        chances: list[Tensor] = []
        for i in range(n):
            logits = self._draft.read(guesses[-1:] if i else text[self._draft.n_read :])[-1:]
            chances.append(self._distributions(logits, text + guesses, []))
            guesses.append(int(draw(chances[-1], [self.row.random.random()])))
        return guesses, torch.cat(chances)

    def _take(self, guesses: list[int], chances: Tensor, logits: Tensor) -> int:
        """Add tokens to the row up to the first that is no guess; the number of guesses among them comes back.

        chances: (n, V) the draft's distributions. logits: (n + 1, V) the model's, before and behind each guess.
        """
        row = self.row
        wanted = self._distributions(logits, row.prompt + row.ids, guesses)
        for i, distribution in enumerate(wanted):
            guess = guesses[i] if i < len(guesses) else None
            if row.forced:
                token = row.forced[0]
            elif guess is None:
                token = int(draw(distribution[None], [row.random.random()]))
            else:
                token = accepted_or_drawn(
                    guess, distribution, chances[i], row.random.random(), row.random.random()
                )
            record_logprobs([row], logits[i : i + 1], [token])
            row.add(token)
            if token != guess:
                return i
            if row.finish_reason is not None:
                return i + 1
        return len(guesses)

    def _distributions(self, logits: Tensor, text: list[int], guesses: list[int]) -> Tensor:
        """(N, V) float64 from which a token is drawn behind the text, the text and a guess, …; logits (N, V)."""
        sampling = self.row.sampling
        seen = None
        if sampling.repetition_penalty != 1.0:
            seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
            seen[:, text] = True
            for i, guess in enumerate(guesses):
                seen[i + 1 :, guess] = True
        return distributions(logits, sampling, seen)


def distributions(logits: Tensor, sampling: Sampling, seen: Tensor | None) -> Tensor:
    """(N, V) float64 probabilities with which `choose` chooses a token; one is 1 at temperature 0."""
    adjusted = adjusted_logits(logits, sampling, seen)
    if sampling.temperature == 0.0:
        certain = torch.zeros(logits.shape, dtype=torch.float64, device=logits.device)
        return certain.scatter_(1, adjusted.argmax(dim=1, keepdim=True), 1.0)
    return adjusted.softmax(dim=1, dtype=torch.float64)


def accepted_or_drawn(guess: int, wanted: Tensor, drafted: Tensor, chance: float, uniform: float) -> int:
    """A token of the distribution `wanted`, where `guess` is one of `drafted`; both (V,) float64.

    The guess is kept with probability min(1, wanted / drafted); else a token is drawn from what `wanted` has more than
    `drafted`. chance, uniform: numbers in [0, 1) for the two choices.
    Source: arXiv:2211.17192, section 2.3 and appendix A.1.
    """
    if chance * drafted[guess] < wanted[guess]:
        return guess
    return int(draw((wanted - drafted).clamp_(min=0)[None], [uniform]))
