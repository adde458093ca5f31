"""`onesitting bench race`: runners one after the other on the same tokens; time to a quality, by this process's clock.

The folder of a race:

    corpus/tokenizer/, corpus/text/    made once; every runner reads the same token files
    runs/NAME-s0/                      what a runner wrote; output.log is its output
    results.jsonl                      one line for each runner and seed that is done; the same command does the rest
    results.json, curves.svg, table.md the outcome so far
"""

import hashlib
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from onesitting.bench.processes import run_watched
from onesitting.bench.race_result import Point, Result, bits_per_byte, result_from_json
from onesitting.bench.race_spec import RECORD, Race, Runner
from onesitting.bench.race_text import write_outcome
from onesitting.config import CorpusConfig
from onesitting.data.prepare import prepare_documents
from onesitting.data.sources import sample_texts
from onesitting.data.tokens import INFO_FILE, TokenFolder
from onesitting.errors import UserError
from onesitting.recipe import flatten
from onesitting.runlog import append_jsonl, read_jsonl, write_atomic
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer


@dataclass(frozen=True, kw_only=True)
class Course:
    """The prepared corpus, and the part of it that is predicted."""

    tokenizer: Path
    tokens: Path
    """Folder with train.bin, val.bin and tokens.json."""
    vocab_size: int
    token_bytes: int
    n_train_tokens: int
    n_val_tokens: int
    """Targets: the first tokens of the validation file."""
    n_val_bytes: int
    """UTF-8 bytes that they stand for."""


def run_race(race: Race, out: Path) -> list[Result]:
    """Run what is not done yet, one process after the other, and write the outcome after each."""
    out.mkdir(parents=True, exist_ok=True)
    course = prepare_course(race, out)
    print(
        f"{race.name}: {course.n_train_tokens:,} training tokens, {course.vocab_size} entries; measured on "
        f"{course.n_val_tokens:,} tokens of {course.n_val_bytes / course.n_val_tokens:.3f} bytes"
    )
    log = out / "results.jsonl"
    settings = {runner.name: settings_hash(race, runner, course) for runner in race.runners}
    found = [result_from_json(record) for record in read_jsonl(log)]
    results = [
        result
        for result in found
        if settings.get(result.runner) == result.settings and result.seed in race.seeds and result.is_done
    ]
    if n_others := sum(settings.get(r.runner, r.settings) != r.settings for r in found):
        print(f"{log}: {n_others} results of other settings are not used")
    done = {(result.runner, result.seed) for result in results}
    # All runners with a seed, then the next: a slow drift of the machine meets them all.
    for seed in race.seeds:
        for runner in race.runners:
            if (runner.name, seed) in done:
                continue
            result = replace(run_one(race, runner, seed, course, out), settings=settings[runner.name])
            append_jsonl(log, asdict(result))
            results.append(result)
            print(_line(result, out), flush=True)
            write_outcome(race, asdict(course), results, out)
    if results:
        print(write_outcome(race, asdict(course), results, out))
    return results


