import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from makers import story

from onesitting.config import CorpusConfig
from onesitting.data.sources import Problems, expand, read_conversations, read_documents, sample_texts
from onesitting.errors import UserError

TEXTS = [story(i) for i in range(30)]
RECORDS = [{"id": i, "title": f"t{i}", "text": text} for i, text in enumerate(TEXTS)]
CHATS = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
    for i in range(5)
]


def as_jsonl(path: Path, records: list[Any]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


def as_csv(path: Path, records: list[Any]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)


WRITERS: dict[str, Callable[[Path, list[Any]], Any]] = {
    "x.jsonl": as_jsonl,
    "x.json": lambda path, records: path.write_text(json.dumps(records), encoding="utf-8"),
    "y.json": lambda path, records: path.write_text(
        json.dumps({"version": 1, "data": records}), encoding="utf-8"
    ),
    "x.csv": as_csv,
    "x.parquet": lambda path, records: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path),
}


def texts(*specs: Path | str, problems: Problems | None = None, **settings: Any) -> list[str]:
    corpus = CorpusConfig(**settings)
    return [d.text for d in read_documents([str(s) for s in specs], corpus, problems or Problems(1))]


def messages(*specs: Path | str, problems: Problems | None = None, **settings: Any) -> list[Any]:
    corpus = CorpusConfig(**settings)
    return [c.messages for c in read_conversations([str(s) for s in specs], corpus, problems or Problems(1))]


@pytest.mark.parametrize("name", WRITERS)
def test_records_of_every_format_are_read(tmp_path: Path, name: str):
    WRITERS[name](tmp_path / name, RECORDS)
    problems = Problems()
    assert texts(tmp_path / name, problems=problems) == TEXTS
    assert problems.n_records == len(TEXTS)
    assert list(problems.guesses) == ["text is read from field 'text'"]
    assert texts(tmp_path / name, text_field="title") == [r["title"] for r in RECORDS]


@pytest.mark.parametrize("name", ["x.txt", "x.md", "x.jsonl", "x.csv"])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_are_read(tmp_path: Path, name: str, suffix: str):
    plain = tmp_path / name
    WRITERS.get(name, lambda p, r: p.write_text(r[0]["text"], encoding="utf-8"))(plain, RECORDS)
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    (tmp_path / (name + suffix)).write_bytes(pack(plain.read_bytes()))
    assert texts(tmp_path / (name + suffix)) == texts(plain)


def test_a_text_file_is_a_document_and_end_of_text_marks_split_it(tmp_path: Path):
    (tmp_path / "a.txt").write_text("\ufeffone\r\ntwo\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text(
        "one\n<|endoftext|>\ntwo<|endoftext|>\r\n\nthree<|endoftext|>", encoding="utf-8"
    )
    assert texts(tmp_path / "a.txt") == ["one\r\ntwo\n"]
    assert texts(tmp_path / "b.txt") == ["one\n", "two", "\nthree"]


def test_folders_and_globs_are_read_in_order_without_hidden_and_unknown_files(tmp_path: Path):
    for name in ("b.txt", "a.md", "sub/c.txt", ".git/d.txt", ".e.txt", "f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a.md", "b.txt", "sub/c.txt"]
    assert texts(tmp_path / "**/*.txt") == ["b.txt", "sub/c.txt"]
    assert texts(tmp_path / "b.txt", tmp_path / "a.md") == ["b.txt", "a.md"]


def test_conversations_of_a_file_are_read_with_their_form_guessed(tmp_path: Path):
    as_jsonl(tmp_path / "x.jsonl", CHATS)
    as_jsonl(tmp_path / "y.jsonl", [{"chat_log": c["messages"], "messages": None} for c in CHATS])
    as_jsonl(tmp_path / "z.jsonl", [c["messages"] for c in CHATS])
    problems = Problems()
    expected = [c["messages"] for c in CHATS]
    assert messages(tmp_path / "x.jsonl", problems=problems) == expected
    assert list(problems.guesses) == ["conversations are read from 'messages'"]
    assert messages(tmp_path / "y.jsonl", chat_field="chat_log") == expected
    assert messages(tmp_path / "z.jsonl") == expected


