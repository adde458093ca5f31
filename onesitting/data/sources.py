"""Specs -> documents or conversations, as streams of constant memory.

A spec is a file, a folder, a glob, `hub:owner/name` (with `@revision` if one is wanted), or `world`, the
synthetic world.
"""

import glob
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onesitting.config import CorpusConfig
from onesitting.data.files import (
    RECORD_SUFFIXES,
    TEXT_SUFFIXES,
    format_of,
    is_known,
    read_records,
    read_texts,
)
from onesitting.data.problems import Problems
from onesitting.data.records import RecordError, conversation_of, guess_chat_form, guess_text_field
from onesitting.errors import UserError

__all__ = [
    "Conversation",
    "Document",
    "Problems",
    "expand",
    "read_conversations",
    "read_documents",
    "sample_texts",
]

WORLD = "world"
HUB = "hub:"
N_GUESS = 20  # records that the names of fields are guessed from


@dataclass(frozen=True)
class Document:
    """A text, and where it came from (file:line)."""

    text: str
    source: str


@dataclass(frozen=True)
class Conversation:
    """Messages in OpenAI's form, the schemas of their tools, and where they came from (file:line)."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    source: str


def expand(spec: str) -> list[Path]:
    """Files of a spec, sorted. Raises UserError if there are none."""
    path = Path(spec).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        visible = (
            p for p in path.rglob("*") if not any(x.startswith(".") for x in p.relative_to(path).parts)
        )
        files = sorted(p for p in visible if p.is_file() and is_known(p))
        if not files:
            known = " ".join(TEXT_SUFFIXES + RECORD_SUFFIXES)
            raise UserError(f"folder '{spec}' holds no file to read; read are {known}, also as .gz and .zst")
        return files
    files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not files:
        raise UserError(
            f"'{spec}': no such file or folder; give a file, a folder, a glob, hub:owner/name or world"
        )
    return files


def read_documents(
    specs: Iterable[str], corpus: CorpusConfig, problems: Problems, seed: int = 0
) -> Iterator[Document]:
    """Documents of the specs, in order. Raises UserError if too many records are bad."""
    max_bytes = int(corpus.max_document_mb * 1e6)
    for spec in specs:
        for document in _spec_documents(spec, corpus, problems, seed):
            if document.text.strip():
                yield from _split(document, max_bytes, problems)
            else:
                problems.skip("empty document")
    problems.raise_if_too_many()


def read_conversations(
    specs: Iterable[str], corpus: CorpusConfig, problems: Problems, seed: int = 0
) -> Iterator[Conversation]:
    """Conversations of the specs, in order. Raises UserError if too many records are bad."""
    for spec in specs:
        if spec == WORLD:
            yield from _world_conversations(corpus, problems, seed)
        elif spec.startswith(HUB):
            records = hub_numbered(spec, corpus, problems)
            yield from _conversations_of(records, spec, corpus.chat_field, problems)
        else:
            for path in expand(spec):
                if format_of(path) not in RECORD_SUFFIXES:
                    raise UserError(f"'{path}' is no file of conversations; give {' '.join(RECORD_SUFFIXES)}")
                records = read_records(path, problems)
                yield from _conversations_of(records, str(path), corpus.chat_field, problems)
    problems.raise_if_too_many()


def sample_texts(specs: Iterable[str], corpus: CorpusConfig, mb: float, seed: int = 0) -> Iterator[str]:
    """About mb megabytes of text to train a tokenizer on: from each file its share, by size, from its
    beginning. Raises UserError if there is no text at all.

    Documents that will be held out may be among them: a vocabulary keeps next to nothing of one document.
    """
    specs = tuple(specs)
    sized = [(single, size) for spec in specs for single, size in _sized(spec, corpus, mb)]
    share = mb * 1e6 / max(1.0, sum(size for _, size in sized))
    problems = Problems(1.0)  # preparation will report them, unless there is nothing else
    due = used = 0.0
    for single, size in sized:
        due += share * size
        if used >= due:
            continue
        for document in read_documents([single], corpus, problems, seed):
            yield document.text
            used += len(document.text.encode())
            if used >= due:
                break
    if used == 0:
        problems.max_bad_fraction = corpus.max_bad_fraction
        problems.raise_if_too_many()
        raise UserError(f"{', '.join(specs)}: {problems.nothing('text')}")


def _sized(spec: str, corpus: CorpusConfig, mb: float) -> Iterator[tuple[str, float]]:
    """The files of a spec with their bytes on disk; a hub dataset counts as one that has enough."""
    if spec == WORLD:
        yield spec, corpus.world_mb * 1e6
    elif spec.startswith(HUB):
        yield spec, mb * 1e6
    else:
        for path in expand(spec):
            yield str(path), float(path.stat().st_size)


def _spec_documents(spec: str, corpus: CorpusConfig, problems: Problems, seed: int) -> Iterator[Document]:
    if spec == WORLD:
        from onesitting.data.world import World

        for number, text in enumerate(World(seed).documents("train", corpus.world_mb), 1):
            problems.count()
            yield Document(text, f"world:{number}")
    elif spec.startswith(HUB):
        yield from _documents_of(hub_numbered(spec, corpus, problems), spec, corpus.text_field, problems)
    else:
        for path in expand(spec):
            if format_of(path) in RECORD_SUFFIXES:
                columns = [corpus.text_field] if corpus.text_field else None
                records = read_records(path, problems, columns)
                yield from _documents_of(records, str(path), corpus.text_field, problems)
            else:
                for line, text in read_texts(path, problems, int(corpus.max_document_mb * 1e6)):
                    yield Document(text, f"{path}:{line}")


def hub_numbered(spec: str, corpus: CorpusConfig, problems: Problems) -> Iterator[tuple[int, Any]]:
    """(number, record) of a hub dataset, from 1."""
    from onesitting.data.hub import hub_records

    for number, record in enumerate(
        hub_records(spec.removeprefix(HUB), corpus.hub_subset, corpus.hub_split), 1
    ):
        problems.count()
        yield number, record


def _world_conversations(corpus: CorpusConfig, problems: Problems, seed: int) -> Iterator[Conversation]:
    """The world's conversations, up to half of corpus.world_mb: fine-tuning reads less than pretraining."""
    from onesitting.data.world import World

    left = corpus.world_mb * 1e6 / 2
    for number, record in enumerate(World(seed).conversations("train", int(left)), 1):
        problems.count()
        yield Conversation(record["messages"], record.get("tools"), f"world:{number}")
        left -= sum(len(message.get("content") or "") for message in record["messages"])
        if left <= 0:
            return


