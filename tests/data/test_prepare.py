import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import story

from onesitting.config import CorpusConfig
from onesitting.data import encode
from onesitting.data.prepare import POINTER_FILE, PrepareProgress, prepare_conversations, prepare_documents
from onesitting.data.tokens import ChatFile, TokenFile
from onesitting.errors import UserError
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.tokenizer.chat import render

TEXTS = [story(i, 3 + i % 9) for i in range(400)]


def write_records(path: Path, field: str, items: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({field: item}) + "\n" for item in items), encoding="utf-8")
    return path


def write_jsonl(path: Path, texts: list[str]) -> Path:
    return write_records(path, "text", texts)


def prepare(tmp_path: Path, tokenizer: Tokenizer, *specs: Path, progress: Any = None, **settings: Any):
    corpus = CorpusConfig(**{"cache": str(tmp_path / "cache"), "workers": 1, "val_fraction": 0.1, **settings})
    names = tuple(map(str, specs))
    return prepare_documents(names, tokenizer, corpus, tmp_path / "out", 0, progress=progress)


def documents_of(file: TokenFile, tokenizer: Tokenizer) -> list[str]:
    """Texts read back; each must end with the one end-of-text token it has."""
    texts: list[str] = []
    for start, length in zip(file.doc_starts, file.lengths, strict=True):
        ids = file.tokens[start : start + length].tolist()
        assert ids.index(tokenizer.eos_id) == length - 1
        texts.append(tokenizer.decode(ids))
    return texts


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "tokens.json"}


def test_every_document_comes_back_from_one_of_the_splits(tmp_path: Path, tokenizer: Tokenizer):
    folder = prepare(tmp_path, tokenizer, write_jsonl(tmp_path / "x.jsonl", TEXTS))
    train, val = documents_of(folder.train, tokenizer), documents_of(folder.val, tokenizer)
    assert sorted(train + val) == sorted(TEXTS)
    assert 0.05 < len(val) / len(TEXTS) < 0.15
    assert train == [t for t in TEXTS if t in set(train)]  # in order
    assert folder.train.n_bytes == sum(len(t.encode()) for t in train)
    assert folder.val.n_bytes == sum(len(t.encode()) for t in val)
    assert folder.info["splits"]["train"]["n_items"] == len(train)
    assert folder.info["splits"]["train"]["n_tokens"] == folder.train.n_tokens
    assert folder.info["tokenizer_hash"] == tokenizer.hash


def test_the_validation_split_depends_on_content_not_on_shards_or_order(tmp_path: Path, tokenizer: Tokenizer):
    one = prepare(tmp_path / "a", tokenizer, write_jsonl(tmp_path / "a/x.jsonl", TEXTS))
    for number, part in enumerate((TEXTS[300:], TEXTS[:150], TEXTS[150:250])):  # fewer, reordered, in shards
        write_jsonl(tmp_path / f"b/shards/{number}.jsonl", part)
    many = prepare(tmp_path / "b", tokenizer, tmp_path / "b/shards")
    present = set(TEXTS[:250] + TEXTS[300:])
    assert set(documents_of(many.val, tokenizer)) == set(documents_of(one.val, tokenizer)) & present
    assert len(documents_of(many.val, tokenizer)) > 10


def test_exact_duplicates_are_dropped_and_counted(tmp_path: Path, tokenizer: Tokenizer):
    folder = prepare(tmp_path, tokenizer, write_jsonl(tmp_path / "x.jsonl", TEXTS[:50] + TEXTS[20:60] * 2))
    assert folder.info["n_duplicates"] == 70
    assert sorted(documents_of(folder.train, tokenizer) + documents_of(folder.val, tokenizer)) == sorted(
        TEXTS[:60]
    )


