"""From prompts to rewarded attempts, for GRPO and PPO alike; attempt_batches.py makes tensors of them.

A batch of attempts is a function of (weights, seed, number of the batch): resuming makes the same one again. It is cut
into minibatches of whole groups, one for each optimizer step.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from onesitting.checkpoint import load_model
from onesitting.config import ModelConfig, RunConfig
from onesitting.data.prompts import Prompt, Prompts, read_prompts
from onesitting.data.world.splits import Split
from onesitting.errors import UserError
from onesitting.model.transformer import Transformer
from onesitting.rewards import Attempt, Batched, parse_terms, weighted_sum
from onesitting.stages.next_token import rank_share
from onesitting.stages.rollout import RolloutSettings, Trajectory, rollout
from onesitting.start import stretched_as
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.tools.from_file import read_tools
from onesitting.tools.process import ToolProcess
from onesitting.tools.sandbox import Limits
from onesitting.train import distributed
from onesitting.train.device import DevicePlan

THINKING = {"auto": None, "on": True, "off": False}


@dataclass
class Rewarded:
    """Attempts of this process, group after group, with their rewards."""

    trajectories: list[Trajectory]
    rewards: list[float]
    components: dict[str, list[float]]
    samples: int
    """Attempts in a group."""

    def statistics(self) -> dict[str, tuple[float, float]]:
        """Name -> (sum, count) for the metrics."""
        n = len(self.trajectories)
        groups = [self.rewards[i : i + self.samples] for i in range(0, n, self.samples)]
        stds = [float(torch.tensor(group).std(correction=0)) for group in groups]
        logprobs = [logprob for attempt in self.trajectories for logprob in attempt.logprobs]
        results = [m for a in self.trajectories for m in a.messages if m["role"] == "tool"]
        found: dict[str, tuple[float, float]] = {
            "reward": (sum(self.rewards), n),
            "reward_std": (sum(stds), len(groups)),
            "informative": (float(sum(std > 0 for std in stds)), len(groups)),
            "attempt_tokens": (float(sum(a.n_sampled for a in self.trajectories)), n),
            "stop_rate": (float(sum(a.stopped for a in self.trajectories)), n),
            "entropy": (-sum(logprobs), len(logprobs)),
            **{f"reward_{name}": (sum(values), n) for name, values in self.components.items()},
        }
        if results:
            found["tool_calls"] = (float(len(results)), n)
        return found


class AttemptMaker:
    """Makes, rewards and validates attempts for one stage."""

    def __init__(
        self,
        cfg: RunConfig,
        name: str,
        tokenizer: Tokenizer,
        plan: DevicePlan,
        ranks: distributed.Ranks,
        rewards: dict[str, Batched] | None = None,
    ) -> None:
        """Rewards: batched rewards under further names, such as a reward model."""
        self.cfg, self.name, self.tokenizer, self.plan, self.ranks = cfg, name, tokenizer, plan, ranks
        rl = cfg.rl
        own = read_tools(Path(rl.tools).expanduser()) if rl.tools else []
        self.prompts: Prompts = read_prompts(rl.prompts, cfg.seed, cfg.corpus.max_bad_fraction, own)
        unknown = self.prompts.unknown_tools() if rl.max_turns > 1 else []
        if unknown:
            raise UserError(
                f"rl.prompts offer the tool '{unknown[0]}', and nobody can run it: write it as a function into a "
                "Python file and name that with --rl.tools, or set rl.max_turns=1 to judge the calls alone"
            )
        for note in self.prompts.notes if ranks.rank == 0 else ():
            print(note)
        self.terms = parse_terms(rl.rewards, rewards)
        self.settings = RolloutSettings(
            temperature=rl.temperature, max_tokens=rl.max_tokens, max_turns=rl.max_turns,
            thinking=THINKING[rl.thinking],
        )  # fmt: skip
        limits = Limits(seconds=rl.tool_s, memory_mb=rl.tool_memory_mb)
        self.tools = ToolProcess(self.prompts.tools, limits) if rl.max_turns > 1 else None

    def make(self, model: Transformer, number: int) -> list[Rewarded]:
        """This process's part of batch `number`: one entry a minibatch, made by the model as it is now."""
        rl = self.cfg.rl
        per_step = rl.prompts_per_batch // rl.minibatches
        first, count = rank_share(per_step, self.ranks.rank, self.ranks.world)
        mine = [
            number * rl.prompts_per_batch + minibatch * per_step + first + i
            for minibatch in range(rl.minibatches)
            for i in range(count)
        ]
        asked = [self.prompts.get("train", index) for index in mine]
        prompts = [prompt for prompt in asked for _ in range(rl.samples)]
        indices = [index * rl.samples + sample for index in mine for sample in range(rl.samples)]
        made = self.attempt(model, prompts, indices, self.settings, f"{self.cfg.seed}/{self.name}")
        size = count * rl.samples
        return [made_part(made, slice(i * size, (i + 1) * size)) for i in range(rl.minibatches)]

    def attempt(
        self,
        model: Transformer,
        prompts: Sequence[Prompt],
        indices: Sequence[int],
        settings: RolloutSettings,
        seed: str,
    ) -> Rewarded:
        """One rewarded attempt at each prompt."""
        with evaluating(model) as whole, self.plan.autocast():
            done = rollout(
                whole, self.tokenizer, prompts, settings, indices=indices, seed=seed, tools=self.tools
            )
        attempts = [self.judged(prompt, attempt) for prompt, attempt in zip(prompts, done, strict=True)]
        rewards, components = weighted_sum(self.terms, attempts)
        return Rewarded(done, rewards, components, self.cfg.rl.samples)

    def judged(self, prompt: Prompt, attempt: Trajectory) -> Attempt:
        """The attempt as rewards see it."""
        return Attempt(
            prompt=prompt.messages,
            messages=attempt.messages,
            tools=prompt.tools,
            reference=prompt.reference,
            scorer=prompt.scorer,
            n_tokens=attempt.n_sampled,
            max_tokens=self.settings.max_tokens * self.settings.max_turns,
            turn_tokens=attempt.turn_tokens,
            max_turn_tokens=self.settings.max_tokens,
            stopped=attempt.stopped,
        )

    def validate(self, model: Transformer) -> dict[str, float]:
        """Mean greedy reward and its parts on held-out prompts, shared out among the processes."""
        n_prompts = self.cfg.rl.eval_prompts
        first, count = rank_share(n_prompts, self.ranks.rank, self.ranks.world)
        done = self.greedy(model, "val", range(first, first + count))
        sums = done.statistics()
        wanted = ["reward", "attempt_tokens", "stop_rate", *(f"reward_{term.name}" for term in self.terms)]
        totals = {name: torch.tensor(sums[name][0]) for name in wanted}
        totals = self.ranks.sum_tensors(totals)
        return {name: float(total) / max(1, n_prompts) for name, total in totals.items()}

    def greedy(self, model: Transformer, split: Split, indices: Sequence[int]) -> Rewarded:
        """The most likely attempt at each of these prompts."""
        prompts = [self.prompts.get(split, index) for index in indices]
        return self.attempt(model, prompts, indices, replace(self.settings, temperature=0.0), "greedy")

    def samples(self, model: Transformer) -> list[dict[str, Any]]:
        """The first held-out prompts with the model's attempts and their rewards."""
        done = self.greedy(model, "val", range(self.cfg.evaluation.samples))
        return [
            {
                "prompt": self.tokenizer.decode(attempt.ids[: attempt.n_prompt]),
                "text": self.tokenizer.decode(attempt.ids[attempt.n_prompt :], skip_special=False),
                "seed": self.cfg.seed,
                "finish_reason": "stop" if attempt.stopped else "length",
                "reward": reward,
            }
            for attempt, reward in zip(done.trajectories, done.rewards, strict=True)
        ]


