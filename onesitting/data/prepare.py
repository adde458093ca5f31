"""Specs + tokenizer -> a folder of tokens, made once for each content and shared between runs.

The folder's name is a hash of everything that decides what is in it: the content of the files, the tokenizer
and the settings. A preparation that was killed leaves finished parts in `NAME.partial` and goes on from
there.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onesitting.config import CorpusConfig
from onesitting.data import sources
from onesitting.data.assemble import assemble
from onesitting.data.cache import cache_key, one_writer, pinned
from onesitting.data.encode import PartInfo, encode_items, token_dtype
from onesitting.data.preferences import read_preferences
from onesitting.data.problems import Problems
from onesitting.data.tokens import INFO_FILE, ChatFolder, PreferenceFolder, TokenFolder
from onesitting.errors import UserError
from onesitting.runlog import storage_error, write_atomic
from onesitting.tokenizer.bpe import Tokenizer

POINTER_FILE = "prepared.json"
SETTINGS = {"documents": "data", "conversations": "chat", "preferences": "preferences"}
"""Kind of data -> the setting that names it."""
READERS = {
    "documents": sources.read_documents,
    "conversations": sources.read_conversations,
    "preferences": read_preferences,
}
PREFERENCE_VAL_FRACTION = 0.05
"""Least part of the preferences that is held out: each says only yes or no, so that an accuracy to within three
points takes about a thousand of them."""

Specs = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PrepareProgress:
    """How far a preparation is: documents (or conversations, preferences), tokens, bytes of text, seconds."""

    n_items: int
    n_tokens: int
    n_bytes: int
    elapsed_s: float


Report = Callable[[PrepareProgress], None]


def prepare_documents(
    specs: Specs,
    tokenizer: Tokenizer,
    corpus: CorpusConfig,
    out: Path,
    seed: int,
    *,
    progress: Report | None = None,
) -> TokenFolder:
    """The documents of specs as tokens, from the cache if it has them.

    out: gets `prepared.json`, which names the folder in the cache; without a cache (corpus.cache empty) the
    files.
    progress: called after each part; by default a line on the screen, if there is one.
    Raises UserError for data that cannot be read, too many bad records, nothing to train on, or a full disk.
    """
    return TokenFolder(_prepare("documents", specs, tokenizer, corpus, Path(out), seed, progress))


def prepare_conversations(
    specs: Specs,
    tokenizer: Tokenizer,
    corpus: CorpusConfig,
    out: Path,
    seed: int,
    *,
    progress: Report | None = None,
) -> ChatFolder:
    """The conversations of specs as tokens with a mask of what is trained; otherwise as `prepare_documents`."""
    return ChatFolder(_prepare("conversations", specs, tokenizer, corpus, Path(out), seed, progress))


def prepare_preferences(
    specs: Specs,
    tokenizer: Tokenizer,
    corpus: CorpusConfig,
    out: Path,
    seed: int,
    *,
    progress: Report | None = None,
) -> PreferenceFolder:
    """The preferences of specs as tokens; otherwise as `prepare_documents`.

    All replies to one prompt are held out together, or none; at least PREFERENCE_VAL_FRACTION of them are.
    """
    corpus = replace(corpus, val_fraction=max(corpus.val_fraction, PREFERENCE_VAL_FRACTION))
    return PreferenceFolder(_prepare("preferences", specs, tokenizer, corpus, Path(out), seed, progress))


def _prepare(
    kind: str,
    specs: Specs,
    tokenizer: Tokenizer,
    corpus: CorpusConfig,
    out: Path,
    seed: int,
    progress: Report | None,
) -> Path:
    """Find the folder, or make it; returns its path."""
    if not specs:
        raise UserError(f"no {kind} to prepare; name them with {SETTINGS[kind]}")
    exact = pinned(specs + corpus.val_data, _pointer(out).get("pinned", {}))
    specs = tuple(exact[spec] for spec in specs)
    corpus = replace(corpus, val_data=tuple(exact[spec] for spec in corpus.val_data))
    key = cache_key(kind, specs, tokenizer, corpus, seed)
    folder = Path(corpus.cache).expanduser() / key if corpus.cache else out
    if not _is_complete(folder, key):
        with one_writer(folder.with_name(f"{folder.name}.lock")):
            if not _is_complete(folder, key):
                _Job(kind, key, specs, tokenizer, corpus, seed, progress or _screen(kind)).make(folder)
    pointer = {
        "folder": str(folder),
        "key": key,
        "kind": kind,
        "pinned": exact,
    }
    write_atomic(out / POINTER_FILE, json.dumps(pointer, indent=1) + "\n")
    return folder


@dataclass
class _Job:
    """One preparation; key is the name of its result."""

    kind: str
    key: str
    specs: Specs
    tokenizer: Tokenizer
    corpus: CorpusConfig
    seed: int
    progress: Report

    def make(self, folder: Path) -> None:
        """Encode into parts, assemble them, and move the files to `folder`, tokens.json last."""
        partial = folder.with_name(f"{folder.name}.partial") / self.key[:8]
        files = partial / "files"
        try:
            shutil.rmtree(files, ignore_errors=True)
            files.mkdir(parents=True)
            started = time.perf_counter()
            problems = Problems(self.corpus.max_bad_fraction)
            train = self.encode(self.specs, partial / "train", problems)
            separate = self.corpus.val_data if self.kind == "documents" else ()
            val = self.encode(separate, partial / "val", problems)
            if not train:
                raise UserError(f"{', '.join(self.specs)}: {problems.nothing(self.kind)}")
            if separate and not val:
                raise UserError(f"corpus.val_data: {', '.join(separate)}: {problems.nothing(self.kind)}")
            made = assemble(train, val, files, self.tokenizer, self.corpus.val_fraction)
            info = self.described(problems) | made | {"elapsed_s": round(time.perf_counter() - started, 3)}
            write_atomic(files / INFO_FILE, json.dumps(info, ensure_ascii=False, indent=1) + "\n")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / INFO_FILE).unlink(missing_ok=True)
            for name in [*made["files"], INFO_FILE]:
                os.replace(files / name, folder / name)
        except OSError as error:
            raise storage_error(error, partial) from None
        shutil.rmtree(partial.parent, ignore_errors=True)

    def encode(self, specs: Specs, into: Path, problems: Problems) -> list[Path]:
        """The parts of specs, in order."""
        into.mkdir(exist_ok=True)
        items = READERS[self.kind](specs, self.corpus, problems, self.seed)
        started = time.perf_counter()
        parts: list[PartInfo] = []
        for part in encode_items(items, self.tokenizer, into, self.workers()):
            parts.append(part)
            self.progress(
                PrepareProgress(
                    n_items=sum(p.n_items for p in parts),
                    n_tokens=sum(p.n_tokens for p in parts),
                    n_bytes=sum(p.n_bytes for p in parts),
                    elapsed_s=time.perf_counter() - started,
                )
            )
        return sorted(part.path for part in parts)

    def workers(self) -> int:
        """Processes that encode."""
        if hasattr(os, "sched_getaffinity"):
            return self.corpus.workers or len(os.sched_getaffinity(0))
        return self.corpus.workers or os.cpu_count() or 1

    def described(self, problems: Problems) -> dict[str, Any]:
        """What tokens.json says besides counts and hashes."""
        return {
            "kind": self.kind,
            "key": self.key,
            "sources": list(self.specs),
            "dtype": token_dtype(self.tokenizer.vocab_size).name,
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer_hash": self.tokenizer.hash,
            "eos_id": self.tokenizer.eos_id,
            "problems": problems.as_dict(),
        }


def _is_complete(folder: Path, key: str) -> bool:
    return _json(folder / INFO_FILE).get("key") == key


def _pointer(out: Path) -> dict[str, Any]:
    return _json(out / POINTER_FILE)


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; {} if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _screen(kind: str) -> Report:
    """One line on the screen that is written over; nothing where there is no screen."""

    def show(p: PrepareProgress) -> None:
        if sys.stderr.isatty():
            speed = p.n_bytes / 1e6 / max(p.elapsed_s, 1e-9)
            line = (
                f"{kind}: {p.n_items:,}, {p.n_bytes / 1e6:,.1f} MB, {p.n_tokens:,} tokens, {speed:.1f} MB/s"
            )
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    return show