def test_a_corpus_with_an_empty_validation_split_holds_out_its_smallest_hash(
    tmp_path: Path, tokenizer: Tokenizer
):
    texts = [story(i, 5) for i in range(20)]
    folder = prepare(tmp_path, tokenizer, write_jsonl(tmp_path / "x.jsonl", texts), val_fraction=1e-9)
    smallest = min(texts, key=lambda t: encode.content_hash(encode.Document(t, "")))
    assert documents_of(folder.val, tokenizer) == [smallest]
    assert documents_of(folder.train, tokenizer) == [t for t in texts if t != smallest]


def test_a_corpus_of_one_document_is_validated_on_its_end(tmp_path: Path, tokenizer: Tokenizer):
    text = "".join(TEXTS)
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    folder = prepare(tmp_path, tokenizer, tmp_path / "book.txt")
    (train,), (val,) = documents_of(folder.train, tokenizer), documents_of(folder.val, tokenizer)
    assert train + val == text
    assert 2000 < folder.val.n_tokens < 0.2 * folder.train.n_tokens
    assert folder.train.n_bytes + folder.val.n_bytes == len(text.encode())


def test_separate_validation_files_are_the_split_and_are_not_trained_on(tmp_path: Path, tokenizer: Tokenizer):
    train, val = (
        write_jsonl(tmp_path / "t.jsonl", TEXTS[:100]),
        write_jsonl(tmp_path / "v.jsonl", TEXTS[90:120]),
    )
    folder = prepare(tmp_path, tokenizer, train, val_data=(str(val),))
    assert documents_of(folder.train, tokenizer) == TEXTS[:90]
    assert documents_of(folder.val, tokenizer) == TEXTS[90:120]


def test_threads_write_the_same_files_as_one(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(encode, "CHUNK_CHARACTERS", 10_000)
    path = write_jsonl(tmp_path / "x.jsonl", TEXTS)
    seen: list[PrepareProgress] = []
    one = prepare(tmp_path / "1", tokenizer, path, progress=seen.append)
    assert len(seen) > 3
    assert seen[-1].n_items == len(TEXTS)
    assert seen[-1].n_bytes == sum(len(t.encode()) for t in TEXTS)
    two = prepare(tmp_path / "2", tokenizer, path, workers=2)
    assert file_bytes(one.path) == file_bytes(two.path)


def dialogues(n: int) -> list[list[dict[str, str]]]:
    return [
        [{"role": "user", "content": f"Story {i}?"}, {"role": "assistant", "content": story(i, 40)}]
        for i in range(n)
    ]


def test_processes_write_the_same_conversations_as_one(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(encode, "CHUNK_CHARACTERS", 10_000)
    path = write_records(tmp_path / "x.jsonl", "messages", dialogues(100))
    written: list[dict[str, bytes]] = []
    for workers in (1, 2):
        corpus = CorpusConfig(cache=str(tmp_path / f"cache{workers}"), workers=workers, val_fraction=0.1)
        folder = prepare_conversations((str(path),), tokenizer, corpus, tmp_path / str(workers), 0)
        written.append(file_bytes(folder.path))
    assert written[0] == written[1]


SCRIPT = """
import sys
from pathlib import Path
from onesitting.config import CorpusConfig
from onesitting.data import encode
from onesitting.data.prepare import prepare_conversations, prepare_documents
from onesitting.tokenizer.bpe import Tokenizer
encode.CHUNK_CHARACTERS = 5_000
tmp, workers = Path(sys.argv[1]), int(sys.argv[2])
corpus = CorpusConfig(cache=str(tmp / "cache"), workers=workers, val_fraction=0.1)
prepare = prepare_documents if sys.argv[3] == "text" else prepare_conversations
def main():
    prepare((str(tmp / "x.jsonl"),), Tokenizer.load(tmp / "tokenizer"), corpus, tmp / "out", 0)
    assert "torch" not in sys.modules
"""
GUARDED = SCRIPT + "if __name__ == '__main__':\n    main()\n"


def start(
    tmp_path: Path, tokenizer: Tokenizer, script: str, workers: int, items: Sequence[Any], field: str = "text"
) -> subprocess.Popen[str]:
    write_records(tmp_path / "x.jsonl", field, items)
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(encode.__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), str(workers), field]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def parts_in(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob("cache/*.partial/*/train/0*.npz"))


def wait_for_parts(tmp_path: Path, process: subprocess.Popen[str], n: int) -> None:
    while len(parts_in(tmp_path)) < n:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def test_a_killed_preparation_goes_on_and_gives_the_same_files(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    texts = [story(i, 40) for i in range(2000)]
    process = start(tmp_path, tokenizer, GUARDED, 1, texts)
    wait_for_parts(tmp_path, process, 10)
    process.kill()
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in parts_in(tmp_path)}
    monkeypatch.setattr(encode, "CHUNK_CHARACTERS", 5_000)
    rewritten: list[int] = []

    def watch(progress: PrepareProgress) -> None:
        rewritten.append(sum(path.stat().st_mtime_ns != time_ns for path, time_ns in kept.items()))

    resumed = prepare(tmp_path, tokenizer, tmp_path / "x.jsonl", progress=watch)
    assert len(kept) >= 10
    assert set(rewritten) == {0}
    assert not list(tmp_path.glob("cache/*.partial"))
    undisturbed = prepare(tmp_path / "other", tokenizer, tmp_path / "x.jsonl")
    assert file_bytes(resumed.path) == file_bytes(undisturbed.path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path: Path, tokenizer: Tokenizer):
    process = start(tmp_path, tokenizer, GUARDED, 2, dialogues(4000), "messages")
    wait_for_parts(tmp_path, process, 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(children) >= 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}/cmdline").exists() and is_alive(child) for child in children):
        assert time.monotonic() < deadline, children
        time.sleep(0.02)


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_script_without_a_main_guard_is_prepared_in_one_process(tmp_path: Path, tokenizer: Tokenizer):
    process = start(tmp_path, tokenizer, SCRIPT + "main()\n", 2, dialogues(50), "messages")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "out" / POINTER_FILE).exists()


