"""The run folder: where each file of a run lies, and how its lines are written and read.

    runs/demo/
      config.toml                 the resolved configuration; a recipe itself
      tokenizer/                  tokenizer.json, tokenizer_config.json
      data/                       prepared tokens, or a pointer to the shared cache
      pretrain/, sft/, …          one folder a stage:
        metrics.jsonl             one JSON object a line (see METRICS)
        samples.jsonl             what the model wrote: step, prompt, seed, text
        checkpoints/000400/       a complete model and the training state after 400 steps
        model/                    the final model, a Hugging Face folder
      report.md, report.json      the report card

Text is written to a temporary name, flushed and renamed: a reader never sees half a file.
"""

import errno
import json
import math
import os
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onesitting.errors import UserError

CONFIG_FILE = "config.toml"

METRICS: dict[str, str] = {
    "step": "optimizer steps done, 1 after the first",
    "tokens": "real tokens trained on since the stage began, padding not counted, over all processes",
    "elapsed_s": "seconds of training since the stage began, earlier sittings included",
    "progress": "fraction of the stage done, 0 to 1; the schedule is a function of it",
    "loss": "mean training loss of the step, nats per unit (token, pair or sequence)",
    "lr_factor": "factor on every learning rate at this step",
    "grad_norm": "global L2 norm of the gradient before clipping",
    "row_length": "tokens in a row",
    "n_units": "units that the loss is the mean over, over all processes",
    "step_s": "seconds of this step",
    "tokens_per_s": "real tokens per second of this step, over all processes",
    "reward": "RL: mean reward of a batch of attempts; `reward_<name>` is one of its parts, unweighted",
    "reward_std": "RL: mean standard deviation of the rewards within a group",
    "informative": "RL: fraction of groups whose rewards differ; the others teach nothing",
    "attempt_tokens": "RL: mean number of tokens that the model wrote in an attempt",
    "stop_rate": "RL: fraction of attempts that ended by themselves",
    "entropy": "RL: mean surprise of the sampled tokens in nats, an unbiased estimate of the policy's entropy",
    "tool_calls": "RL: answered tool calls an attempt",
    "value_loss": "PPO: half the mean squared error of the value head",
    "return_variance": "PPO: variance of the returns; twice value_loss over it is what the head does not explain",
    "clip_fraction": "RL: fraction of trained tokens whose gradient the clip cut",
    "approx_kl": "RL: estimated KL divergence from the policy that sampled to the present one, nats a token",
    "kl": "RL: estimated KL divergence from the model at the start, nats a token",
    "skipped": "true when loss or gradient were not finite, or nothing was to learn, and weights stayed",
    "balance_loss": "mixture of experts: the routers' balance loss in the step's total, beside `loss`",
    "expert_load_max": "the busiest expert's share of a layer's assignments, as a multiple of an even share",
    "expert_load_min": "the idlest expert's share, as a multiple of an even share",
    "experts_unused": "experts, over all layers, that no token was sent to in the step",
    "evaluation": "validation: name -> value, `bits_per_byte` among them; on lines of its own",
    "evaluation_s": "seconds of that validation, samples included",
    "compile_s": "seconds that torch.compile has worked so far, by its own account; absent where nothing was compiled",
}
"""Names and meanings in metrics.jsonl. Every line has `step`, the others may be missing; null: not finite."""


@dataclass(frozen=True)
class StageFolder:
    """Folder of one training stage."""

    path: Path

    @property
    def metrics_path(self) -> Path:
        """metrics.jsonl: one line a step."""
        return self.path / "metrics.jsonl"

    @property
    def samples_path(self) -> Path:
        """samples.jsonl: what the model wrote during training."""
        return self.path / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, each named after its step."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The stage's final model, there once the stage is done."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """The stage's final adapter in PEFT's format, where it trained one; `model` then holds it merged."""
        return self.path / "adapter"


