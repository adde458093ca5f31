"""Prompts whose replies can be checked: from the synthetic world, or from JSONL files.

A record of a file is one of
    {"question": "…", "answer": "… #### 72"}                      as GSM8K has it; the number behind #### is right
    {"messages": […], "reference": {…}, "scorer": "…", "tools": […], "oracle": "…"}   the last three may be missing
`Prompts.get` is a function of (split, index) alone: which prompts a step reads needs no state.
"""

import functools
import hashlib
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
from onesitting.tools.protocol import JSON, Tool, normalised_schema, schemas


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
        return prompts[_order(len(prompts), self.seed, epoch)[place] if split == "train" else place]


@functools.lru_cache(maxsize=8)
def _order(n: int, seed: int, epoch: int) -> list[int]:
    """In which order a pass reads n prompts."""
    order = list(range(n))
    Random(f"{seed}/{epoch}").shuffle(order)
    return order


@dataclass(frozen=True)
class Prompts:
    """Several sources, one after the other in turn."""

    sources: Sequence[WorldPrompts | FilePrompts]
    tools: tuple[Tool, ...]
    """The tools that the prompts may offer, as the tool process runs them."""
    notes: tuple[str, ...] = ()
    """What a user should know of them."""

    def get(self, split: Split, index: int) -> Prompt:
        """Prompt number `index` of a split."""
        number, source = divmod(index, len(self.sources))
        return self.sources[source].get(split, number)

    def unknown_tools(self) -> list[str]:
        """Names of tools that prompts of files offer and that nobody can run."""
        files = [source for source in self.sources if isinstance(source, FilePrompts)]
        prompts = [prompt for file in files for split in file.by_split.values() for prompt in split]
        offered = {one["function"]["name"] for prompt in prompts for one in prompt.tools or ()}
        return sorted(offered - {tool.name for tool in self.tools})


def read_prompts(
    specs: Sequence[str], seed: int, max_bad_fraction: float = 0.01, tools: Sequence[Tool] = ()
) -> Prompts:
    """Prompts of `world`, `world:TASK` (a task of the suite, or agent), files and folders.

    tools: further ones that can be run; prompts of files without tools of their own offer them.
    Raises UserError for a task or file that is not there, and for files with too many bad records.
    """
    sources: list[WorldPrompts | FilePrompts] = []
    notes: list[str] = []
    for spec in specs:
        task = world_task(spec)
        if task is not None:
            sources.append(WorldPrompts(World(seed), task))
        else:
            found = _file_prompts(spec, seed, max_bad_fraction, schemas(tools))
            sources.append(found)
            if found.by_split["val"] == found.by_split["train"]:
                notes.append(f"rl.prompts = {spec!r} holds one prompt: it is trained on and validated with")
    if not sources:
        raise UserError("rl.prompts is empty: give world, world:arithmetic, or JSONL files")
    return Prompts(sources, (*world_tools(seed), *tools), tuple(notes))


def world_task(spec: str) -> str | None:
    """The task that `world:TASK` names ("" is all of them), None for a file. Raises UserError for an unknown one."""
    name, _, task = spec.partition(":")
    if name != WORLD:
        return None
    if task not in ("", AGENT, *TASKS):
        raise UserError(
            f"rl.prompts = {spec!r}: the world has no task '{task}'; use {', '.join([*TASKS, AGENT])}"
        )
    return task


def _file_prompts(spec: str, seed: int, max_bad_fraction: float, tools: list[JSON]) -> FilePrompts:
    problems = Problems(max_bad_fraction)
    prompts: list[tuple[str, Prompt]] = []
    for path in expand(spec):
        for line, record in read_records(path, problems):
            try:
                prompt = prompt_of(record, tools)
            except ValueError as error:
                problems.report_bad(f"{path}:{line}", str(error))
                continue
            prompts.append((json.dumps(prompt.messages, sort_keys=True), prompt))
    problems.raise_if_too_many()
    if not prompts:
        raise UserError(f"rl.prompts = {spec!r}: {problems.nothing('prompt')}")
    held_out = _held_out({key for key, _ in prompts})
    train = [prompt for key, prompt in prompts if key not in held_out]
    val = [prompt for key, prompt in prompts if key in held_out]
    return FilePrompts({"train": train or val, "val": val or train}, seed)


