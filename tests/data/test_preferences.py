"""Preferences: the forms that are read, the loss mask, packed rows, the split."""

import json
from pathlib import Path

import numpy as np
import pytest
import zstandard

from onesitting.config import CorpusConfig
from onesitting.data.examples import IGNORED
from onesitting.data.preference_records import NoPreference, preference_of
from onesitting.data.preference_rows import epoch_rows, n_preference_rows, packed, preference_rows
from onesitting.data.prepare import prepare_preferences
from onesitting.data.records import Record, RecordError
from onesitting.data.tokens import PreferenceFolder
from onesitting.errors import UserError
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer
from onesitting.tokenizer.chat import render

USER = {"role": "user", "content": "How are you?"}
GOOD = {"role": "assistant", "content": "Well, thank you."}
BAD = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be kind."}
HELLO = {"role": "assistant", "content": "Hello!"}

FORMS: dict[str, Record] = {
    "texts": {"prompt": "How are you?", "chosen": "Well, thank you.", "rejected": "No."},
    "lists of messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "single messages": {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
    "whole conversations": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "UltraFeedback, binarized": {
        "prompt": "How are you?", "prompt_id": "f", "chosen": [USER, GOOD], "rejected": [USER, BAD],
        "messages": [USER, GOOD], "score_chosen": 8.0, "score_rejected": 2.0,
    },
    "UltraFeedback": {
        "instruction": "How are you?",
        "completions": [
            {"response": "No.", "overall_score": 1.0}, {"response": "Hm.", "overall_score": 4},
            {"response": "Well, thank you.", "overall_score": 8.5},
        ],
    },
    "HH-RLHF": {
        "chosen": "\n\nHuman: How are you?\n\nAssistant: Well, thank you.",
        "rejected": "\n\nHuman: How are you?\n\nAssistant: No.",
    },
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "How are you?"}],
        "chosen": {"from": "gpt", "value": "Well, thank you."}, "rejected": {"from": "gpt", "value": "No."},
    },
    "Intel's Orca pairs": {"question": "How are you?", "chosen": "Well, thank you.", "rejected": "No.", "system": ""},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pair(form: str) -> None:
    pair = preference_of(FORMS[form], "x:1")
    assert (pair.prompt, pair.chosen, pair.rejected) == ([USER], [GOOD], [BAD])


def test_what_whole_conversations_share_is_the_prompt() -> None:
    start = [SYSTEM, USER, HELLO, USER]
    pair = preference_of({"chosen": [*start, GOOD], "rejected": [*start, BAD, USER, HELLO]}, "x:1")
    assert pair.prompt == start
    assert pair.chosen == [GOOD]
    assert pair.rejected == [BAD, USER, HELLO]


@pytest.mark.parametrize(
    ("label", "good"), [(True, True), (False, False), (1, True), (0, False), ("bad", False)]
)
def test_a_label_makes_a_reply_chosen_or_rejected(label: object, good: bool) -> None:
    for record in (
        {"messages": [USER, GOOD], "label": label},
        {"prompt": "How are you?", "completion": "Well, thank you.", "label": label},
    ):
        one = preference_of(record, "x:1")
        assert one.prompt == [USER]
        assert (one.chosen, one.rejected) == (([GOOD], None) if good else (None, [GOOD]))


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Hi", "chosen": "Hello"},
        {"chosen": "Hello", "rejected": "No"},
        {"chosen": [USER, GOOD], "rejected": [HELLO, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER]},
        {"messages": [USER], "label": True},
        {"messages": [USER, GOOD], "label": {}},
        {"prompt": "Hi", "chosen": 3, "rejected": "No"},
        {"prompt": "Hi", "chosen": [3], "rejected": "No"},
    ],
)
def test_a_record_without_a_preference_is_refused(record: Record) -> None:
    with pytest.raises(RecordError):
        preference_of(record, "x:1")


def test_equal_replies_are_skipped_and_no_fault() -> None:
    with pytest.raises(NoPreference):
        preference_of({"prompt": "Hi", "chosen": "Yes", "rejected": "Yes"}, "x:1")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["How are you? Well, thank you. No. " * 40], 320)


def records(n: int) -> list[Record]:
    return [
        {
            "prompt": [{"role": "user", "content": f"Question {i // 3} " + "and more " * (i % 5)}],
            "chosen": f"Well {i}." * (1 + i % 4),
            "rejected": f"No {i}." * (1 + i % 3),
        }
        for i in range(n)
    ]


def prepared(tmp_path: Path, tokenizer: Tokenizer, rows: list[Record], name: str = "a") -> PreferenceFolder:
    path = tmp_path / f"{name}.jsonl.zst"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(zstandard.compress(text.encode()))
    corpus = CorpusConfig(cache="", workers=1)
    return prepare_preferences((str(path),), tokenizer, corpus, tmp_path / name, 0)


