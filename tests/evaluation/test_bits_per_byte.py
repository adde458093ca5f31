"""Bits per byte against values computed by hand and in closed form."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onesitting.config import CorpusConfig, ModelConfig
from onesitting.data.prepare import prepare_conversations
from onesitting.errors import UserError
from onesitting.evaluation.bits_per_byte import bits_per_byte, chat_bits_per_byte
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.bpe import train_tokenizer

V = 64
TOKEN_BYTES = [b""] + [b"x" * (1 + i % 3) for i in range(1, V)]  # id 0 ends a document


def tiny_model(vocab_size: int = V) -> Transformer:
    cfg = ModelConfig(
        n_layers=2,
        d_model=32,
        n_heads=2,
        n_kv_heads=1,
        head_dim=16,
        d_ff=64,
        vocab_size=vocab_size,
        context_length=16,
    )
    model = Transformer(cfg, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # fresh models start near uniform; larger weights make context matter
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def token_file(n: int = 101) -> Any:
    tokens = np.random.default_rng(3).integers(1, V, n).astype(np.uint16)
    starts = np.array([start for start in (0, 7, 30, 32, 64) if start < n])
    tokens[starts - 1] = 0  # each document ends with the end of text; that of the last one is the file's last
    return SimpleNamespace(tokens=tokens, doc_starts=starts, eos_id=0)


def by_hand(model: nn.Module, ids: list[int], context: int) -> tuple[float, int]:
    """(nats, bytes), one target at a time, each from its own forward pass over its window's prefix."""
    nats, n_bytes = 0.0, 0
    for i in range(1, len(ids)):
        first = (i - 1) // context * context
        logits = model(torch.tensor([ids[first:i]]))[0, -1].double()
        nats -= float(torch.log_softmax(logits, -1)[ids[i]])
        n_bytes += len(TOKEN_BYTES[ids[i]])
    return nats, n_bytes


@torch.no_grad()
def test_it_equals_the_value_computed_token_by_token() -> None:
    model, file = tiny_model(), token_file()
    nats, n_bytes = by_hand(model, [0, *file.tokens.tolist()], 16)
    found = bits_per_byte(model, file, TOKEN_BYTES, context=16, max_tokens=1000, device="cpu")
    assert (found.n_tokens, found.n_bytes) == (101, n_bytes)
    assert found.bits_per_byte == pytest.approx(nats / n_bytes / math.log(2), rel=1e-5)
    assert found.nats_per_token == pytest.approx(nats / 101, rel=1e-5)


@torch.no_grad()
def test_isolated_documents_equal_documents_measured_alone() -> None:
    """With a window as long as the file, each document's cost is what it costs in a row of its own."""
    model, file = tiny_model(), token_file(60)
    ids = file.tokens.tolist()
    nats = 0.0
    bounds = [*file.doc_starts.tolist(), len(ids)]
    for start, end in itertools.pairwise(bounds):
        targets = ids[start:end]
        log_probs = torch.log_softmax(model(torch.tensor([[0, *targets[:-1]]]))[0], -1)
        nats -= float(log_probs[range(len(targets)), targets].sum())
    isolated = bits_per_byte(model, file, TOKEN_BYTES, context=60, max_tokens=60, device="cpu", isolate=True)
    joined = bits_per_byte(model, file, TOKEN_BYTES, context=60, max_tokens=60, device="cpu")
    assert isolated.nats_per_token * 60 == pytest.approx(nats, rel=1e-5)
    assert abs(joined.nats_per_token * 60 - nats) > 0.1


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 7, 100])
def test_it_does_not_depend_on_the_batch_size(batch_rows: int) -> None:
    model, file = tiny_model(), token_file()
    one = bits_per_byte(model, file, TOKEN_BYTES, context=16, max_tokens=101, batch_rows=4, device="cpu")
    other = bits_per_byte(
        model, file, TOKEN_BYTES, context=16, max_tokens=101, batch_rows=batch_rows, device="cpu"
    )
    assert other.bits_per_byte == pytest.approx(one.bits_per_byte, rel=1e-6)


