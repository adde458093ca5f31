"""Guesses from the text itself: what followed the last tokens where they stood before.

Names, quotations, code and the arguments of calls repeat what is in the prompt or was just written. Rows of a matrix
product are padded anyway (model/packed.py), so a few guessed tokens are read beside the last one for little more than
its time, and those that the model would have written are kept. While all of them are, the next pass takes more. The
choice is the one that is made without guesses, by the same random numbers, so the text is the same to the bit at every
temperature.
Source: Saxena 2023, "Prompt lookup decoding", https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from collections.abc import Sequence

GUESSED_TOKENS = 3
"""Tokens guessed for a pass: with the last token they fill the four rows that a packed product has at least."""
MOST_GUESSED = 15
"""Those of a pass after passes whose guesses were all right, each of which lets the next take twice the rows."""
CONTEXTS: tuple[int, ...] = (3, 2, 1)
"""Tokens that must have stood before in the same order; guesses behind longer contexts are right more often."""
WORTH = 0.2
"""Guesses of a pass that have to be right in the mean: a pass with guesses takes 0.06 to 0.2 of one longer."""
FIRST_MEAN = 0.5
"""That mean before there is any: five wrong guesses are enough to stop, for most texts are short."""
MEMORY = 0.2
"""Weight of the newest pass in that mean."""
TRIAL = 16
"""Where guesses are not worth it, every so many chances are taken all the same, since a text may begin to repeat."""


class Lookup:
    """What one text has said, by the tokens before it, and how often guessing was right."""

    def __init__(self) -> None:
        self.n_guessed = self.n_accepted = 0
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """Latest place behind each run of tokens."""
        self._mean_accepted: dict[int, float] = dict.fromkeys(CONTEXTS, FIRST_MEAN)
        self._n_chances: dict[int, int] = dict.fromkeys(CONTEXTS, 0)
        self._size = 0
        self._n_next = GUESSED_TOKENS

    def guess(self, prompt: Sequence[int], ids: Sequence[int], n: int) -> list[int]:
        """At most n tokens that may come after prompt + ids, [] if nothing speaks for any."""
        text, begin = self._text, len(self._text)
        text += prompt[begin:]
        text += ids[len(text) - len(prompt) :]
        # Not the end itself, behind which nothing stands yet.
        for place in range(begin, len(text)):
            for size in CONTEXTS:
                if place >= size:
                    self._after[tuple(text[place - size : place])] = place
        for size in CONTEXTS:
            place = self._after.get(tuple(text[-size:]))
            if place is None:
                continue
            self._size = size
            if self._mean_accepted[size] < WORTH:
                self._n_chances[size] += 1
                if self._n_chances[size] % TRIAL:
                    break
            period = len(text) - place  # a guess that would reach beyond the text goes round
            return [text[place + i % period] for i in range(min(n, self._n_next))]
        return []

    def learn(self, n_guessed: int, n_accepted: int) -> None:
        """Take in how many of the last guesses were right."""
        self.n_guessed, self.n_accepted = self.n_guessed + n_guessed, self.n_accepted + n_accepted
        self._n_next = min(2 * self._n_next + 1, MOST_GUESSED) if n_accepted == n_guessed else GUESSED_TOKENS
        mean = self._mean_accepted[self._size]
        self._mean_accepted[self._size] += MEMORY * (min(n_accepted, GUESSED_TOKENS) - mean)
