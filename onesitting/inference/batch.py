"""Texts that are written together: each step reads prompts and writes one token in each text that is being written.

Rows join when a slot is free and leave when they are finished, at any step (continuous batching, Yu et al. 2022,
"Orca"). Prompts are read in pieces between the steps of the others, at most `prefill_tokens` a step, so that a long
prompt delays nobody (chunked prefill, Agrawal et al. 2023, arXiv:2308.16369). What a row writes depends on the row
alone: see `model/kv_cache.py` for how.

Shapes: B rows of a step, V vocabulary.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from onesitting.inference.lookup import Lookup
from onesitting.inference.row import Row, TokenLogprob
from onesitting.inference.sampling import Sampling, choose
from onesitting.model.kv_cache import CHUNK, KVCache, Next, Piece
from onesitting.model.transformer import Transformer

PREFIX_BYTES = 256 * 2**20
"""Memory for the beginnings of prompts that come more than once, as in the groups of reinforcement learning."""


class PrefixCache:
    """Keys and values of the beginnings of prompts, in pieces of CHUNK tokens; the least recently used go first.

    A piece is found by all tokens up to its end, so that equal keys mean equal contents.
    """

    def __init__(self, max_bytes: int = PREFIX_BYTES) -> None:
        self.max_bytes, self.n_bytes = max_bytes, 0
        self.n_hit_tokens = 0
        self._pieces: OrderedDict[tuple[int, ...], tuple[Tensor, Tensor]] = OrderedDict()

    def load(self, prompt: Sequence[int], slot: int, cache: KVCache) -> int:
        """Put the longest known beginning of a prompt into a slot; its length in tokens comes back.

        The last token is always left to be read: its hidden state gives the first token of the reply.
        """
        start = 0
        while start + CHUNK < len(prompt):
            key = tuple(prompt[: start + CHUNK])
            if key not in self._pieces:
                break
            cache.restore(slot, start, self._pieces[key])
            self._pieces.move_to_end(key)
            start += CHUNK
        self.n_hit_tokens += start
        return start

    def store(self, prompt: Sequence[int], piece: Piece, cache: KVCache) -> None:
        """Keep a piece that was read, if it is whole."""
        key = tuple(prompt[: piece.start + CHUNK])
        if len(piece.tokens) < CHUNK or key in self._pieces:
            return
        keys, values = cache.prefix(piece.slot, piece.start)
        size = keys.nbytes + values.nbytes
        if size > self.max_bytes:
            return
        self._pieces[key] = keys, values
        self.n_bytes += size
        while self.n_bytes > self.max_bytes:
            _, (keys, values) = self._pieces.popitem(last=False)
            self.n_bytes -= keys.nbytes + values.nbytes


class Batch:
    """Rows in slots. `add` and `remove` them between steps; call in inference mode."""

    def __init__(
        self,
        model: Transformer,
        n_slots: int,
        max_tokens: int,
        prefill_tokens: int,
        prefixes: PrefixCache | None = None,
        *,
        guess: bool = True,
    ) -> None:
        """max_tokens: of prompt and text together. prefill_tokens: of prompts that are read in one step.

        guess: read what may come next beside the last token of a text that is written alone (lookup.py).
        """
        self.guess = guess
        self.model, self.prefill_tokens, self.prefixes = model, max(prefill_tokens, CHUNK), prefixes
        self.cache = KVCache(model, n_slots, max_tokens)
        self.rows: dict[Row, int] = {}
        """Each row's slot, in the order of joining."""
        self._free = list(range(n_slots - 1, -1, -1))
        self._n_read: dict[Row, int] = {}
        self._seen: dict[Row, Tensor] = {}
        self.n_written = 0
        """Tokens of all rows, those that ended one included."""
        self._lookups: dict[Row, Lookup] = {}

    @property
    def n_free(self) -> int:
        """Slots without a row."""
        return len(self._free)

    def add(self, row: Row) -> None:
        """Give a row that is not finished a slot; there must be a free one."""
        assert row.finish_reason is None
        # The lowest one: attention reads all slots up to the highest that is in use.
        self._free.sort(reverse=True)
        slot = self._free.pop()
        self.rows[row] = slot
        self._n_read[row] = self.prefixes.load(row.prompt, slot, self.cache) if self.prefixes else 0
        if row.sampling.repetition_penalty != 1.0:
            self._seen[row] = torch.zeros(
                self.model.cfg.vocab_size, dtype=torch.bool, device=self.model.device
            )
            self._seen[row][row.prompt] = True

    def remove(self, row: Row) -> None:
        """Free a row's slot."""
        slot = self.rows.pop(row)
        self._free.append(slot)
        self.cache.free(slot)
        del self._n_read[row]
        self._seen.pop(row, None)
        self._lookups.pop(row, None)

    def step(self) -> list[Row]:
        """Read and write once; the rows that got a token come back, or several. Finished ones have left."""
        reading = self._pieces_to_read()
        pieces = [piece for _, piece in reading]
        writing = [row for row in self.rows if row.ids and self._n_read[row] == len(row.prompt)]
        writing.sort(
            key=self.rows.__getitem__
        )  # slots in a row need no sorting in attention (model/kv_cache.py)
        nexts = [Next(self.rows[row], len(row.prompt) + len(row.ids) - 1, row.ids[-1]) for row in writing]
        guesses = self._guess(writing[0]) if self.guess and writing and len(self.rows) == 1 else []
        nexts += [Next(nexts[0].slot, nexts[0].position + 1 + i, it) for i, it in enumerate(guesses)]
        hidden = self.cache.read(self.model, pieces, nexts)
        wanted: list[int] = []
        rows: list[Row] = []
        for number, (row, piece) in enumerate(reading):
            self._n_read[row] = piece.start + len(piece.tokens)
            if self.prefixes is not None:
                self.prefixes.store(row.prompt, piece, self.cache)
            if self._n_read[row] == len(row.prompt):
                wanted.append(number)
                rows.append(row)
        wanted += range(len(pieces), len(pieces) + len(nexts))
        rows += writing
        if guesses:
            self._write_guessed(rows[0], guesses, logits_of(self.model, hidden, wanted))
        elif rows:
            self._write(rows, logits_of(self.model, hidden, wanted))
        return rows

    def _guess(self, row: Row) -> list[int]:
        """What may come next, for a text that is written alone: its pass has rows to spare."""
        if row not in self._lookups:
            self._lookups[row] = Lookup()
        # The last token that fits follows one that is read, not a guess.
        n = min(self.model.alike_rows, row.limit - len(row.ids)) - 1
        return self._lookups[row].guess(row.prompt, row.ids, n) if n > 0 else []

    def _write_guessed(self, row: Row, guesses: list[int], logits: Tensor) -> None:
        """Give a row its next tokens up to the first that is no guess; logits (1 + guesses, V)."""
        known, n_accepted = self._lookups[row], 0
        for guess, behind in zip([*guesses, None], logits.split(1), strict=True):
            self._write([row], behind)
            if row.finish_reason is not None or row.ids[-1] != guess:
                break
            n_accepted += 1
        known.learn(len(guesses), n_accepted)

    def _pieces_to_read(self) -> list[tuple[Row, Piece]]:
        """The next pieces of prompts, first come first read, within the step's limit."""
        left = self.prefill_tokens
        reading: list[tuple[Row, Piece]] = []
        for row, slot in self.rows.items():
            for start in range(self._n_read[row], len(row.prompt), CHUNK):
                tokens = row.prompt[start : start + CHUNK]
                if len(tokens) > left:
                    return reading
                reading.append((row, Piece(slot, start, tokens)))
                left -= len(tokens)
        return reading

    def _write(self, rows: list[Row], logits: Tensor) -> None:
        """Give each row its next token."""
        chosen = [0] * len(rows)
        adjusted = logits
        changed = [index for index, row in enumerate(rows) if _is_adjusted(row)]
        if changed:
            adjusted = logits.clone()
            for index in changed:
                adjusted[index] = self._adjusted(rows[index], logits[index])
        groups: dict[tuple[float, ...], list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(_candidates(row.sampling), []).append(index)
        for members in groups.values():
            sampling = rows[members[0]].sampling
            uniforms = [0.0 if rows[i].forced else rows[i].random.random() for i in members]
            seen = None
            if sampling.repetition_penalty != 1.0:
                seen = torch.stack([self._seen[rows[i]] for i in members])
            part = adjusted if len(groups) == 1 else adjusted[members]
            for i, token in zip(members, choose(part, sampling, uniforms, seen).tolist(), strict=True):
                chosen[i] = rows[i].forced[0] if rows[i].forced else token
        record_logprobs(rows, logits, chosen)
        for row, token in zip(rows, chosen, strict=True):
            if row in self._seen:
                self._seen[row][token] = True
            row.add(token)
            self.n_written += 1
            if row.finish_reason is not None:
                self.remove(row)

    def _adjusted(self, row: Row, logits: Tensor) -> Tensor:
        """(V,) logits after the row's own penalties, biases and grammar."""
        settings = row.settings
        if row.counts and (settings.frequency_penalty or settings.presence_penalty):
            written = torch.tensor(list(row.counts), device=logits.device)
            counts = torch.tensor(list(row.counts.values()), device=logits.device)
            change = counts * settings.frequency_penalty + settings.presence_penalty
            logits = logits.index_add(0, written, -change.to(logits.dtype))
        if settings.logit_bias:
            biased = torch.tensor(list(settings.logit_bias), device=logits.device)
            values = torch.tensor(list(settings.logit_bias.values()), device=logits.device)
            logits = logits.index_add(0, biased, values.to(logits.dtype))
        if row.constraint is not None:
            logits = logits.masked_fill(~row.constraint.allowed().to(logits.device), -torch.inf)
        return logits


def logits_of(model: Transformer, hidden: Tensor, wanted: Sequence[int]) -> Tensor:
    """(B, V) float32 of the wanted states; the product has as many rows as those in the model have."""
    padded = [*wanted, *[0] * (-len(wanted) % model.row_multiple)]
    return model.logits(hidden[torch.tensor(padded, device=hidden.device)])[: len(wanted)]


def _candidates(sampling: Sampling) -> tuple[float, ...]:
    """The settings that choosing a token looks at: rows with the same ones are chosen for together."""
    return (
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.repetition_penalty,
    )


def _is_adjusted(row: Row) -> bool:
    """Whether `Batch._adjusted` changes anything now."""
    settings = row.settings
    penalty = settings.frequency_penalty or settings.presence_penalty
    return bool((row.counts and penalty) or settings.logit_bias or row.constraint is not None)


def record_logprobs(rows: list[Row], logits: Tensor, chosen: list[int]) -> None:
    """Note the log-probabilities that rows ask for; logits (B, V) are the model's own."""
    tempered = [i for i, row in enumerate(rows) if row.settings.tempered_logprobs]
    if tempered:
        temperatures = [rows[i].sampling.temperature or 1.0 for i in tempered]
        divided = logits[tempered] / torch.tensor(temperatures, device=logits.device)[:, None]
        tokens = torch.tensor([chosen[i] for i in tempered], device=logits.device)
        found = divided.log_softmax(dim=1).gather(1, tokens[:, None])[:, 0].tolist()
        for i, logprob in zip(tempered, found, strict=True):
            rows[i].logprobs.append(logprob)
    for i, row in enumerate(rows):
        if row.settings.n_top is not None:
            logprobs = logits[i].log_softmax(dim=0)
            top = logprobs.topk(row.settings.n_top)
            likeliest = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            row.top.append(TokenLogprob(chosen[i], logprobs[chosen[i]].item(), likeliest))
