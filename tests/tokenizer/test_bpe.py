import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_texts import some_texts
from tokenizers import models, pre_tokenizers, trainers

from onesitting.errors import UserError
from onesitting.tokenizer.bpe import SPECIAL_TOKENS, Tokenizer, compression_report, train_tokenizer

EVERY_CHARACTER = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def backend_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizers.Tokenizer.from_str(tokenizer.tokenizer_json).encode(text, add_special_tokens=False).ids


def test_special_tokens_are_the_first_ids(tokenizer: Tokenizer):
    assert [tokenizer.special_ids[token] for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert (tokenizer.eos_id, tokenizer.im_start_id, tokenizer.im_end_id) == (0, 1, 2)
    assert tokenizer.stop_ids == {0, 2}
    assert all(tokenizer.token_bytes[i] == b"" for i in range(len(SPECIAL_TOKENS)))


@settings(derandomize=True, max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
def test_decoding_gives_back_any_text_and_both_encoders_agree(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, text]) == [ids, ids]
    if not any(token in text for token in SPECIAL_TOKENS):
        assert ids == backend_ids(tokenizer, text)


def test_tiktoken_and_tokenizers_give_the_same_ids_for_every_character_of_unicode(tokenizer: Tokenizer):
    assert tokenizer._fast is not None
    # 64 characters a text, with letters, blanks and digits between them, so that every word boundary is met
    step = 64
    assigned = [c for c in EVERY_CHARACTER if ord(c) < 0x32000 or ord(c) >= 0xE0000]
    blocks = [assigned[i : i + step] for i in range(0, len(assigned), step)]
    texts = [f"a{'b '.join(block)}1 {''.join(block)}" for block in blocks]
    backend = tokenizers.Tokenizer.from_str(tokenizer.tokenizer_json)
    expected = [e.ids for e in backend.encode_batch(texts, add_special_tokens=False)]
    assert tokenizer.encode_batch(texts) == expected


@settings(derandomize=True, max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(min_value=0, max_value=10_000), max_size=30))
def test_decode_bytes_joins_the_bytes_of_any_ids(tokenizer: Tokenizer, ids: list[int]):
    ids = [i % tokenizer.vocab_size for i in ids]
    joined = tokenizer.decode_bytes(ids)
    assert joined == b"".join(tokenizer.decode_bytes([i]) for i in ids)
    assert tokenizer.decode(ids) == joined.decode("utf-8", errors="replace")


def test_special_tokens_spelled_in_a_text_stay_text(tokenizer: Tokenizer):
    text = " ".join(SPECIAL_TOKENS)
    for ids in (tokenizer.encode(text), tokenizer.encode_batch([text])[0]):
        assert min(ids) >= len(SPECIAL_TOKENS)
        assert tokenizer.decode(ids) == text


def test_special_tokens_stay_text_where_tiktoken_cannot_encode(tokenizer: Tokenizer):
    text = "<think><|im_end|>" + " " * 1_200_000 + "x"  # tiktoken's expression fails on so long a run
    ids = tokenizer.encode(text)
    assert not {0, 1, 2, 3} & set(ids)
    assert tokenizer.decode(ids) == text


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_digits_are_tokens_of_their_own(tokenizer: Tokenizer):
    assert [tokenizer.token_bytes[i] for i in tokenizer.encode("12345")] == [b"1", b"2", b"3", b"4", b"5"]


def test_the_same_texts_give_the_same_tokenizer():
    assert train_tokenizer(some_texts(), 400).hash == train_tokenizer(some_texts(), 400).hash


def test_vocabulary_size_is_rounded_up_to_a_multiple_of_64():
    assert train_tokenizer(some_texts(), 301).vocab_size == 320


def test_small_corpus_gives_a_smaller_vocabulary_filled_up_with_unused_ids():
    tokenizer = train_tokenizer(["ab ab ab"], 4096)
    assert tokenizer.vocab_size == 320
    assert tokenizer.n_unused == 320 - 9 - 256 - 2  # "ab" and " ab" occur twice
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size
    assert tokenizer.decode([tokenizer.vocab_size - 1]) == ""


def test_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size is 264.*at least 265"):
        train_tokenizer(["text"], 264)


def test_no_text_is_refused():
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([], 512)


def test_saved_tokenizer_loads_with_the_same_ids_and_hash(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.hash == tokenizer.hash
    assert [loaded.encode(t) for t in some_texts(20, 1)] == [tokenizer.encode(t) for t in some_texts(20, 1)]


@pytest.mark.parametrize("model_type", [None, "qwen3", "llama", "gpt2"])
def test_transformers_loads_the_folder_with_the_same_ids(
    tokenizer: Tokenizer, tmp_path: Path, model_type: str | None
):
    tokenizer.save(tmp_path)
    if model_type:  # beside a model, AutoTokenizer may prefer the model's own class
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (2, 0, None)
    for text in [*some_texts(50, 2), " leading", "e\u0301 stays decomposed", "a  b\n\n\tc"]:
        ids = tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.decode(ids) == text


def test_gpt2_style_tokenizer_loads_with_the_same_ids(tmp_path: Path):
    backend: Any = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(some_texts(), trainer=trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded._fast is not None
    assert loaded.vocab_size == 400
    for text in some_texts(50, 3):
        assert loaded.encode(text) == backend.encode(text).ids
        assert loaded.decode(loaded.encode(text)) == text
    with pytest.raises(UserError, match="im_end"):
        _ = loaded.im_end_id


def test_merges_that_ranks_cannot_reproduce_are_left_to_tokenizers(tokenizer: Tokenizer, tmp_path: Path):
    spec = json.loads(tokenizer.tokenizer_json)
    spec["model"]["merges"].reverse()  # ids no longer rise along the merges
    odd = Tokenizer(json.dumps(spec))
    assert odd._fast is None
    assert [odd.encode(t) for t in some_texts(20, 4)] == [backend_ids(odd, t) for t in some_texts(20, 4)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ('{"model": {"type": "Unigram", "vocab": []}}', "not a byte-level BPE"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', "of the 256 bytes are no tokens"),
    ],
)
def test_other_tokenizers_are_refused_with_one_message(tmp_path: Path, content: str, message: str):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer\.path"):
        Tokenizer.load(tmp_path / "missing")


def test_compression_report_counts_bytes_per_token(tokenizer: Tokenizer):
    texts = some_texts(50, 5)
    report = compression_report(tokenizer, texts, some_texts())
    n_bytes = sum(len(t.encode()) for t in texts)
    assert report["n_bytes"] == n_bytes
    assert report["bytes_per_token"] == n_bytes / sum(len(tokenizer.encode(t)) for t in texts)
    assert 1 < report["gpt2_bytes_per_token"] < 10


def test_importing_the_tokenizer_does_not_import_torch():
    code = "import sys, onesitting.tokenizer.bpe, onesitting.tokenizer.chat; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
