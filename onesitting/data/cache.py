"""The name of prepared data: a hash of all that decides what is in it. And who may write it: one process at a time."""

import contextlib
import hashlib
import json
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from onesitting.config import CorpusConfig
from onesitting.data.hub import hub_revision
from onesitting.data.sources import HUB, WORLD, expand
from onesitting.errors import UserError
from onesitting.runlog import storage_error
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.tokenizer.chat import CHAT_TEMPLATE

FORMAT = 1
"""Raised when the same input would give other files."""

# Settings that decide what is read; the limits on errors, the number of workers and the cache do not.
_SETTINGS = (
    "text_field",
    "chat_field",
    "hub_subset",
    "hub_split",
    "world_mb",
    "val_fraction",
    "max_document_mb",
)


def pinned(specs: tuple[str, ...], known: Mapping[str, str]) -> dict[str, str]:
    """Each spec -> the spec with a revision, if it is a hub dataset: the known one, or the newest.

    A run thus keeps the revision that it began with, and needs no network to find its data again.
    """

    def pin(spec: str) -> str:
        if not spec.startswith(HUB) or "@" in spec:
            return spec
        return known.get(spec) or f"{spec}@{hub_revision(spec.removeprefix(HUB))}"

    return {spec: pin(spec) for spec in specs}


def cache_key(
    kind: str, specs: tuple[str, ...], tokenizer: Tokenizer, corpus: CorpusConfig, seed: int
) -> str:
    """Name of the prepared data, 32 hex digits. Raises UserError for files that cannot be read."""
    described: dict[str, Any] = {
        "format": FORMAT,
        "kind": kind,
        "specs": [_content(spec, seed) for spec in specs],
        "tokenizer": tokenizer.hash,
        "settings": {name: getattr(corpus, name) for name in _SETTINGS},
    }
    if kind == "documents":
        described["val_data"] = [_content(spec, seed) for spec in corpus.val_data]
    else:
        described["template"] = CHAT_TEMPLATE
    if kind == "preferences":
        described["world_pairs"] = corpus.world_pairs
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


def _content(spec: str, seed: int) -> list[Any]:
    """What a spec stands for: the hashes of its files, a revision, or the world's seed and code."""
    if spec.startswith(HUB):
        return [spec]
    if spec == WORLD:
        code = sorted((Path(__file__).parent / "world").glob("*.py"))
        return [WORLD, seed, [_file_hash(path) for path in code]]
    # how a file is read depends on its suffixes, not on the rest of its name
    return [[path.suffixes[-2:], _file_hash(path)] for path in expand(spec)]


def _file_hash(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from None


@contextlib.contextmanager
def one_writer(path: Path) -> Generator[None]:
    """Wait until no other process holds the lock `path`, and hold it. Ends with the process, however it goes.

    Where the system has no such locks (Windows), nothing is locked: two writers then write the same bytes.
    Raises UserError in a worker of the process that holds the lock, which may be waiting for it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise storage_error(error, path) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            if file.read() == str(os.getppid()):
                raise UserError(
                    "a script that prepares data must do so under if __name__ == '__main__'"
                ) from None
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
