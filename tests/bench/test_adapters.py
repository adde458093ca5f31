"""The adapters of benchmarks/race: same validation as ours, and a run on a checkout of a (tiny, own) peer."""

import importlib.util
import json
import math
import subprocess
import sys
import textwrap
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from onesitting.config import CorpusConfig, ModelConfig
from onesitting.data.prepare import prepare_documents
from onesitting.evaluation.bits_per_byte import bits_per_byte
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.bpe import train_tokenizer

RACE = Path(__file__).resolve().parents[2] / "benchmarks" / "race"

# A peer as nanoGPT presents itself: model.py with GPT and GPTConfig; a bigram table of its own.
PEER = """
from dataclasses import dataclass
import torch
import torch.nn.functional as F

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)

    def forward(self, x, y):
        logits = self.table(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten())
"""


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("race_peer", RACE / "peer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["race_peer"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """(tokenizer, prepared tokens, their folder)."""
    folder = tmp_path_factory.mktemp("course")
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "saw",
        "one",
        "small",
        "dog",
        "run",
        "over",
        "some",
        "green",
        "hill",
    ]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 30)) for _ in range(150)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = train_tokenizer(texts, 320)
    corpus = CorpusConfig(cache="", val_fraction=0.2, workers=1)
    data = prepare_documents((str(folder / "text.jsonl"),), tokenizer, corpus, folder / "tokens", 0)
    return tokenizer, data, folder / "tokens"


def options(folder: Path, **changes) -> Namespace:
    given = {
        "train": folder / "train.bin", "val": folder / "val.bin", "tokens_json": folder / "tokens.json",
        "n_val_tokens": 200, "context": 32,
        "device": "cpu", "seconds": 100.0, "validations": 4, "fast": False, "epochs": 0.0,
    }  # fmt: skip
    return Namespace(**{**given, **changes})


@pytest.mark.parametrize("n_val_tokens", [192, 200, 97])
def test_validation_of_peers_is_that_of_ours(peer, course, n_val_tokens):
    tokenizer, data, folder = course
    shape = ModelConfig(
        n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=64, vocab_size=tokenizer.vocab_size,
        context_length=32,
    )  # fmt: skip
    model = Transformer(shape, seed=0)
    ours = bits_per_byte(
        model, data.val, tokenizer.token_bytes, context=32, max_tokens=n_val_tokens, device="cpu",
        dtype=torch.float32,
    )  # fmt: skip

    def loss_of(x, y):
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    given = options(folder, n_val_tokens=n_val_tokens)
    theirs = peer.validation_loss(peer.Tokens.load(given), given, loss_of)
    if n_val_tokens == 97:  # one token would be left for a window of its own; it is left out
        assert theirs == pytest.approx(ours.nats_per_token, rel=0.02)
    else:
        assert theirs == pytest.approx(ours.nats_per_token, rel=1e-5)


def test_rows_of_an_epoch_hold_every_token_once_in_another_order_each_time(peer, course):
    _, data, folder = course
    tokens = peer.Tokens.load(options(folder))
    rows = tokens.epoch_rows(40, np.random.default_rng(0))
    text = np.asarray(data.train.tokens).astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(text, 41)
    n = (len(text) - 41) // 40  # an epoch has this many rows, or one more
    places = [
        int(np.flatnonzero((windows == row.numpy()).all(axis=1))[0]) for row in (next(rows) for _ in range(n))
    ]
    assert (
        len({place % 40 for place in places}) == 1
    )  # cuts at equal distances: no target twice, none left out
    assert len(set(places)) == n
    assert places != sorted(places)


def test_an_adapter_trains_a_checkout_of_a_peer_and_reports_to_the_race(course, tmp_path):
    tokenizer, data, folder = course
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "model.py").write_text(textwrap.dedent(PEER))
    results = tmp_path / "results.jsonl"
    command = [
        sys.executable, str(RACE / "nanogpt.py"), "--peer", str(tmp_path / "peer"),
        "--train", str(folder / "train.bin"),
        "--val", str(folder / "val.bin"), "--tokens-json", str(folder / "tokens.json"), "--n-val-tokens", "192",
        "--vocab-size", str(tokenizer.vocab_size), "--seconds", "1000", "--results", str(results), "--context", "32",
        "--block-size", "32", "--learning-rate", "0.05", "--validations", "3", "--device", "cpu",
        "--epochs", "8",  # by tokens, so that a busy machine trains as much as a quiet one
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    first, *points = [json.loads(line) for line in results.read_text().splitlines()]
    assert first["n_parameters"] == tokenizer.vocab_size**2
    assert 1 <= len(points) <= 3
    assert points[-1]["tokens"] % (12 * 32) == 0
    assert points[-1]["val_nats_per_token"] < math.log(tokenizer.vocab_size)
    assert points[-1]["compile_s"] == 0
    assert data.val.n_tokens >= 192


def test_the_clock_leaves_compilation_out_and_spaces_validations_in_its_logarithm(peer, course, tmp_path):
    _, _, folder = course
    given = options(folder, results=tmp_path / "r.jsonl", seconds=1000.0, validations=3)
    run = peer.Run(given, peer.Tokens.load(given), 1)
    assert run.due == pytest.approx([1 / 40, (1 / 40) ** 0.5, 1.0])
    run.began -= 400
    assert run.progress == pytest.approx(0.4, abs=0.01)
    run.compile_s = 150
    assert run.progress == pytest.approx(0.25, abs=0.01)
    assert run.total_steps(50) == pytest.approx(200, abs=2)
    given.epochs, run.n_tokens = 2.0, len(run.tokens.train)
    assert run.progress == 0.5
