"""Files -> text or records with line numbers, as streams; also compressed with gzip or zstd."""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import zstandard

from onesitting.data.problems import Problems
from onesitting.errors import UserError

TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".text")
RECORD_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
COMPRESSION_SUFFIXES = (".gz", ".zst")

_BLOCK_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 28  # 256 MB in one line is no record but a file without line ends
_MAX_JSON_BYTES = 1 << 28
DOCUMENT_END = re.compile(r"<\|endoftext\|>(?:\r?\n)?")
"""Ends a document in a plain text file, as in TinyStories; its own line's end is no text."""


def format_of(path: Path) -> str:
    """The suffix that decides how a file is read, without its compression; "" for none."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSION_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_known(path: Path) -> bool:
    """Whether a folder's file is read."""
    return format_of(path) in TEXT_SUFFIXES + RECORD_SUFFIXES


def read_texts(path: Path, problems: Problems, max_bytes: int) -> Iterator[tuple[int, str]]:
    """(line, text) of a plain text file's documents; a line that is not UTF-8 is bad and left out.

    Documents above max_bytes are split at a line's end. Raises UserError for a file that is not text.
    """
    waiting: list[str] = []
    size, first_line, line, is_rest = 0, 1, 1, False
    for block in _text_blocks(path):
        text = _decoded(path, line, block, problems)
        line += block.count(b"\n")
        parts = DOCUMENT_END.split(text)
        for number, part in enumerate(parts):
            if part and is_rest and not waiting:
                problems.n_splits += 1
            waiting.append(part)
            size += len(part)
            is_end = number < len(parts) - 1
            if is_end or size >= max_bytes:
                yield first_line, "".join(waiting)
                waiting, size, first_line, is_rest = [], 0, line, not is_end
    if size:
        yield first_line, "".join(waiting)


def read_records(
    path: Path, problems: Problems, columns: list[str] | None = None
) -> Iterator[tuple[int, Any]]:
    """(line, record) of a .jsonl, .json, .csv, .tsv or .parquet file; a broken line is bad and left out.

    columns: of a Parquet file, the ones that are read; None: all. Lines of Parquet files are row numbers.
    Raises UserError for a file that cannot be read at all.
    """
    kind = format_of(path)
    if kind == ".parquet":
        yield from _parquet(path, problems, columns)
    elif kind == ".json":
        yield from _json(path, problems)
    elif kind in (".csv", ".tsv"):
        yield from _csv(path, problems, "\t" if kind == ".tsv" else ",")
    else:
        yield from _jsonl(path, problems)


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed. Raises UserError if it cannot be opened."""
    try:
        raw = open(path, "rb")  # noqa: SIM115 (closed by the reader of the stream)
    except OSError as error:
        raise UserError(f"'{path}' cannot be opened: {error.strerror}") from None
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if suffix == ".zst":
        # long distance matching is allowed, as by `zstd --long=31`
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(
            raw, read_across_frames=True
        )
        return cast(BinaryIO, io.BufferedReader(cast(Any, reader), _BLOCK_BYTES))
    return raw


def _text_blocks(path: Path) -> Iterator[bytes]:
    """Blocks of whole lines. Raises UserError for binary or damaged files."""
    with open_bytes(path) as stream:
        try:
            block = stream.read(_BLOCK_BYTES) + stream.readline(_MAX_LINE_BYTES)
            _refuse_binary(path, block)
            block = block.removeprefix(codecs.BOM_UTF8)
            while block:
                yield block
                block = stream.read(_BLOCK_BYTES) + stream.readline(_MAX_LINE_BYTES)
        except (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
            raise UserError(f"'{path}' is damaged: {error}; get it again") from None
        except OSError as error:
            raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from None


def _refuse_binary(path: Path, block: bytes) -> None:
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"'{path}' is UTF-16; save it as UTF-8 (iconv -f utf-16 -t utf-8)")
    if b"\0" in block:
        raise UserError(f"'{path}' is not text: it holds zero bytes; remove it, or convert it to UTF-8 text")


def _decoded(path: Path, line: int, block: bytes, problems: Problems) -> str:
    """Text of a block that begins at `line`; counts its lines."""
    try:
        text = block.decode()
        problems.count(text.count("\n") + (not text.endswith("\n")))
        return text
    except UnicodeDecodeError:
        pass
    kept: list[str] = []
    for number, part in enumerate(block.splitlines(keepends=True), line):
        problems.count()
        try:
            kept.append(part.decode())
        except UnicodeDecodeError:
            _report_encoding(f"{path}:{number}", part, problems)
    return "".join(kept)


def _report_encoding(where: str, line: bytes, problems: Problems) -> None:
    """Report a line that is not UTF-8, with its first wrong byte."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        detail = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        problems.report_bad(where, "not UTF-8", detail)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) of a text file."""
    number = 0
    rest = b""
    for block in _text_blocks(path):
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        for line in lines:
            number += 1
            yield number, line
        if len(rest) >= _MAX_LINE_BYTES:
            raise UserError(f"'{path}' line {number + 1} has more than {_MAX_LINE_BYTES >> 20} MB; split it")
    if rest:
        yield number + 1, rest


def _jsonl(path: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    decode = msgspec.json.Decoder().decode
    for number, line in _lines(path):
        if not line.strip():
            continue
        problems.count()
        try:
            record = decode(line)
        except UnicodeDecodeError:
            _report_encoding(f"{path}:{number}", line, problems)
        except msgspec.DecodeError as error:
            problems.report_bad(f"{path}:{number}", "not JSON", str(error))
        else:
            yield number, record


def _json(path: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    """Records of a file that holds one list, one object with a list inside, or one object."""
    size, blocks = 0, list[bytes]()
    for block in _text_blocks(path):
        blocks.append(block)
        size += len(block)
        if size > _MAX_JSON_BYTES:
            raise UserError(
                f"'{path}' is one JSON value of more than {_MAX_JSON_BYTES >> 20} MB, which cannot be read "
                "as a stream; convert it to JSON lines (jq -c '.[]' in.json > out.jsonl)"
            )
    data = b"".join(blocks)
    try:
        value = json.loads(data)
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}") from None
    except ValueError as error:
        raise UserError(f"'{path}' is not JSON: {error}; if each line is a record, name it .jsonl") from None
    if isinstance(value, dict):
        lists = [
            item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)
        ]
        value = lists[0] if len(lists) == 1 and not {"messages", "conversations"} & value.keys() else [value]
    for number, record in enumerate(value if isinstance(value, list) else [value], 1):
        problems.count()
        yield number, record


def _csv(path: Path, problems: Problems, delimiter: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(_MAX_LINE_BYTES)

    def decoded() -> Iterator[str]:
        for number, line in _lines(path):
            try:
                yield line.decode() + "\n"
            except UnicodeDecodeError:
                problems.count()
                _report_encoding(f"{path}:{number}", line, problems)

    reader = csv.DictReader(decoded(), delimiter=delimiter)
    try:
        for record in reader:
            problems.count()
            where = f"{path}:{reader.line_num}"
            if None in record or None in record.values():
                columns = len(reader.fieldnames or ())
                problems.report_bad(where, "wrong number of columns", f"the header has {columns}")
            else:
                yield reader.line_num, record
    except csv.Error as error:
        raise UserError(f"'{path}' line {reader.line_num} is not CSV: {error}") from None


def _parquet(path: Path, problems: Problems, columns: list[str] | None) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"'{path}' needs pyarrow: pip install 'onesitting[parquet]'") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    problems.count()
                    yield number, record
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read as Parquet: {error}; get it again") from None
