"""Prompts whose replies can be checked: from the synthetic world, or from JSONL files.

A record of a file is one of
    {"question": "…", "answer": "… #### 72"}                      as GSM8K has it; the number behind #### is right
    {"messages": […], "reference": {…}, "scorer": "…", "tools": […], "oracle": "…"}   the last two may be missing
`Prompts.get` is a function of (split, index) alone: which prompts a step reads needs no state.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from onesitting.data.files import read_records
from onesitting.data.problems import Problems
from onesitting.data.sources import WORLD, expand
from onesitting.data.world import World
from onesitting.data.world.prompts import AGENT
from onesitting.data.world.prompts import prompt as world_prompt
from onesitting.data.world.splits import Split, split_of
from onesitting.data.world.suite import SCORERS, TASKS
from onesitting.data.world.tools import world_tools
from onesitting.errors import UserError
from onesitting.tools.protocol import JSON, Tool


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question and what a right answer is."""

    messages: list[JSON]
    tools: list[JSON] | None = None
    """Schemas offered to the model."""
    scorer: str
    """Name in the world's SCORERS."""
    reference: JSON = field(default_factory=dict[str, Any])
    oracle: JSON | None = None
    """A right reply that somebody wrote; None where none is known, or it takes several turns."""


@dataclass(frozen=True)
class WorldPrompts:
    """The endless prompts of the world, all tasks or one."""

    world: World
    task: str = ""

    def get(self, split: Split, index: int) -> Prompt:
        """Prompt number `index` of a split."""
        found = world_prompt(self.world, split, index, self.task)
        values = {name: found[name] for name in ("messages", "tools", "scorer", "reference")}
        return Prompt(**values, oracle=found["oracle"] if isinstance(found["oracle"], dict) else None)


@dataclass(frozen=True)
class FilePrompts:
    """The prompts of a file, in another order in each pass."""

    by_split: dict[str, list[Prompt]]
    seed: int

    def get(self, split: Split, index: int) -> Prompt:
        """Prompt number `index` of the endless order of a split; the validation order is that of the file."""
        prompts = self.by_split[split]
        epoch, place = divmod(index, len(prompts))
        order = list(range(len(prompts)))
        if split == "train":
            Random(f"{self.seed}/{epoch}").shuffle(order)
        return prompts[order[place]]


@dataclass(frozen=True)
class Prompts:
    """Several sources, one after the other in turn."""

    sources: Sequence[WorldPrompts | FilePrompts]
    tools: tuple[Tool, ...]
    """The tools that the prompts may offer, as the tool process runs them."""

    def get(self, split: Split, index: int) -> Prompt:
        """Prompt number `index` of a split."""
        number, source = divmod(index, len(self.sources))
        return self.sources[source].get(split, number)


def read_prompts(specs: Sequence[str], seed: int, max_bad_fraction: float = 0.01) -> Prompts:
    """Prompts of `world`, `world:TASK` (a task of the suite, or agent), files and folders.

    Raises UserError for a task or file that is not there, and for files with too many bad records.
    """
    sources: list[WorldPrompts | FilePrompts] = []
    for spec in specs:
        name, _, task = spec.partition(":")
        if name == WORLD:
            if task not in ("", AGENT, *TASKS):
                raise UserError(
                    f"rl.prompts = {spec!r}: the world has no task '{task}'; use {', '.join([*TASKS, AGENT])}"
                )
            sources.append(WorldPrompts(World(seed), task))
        else:
            sources.append(_file_prompts(spec, seed, max_bad_fraction))
    if not sources:
        raise UserError("rl.prompts is empty: give world, world:arithmetic, or JSONL files")
    return Prompts(sources, world_tools(seed))


def _file_prompts(spec: str, seed: int, max_bad_fraction: float) -> FilePrompts:
    problems = Problems(max_bad_fraction)
    by_split: dict[str, list[Prompt]] = {"train": [], "val": []}
    for path in expand(spec):
        for line, record in read_records(path, problems):
            try:
                prompt = prompt_of(record)
            except ValueError as error:
                problems.report_bad(f"{path}:{line}", str(error))
                continue
            key = json.dumps(prompt.messages, sort_keys=True)
            by_split["train" if split_of(key) == "train" else "val"].append(prompt)
    problems.raise_if_too_many()
    if not by_split["train"]:
        raise UserError(f"rl.prompts = {spec!r}: {problems.nothing('prompt')}")
    by_split["val"] = by_split["val"] or by_split["train"][:1]
    return FilePrompts(by_split, seed)


def prompt_of(record: Any) -> Prompt:
    """The prompt of a record. Raises ValueError saying what is wrong with it."""
    if not isinstance(record, dict):
        raise ValueError("not an object")
    values: JSON = {str(name): value for name, value in record.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(values.get("question"), str):
        answer = str(values.get("answer", "")).rpartition("####")[2].strip().replace(",", "")
        if not answer:
            raise ValueError("a question without an answer")
        message = {"role": "user", "content": values["question"]}
        oracle = {"role": "assistant", "content": str(values["answer"])}
        return Prompt(messages=[message], scorer="number", reference={"answer": answer}, oracle=oracle)
    messages, reference = values.get("messages"), values.get("reference")
    if not isinstance(messages, list) or not messages:
        raise ValueError("neither `question` and `answer` nor `messages`")
    scorer = values.get("scorer") or "answer"
    if scorer not in SCORERS:
        raise ValueError(f"there is no scorer '{scorer}'; use {', '.join(SCORERS)}")
    if isinstance(reference, str):
        name = "accepted" if scorer == "answer" else "answer"
        reference = {name: [reference] if scorer == "answer" else reference}
    if not isinstance(reference, dict):
        raise ValueError("`reference` is neither text nor an object")
    oracle = values.get("oracle")
    if isinstance(oracle, str):
        oracle = {"role": "assistant", "content": oracle}
    if oracle is not None and not isinstance(oracle, dict):
        raise ValueError("`oracle` is neither text nor a message")
    return Prompt(
        messages=messages, tools=values.get("tools"), scorer=scorer, reference=reference, oracle=oracle
    )