def test_prepared_data_is_found_again_and_shared_between_runs(tmp_path: Path, tokenizer: Tokenizer):
    path = write_jsonl(tmp_path / "x.jsonl", TEXTS)
    first = prepare(tmp_path, tokenizer, path)
    made = (first.path / "tokens.json").stat().st_mtime_ns
    copy = write_jsonl(tmp_path / "elsewhere/y.jsonl", TEXTS)
    calls: list[PrepareProgress] = []
    second = prepare(tmp_path, tokenizer, copy, progress=calls.append)
    assert second.path == first.path
    assert calls == []
    assert (first.path / "tokens.json").stat().st_mtime_ns == made
    pointer = json.loads((tmp_path / "out" / POINTER_FILE).read_text())
    assert pointer["folder"] == str(first.path)
    assert first.path.name == pointer["key"] == first.info["key"]


def test_other_content_settings_or_tokenizer_are_prepared_anew(tmp_path: Path, tokenizer: Tokenizer):
    path = write_jsonl(tmp_path / "x.jsonl", TEXTS)
    other = Tokenizer(tokenizer.tokenizer_json + " ")
    folders = [
        prepare(tmp_path, tokenizer, path).path,
        prepare(tmp_path, tokenizer, path, val_fraction=0.2).path,
        prepare(tmp_path, other, path).path,
        prepare(tmp_path, tokenizer, write_jsonl(path, [*TEXTS, "One more."])).path,
    ]
    assert len(set(folders)) == 4
    assert prepare(tmp_path, tokenizer, path, workers=3, max_bad_fraction=0.5).path == folders[3]


def test_without_a_cache_the_files_lie_in_the_run(tmp_path: Path, tokenizer: Tokenizer):
    path = write_jsonl(tmp_path / "x.jsonl", TEXTS)
    folder = prepare(tmp_path, tokenizer, path, cache="")
    assert folder.path == tmp_path / "out"
    again = prepare(tmp_path, tokenizer, write_jsonl(path, TEXTS[:50]), cache="")
    assert again.path == folder.path
    assert again.train.n_documents + again.val.n_documents == 50


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, "<u2"), ((1 << 16) + 1, "<u4")])
def test_every_id_fits_the_type_of_the_tokens(vocab_size: int, dtype: str):
    kind = encode.token_dtype(vocab_size)
    assert kind == np.dtype(dtype)
    assert np.array([vocab_size - 1]).astype(kind)[0] == vocab_size - 1


