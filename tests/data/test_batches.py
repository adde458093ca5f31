from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import chat_folder, counting_documents, story

from onesitting.data.examples import IGNORED, Batch, chat_rows, concatenate, n_chat_rows, pretrain_batch
from onesitting.data.tokens import PADDING, ChatFile, n_epoch_rows, rows
from onesitting.errors import UserError
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.tokenizer.chat import render

Rendered = tuple[list[int], list[bool]]


@pytest.fixture(scope="module")
def rendered(tokenizer: Tokenizer) -> list[Rendered]:
    """Conversations of one to three turns, short and long, some with thoughts, calls and a user's last word."""
    result: list[Rendered] = []
    for i in range(60):
        messages: list[dict[str, Any]] = [{"role": "system", "content": f"Be {i}."}] if i % 3 == 0 else []
        for turn in range(1 + i % 3):
            reply: dict[str, Any] = {"role": "assistant", "content": story(100 * i + turn, 1 + i % 5)}
            if i % 4 == 1:
                reply["reasoning_content"] = f"hm {i}"
            if i % 5 == 2:
                reply["tool_calls"] = [{"name": "f", "arguments": {"x": i}}]
            messages += [{"role": "user", "content": f"Tell {i} {turn}"}, reply]
        if i % 7 == 0:
            messages.append({"role": "user", "content": "Thanks."})
        result.append(render(tokenizer, messages))
    return result


@pytest.fixture
def chat(tmp_path: Path, rendered: list[Rendered], tokenizer: Tokenizer) -> ChatFile:
    return chat_folder(tmp_path, rendered, tokenizer.eos_id).train


