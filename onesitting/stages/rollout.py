"""Rollouts: attempts of the current model at prompts, in one turn or in several with tools.

An attempt keeps the very tokens that the model wrote, never a second tokenization of their text, so that what is
trained is what was sampled. Results of tools and what opens a message are in it too, untrained.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from onesitting.data.prompts import Prompt
from onesitting.inference.batch import PrefixCache
from onesitting.inference.generate import Completion, generate
from onesitting.inference.sampling import Sampling
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.tokenizer.chat import parse_assistant, render
from onesitting.tools.process import ToolProcess
from onesitting.tools.protocol import JSON


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """How attempts are made."""

    temperature: float = 1.0
    """Of sampling, and of the log-probabilities that are trained."""
    max_tokens: int = 128
    """Longest turn, in tokens."""
    max_turns: int = 1
    """Turns of the model; with more than 1 its tool calls are answered."""
    thinking: bool | None = None
    """Open a thought, leave it out, or let the model choose."""


@dataclass
class Trajectory:
    """One attempt: tokens from the prompt's first to the model's last."""

    ids: list[int]
    n_prompt: int
    """Tokens of the prompt."""
    sampled: list[bool]
    """For each token, whether the model wrote it: what is trained."""
    logprobs: list[float] = field(default_factory=list[float])
    """Log-probability in nats of each sampled token, by the engine that wrote it."""
    messages: list[JSON] = field(default_factory=list[JSON])
    """What followed the prompt: the model's messages and the tools' results."""
    stopped: bool = False
    """The last turn ended by itself."""
    goes_on: bool = True
    """Another turn may follow."""

    @property
    def n_sampled(self) -> int:
        """Tokens that the model wrote."""
        return sum(self.sampled)

    @property
    def turn_tokens(self) -> list[int]:
        """Tokens of each turn of the model: what a tool said stands between two turns."""
        return [len(list(turn)) for is_models, turn in itertools.groupby(self.sampled) if is_models]

    def add(self, ids: Sequence[int], sampled: bool) -> None:
        """Append tokens."""
        self.ids += ids
        self.sampled += [sampled] * len(ids)


def rollout(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    settings: RolloutSettings,
    *,
    indices: Sequence[int],
    seed: str,
    tools: ToolProcess | None = None,
) -> list[Trajectory]:
    """One attempt at each prompt; repeat a prompt for a group.

    indices: number of each attempt among those of all processes; its randomness is a function of (seed, index).
    """
    found = [_begin(tokenizer, prompt, settings) for prompt in prompts]
    prefixes = PrefixCache()  # a later turn has read most of its prompt in the turn before
    for turn in range(settings.max_turns):
        active = [i for i, attempt in enumerate(found) if attempt.goes_on]
        if not active:
            break
        sampling = Sampling(
            temperature=settings.temperature, max_tokens=settings.max_tokens, seed=seed_of(seed, turn)
        )
        starts = [found[i].ids for i in active]
        numbers = [indices[i] for i in active]
        done = generate(model, tokenizer, starts, sampling, logprobs=True, indices=numbers, prefixes=prefixes)
        for i, completion in zip(active, done, strict=True):
            _take(found[i], completion, settings)
            calls = found[i].messages[-1]["tool_calls"]
            ended_turn = completion.stop_id == tokenizer.im_end_id
            found[i].goes_on = bool(calls) and ended_turn and turn + 1 < settings.max_turns
            if found[i].goes_on and tools is not None:
                _answer_calls(found[i], tokenizer, settings, tools, model.cfg.context_length)
    return found


def seed_of(*parts: object) -> int:
    """A seed that is a function of `parts` alone."""
    text = "/".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=6).digest(), "little")


def _begin(tokenizer: Tokenizer, prompt: Prompt, settings: RolloutSettings) -> Trajectory:
    ids, _ = render(
        tokenizer, prompt.messages, prompt.tools, add_generation_prompt=True, thinking=settings.thinking
    )
    return Trajectory(ids=ids, n_prompt=len(ids), sampled=[False] * len(ids))


def _take(attempt: Trajectory, completion: Completion, settings: RolloutSettings) -> None:
    """Append a turn of the model. A turn that was cut has no stop token, so none is taught there."""
    stop = [] if completion.stop_id is None else [completion.stop_id]
    attempt.add([*completion.ids, *stop], sampled=True)
    attempt.logprobs += completion.logprobs or []
    opened = "<think>" if settings.thinking else ""
    attempt.messages.append(parse_assistant(opened + completion.text))
    attempt.stopped = completion.finish_reason == "stop"


def _answer_calls(
    attempt: Trajectory, tokenizer: Tokenizer, settings: RolloutSettings, tools: ToolProcess, context: int
) -> None:
    """Append the results of the last message's calls and what opens the next turn."""
    results = [{"role": "tool", "content": tools.call(call)} for call in attempt.messages[-1]["tool_calls"]]
    ids, _ = render(tokenizer, results, add_generation_prompt=True, thinking=settings.thinking)
    ids = [*tokenizer.encode("\n"), *ids]  # the line's end behind the model's <|im_end|>
    if len(attempt.ids) + len(ids) + 1 > context:
        attempt.goes_on = attempt.stopped = False
        return
    attempt.messages += results
    attempt.add(ids, sampled=False)
