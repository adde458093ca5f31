"""A race as a TOML file: the corpus, the time, and the runners.

    seconds = 900                     # each runner's time
    seeds = [0, 1, 2]
    targets = [2.4, "nanogpt"]        # bits per byte, or a runner's final value; by default every outside runner's

    [corpus]
    data = ["$PROSE/train.jsonl"]     # as the setting `data`
    val_data = ["$PROSE/dev.jsonl"]

    [[runner]]                        # this trainer: a recipe and settings
    name = "ours 60s"
    recipe = "cpu-ours.toml"
    seconds = 60

    [[runner]]                        # another one: a command
    name = "nanogpt"
    cwd = "$NANOGPT"
    command = ["{python}", "{here}/nanogpt.py", "--train", "{train_tokens}", "--seconds", "{seconds}"]
    pattern = 'val (?P<val_nats_per_token>\\S+) after (?P<tokens>\\d+) tokens'

`$NAME` is an environment variable; `{name}` one of TEMPLATE. What a runner reports is in RECORD.
"""

import os
import re
import tomllib
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from onesitting.data.sources import HUB, WORLD
from onesitting.errors import UserError

TEMPLATE = {
    "python": "the Python that runs this program",
    "here": "the folder of the specification",
    "train_tokens": "file of the training tokens: numbers of `{token_bytes}` bytes each, little-endian",
    "val_tokens": "file of the validation tokens",
    "n_val_tokens": "how many of them, from the beginning, are to be predicted",
    "tokens_json": "description of both files: dtype, vocabulary, eos_id, counts",
    "token_bytes": "bytes of a token number: 2 or 4",
    "tokenizer": "folder of the tokenizer",
    "vocab_size": "entries of the vocabulary",
    "seconds": "seconds that the runner has",
    "seed": "seed of its random choices",
    "out": "an empty folder of its own",
    "results": "file in which it may write its records, as JSON lines",
}
"""Names in braces that a command may use."""

RECORD = {
    "val_nats_per_token": "mean cross-entropy of the validation tokens; makes the record a point of the curve",
    "tokens": "tokens trained on so far",
    "compile_s": "seconds of compilation so far; taken out of the time and shown apart",
    "validation_s": "seconds of measuring validation loss so far; shown, and part of the time",
    "n_parameters": "parameters of the model",
    "device_memory_bytes": "highest memory of an accelerator so far",
}
"""What a runner reports, in lines that its pattern matches (named groups) or in JSON lines; all but the first may be
missing. Values stay in force until a later record changes them."""


@dataclass(frozen=True, kw_only=True)
class RaceCorpus:
    """The text of a race, prepared once for all runners."""

    data: tuple[str, ...]
    val_data: tuple[str, ...] = ()
    vocab_size: int = 4096
    tokenizer_mb: float = 16.0
    val_tokens: int = 65_536


@dataclass(frozen=True, kw_only=True)
class Runner:
    """One competitor: this trainer (recipe), or an outside one (command)."""

    name: str
    recipe: str = ""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    command: tuple[str, ...] = ()
    cwd: str = "."
    pattern: str = ""
    environment: dict[str, str] = field(default_factory=dict[str, str])
    seconds: float = 0.0
    """Its own time; 0: the race's."""
    grace_s: float = 120.0
    """Seconds beyond its time for starting, compiling and a last validation, before it is killed."""

    @property
    def is_ours(self) -> bool:
        """Whether it is this trainer."""
        return bool(self.recipe)


@dataclass(frozen=True, kw_only=True)
class Race:
    """A whole race."""

    name: str
    here: Path
    seconds: float
    seeds: tuple[int, ...]
    targets: tuple[float | str, ...]
    corpus: RaceCorpus
    runners: tuple[Runner, ...]