def test_problems_and_guesses_are_written_down(tmp_path: Path, tokenizer: Tokenizer):
    path = write_jsonl(tmp_path / "x.jsonl", TEXTS)
    with open(path, "a") as file:
        file.write("{\n")
    folder = prepare(tmp_path, tokenizer, path, max_bad_fraction=0.01)
    problems = folder.info["problems"]
    assert problems["bad"] == {"not JSON": 1}
    assert problems["examples"][0].startswith(f"{path}:401: not JSON")
    assert problems["guesses"] == {"text is read from field 'text'": 1}
    with pytest.raises(UserError, match="1 of 401 records are bad"):
        prepare(tmp_path, tokenizer, path, max_bad_fraction=0.001, cache=str(tmp_path / "new"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no documents in 0 records"),
        (b" \n \n", "no documents in 2 records, 1 empty document"),
        (b"\0", "not text"),
    ],
)
def test_nothing_to_train_on_is_one_error(tmp_path: Path, tokenizer: Tokenizer, content: bytes, message: str):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, tokenizer, tmp_path / "x.txt")


def test_a_cache_that_cannot_be_written_is_one_error(tmp_path: Path, tokenizer: Tokenizer):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        prepare(tmp_path, tokenizer, write_jsonl(tmp_path / "x.jsonl", TEXTS), cache=str(tmp_path / "file"))


def chats(n: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"Tell {i}."}, {"role": "assistant", "content": story(i)}]}
        for i in range(n)
    ]


def prepare_chats(tmp_path: Path, tokenizer: Tokenizer, records: list[dict[str, Any]]):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    corpus = CorpusConfig(cache=str(tmp_path / "cache"), workers=1, val_fraction=0.2)
    return prepare_conversations((str(path),), tokenizer, corpus, tmp_path / "out", 0)


def conversations_of(file: ChatFile) -> list[tuple[list[int], list[bool]]]:
    parts = [slice(s, s + n) for s, n in zip(file.starts.tolist(), file.lengths.tolist(), strict=True)]
    return [(file.tokens[p].tolist(), file.trained[p].astype(bool).tolist()) for p in parts]


def test_conversations_keep_their_ids_and_mask(tmp_path: Path, tokenizer: Tokenizer):
    records = chats(60)
    folder = prepare_chats(tmp_path, tokenizer, records + records[:5])
    found = conversations_of(folder.train) + conversations_of(folder.val)
    assert sorted(found) == sorted(render(tokenizer, r["messages"]) for r in records)
    assert folder.val.n_conversations > 3
    assert folder.info["n_duplicates"] == 5
    trained = folder.info["splits"]["train"]["n_trained"]
    assert trained == int(folder.train.trained.sum()) > 0


def test_a_single_conversation_is_in_both_splits(tmp_path: Path, tokenizer: Tokenizer):
    folder = prepare_chats(tmp_path, tokenizer, chats(1))
    assert conversations_of(folder.train) == conversations_of(folder.val)
    assert folder.train.n_conversations == 1


def test_the_world_is_prepared_like_files(tmp_path: Path, tokenizer: Tokenizer):
    corpus = CorpusConfig(cache=str(tmp_path / "cache"), workers=1, val_fraction=0.1, world_mb=0.1)
    folder = prepare_documents(("world",), tokenizer, corpus, tmp_path / "text", 0)
    assert 80_000 < folder.train.n_bytes + folder.val.n_bytes < 120_000
    chat = prepare_conversations(("world",), tokenizer, corpus, tmp_path / "chat", 0)
    assert chat.train.n_conversations > 10
