import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import counting_documents

from onesitting.data.tokens import PADDING, ChatFolder, TokenFile, TokenFolder, n_epoch_rows, rows
from onesitting.errors import UserError


def lengths_like(kind: str, n: int = 400) -> list[int]:
    rng = np.random.default_rng(0)
    scale = {"short": (5, 60), "mixed": (2, 400), "long": (300, 2000)}[kind]
    return rng.integers(*scale, size=n if kind != "long" else n // 10).tolist()


def epoch(file: TokenFile, row_length: int, seed: int = 0, number: int = 0):
    n = n_epoch_rows(file, row_length)
    return rows(file, row_length=row_length, seed=seed, first_row=number * n, n_rows=n)


def targets_of(ids: np.ndarray, doc_ids: np.ndarray) -> np.ndarray:
    return ids[:, 1:][doc_ids[:, :-1] != PADDING]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=60),
    row_length=st.integers(1, 50),
    seed=st.integers(0, 5),
)
def test_every_token_is_a_target_exactly_once_an_epoch(
    tmp_path: Path, lengths: list[int], row_length: int, seed: int
):
    file = counting_documents(tmp_path, lengths).train
    for number in (0, 1):
        ids, doc_ids = epoch(file, row_length, seed, number)
        assert ids.shape == doc_ids.shape == (-(-sum(lengths) // row_length), row_length + 1)
        assert sorted(targets_of(ids, doc_ids).tolist()) == list(range(sum(lengths)))


@pytest.mark.parametrize("kind", ["short", "mixed", "long"])
def test_rows_hold_pieces_of_documents_in_reading_order(tmp_path: Path, kind: str):
    file = counting_documents(tmp_path, lengths_like(kind)).train
    ids, doc_ids = epoch(file, 64)
    document_of = np.repeat(np.arange(file.n_documents), file.lengths)
    starts = set(file.doc_starts.tolist())
    for row, numbers in zip(ids, doc_ids, strict=True):
        for number in range(numbers.max() + 1):
            inputs = np.flatnonzero(numbers[:-1] == number)
            aims = row[1:][inputs]
            assert (np.diff(inputs) == 1).all()
            assert (np.diff(aims) == 1).all()
            assert len(set(document_of[aims])) == 1
            if number == 0:  # the first input is the token before its target, so nothing lacks its context
                assert row[0] == (aims[0] - 1) % file.n_tokens
            elif (
                aims[0] not in starts
            ):  # the end of a document that was cut begins a row, except at an epoch's end
                assert (doc_ids == PADDING).any()


def test_an_end_of_text_as_input_belongs_to_the_document_it_opens(tmp_path: Path):
    file = counting_documents(tmp_path, [10] * 20).train
    ids, doc_ids = epoch(file, 40)
    assert (doc_ids[:, :40] == np.repeat([0, 1, 2, 3], 10)).all()
    for row in ids:
        assert {int(row[at]) % 10 for at in (0, 10, 20, 30)} == {9}  # the last token of some document


def test_nearly_all_rows_start_at_a_document_where_documents_are_short(tmp_path: Path):
    file = counting_documents(tmp_path, lengths_like("short", 3000)).train
    ids, _ = epoch(file, 128)
    starts = set(file.doc_starts.tolist())
    assert np.mean([int(row[1]) in starts for row in ids]) > 0.95


def test_rows_are_a_function_of_seed_and_row_alone(tmp_path: Path):
    folder = counting_documents(tmp_path, lengths_like("mixed"))
    n = n_epoch_rows(folder.train, 32)
    whole = rows(folder.train, row_length=32, seed=3, first_row=n - 5, n_rows=10)  # across an epoch's end
    for i in np.random.default_rng(0).permutation(10).tolist():
        fresh = TokenFolder(tmp_path).train if i % 2 else folder.train
        ids, doc_ids = rows(fresh, row_length=32, seed=3, first_row=n - 5 + i, n_rows=1)
        assert (ids[0] == whole[0][i]).all()
        assert (doc_ids[0] == whole[1][i]).all()


def test_epochs_and_seeds_have_their_own_order(tmp_path: Path):
    file = counting_documents(tmp_path, lengths_like("mixed")).train
    first = epoch(file, 32)[0]
    assert (first != epoch(file, 32, number=1)[0]).any(axis=1).mean() > 0.9
    assert (first != epoch(file, 32, seed=1)[0]).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_read_disjoint_rows_and_together_all_of_them_in_every_epoch(tmp_path: Path, world: int):
    file = counting_documents(tmp_path, lengths_like("mixed", 100)).train
    per_epoch = n_epoch_rows(file, 16)
    per_step = 2 * world
    seen: list[list[int]] = []
    for step in range(-(-2 * per_epoch // per_step)):
        for rank in range(world):
            ids, doc_ids = rows(file, row_length=16, seed=0, first_row=step * per_step + 2 * rank, n_rows=2)
            seen += [targets_of(ids[i : i + 1], doc_ids[i : i + 1]).tolist() for i in range(2)]
    for number in (0, 1):
        read = sorted(t for row in seen[number * per_epoch : (number + 1) * per_epoch] for t in row)
        assert read == list(range(file.n_tokens))


def test_a_corpus_shorter_than_a_row_is_one_row_with_padding(tmp_path: Path):
    file = counting_documents(tmp_path, [3, 4]).train
    ids, doc_ids = epoch(file, 16)
    assert ids.shape == (1, 17)
    assert (doc_ids[0] != PADDING).sum() == 7
    assert sorted(targets_of(ids, doc_ids).tolist()) == list(range(7))


def test_reading_a_row_takes_less_than_a_millisecond(tmp_path: Path):
    file = counting_documents(tmp_path, lengths_like("mixed", 3000)).train
    rows(file, row_length=512, seed=0, first_row=0, n_rows=1)  # plans the epoch
    started = time.perf_counter()
    rows(file, row_length=512, seed=0, first_row=0, n_rows=500)
    assert (time.perf_counter() - started) / 500 < 1e-3


def test_tokens_are_read_by_memory_map(tmp_path: Path):
    folder = counting_documents(tmp_path, [5, 5])
    assert isinstance(folder.train.tokens, np.memmap)
    assert not folder.train.tokens.flags.writeable


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "train.starts"])
def test_a_flipped_byte_is_refused(tmp_path: Path, name: str):
    counting_documents(tmp_path, [50, 50])
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}.*has changed.*prepare the data again"):
        TokenFolder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.bin", b"1234", "has 4 bytes, 400 were written"),
        ("tokens.json", b'{"kind": ', "cannot be read"),
        ("tokens.json", b"[]", "describes None"),
        ("train.bin", None, "cannot be read"),
        ("tokens.json", None, "cannot be read"),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str):
    counting_documents(tmp_path, [50, 50])
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        TokenFolder(tmp_path)


def test_documents_are_not_taken_for_conversations(tmp_path: Path):
    counting_documents(tmp_path, [5])
    with pytest.raises(UserError, match="describes documents, not conversations"):
        ChatFolder(tmp_path)