def test_bad_lines_are_counted_reported_with_file_and_line_and_skipped(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    lines = [json.dumps(r).encode() for r in RECORDS]
    lines[3], lines[5] = b'{"text": "cut', b'{"text": "caf\xe9"}'
    lines[7], lines[9] = b'{"text": 5}', b'{"other": "x"}'
    lines[11], lines[13], lines[15] = b'{"text": ""}', b"", b'{"text": null}'
    path.write_bytes(b"\n".join(lines))
    problems = Problems(0.2)
    assert len(texts(path, problems=problems)) == len(TEXTS) - 7
    assert problems.n_bad == 4
    assert problems.n_records == len(TEXTS) - 1  # a blank line is no record
    assert problems.skipped == {"empty document": 2}
    where = "\n".join(problems.examples)
    for line, what in (
        (4, "not JSON"),
        (6, "not UTF-8 (byte 0xe9 at column 14)"),
        (8, "not text (int)"),
        (10, "no field 'text'"),
    ):
        assert f"{path}:{line}: {what}" in where


def test_lines_of_a_text_that_are_not_utf8_are_bad(tmp_path: Path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"".join(b"good line %d\n" % i for i in range(199)) + b"caf\xe9\n")
    problems = Problems(0.01)
    (text,) = texts(path, problems=problems)
    assert text.count("\n") == 199
    assert problems.examples == [f"{path}:200: not UTF-8 (byte 0xe9 at column 4)"]


def test_too_many_bad_records_are_one_error_with_examples(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "good"}\n' * 90 + "{\n" * 10)
    message = rf"10 of 100 records are bad, above corpus\.max_bad_fraction \(0\.05\).*\n  {path}:91: not JSON"
    with pytest.raises(UserError, match=message):
        texts(path, problems=Problems(0.05))
    assert len(texts(path, problems=Problems(0.1))) == 90


def test_a_source_of_nothing_but_bad_records_is_refused_early(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "good"}\n' * 30 + "{\n" * 100_000)
    problems = Problems(0.01)
    with pytest.raises(UserError, match="records are bad"):
        texts(path, problems=problems)
    assert problems.n_records < 2000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"\x89PNG\r\n\x1a\n\0\0\0" * 50, "is not text: it holds zero bytes"),
        ("x.jsonl", b"\x00\x01" * 50, "is not text"),
        ("x.txt", "utf-16 text".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("x.parquet", b"not parquet at all", "cannot be read as Parquet"),
        ("x.json", b'[{"text": "a"},', "is not JSON"),
        ("x.txt.gz", gzip.compress(TEXTS[0].encode() * 99)[:-20], "is damaged"),
        ("x.txt.gz", b"not gzip", "is damaged"),
        ("x.txt.zst", b"not zstd", "is damaged"),
        (
            "x.jsonl",
            b'{"n": 1}\n{"n": 2}\n',
            r"no text field among its fields \(n\); name it with corpus.text_field",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_one_error(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        texts(tmp_path / name)


@pytest.mark.parametrize(
    ("spec", "message"),
    [("missing.txt", "no such file"), ("*.txt", "no such file"), (".", "holds no file to read")],
)
def test_specs_without_files_are_refused(tmp_path: Path, spec: str, message: str):
    with pytest.raises(UserError, match=message):
        expand(str(tmp_path / spec))


def test_text_is_refused_as_conversations_and_the_reverse(tmp_path: Path):
    (tmp_path / "x.txt").write_text("text")
    as_jsonl(tmp_path / "t.jsonl", RECORDS)
    as_jsonl(tmp_path / "c.jsonl", CHATS)
    with pytest.raises(UserError, match="is no file of conversations"):
        messages(tmp_path / "x.txt")
    with pytest.raises(UserError, match="chat_field"):
        messages(tmp_path / "t.jsonl")
    with pytest.raises(UserError, match="text_field"):
        texts(tmp_path / "c.jsonl")


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_giant_documents_are_split_and_nothing_is_lost(tmp_path: Path, name: str):
    text = "".join(story(i) for i in range(2000))
    if name == "x.txt":
        (tmp_path / name).write_text(text, encoding="utf-8")
    else:
        as_jsonl(tmp_path / name, [{"text": text}])
    problems = Problems()
    parts = texts(tmp_path / name, max_document_mb=0.1, problems=problems)
    assert problems.n_splits == len(parts) - 1
    assert "".join(parts) == text
    assert len(parts) > 2
    assert max(map(len, parts)) <= 100_000
    assert all(part.endswith("\n") for part in parts)


def test_csv_rows_with_other_columns_are_bad(tmp_path: Path):
    (tmp_path / "x.csv").write_text('id,text\n1,"a\nb"\n2\n3,c,d\n4,e\n')
    problems = Problems(1)
    assert texts(tmp_path / "x.csv", problems=problems) == ["a\nb", "e"]
    assert problems.bad == {"wrong number of columns": 2}


def test_a_sample_takes_from_each_file_its_share(tmp_path: Path):
    for name, first in (("a", 0), ("b", 1000), ("c", 2000)):
        as_jsonl(tmp_path / f"{name}.jsonl", [{"text": story(i)} for i in range(first, first + 300)])
    (tmp_path / "d.txt").write_text("".join(story(i) for i in range(3000, 3100)), encoding="utf-8")
    sample = list(
        sample_texts([str(tmp_path / "[abc].jsonl"), str(tmp_path / "d.txt")], CorpusConfig(), 0.03)
    )
    from_each = [
        sum(f"Story {first // 1000}" in t and len(t) < 1000 for t in sample) for first in (1000, 2000)
    ]
    assert 0.02e6 < sum(map(len, sample)) < 0.06e6
    assert min(from_each) > 20
    everything = list(sample_texts([str(tmp_path)], CorpusConfig(), 100))
    assert len(everything) == 901