def conversations_in(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of each conversation of a batch, read back by document number."""
    assert batch.doc_ids is not None
    found: list[tuple[list[int], list[int]]] = []
    for tokens, targets, numbers in zip(batch.tokens, batch.targets, batch.doc_ids, strict=True):
        for number in range(int(numbers.max()) + 1):
            here = numbers == number
            found.append((tokens[here].tolist(), targets[here].tolist()))
    return found


def expected_conversation(
    ids: list[int], trained: list[bool], row_length: int
) -> tuple[list[int], list[int]] | None:
    """What a row must hold of a conversation: cut at the row's end, then after the last trained target."""
    ids, trained = ids[: row_length + 1], trained[: row_length + 1]
    if not any(trained):
        return None
    last = max(i for i, t in enumerate(trained) if t)
    targets = [i if t else IGNORED for i, t in zip(ids[1 : last + 1], trained[1 : last + 1], strict=True)]
    return ids[:last], targets


@pytest.mark.parametrize("row_length", [48, 96, 512])
def test_the_loss_mask_survives_packing_truncation_and_collation(
    chat: ChatFile, rendered: list[Rendered], row_length: int
):
    n_rows = n_chat_rows(chat, row_length=row_length, seed=0)
    batch = chat_rows(chat, row_length=row_length, seed=0, first_row=0, n_rows=n_rows)
    expected = [expected_conversation(ids, trained, row_length) for ids, trained in rendered]
    assert sorted(conversations_in(batch)) == sorted(e for e in expected if e)
    assert batch.n_units == int((batch.targets != IGNORED).sum())


def test_the_end_of_turn_is_trained_and_padding_is_not_where_they_share_an_id(
    tmp_path: Path, rendered: list[Rendered], tokenizer: Tokenizer
):
    chat = chat_folder(tmp_path, rendered[:5], eos_id=tokenizer.im_end_id).train
    batch = chat_rows(
        chat, row_length=512, seed=0, first_row=0, n_rows=n_chat_rows(chat, row_length=512, seed=0)
    )
    n_turns = sum(
        t
        for ids, trained in rendered[:5]
        for i, t in zip(ids, trained, strict=True)
        if i == tokenizer.im_end_id
    )
    assert n_turns > 5
    assert int((batch.targets == tokenizer.im_end_id).sum()) == n_turns
    assert batch.doc_ids is not None
    assert (batch.targets[batch.doc_ids == PADDING] == IGNORED).all()


def test_a_truncated_reply_is_not_taught_to_stop(tmp_path: Path, tokenizer: Tokenizer):
    messages = [{"role": "user", "content": "Tell."}, {"role": "assistant", "content": story(1, 40)}]
    ids, trained = render(tokenizer, messages)
    chat = chat_folder(tmp_path, [(ids, trained)], tokenizer.eos_id).train
    end = ids.index(tokenizer.im_end_id, trained.index(True))
    for row_length, stops in ((end - 1, 0), (end, 1), (32, 0)):
        batch = chat_rows(chat, row_length=row_length, seed=0, first_row=0, n_rows=1)
        assert batch.n_units > 0
        assert int((batch.targets == tokenizer.im_end_id).sum()) == stops
        assert int((batch.targets == tokenizer.eos_id).sum()) == 0


def test_conversations_in_a_row_are_numbered_apart_with_positions_from_zero(chat: ChatFile):
    batch = chat_rows(chat, row_length=512, seed=0, first_row=0, n_rows=3)
    assert batch.doc_ids is not None
    assert batch.positions is not None
    for numbers, positions in zip(batch.doc_ids.tolist(), batch.positions.tolist(), strict=True):
        assert len(set(numbers)) > 2
        for (a, at_a), (b, at_b) in pairwise(zip(numbers, positions, strict=True)):
            assert at_b == (at_a + 1 if a == b else 0)
            assert b in (a, PADDING) or b == a + 1


def test_the_fraction_of_real_tokens_is_reported(chat: ChatFile, rendered: list[Rendered]):
    n_rows = n_chat_rows(chat, row_length=256, seed=0)
    batch = chat_rows(chat, row_length=256, seed=0, first_row=0, n_rows=n_rows)
    real = sum(len(e[0]) for ids, t in rendered if (e := expected_conversation(ids, t, 256)))
    assert batch.n_tokens == real
    assert batch.fraction_real == real / (n_rows * 256)
    assert batch.fraction_real > 0.8


def test_conversations_as_plain_text_train_every_token(chat: ChatFile, rendered: list[Rendered]):
    n_rows = n_chat_rows(chat, row_length=256, seed=0, train_all=True)
    batch = chat_rows(chat, row_length=256, seed=0, first_row=0, n_rows=n_rows, train_all=True)
    expected = sorted((ids[:-1][:256], ids[1:][:256]) for ids, _ in rendered)
    assert sorted(conversations_in(batch)) == expected
    open_rows = chat_rows(
        chat, row_length=256, seed=0, first_row=0, n_rows=n_rows, train_all=True, isolate=False
    )
    assert open_rows.doc_ids is None
    assert (open_rows.targets == batch.targets).all()
    assert open_rows.n_tokens == batch.n_tokens


def test_chat_rows_are_a_function_of_seed_and_row_and_ranks_read_disjoint_ones(
    chat: ChatFile, rendered: list[Rendered]
):
    per_epoch = n_chat_rows(chat, row_length=96, seed=1)
    whole = chat_rows(chat, row_length=96, seed=1, first_row=0, n_rows=2 * per_epoch)
    one_by_one = [chat_rows(chat, row_length=96, seed=1, first_row=i, n_rows=1) for i in range(2 * per_epoch)]
    assert (torch.cat([b.tokens for b in one_by_one]) == whole.tokens).all()
    first, second = whole.split(per_epoch)
    assert sorted(first.tokens.tolist()) == sorted(second.tokens.tolist())
    assert (first.tokens != second.tokens).any()


def test_conversations_with_no_target_within_a_row_are_left_out(tmp_path: Path, tokenizer: Tokenizer):
    long_prompt = render(
        tokenizer, [{"role": "user", "content": story(1, 50)}, {"role": "assistant", "content": "Yes."}]
    )
    short = render(tokenizer, [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."}])
    chat = chat_folder(tmp_path / "both", [long_prompt, short]).train
    assert len(conversations_in(chat_rows(chat, row_length=32, seed=0, first_row=0, n_rows=1))) == 1
    only = chat_folder(tmp_path / "one", [long_prompt]).train
    with pytest.raises(UserError, match="no conversation has a trained token within 32 tokens"):
        chat_rows(only, row_length=32, seed=0, first_row=0, n_rows=1)


def test_a_prompt_ends_where_the_first_reply_begins(chat: ChatFile, rendered: list[Rendered]):
    for index, (ids, trained) in enumerate(rendered):
        assert chat.prompt(index) == ids[: trained.index(True)]


def test_pretraining_targets_are_the_next_tokens_and_padding_is_ignored(tmp_path: Path):
    file = counting_documents(tmp_path, [7, 30, 12, 5, 40]).train
    n = n_epoch_rows(file, 20)
    ids, doc_ids = rows(file, row_length=20, seed=0, first_row=0, n_rows=n)
    batch = pretrain_batch(ids, doc_ids, isolate=True)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert (batch.tokens.numpy() == ids[:, :-1]).all()
    assert sorted(batch.targets[batch.targets != IGNORED].tolist()) == list(range(94))
    assert batch.n_units == batch.n_tokens == 94
    assert batch.fraction_real == 94 / (n * 20)
    assert pretrain_batch(ids, doc_ids, isolate=False).doc_ids is None


def test_a_batch_with_nothing_to_learn_has_no_units():
    ids = np.zeros((2, 9), dtype=np.int64)
    batch = pretrain_batch(ids, np.full((2, 9), PADDING, dtype=np.int32), isolate=True)
    assert (batch.n_units, batch.n_tokens) == (0, 0)
    assert (batch.targets == IGNORED).all()


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_micro_batches_are_the_batch_cut_into_rows(chat: ChatFile, size: int):
    batch = chat_rows(chat, row_length=64, seed=0, first_row=0, n_rows=7)
    parts = batch.split(size)
    assert max(len(part.tokens) for part in parts) <= size
    assert sum(part.n_units for part in parts) == batch.n_units
    assert sum(part.n_tokens for part in parts) == batch.n_tokens
    joined = concatenate(parts)
    for name in ("tokens", "targets", "doc_ids", "positions"):
        assert (getattr(joined, name) == getattr(batch, name)).all()


def test_shorter_rows_hold_the_same_tokens(tmp_path: Path):
    file = counting_documents(tmp_path, [7, 30, 12, 5, 40, 26]).train
    ids, doc_ids = rows(file, row_length=24, seed=0, first_row=0, n_rows=5)
    batch = pretrain_batch(ids, doc_ids, isolate=True)
    short = batch.reshape_rows(8)
    assert short.tokens.shape == (15, 8)
    assert (short.tokens.flatten() == batch.tokens.flatten()).all()
    assert (short.n_units, short.n_tokens) == (batch.n_units, batch.n_tokens)
    assert short.positions is not None
    assert (short.positions[:, 0] == 0).all()
    with pytest.raises(UserError, match="divides the context length"):
        batch.reshape_rows(7)