def test_a_uniform_model_needs_log2_of_the_vocabulary_per_token() -> None:
    model, file = tiny_model(), token_file()
    with torch.no_grad():
        model.output_weight.zero_()
    found = bits_per_byte(model, file, TOKEN_BYTES, context=16, max_tokens=50, device="cpu")
    n_bytes = sum(len(TOKEN_BYTES[i]) for i in file.tokens[:50])
    assert found.nats_per_token == pytest.approx(math.log(V), rel=1e-6)
    assert found.bits_per_byte == pytest.approx(50 * math.log2(V) / n_bytes, rel=1e-6)


def test_only_the_first_max_tokens_count() -> None:
    model, short, long = tiny_model(), token_file(40), token_file(40)
    long.tokens = np.concatenate([long.tokens, np.full(100, 5, np.uint16)])
    measured = [
        bits_per_byte(model, f, TOKEN_BYTES, context=16, max_tokens=40, device="cpu") for f in (short, long)
    ]
    assert measured[0] == measured[1]


def test_bfloat16_agrees_within_its_rounding() -> None:
    model, file = tiny_model(), token_file()
    exact = bits_per_byte(model, file, TOKEN_BYTES, context=16, max_tokens=101, device="cpu")
    rough = bits_per_byte(
        model, file, TOKEN_BYTES, context=16, max_tokens=101, device="cpu", dtype=torch.bfloat16
    )
    assert rough.bits_per_byte == pytest.approx(exact.bits_per_byte, rel=0.02)


def test_the_model_is_left_in_the_mode_it_was_in() -> None:
    model = tiny_model().train()
    bits_per_byte(model, token_file(), TOKEN_BYTES, context=16, max_tokens=101, device="cpu")
    assert model.training


@pytest.mark.parametrize("tokens", [[], [0], [0, 0, 0]])
def test_no_text_is_refused_with_the_setting_to_change(tokens: list[int]) -> None:
    empty = SimpleNamespace(tokens=np.array(tokens, np.uint16), doc_starts=np.array([0]), eos_id=0)
    with pytest.raises(UserError, match=r"corpus\.val_fraction"):
        bits_per_byte(tiny_model(), empty, TOKEN_BYTES, context=16, max_tokens=10, device="cpu")


@torch.no_grad()
def test_chat_counts_the_replies_of_each_conversation_as_if_it_stood_alone(tmp_path: Path) -> None:
    talks = [
        [
            {"role": "user", "content": f"Question {i}?"},
            {"role": "assistant", "content": "Yes. " * (1 + i % 5)},
        ]
        for i in range(60)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    tokenizer = train_tokenizer([json.dumps(talks)], 320)
    corpus = CorpusConfig(cache="", val_fraction=0.3, workers=1)
    chat = prepare_conversations((str(tmp_path / "chat.jsonl"),), tokenizer, corpus, tmp_path / "out", 0).val
    model = tiny_model(tokenizer.vocab_size)
    nats, n_tokens, n_bytes = 0.0, 0, 0
    for start, length in zip(chat.starts.tolist(), chat.lengths.tolist(), strict=True):
        ids, trained = chat.tokens[start : start + length].tolist(), chat.trained[start : start + length]
        log_probs = torch.log_softmax(model(torch.tensor([ids[:-1]]))[0].double(), -1)
        for i in range(1, length):
            if trained[i]:
                nats -= float(log_probs[i - 1, ids[i]])
                n_tokens += 1
                n_bytes += len(tokenizer.token_bytes[ids[i]])
    found = chat_bits_per_byte(
        model, chat, tokenizer.token_bytes, row_length=128, max_tokens=10**6, batch_rows=2, device="cpu"
    )
    assert chat.n_conversations > 5
    assert (found.n_tokens, found.n_bytes) == (n_tokens, n_bytes)
    assert found.bits_per_byte == pytest.approx(nats / n_bytes / math.log(2), rel=1e-5)