def joined(parts: Sequence[Rewarded]) -> Rewarded:
    """All attempts of several minibatches."""
    names = parts[0].components
    return Rewarded(
        [attempt for part in parts for attempt in part.trajectories],
        [reward for part in parts for reward in part.rewards],
        {name: [value for part in parts for value in part.components[name]] for name in names},
        parts[0].samples,
    )


def made_part(made: Rewarded, part: slice) -> Rewarded:
    """Some of the attempts."""
    components = {name: values[part] for name, values in made.components.items()}
    return Rewarded(made.trajectories[part], made.rewards[part], components, made.samples)


@contextmanager
def evaluating(model: Transformer) -> Any:
    """The whole model in evaluation mode (no dropout); as it was afterwards."""
    was_training = model.training
    whole = distributed.unsharded(model)
    whole.eval()
    try:
        yield whole
    finally:
        model.train(was_training)


def load_reference(start: Path | None, plan: DevicePlan, shape: ModelConfig) -> Transformer:
    """The frozen model that the stage started with, its context stretched as `shape` asks."""
    assert start is not None, "a stage of reinforcement learning starts from a model"
    reference = load_model(start, plan.torch_device)
    reference.cfg = stretched_as(reference.cfg, shape)
    for parameter in reference.parameters():
        parameter.requires_grad_(False)
    return reference