def test_only_the_reply_is_trained_and_its_end_of_turn(tmp_path: Path, tokenizer: Tokenizer) -> None:
    prompt = [USER, HELLO, USER]
    folder = prepared(tmp_path, tokenizer, [{"prompt": prompt, "chosen": [GOOD], "rejected": [BAD]}])
    for number, reply in ((0, GOOD), (1, BAD)):
        ids, trained = folder.train.side(number)
        assert ids.tolist() == render(tokenizer, [*prompt, reply])[0]
        words = tokenizer.decode(ids[trained].tolist(), skip_special=False)
        assert words == f"{reply['content']}<|im_end|>"
    start = render(tokenizer, prompt, add_generation_prompt=True)[0]
    assert folder.train.prompt(0) == start


def test_rows_hold_every_pair_once_with_targets_of_its_replies_alone(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    file = prepared(tmp_path, tokenizer, records(60)).train
    n = n_preference_rows(file, row_length=128, seed=1, paired=True)
    rows = epoch_rows(file, row_length=128, seed=1, first_row=0, n_rows=n, paired=True)
    batch = preference_rows(file, rows, row_length=128, seed=1, paired=True)
    assert sorted(batch.sides.tolist()) == list(range(2 * file.n_preferences))
    assert batch.n_units == file.n_preferences
    assert (batch.sides.view(-1, 2) % 2).tolist() == [[0, 1]] * batch.n_units
    assert (batch.sides[::2] // 2).diff().abs().max() > 1, "the order is mixed"
    for place, side in enumerate(batch.sides.tolist()):
        ids, trained = file.side(side)
        assert batch.targets[batch.owner == place].tolist() == ids[trained].tolist()
        assert int(batch.lengths[place]) == trained.sum()
    assert ((batch.owner >= 0) == (batch.targets != IGNORED)).all()
    again = preference_rows(file, rows, row_length=128, seed=1, paired=True)
    assert batch.tokens.equal(again.tokens)


def test_replies_without_a_partner_are_sides_of_their_own(tmp_path: Path, tokenizer: Tokenizer) -> None:
    singles = [{"messages": [{**USER, "content": f"Q {i}"}, GOOD], "label": i % 2} for i in range(30)]
    file = prepared(tmp_path, tokenizer, singles).train
    n = n_preference_rows(file, row_length=64, seed=0, paired=False)
    batch = preference_rows(file, range(n), row_length=64, seed=0, paired=False)
    assert batch.n_units == file.n_preferences == len(batch.sides)
    assert {int(side) // 2 for side in batch.sides} == set(range(file.n_preferences))
    with pytest.raises(UserError, match="kto"):
        n_preference_rows(file, row_length=64, seed=0, paired=True)


def test_a_reply_cut_at_the_rows_end_is_not_taught_to_stop(tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = {"prompt": "Hi", "chosen": "word " * 200, "rejected": "No."}
    file = prepared(tmp_path, tokenizer, [long]).train
    batch = preference_rows(file, [0], row_length=32, seed=0, paired=True)
    assert tokenizer.im_end_id not in batch.targets[0]
    assert tokenizer.im_end_id in batch.targets[1]
    assert batch.tokens.shape == (2, 32)


def test_conversations_of_no_file_are_packed_with_the_same_targets() -> None:
    rng = np.random.default_rng(0)
    examples = [(rng.integers(1, 50, n), np.arange(n) > n // 2) for n in (9, 30, 4, 17)]
    batch = packed(examples, [5, 6, 7, 8], row_length=32, eos_id=0)
    for place, (ids, trained) in enumerate(examples):
        assert batch.targets[batch.owner == place].tolist() == ids[trained].tolist()
    assert batch.sides.tolist() == [5, 6, 7, 8]


def test_all_replies_to_a_prompt_are_held_out_or_none_whatever_else_is_there(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rows = [{"prompt": f"Question {i // 3}", "chosen": f"Yes {i}", "rejected": f"No {i}"} for i in range(300)]

    def split(folder: PreferenceFolder) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, file in (("train", folder.train), ("val", folder.val)):
            for i in range(file.n_preferences):
                prompt = tokenizer.decode(file.prompt(i))
                assert found.setdefault(prompt, name) == name
        return found

    whole, half = (
        split(prepared(tmp_path, tokenizer, rows)),
        split(prepared(tmp_path, tokenizer, rows[150:], "b")),
    )
    assert set(whole.values()) == {"train", "val"}
    assert half.items() <= whole.items()


def test_the_worlds_pairs_are_prepared_and_cached(tmp_path: Path, tokenizer: Tokenizer) -> None:
    corpus = CorpusConfig(cache=str(tmp_path / "cache"), world_pairs=12, workers=1)
    folder = prepare_preferences(("world",), tokenizer, corpus, tmp_path / "a", 0)
    again = prepare_preferences(("world",), tokenizer, corpus, tmp_path / "b", 0)
    assert folder.path == again.path
    assert folder.train.n_preferences + folder.val.n_preferences + folder.info["n_duplicates"] == 12
    assert (np.diff(folder.train.edges) > 0).all()


def test_a_file_of_something_else_is_refused_with_an_example(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="no chosen and rejected"):
        prepared(tmp_path, tokenizer, [{"text": "a story"}] * 4)
