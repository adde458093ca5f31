"""`onesitting bench prepare`: speed and memory of preparation as the text grows tenfold.

Each size is prepared by the real command in a process of its own, with an empty cache; memory is that of the whole
process tree. Flat memory means: the larger text needs no more than the smaller one.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onesitting.bench.processes import run_watched
from onesitting.bench.tables import aligned
from onesitting.config import CorpusConfig
from onesitting.data.problems import Problems
from onesitting.data.sources import read_documents, sample_texts
from onesitting.errors import UserError
from onesitting.runlog import write_atomic
from onesitting.tokenizer.bpe import train_tokenizer

LIMIT_S = 3600.0
"""A preparation that takes longer is ended."""


@dataclass(frozen=True, kw_only=True)
class PrepareSpeed:
    """One size of text."""

    mb: float
    """Megabytes (10^6 bytes) of UTF-8 text."""
    n_tokens: int
    prepare_s: float
    """Reading, encoding and writing."""
    command_s: float
    """The whole command, the start of Python included."""
    mb_per_s: float
    """Of `prepare_s`."""
    peak_memory_bytes: int


def bench_prepare(
    data: Sequence[str],
    *,
    sizes_mb: Sequence[float] = (10.0, 100.0),
    vocab_size: int = 4096,
    workers: int = 0,
    save: Path | None = None,
) -> dict[str, Any]:
    """Measure, print, and return (and save, as JSON) a PrepareSpeed for each size, smallest first.

    data: as the setting `data`; its documents from the beginning make the texts.
    Raises UserError if the data holds less than the largest size, or a preparation fails.
    """
    sizes = sorted(sizes_mb)
    with tempfile.TemporaryDirectory(prefix="onesitting-bench-") as name:
        scratch = Path(name)
        specs, corpus = tuple(data), CorpusConfig(world_mb=1.2 * sizes[-1])
        tokenizer = train_tokenizer(sample_texts(specs, corpus, min(16.0, sizes[0])), vocab_size)
        tokenizer.save(scratch / "tokenizer")
        files = write_texts(specs, corpus, sizes, scratch)
        found = [
            _prepare(file, mb, scratch, workers, tokenizer.vocab_size)
            for mb, file in zip(sizes, files, strict=True)
        ]
    growth = (found[-1].peak_memory_bytes - found[0].peak_memory_bytes) / 1e6
    print(_table(found))
    print(f"{sizes[-1] / sizes[0]:g} times the text, {growth:+,.0f} MB of memory")
    record = {"data": list(data), "vocab_size": tokenizer.vocab_size, "sizes": [asdict(one) for one in found]}
    if save is not None:
        write_atomic(save, json.dumps(record, indent=1) + "\n")
    return record


def write_texts(
    specs: tuple[str, ...], corpus: CorpusConfig, sizes: Sequence[float], folder: Path
) -> list[Path]:
    """One JSONL file a size, each with the first documents of the data; sizes in megabytes, ascending."""
    files = [folder / f"{size:g}mb.jsonl" for size in sizes]
    streams = [open(file, "w", encoding="utf-8") for file in files]  # noqa: SIM115, closed below
    written = 0
    try:
        for document in read_documents(specs, corpus, Problems(1.0)):
            line = json.dumps({"text": document.text}, ensure_ascii=False) + "\n"
            for size, stream in zip(sizes, streams, strict=True):
                if written < size * 1e6:
                    stream.write(line)
            written += len(document.text.encode())
            if written >= sizes[-1] * 1e6:
                return files
    finally:
        for stream in streams:
            stream.close()
    raise UserError(
        f"--data holds {written / 1e6:,.1f} MB of text and {sizes[-1]:g} are asked for; use smaller --sizes"
    )


def _prepare(file: Path, mb: float, scratch: Path, workers: int, vocab_size: int) -> PrepareSpeed:
    """One `onesitting prepare` of a file."""
    name, log = file.stem, scratch / f"{file.stem}.log"
    command = [
        sys.executable, "-m", "onesitting", "prepare", "tiny", "--out", str(scratch), "--name", name,
        "--stages", "pretrain", "--data", str(file), "--tokenizer.path", str(scratch / "tokenizer"),
        "--tokenizer.vocab_size", str(vocab_size), "--corpus.cache", str(scratch / f"cache-{name}"),
        "--corpus.workers", str(workers),
    ]  # fmt: skip
    ended = run_watched(command, cwd=scratch, limit_s=LIMIT_S, log=log)
    if ended.exit_code != 0:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise UserError(f"preparing {mb:g} MB failed (exit code {ended.exit_code}): {' '.join(last)}")
    phases = json.loads((scratch / name / "timing.json").read_text())["phases"]
    prepare_s = next(phase["seconds"] for phase in phases if phase["phase"] == "prepare")
    pointer = json.loads((scratch / name / "data" / "text" / "prepared.json").read_text())
    splits = json.loads((Path(pointer["folder"]) / "tokens.json").read_text())["splits"]
    n_bytes = sum(split["n_bytes"] for split in splits.values())
    return PrepareSpeed(
        mb=n_bytes / 1e6,
        n_tokens=sum(split["n_tokens"] for split in splits.values()),
        prepare_s=prepare_s,
        command_s=ended.wall_s,
        mb_per_s=n_bytes / 1e6 / prepare_s,
        peak_memory_bytes=ended.peak_memory_bytes,
    )


def _table(found: Sequence[PrepareSpeed]) -> str:
    rows = [["text", "tokens", "preparing", "MB/s", "whole command", "peak memory"]]
    for one in found:
        cells = [f"{one.mb:,.1f} MB", f"{one.n_tokens:,}", f"{one.prepare_s:.2f} s", f"{one.mb_per_s:.1f}"]
        rows.append([*cells, f"{one.command_s:.2f} s", f"{one.peak_memory_bytes / 1e6:,.0f} MB"])
    return aligned(rows)
