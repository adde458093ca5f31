"""`bench generate`: both sides write the same text, and the rates are tokens over seconds."""

import json

import pytest
import torch

from onesitting.bench import generate as bench
from onesitting.checkpoint import save_model
from onesitting.config import ModelConfig
from onesitting.errors import UserError
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([bench.TEXT] * 20, 320)
    shape = ModelConfig(
        n_layers=2, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=64, vocab_size=tokenizer.vocab_size,
        context_length=160,
    )  # fmt: skip
    model = Transformer(shape, seed=1)
    with torch.no_grad():  # far from ties, so that rounding cannot change the likeliest token
        for parameter in model.parameters():
            parameter.mul_(3.0)
    save_model(folder, model, tokenizer)
    return folder


def test_ours_and_transformers_write_the_same_greedy_text(model_folder, tmp_path, capsys):
    pytest.importorskip("transformers")
    save = tmp_path / "speed.json"
    found = bench.bench_generate(
        str(model_folder), streams=(1, 5), tokens=12, repeats=1, device="cpu", threads=1, save=save
    )
    assert json.loads(save.read_text()) == found
    assert [(s["streams"], s["same"], s["first_difference"]) for s in found["speeds"]] == [
        (1, 5, None), (5, 5, None),
    ]  # fmt: skip
    for speed in found["speeds"]:
        assert speed["ratio"] == pytest.approx(speed["ours_per_s"] / speed["theirs_per_s"])
        assert speed["ours_per_s"] > 1
    assert [speed["n_texts"] for speed in found["speeds"]] == [5, 5]
    assert "5 of 5" in capsys.readouterr().out


def test_ids_that_the_tokenizer_has_no_entry_for_are_written_as_well(model_folder, tmp_path):
    pytest.importorskip("transformers")
    tokenizer = Tokenizer.load(model_folder)
    n_rows = tokenizer.vocab_size + 40  # as Qwen3's embedding, which is longer than its list of entries
    shape = ModelConfig(
        n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=64, vocab_size=n_rows, context_length=160,
        tie_embeddings=False,
    )  # fmt: skip
    model = Transformer(shape, seed=1)
    with torch.no_grad():  # no entry is ever the likeliest
        model.output_weight.normal_(generator=torch.Generator().manual_seed(0))[: tokenizer.vocab_size] = 0.0
    save_model(tmp_path, model, tokenizer)
    found = bench.bench_generate(str(tmp_path), streams=(2,), tokens=8, repeats=1, device="cpu", threads=1)
    assert found["speeds"][0]["same"] == 2


def test_a_difference_is_found_at_its_place():
    assert bench._first_difference([1, 2, 3], [1, 2, 3]) is None
    assert bench._first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert bench._first_difference([1, 2, 3], [1, 2]) == 2


def test_prompts_have_unequal_lengths_and_begin_as_documents_do(model_folder):
    tokenizer = Tokenizer.load(model_folder)
    [prompts] = bench._prompts(tokenizer, 9)
    assert len({len(prompt) for prompt in prompts}) == 9
    assert all(prompt[0] == tokenizer.eos_id for prompt in prompts)


def test_one_stream_writes_several_texts_one_after_the_other(model_folder):
    tokenizer = Tokenizer.load(model_folder)
    groups = bench._prompts(tokenizer, 1)
    assert [len(prompts) for prompts in groups] == [1] * bench.N_ALONE
    assert len({tuple(prompt) for [prompt] in groups}) == bench.N_ALONE


def test_more_tokens_than_the_context_holds_are_refused_with_what_fits(model_folder):
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match=r"use at most 1\d\d"):
        bench.bench_generate(str(model_folder), streams=(1,), tokens=160, device="cpu", threads=1)
    with pytest.raises(UserError, match="--dtype int8"):
        bench.bench_generate(str(model_folder), dtype="int8")


def test_numbers_of_streams_are_checked(cli):
    done = cli("bench", "generate", "nowhere", "--streams", "1,many")
    assert done.returncode == 2
    assert "--streams 1,many: numbers above 0" in done.stderr