def _held_out(keys: set[str]) -> set[str]:
    """Which of the prompts validate: by their content, and of several at least one and not all."""
    held_out = {key for key in keys if split_of(key) != "train"}
    if len(keys) > 1 and len(held_out) in (0, len(keys)):
        return {min(keys, key=lambda key: hashlib.sha256(key.encode()).digest())}
    return held_out


def prompt_of(record: Any, tools: Sequence[JSON] = ()) -> Prompt:
    """The prompt of a record, which offers `tools` if it has none. Raises ValueError saying what is wrong with it."""
    if not isinstance(record, dict):
        raise ValueError("not an object")
    values: JSON = {str(name): value for name, value in record.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    offered = [normalised_schema(one) for one in values.get("tools") or ()] or list(tools) or None
    if isinstance(values.get("question"), str):
        answer = _number(str(values.get("answer", "")).rpartition("####")[2])
        if not answer:
            raise ValueError("a question without an answer")
        message = {"role": "user", "content": values["question"]}
        oracle = {"role": "assistant", "content": str(values["answer"])}
        return Prompt(
            messages=[message], tools=offered, scorer="number", reference={"answer": answer}, oracle=oracle
        )
    messages, reference = values.get("messages"), values.get("reference")
    if not isinstance(messages, list) or not messages:
        raise ValueError("neither `question` and `answer` nor `messages`")
    scorer = values.get("scorer") or "answer"
    if scorer not in SCORERS:
        raise ValueError(f"there is no scorer '{scorer}'; use {', '.join(SCORERS)}")
    reference = _reference(reference, scorer, offered)
    if values.get("scorer"):
        _check_reference(reference, scorer)
    oracle = values.get("oracle")
    if isinstance(oracle, str):
        oracle = {"role": "assistant", "content": oracle}
    if oracle is not None and not isinstance(oracle, dict):
        raise ValueError("`oracle` is neither text nor a message")
    return Prompt(messages=messages, tools=offered, scorer=scorer, reference=reference, oracle=oracle)


def _number(text: str) -> str:
    return text.strip().replace(",", "")


def _reference(given: Any, scorer: str, tools: list[JSON] | None) -> JSON:
    """The reference as the scorer reads it; text or a number alone is the answer."""
    if isinstance(given, str | int | float):
        given = {"answer": given}
    if not isinstance(given, dict):
        raise ValueError("`reference` is neither text, a number nor an object")
    reference: JSON = {str(name): value for name, value in given.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    answer = reference.get("answer")
    if isinstance(answer, int | float):
        reference["answer"] = f"{answer:.15g}"
    if scorer == "number" and isinstance(answer, str):
        reference["answer"] = _number(answer)
    if scorer == "answer" and "answer" in reference:
        reference.setdefault("accepted", [reference["answer"]])
    if scorer == "tool":
        reference["tools"] = [normalised_schema(one) for one in reference.get("tools") or tools or ()]
    return reference


def _check_reference(reference: JSON, scorer: str) -> None:
    """Raises ValueError for a reference that lacks what its scorer reads."""
    needed = {"answer": ["accepted"], "number": ["answer"], "last_word": ["answer"], "tool": ["name"]}
    names = needed.get(scorer, [])
    if scorer == "tool":
        names = [*names, "arguments" if reference.get("name") is not None else "accepted"]
    missing = [name for name in names if name not in reference]
    if missing:
        raise ValueError(f"`reference` has no `{missing[0]}`, which the scorer '{scorer}' reads")