@dataclass(frozen=True)
class RunFolder:
    """Folder of one run. Nothing is made on disk before `create`."""

    path: Path

    def create(self) -> "RunFolder":
        """Make the folder and try that it takes files; raises UserError if it does not."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".write-test-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise storage_error(error, self.path) from None
        return self

    def stage(self, name: str) -> StageFolder:
        """Folder of a stage: `pretrain`, `sft`, …"""
        return StageFolder(self.path / name)

    def stages(self) -> tuple[str, ...]:
        """The run's stages in the order of its config.toml; () where that is missing or cannot be read."""
        try:
            found = tomllib.loads(self.config_path.read_text(encoding="utf-8")).get("stages", ())
        except (OSError, ValueError):
            return ()
        return tuple(str(name) for name in found)

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder."""
        return self.path / "tokenizer"

    @property
    def data(self) -> Path:
        """Prepared data, or pointers to the shared cache."""
        return self.path / "data"

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG_FILE

    @property
    def report(self) -> Path:
        """The report card for people; report.json beside it holds the same numbers."""
        return self.path / "report.md"


def storage_error(error: OSError, path: Path | str | None = None) -> Exception:
    """The UserError for a place that takes no files, with the next action; any other error as it came.

    path: what was to be written, where the error itself does not say.
    """
    path = path or error.filename or "the run"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"no space left for {path}: free some space and give the same command again, it goes on"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError(
            f"cannot write {path}: {error.strerror}; choose another place with --out, or allow writing"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(
            f"cannot write {path}: a file stands where a folder is needed; choose another --out or --name"
        )
    if error.errno == errno.ENAMETOOLONG:
        return UserError(f"cannot write {path}: the name is too long; choose a shorter --name")
    return error


def write_atomic(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Write a whole file under a temporary name, flush it to disk, rename it. Makes the folder if needed.

    content: whole, or piece by piece where it is too large for memory.
    Raises UserError for a full disk or a place that may not be written; the old file then stands unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    pieces = [data] if isinstance(data, bytes) else data
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise storage_error(error, path) from None


def append_jsonl(path: Path, *records: dict[str, Any]) -> None:
    """Append records, a line each, with one write call; numbers that are not finite become null.

    The half line that a killed process left at the end is cut off first, so that the file stays readable.
    Raises UserError for a full disk or a place that may not be written.
    """
    lines = [json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records]
    data = "".join(lines).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            end = _cut_torn_line(descriptor)
            if os.write(descriptor, data) != len(data):
                os.ftruncate(descriptor, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(error, path) from None


def _cut_torn_line(descriptor: int) -> int:
    """Length in bytes of the file after its unfinished last line, if any, is removed."""
    end = os.fstat(descriptor).st_size
    if end == 0 or os.pread(descriptor, 1, end - 1) == b"\n":
        return end
    while end > 0:
        start = max(0, end - 4096)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        end = start + newline + 1
        if newline >= 0:
            break
    os.ftruncate(descriptor, end)
    return end


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Records of a file, in order; [] if there is none. A torn last line is left out.

    Raises UserError with file and line for any other line that is no JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records: list[dict[str, Any]] = []
    # What follows the last newline is empty, or was torn by a kill.
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise UserError(
                f"{path}, line {number}: a JSON object expected, found {line[:60]!r}; remove the line"
            )
        records.append(record)
    return records


def keep_jsonl(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a file with only the records that `keep` accepts: a resumed stage drops what it will repeat."""
    records = read_jsonl(path)
    kept = [record for record in records if keep(record)]
    if path.exists() and len(kept) != len(records):
        write_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def find_runs(folder: Path) -> list[Path]:
    """Run folders directly inside a folder, newest first."""
    runs = [path.parent for path in folder.glob(f"*/{CONFIG_FILE}")]
    return sorted(runs, key=lambda run: (run / CONFIG_FILE).stat().st_mtime, reverse=True)


def require_run(name: str) -> RunFolder:
    """The run folder of that path; raises UserError with the runs that exist if it is none."""
    path = Path(name).expanduser()
    if (path / CONFIG_FILE).is_file():
        return RunFolder(path)
    found = "has no config.toml" if path.exists() else "does not exist"
    raise UserError(f"'{name}' is not the folder of a run: it {found}; {_runs_near(path)}")


def require_folder(name: str) -> Path:
    """The folder of that path; raises UserError with the runs that exist if it is none, or the folder of all runs."""
    path = Path(name).expanduser()
    if path.is_dir() and not find_runs(path):
        return path
    found = (
        "is a folder of runs"
        if path.is_dir()
        else "is a file, not a folder"
        if path.exists()
        else "does not exist"
    )
    raise UserError(f"'{name}' {found}; {_runs_near(path)}")


def _runs_near(path: Path) -> str:
    """What to try instead of a folder that is none of a run."""
    runs = find_runs(path) or find_runs(path.parent) or find_runs(Path("runs"))
    if runs:
        return "runs that exist: " + ", ".join(map(str, runs[:8]))
    return "there is no run yet; `onesitting run demo` makes one"