def _documents_of(
    records: Iterator[tuple[int, Any]], source: str, field: str, problems: Problems
) -> Iterator[Document]:
    """Texts of records; a record may also be a text itself."""
    first = list(itertools.islice(records, N_GUESS))
    if not field and any(isinstance(record, dict) for _, record in first):
        field = guess_text_field([r for _, r in first if isinstance(r, dict)]) or ""
        if not field:
            raise UserError(f"{source}: no text field among {_names(first)}; name it with corpus.text_field")
        problems.guess(f"text is read from field {field!r}")
    for line, record in itertools.chain(first, records):
        text = record.get(field) if isinstance(record, dict) else record
        if isinstance(text, str):
            if _is_unicode(text):
                yield Document(text, f"{source}:{line}")
            else:
                problems.report_bad(f"{source}:{line}", "not Unicode", "half of a surrogate pair")
        elif text is None and isinstance(record, dict) and field in record:
            problems.skip("empty document")
        elif isinstance(record, dict) and field not in record:
            problems.report_bad(
                f"{source}:{line}", f"no field {field!r}", f"fields: {', '.join(record)[:200]}"
            )
        else:
            problems.report_bad(f"{source}:{line}", "not text", f"{type(text).__name__}")


def _conversations_of(
    records: Iterator[tuple[int, Any]], source: str, field: str, problems: Problems
) -> Iterator[Conversation]:
    first = list(itertools.islice(records, N_GUESS))
    forms = [guess_chat_form(record) for _, record in first if isinstance(record, dict)]
    form = field or next(filter(None, forms), "")
    if first and not form and not isinstance(first[0][1], list):
        raise UserError(
            f"{source}: no conversation among {_names(first)}; name its field with corpus.chat_field"
        )
    if not field and form:
        problems.guess(f"conversations are read from {form!r}")
    for line, record in itertools.chain(first, records):
        where = f"{source}:{line}"
        record = {"messages": record} if isinstance(record, list) else record
        if not isinstance(record, dict):
            problems.report_bad(where, "not a conversation", type(record).__name__)
            continue
        try:
            messages, tools = conversation_of(record, form or "messages")
        except RecordError as error:
            problems.report_bad(where, str(error))
        else:
            yield Conversation(messages, tools, where)


def _names(first: list[tuple[int, Any]]) -> str:
    names = dict.fromkeys(str(name) for _, record in first if isinstance(record, dict) for name in record)
    return f"its fields ({', '.join(names)})" if names else "its records"


def _split(document: Document, max_bytes: int, problems: Problems) -> Iterator[Document]:
    """A document in parts of at most max_bytes characters, cut at a line's end where there is one."""
    text, start = document.text, 0
    while len(text) - start > max_bytes:
        end = text.rfind("\n", start + max_bytes // 2, start + max_bytes) + 1 or start + max_bytes
        yield Document(text[start:end], document.source)
        start = end
        problems.n_splits += 1
    yield Document(text[start:] if start else text, document.source)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
