"""One text while it is written: its prompt, its settings, its randomness, what was written so far."""

import random
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from torch import Tensor

from onesitting.inference.sampling import Sampling
from onesitting.inference.text_stream import TextStream

if TYPE_CHECKING:
    from onesitting.tokenizer.bpe import Tokenizer

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]


@dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt."""

    ids: list[int]
    """Its tokens, without the one that ended it."""
    text: str
    """Their text, special tokens spelled out, up to a stop string."""
    finish_reason: FinishReason
    """stop: a stop token or string; length: max_tokens, or the end of the model's context; deadline: there was no
    time for it; cancelled and error: given up by the engine."""
    stop_id: int | None = None
    """The stop token that ended it, if one did."""
    logprobs: list[float] | None = None
    """Log-probability in nats of each sampled token, the stop token included, at the sampling temperature
    (1 if that is 0) and before candidates were cut; None unless asked for."""


class TokenLogprob(NamedTuple):
    """Log-probabilities, in nats, at one position."""

    token: int
    logprob: float
    top: list[tuple[int, float]]
    """The most likely tokens, most likely first."""


class Constraint(Protocol):
    """A grammar that a text has to follow."""

    def allowed(self) -> Tensor:
        """(V,) bool, the tokens that may come next; a stop token where the text may end."""
        ...

    def accept(self, token: int) -> bool:
        """Take the next token; True when the text is complete."""
        ...


@dataclass(frozen=True, kw_only=True)
class Thought:
    """A limit to what a model thinks before it answers."""

    open_id: int
    close_ids: tuple[int, ...]
    """What is written in place of the next token when the budget is spent: </think> and a line's end."""
    budget_tokens: int
    is_open: bool
    """The prompt ends inside a thought."""


def thought_of(tokenizer: "Tokenizer", budget_tokens: int | None, thinking: bool | None) -> Thought | None:
    """The limit of a reply's thought, which the prompt has opened if thinking is True; None without a budget."""
    if budget_tokens is None or thinking is False:
        return None
    return Thought(
        open_id=tokenizer.special_id("<think>"),
        close_ids=(tokenizer.special_id("</think>"), *tokenizer.encode("\n")),
        budget_tokens=budget_tokens,
        is_open=thinking is True,
    )


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """How one text is to be written."""

    sampling: Sampling
    stop_ids: AbstractSet[int]
    index: int = 0
    """Number of the text among those of its request; the randomness is a function of (seed, index)."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that it was written."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that were written at all."""
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    """Added to logits."""
    n_top: int | None = None
    """Record the log-probabilities of the model's own distribution, with those of so many most likely tokens."""
    tempered_logprobs: bool = False
    """Record each token's log-probability at the sampling temperature, as Completion has it."""
    constraint: Constraint | None = None
    """Holds from the first token on, or from the end of the thought in which the prompt ends."""
    thought: Thought | None = None
    forced_end: tuple[int, ...] = ()
    """Tokens written when the constraint is complete, after which the text ends."""


class Row:
    """One prompt, what was written after it, and its own source of randomness."""

    def __init__(
        self,
        prompt: Sequence[int],
        settings: RowSettings,
        tokenizer: "Tokenizer",
        spelled: Sequence[bytes],
        room: int,
    ) -> None:
        """Room: tokens that prompt and text may have together. spelled: see `spelled_bytes`."""
        self.settings, self.sampling = settings, settings.sampling
        self.prompt = list(prompt) or [tokenizer.eos_id]  # documents begin after the end of the one before
        self.ids: list[int] = []
        self.pieces: list[str] = []
        self.marks: list[tuple[int, int, int]] = []
        """(begin, end, id) of each special token in the text, in characters."""
        self.finish_reason: FinishReason | None = None
        self.stop_id: int | None = None
        self.logprobs: list[float] = []
        self.top: list[TokenLogprob] = []
        self.counts: dict[int, int] = {}
        """How often each token was written."""
        self.forced: list[int] = []
        """Tokens that are written next, whatever the model would."""
        self.limit = min(self.sampling.max_tokens, room - len(self.prompt))
        if self.limit <= 0:
            self.finish_reason = "length"
        seed = self.sampling.seed
        self.random = random.Random() if seed is None else random.Random(f"{seed}/{settings.index}")
        self._special = {token: len(text) for text, token in tokenizer.special_ids.items()}
        self._text = TextStream(spelled, self.sampling.stop)
        self._thinking = settings.thought is not None and settings.thought.is_open
        if settings.thought is not None and self._thinking and settings.thought.budget_tokens <= 0:
            self.forced = list(settings.thought.close_ids)
        self._is_constrained = settings.constraint is not None and not self._thinking
        self._constraint_done = False
        self._n_thought = 0

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it, if one did."""
        return self._text.stop_string

    @property
    def constraint(self) -> Constraint | None:
        """The grammar that the next token has to follow."""
        return self.settings.constraint if self._is_constrained and not self.forced else None

    def add(self, token: int) -> None:
        """Take one more token, sampled or forced."""
        if self.forced:
            self._add_forced(token)
        elif token in self.settings.stop_ids:
            self.finish("stop", token)
        else:
            self._write(token)
            self._after(token)

    def _add_forced(self, token: int) -> None:
        self.forced.pop(0)
        self._write(token)
        self._after_thought(token)
        if self._constraint_done and not self.forced:
            self.finish("stop")

    def _write(self, token: int) -> None:
        self.ids.append(token)
        self.counts[token] = self.counts.get(token, 0) + 1
        self.pieces.append(self._text.add(token))
        if token in self._special:
            end = self._text.n_decoded
            self.marks.append((end - self._special[token], end, token))
        if self._text.stopped:
            self.finish("stop")
        elif len(self.ids) >= self.limit:
            self.finish("length")

    def _after(self, token: int) -> None:
        """What a sampled token changes: the grammar's state, the budget of a thought."""
        constraint = self.settings.constraint
        if self._is_constrained and constraint is not None and constraint.accept(token):
            self._constraint_done = True
            self.forced = list(self.settings.forced_end)
            if not self.forced:
                self.finish("stop")
        self._after_thought(token)

    def _after_thought(self, token: int) -> None:
        thought = self.settings.thought
        if thought is None:
            return
        if token == thought.open_id and not self._thinking:
            self._thinking = True
        elif token == thought.close_ids[0] and self._thinking:
            self._thinking = False
            self._is_constrained = self.settings.constraint is not None
            if self._is_constrained and not self.forced:
                self.forced = list(thought.close_ids[1:])
        elif self._thinking:
            self._n_thought += 1
        if self._thinking and self._n_thought >= thought.budget_tokens and not self.forced:
            self.forced = list(thought.close_ids)

    def finish(self, reason: FinishReason, stop_id: int | None = None) -> None:
        """End the text here; what was held back is released."""
        if self.finish_reason is None:
            self.finish_reason, self.stop_id = reason, stop_id
            self.pieces.append(self._text.end())

    def completion(self) -> Completion:
        """The row as its caller sees it."""
        assert self.finish_reason is not None
        logprobs = self.logprobs if self.settings.tempered_logprobs else None
        return Completion(self.ids, "".join(self.pieces), self.finish_reason, self.stop_id, logprobs)