def settings_hash(race: Race, runner: Runner, course: Course) -> str:
    """Names all that a runner's result depends on, but for its seed and the machine."""
    recipe = race.here / runner.recipe
    parts = {
        "runner": asdict(replace(runner, seconds=runner.seconds or race.seconds)),
        "recipe": recipe.read_text() if recipe.is_file() else "",
        "tokenizer": Tokenizer.load(course.tokenizer).hash,
        "tokens": course.tokens.name,  # a hash of their content
        "n_val_tokens": course.n_val_tokens,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _line(result: Result, out: Path) -> str:
    where = _folder(out, result.runner, result.seed) / "output.log"
    if result.final is None:
        return f"{result.runner}, seed {result.seed}: reported nothing (exit code {result.exit_code}); see {where}"
    how = "" if result.exit_code == 0 else f", exit code {result.exit_code}, see {where}"
    return (
        f"{result.runner}, seed {result.seed}: {result.final.bits_per_byte:.4f} bits per byte after "
        f"{result.final.seconds:.1f} s and {result.final.tokens:,} tokens{how}"
    )


def _folder(out: Path, runner: str, seed: int) -> Path:
    return out / "runs" / f"{runner.replace(' ', '-')}-s{seed}"


# ---- the corpus --------------------------------------------------------------------------------------------


def prepare_course(race: Race, out: Path) -> Course:
    """Tokenizer and token files, made once and shared by all runners."""
    corpus, folder = race.corpus, out / "corpus"
    settings = corpus_settings(race, out)
    made_of = {"data": corpus.data, "vocab_size": corpus.vocab_size, "tokenizer_mb": corpus.tokenizer_mb}
    wanted, note = json.dumps(made_of), folder / "tokenizer" / "made_of.json"
    if (folder / "tokenizer" / "tokenizer.json").is_file():
        if note.is_file() and note.read_text() != wanted:
            raise UserError(
                f"{out} holds a race on another corpus or vocabulary; give another folder with --out"
            )
        tokenizer = Tokenizer.load(folder / "tokenizer")
    else:
        tokenizer = train_tokenizer(
            sample_texts(corpus.data, settings, corpus.tokenizer_mb), corpus.vocab_size
        )
        tokenizer.save(folder / "tokenizer")
    write_atomic(note, wanted)
    prepared = prepare_documents(corpus.data, tokenizer, settings, folder / "text", seed=0)
    path = _folder_of(prepared, folder / "text")
    val = prepared.val
    n_val = min(corpus.val_tokens, val.n_tokens)
    n_bytes = sum(len(tokenizer.token_bytes[token]) for token in val.tokens[:n_val].tolist())
    if n_bytes == 0:
        raise UserError("corpus: no text is held out to measure on; give corpus.val_data, or more text")
    return Course(
        tokenizer=folder / "tokenizer",
        tokens=path,
        vocab_size=tokenizer.vocab_size,
        token_bytes=val.tokens.dtype.itemsize,
        n_train_tokens=prepared.train.n_tokens,
        n_val_tokens=n_val,
        n_val_bytes=n_bytes,
    )


def corpus_settings(race: Race, out: Path) -> CorpusConfig:
    """How the text is read; the same for this trainer's own runs, which so find it prepared."""
    return CorpusConfig(val_data=race.corpus.val_data, cache=str((out / "corpus" / "cache").resolve()))


def _folder_of(tokens: TokenFolder, pointer: Path) -> Path:
    """Where the files lie: the cache that the pointer names."""
    return Path(json.loads((pointer / "prepared.json").read_text())["folder"])


# ---- one runner --------------------------------------------------------------------------------------------


def run_one(race: Race, runner: Runner, seed: int, course: Course, out: Path) -> Result:
    """Start a runner in an empty folder, watch it to its end or its time limit, and return what it reported."""
    folder = _folder(out, runner.name, seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    seconds = runner.seconds or race.seconds
    if runner.is_ours:
        command, cwd = our_command(race, runner, seed, course, out, folder), race.here
        sources = [folder / "run" / "pretrain" / "metrics.jsonl"]
    else:
        values = _template(race, seed, course, folder, seconds)
        command = [_filled(word, values) for word in runner.command]
        cwd = (race.here / _filled(runner.cwd, values)).expanduser()
        sources = [Path(values["results"])]
    if not cwd.is_dir():
        raise UserError(f"runner {runner.name}: cwd = '{cwd}' is no folder")
    reports = Reports(course, re.compile(runner.pattern) if runner.pattern else None, sources)
    try:
        ended = run_watched(
            command, cwd=cwd, limit_s=seconds + runner.grace_s, log=folder / "output.log",
            environment=runner.environment, memory_every_s=1.0, on_line=reports.line, on_poll=reports.poll,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"runner {runner.name}: '{command[0]}' cannot be started: {error.strerror}") from None
    result = Result(
        runner=runner.name,
        is_ours=runner.is_ours,
        seed=seed,
        wall_s=ended.wall_s,
        exit_code=ended.exit_code,
        timed_out=ended.timed_out,
        peak_memory_bytes=ended.peak_memory_bytes,
        n_parameters=int(reports.now["n_parameters"]),
        device_memory_bytes=int(reports.now["device_memory_bytes"]),
        points=tuple(reports.points),
    )
    return _with_our_summary(result, folder / "run" / "pretrain" / "summary.json")


def our_command(race: Race, runner: Runner, seed: int, course: Course, out: Path, folder: Path) -> list[str]:
    """`onesitting pretrain` on the race's corpus, the time as its budget; the runner's settings come last."""
    recipe, corpus = race.here / runner.recipe, corpus_settings(race, out)
    settings: dict[str, Any] = {
        "out": str(folder.resolve()),
        "name": "run",
        "seed": seed,
        "budget": f"{runner.seconds or race.seconds:g}s",
        "stages": ("pretrain",),
        "data": race.corpus.data,
        "corpus.val_data": race.corpus.val_data,
        # What decides the content of the token files: any other value would prepare them again, on our time.
        **{
            f"corpus.{name}": getattr(corpus, name)
            for name in ("world_mb", "val_fraction", "max_document_mb")
        },
        "corpus.cache": corpus.cache,
        "tokenizer.path": str(course.tokenizer.resolve()),
        "evaluation.val_tokens": course.n_val_tokens,
        "evaluation.samples": 0,
        "evaluation.suite": "none",
        **flatten(runner.settings),
    }
    words = [
        sys.executable,
        "-m",
        "onesitting",
        "pretrain",
        str(recipe if recipe.exists() else runner.recipe),
    ]
    for name, value in settings.items():
        values = list(value) if isinstance(value, list | tuple) else [value]
        if values:
            words += [
                f"--{name}",
                *(str(one).lower() if isinstance(one, bool) else str(one) for one in values),
            ]
    return words


def _template(race: Race, seed: int, course: Course, folder: Path, seconds: float) -> dict[str, str]:
    """Values for TEMPLATE."""
    tokens = course.tokens.resolve()
    return {
        "python": sys.executable,
        "here": str(race.here),
        "train_tokens": str(tokens / "train.bin"),
        "val_tokens": str(tokens / "val.bin"),
        "n_val_tokens": str(course.n_val_tokens),
        "tokens_json": str(tokens / INFO_FILE),
        "token_bytes": str(course.token_bytes),
        "tokenizer": str(course.tokenizer.resolve()),
        "vocab_size": str(course.vocab_size),
        "seconds": f"{seconds:g}",
        "seed": str(seed),
        "out": str(folder.resolve()),
        "results": str(folder.resolve() / "results.jsonl"),
    }


def _filled(word: str, values: dict[str, str]) -> str:
    return re.sub(r"{(\w+)}", lambda match: values[match[1]], word)


def _with_our_summary(result: Result, summary: Path) -> Result:
    """What our own run writes at its end and other runners report: parameters, an accelerator's memory."""
    if not (result.is_ours and summary.is_file()):
        return result
    values = json.loads(summary.read_text())
    on_device = values.get("device_kind", "cpu") != "cpu"
    return replace(
        result,
        n_parameters=values["n_parameters"],
        device_memory_bytes=values["peak_memory_bytes"] if on_device else 0,
    )


@dataclass
class Reports:
    """What a runner has reported so far, from its output and its files, with the time of arrival."""

    course: Course
    pattern: re.Pattern[str] | None
    sources: list[Path]
    now: dict[str, float] = field(default_factory=lambda: dict.fromkeys(RECORD, 0.0))
    points: list[Point] = field(default_factory=list[Point])
    _read: dict[Path, int] = field(default_factory=dict[Path, int])

    def line(self, line: str, seconds: float) -> None:
        """A line of output; whatever the pattern does not find in it is no report."""
        if self.pattern is not None and (match := self.pattern.search(line)):
            self.add({k: v for k, v in match.groupdict().items() if v is not None}, seconds)

    def poll(self, seconds: float) -> None:
        """Look for new lines in the files."""
        for source in self.sources:
            for record in self._new_records(source):
                self.add(record, seconds)

    def add(self, record: dict[str, Any], seconds: float) -> None:
        """Take a record; one with a validation loss becomes a point at `seconds`. What is no number is no report."""
        values = record | record.get("evaluation", {})  # ours writes validations as a part of the record
        self.now["validation_s"] += _finite(values.get("evaluation_s")) or 0.0
        for name in RECORD:
            if (value := _finite(values.get(name))) is not None:
                self.now[name] = value
        if _finite(values.get("val_nats_per_token")) is not None:
            self.points.append(
                Point(
                    wall_s=seconds,
                    compile_s=self.now["compile_s"],
                    validation_s=self.now["validation_s"],
                    tokens=int(self.now["tokens"]),
                    bits_per_byte=bits_per_byte(
                        self.now["val_nats_per_token"], self.course.n_val_tokens, self.course.n_val_bytes
                    ),
                )
            )

    def _new_records(self, source: Path) -> Iterator[dict[str, Any]]:
        """Records of the whole lines that were written since the last look."""
        start = self._read.get(source, 0)
        try:
            with open(source, "rb") as file:
                file.seek(start)
                data = file.read()
        except OSError:
            return
        whole = data.rfind(b"\n") + 1
        self._read[source] = start + whole
        for line in data[:whole].splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def _finite(value: Any) -> float | None:
    """A number, or the text of one, that is finite; else None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