def load_race(path: Path, only: tuple[str, ...] = ()) -> Race:
    """The race of a file; only: names of the runners that take part, () is all.

    Raises UserError for what is missing, unknown or of the wrong kind, and for environment variables that are not set.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the TOML file of a race") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    entries = values.get("runner", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: write each runner under [[runner]], with two brackets")
    names = [entry.get("name", "") for entry in entries]
    for name in only:
        if name not in names:
            raise UserError(f"{path}: no runner is named '{name}'; there are {', '.join(names)}")
    chosen = [entry for entry in values.pop("runner", []) if not only or entry.get("name") in only]
    values = _expand(values, f"{path}")
    runners = tuple(
        _build(Runner, _expand(entry, f"{path}, runner {entry.get('name')}"), path) for entry in chosen
    )
    known = {"seconds", "seeds", "targets", "corpus"}
    if unknown := set(values) - known:
        raise UserError(f"{path}: unknown entry '{sorted(unknown)[0]}'; there are {', '.join(sorted(known))}")
    seeds, targets = values.get("seeds", [0]), values.get("targets", [])
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
        raise UserError(f"{path}: seeds = {seeds!r}: a list of whole numbers is expected, as [0, 1, 2]")
    if not (isinstance(targets, list) and all(type(t) in (int, float, str) for t in targets)):
        raise UserError(f"{path}: targets = {targets!r}: a list of numbers and names of runners is expected")
    if not isinstance(values.get("corpus", {}), dict):
        raise UserError(f"{path}: write the corpus under [corpus]")
    race = Race(
        name=path.stem,
        here=path.resolve().parent,
        seconds=_number(values.get("seconds"), f"{path}: seconds"),
        seeds=tuple(seeds),
        # A target that is the final value of a runner left out by `only` is left out with it.
        targets=tuple(t for t in targets if t not in names or not only or t in only),
        corpus=_absolute(_build(RaceCorpus, values.get("corpus", {}), path)),
        runners=runners,
    )
    _check(race, path)
    return race


def _check(race: Race, path: Path) -> None:
    names = [runner.name for runner in race.runners]
    if not names:
        raise UserError(f"{path}: no runner; add [[runner]] with a name and a recipe or a command")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: two runners are named '{twice[0]}'")
    for runner in race.runners:
        where = f"{path}, runner {runner.name}"
        if not re.fullmatch(r"[\w.+ -]+", runner.name):
            raise UserError(f"{where}: a name is made of letters, digits, spaces and . _ + -")
        if bool(runner.recipe) == bool(runner.command):
            raise UserError(f"{where}: give either a recipe (this trainer) or a command (another one)")
        try:
            pattern = re.compile(runner.pattern)
        except re.error as error:
            raise UserError(f"{where}: pattern is no regular expression: {error}") from None
        if unknown := set(pattern.groupindex) - set(RECORD):
            raise UserError(
                f"{where}: pattern has the group '{sorted(unknown)[0]}'; known are {', '.join(RECORD)}"
            )
        for word in (*runner.command, runner.cwd):
            for name in re.findall(r"{(\w+)}", word):
                if name not in TEMPLATE:
                    raise UserError(
                        f"{where}: unknown '{{{name}}}' in '{word}'; there are {', '.join(TEMPLATE)}"
                    )
    if WORLD in (*race.corpus.data, *race.corpus.val_data):
        raise UserError(f"{path}: the world's text changes with the seed; give files in corpus.data")
    for target in race.targets:
        if isinstance(target, str) and target not in names:
            raise UserError(f"{path}: target '{target}' is no runner; there are {', '.join(names)}")


def _absolute(corpus: RaceCorpus) -> RaceCorpus:
    """The same with files of the present folder by their whole path: runners start in folders of their own."""
    data, val_data = (
        tuple(
            spec if spec == WORLD or spec.startswith(HUB) else str(Path(spec).expanduser().absolute())
            for spec in specs
        )
        for specs in (corpus.data, corpus.val_data)
    )
    return replace(corpus, data=data, val_data=val_data)


def _build(kind: type[Any], values: dict[str, Any], path: Path) -> Any:
    """A dataclass from a TOML table; lists become tuples."""
    hints, where = get_type_hints(kind), f"{path}: {kind.__name__.lower()} {values.get('name', '')}".rstrip()
    for field_ in fields(kind):
        if field_.name not in values and field_.default is MISSING and field_.default_factory is MISSING:
            raise UserError(f"{where}: '{field_.name}' is missing")
    converted: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{where}: unknown entry '{name}'; there are {', '.join(hints)}")
        if hints[name] in (int, float):
            value = hints[name](_number(value, f"{where}: {name}"))
        elif hints[name] is str and not isinstance(value, str):
            raise UserError(f"{where}: {name} = {value!r}: text in quotes is expected")
        elif str(hints[name]).startswith("tuple"):
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                raise UserError(f"{where}: {name} = {value!r}: a list of texts in brackets is expected")
            value = tuple(value)
        elif str(hints[name]).startswith("dict"):
            if not isinstance(value, dict):
                raise UserError(f'{where}: {name} = {value!r}: a table is expected, as {{ NAME = "1" }}')
            if name == "environment":
                value = {key: str(one) for key, one in value.items()}
        converted[name] = value
    return kind(**converted)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(f"{where} = {value!r}: a number above 0 is expected")
    return value


def _expand(value: Any, where: str) -> Any:
    """The same with environment variables in place of `$NAME`, in all texts but regular expressions."""
    if isinstance(value, dict):
        return {
            key: inner if key == "pattern" else _expand(inner, f"{where}: {key}")
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_expand(inner, where) for inner in value]
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    if missing := re.search(r"\$\{?(\w+)", expanded):
        raise UserError(
            f"{where}: the environment variable {missing[1]} is not set; set it, or choose runners with --only"
        )
    return expanded
