"""Contracts 10 and 12 for ONNX: onnxruntime gives our logits with and without a cache, and our greedy text."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_models import SHAPES, random_model

from onesitting.checkpoint import load_model, save_model
from onesitting.config import ModelConfig
from onesitting.errors import UserError
from onesitting.export.onnx import write_onnx
from onesitting.export.source import Source, open_source
from onesitting.inference.generate import generate
from onesitting.inference.sampling import Sampling
from onesitting.tokenizer.bpe import Tokenizer

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
MakeSource = Callable[[str], Source]
Array = npt.NDArray[Any]


class Runtime:
    """An exported graph under onnxruntime, with the cache that it gave back."""

    def __init__(self, path: Path, cfg: ModelConfig, batch: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [i.name for i in self.session.get_inputs() if i.name.startswith("past_key_values")]
        empty = np.zeros((batch, cfg.n_kv_heads, 0, cfg.head_dim), np.float32)
        self.past = dict.fromkeys(self.names, empty)
        self.mask = np.zeros((batch, 0), np.int64)

    def read(self, ids: list[list[int]], mask: list[list[int]] | None = None) -> Array:
        """Logits (B, T, V) of the next tokens; mask: 0 for padding."""
        new = np.ones_like(ids) if mask is None else np.array(mask)
        self.mask = np.concatenate([self.mask, new], axis=1)
        positions = np.maximum(self.mask.cumsum(axis=1) - 1, 0)[:, -new.shape[1] :]
        logits, *present = self.session.run(
            None,
            {"input_ids": np.array(ids), "attention_mask": self.mask, "position_ids": positions, **self.past},
        )
        self.past = dict(zip(self.names, present, strict=True))
        return logits


@pytest.fixture
def exported(make_source: MakeSource, tmp_path: Path) -> Callable[[str], tuple[Source, Path]]:
    def make(shape: str) -> tuple[Source, Path]:
        source = make_source(shape)
        return source, write_onnx(source, tmp_path / f"{shape}.onnx")

    return make


@pytest.mark.parametrize("shape", SHAPES)
def test_onnxruntime_gives_our_logits_in_one_piece_in_chunks_and_token_by_token(
    shape: str, exported: Callable[[str], tuple[Source, Path]]
) -> None:
    source, path = exported(shape)
    ids = torch.randint(9, source.cfg.vocab_size, (2, 21), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        ours = load_model(source.folder)(ids).numpy()
    for cuts in ([21], [5, 9, 7], [1] * 21):
        runtime = Runtime(path, source.cfg, batch=2)
        parts = [runtime.read(part.tolist()) for part in ids.split(cuts, dim=1)]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), ours, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", ["qwen3", "gpt2"])
def test_rows_of_unequal_length_padded_at_the_left_do_not_see_each_other_or_the_padding(
    shape: str, exported: Callable[[str], tuple[Source, Path]]
) -> None:
    source, path = exported(shape)
    long, short = list(range(20, 32)), list(range(40, 45))
    padding = len(long) - len(short)
    both = Runtime(path, source.cfg, batch=2)
    mask = [[1] * len(long), [0] * padding + [1] * len(short)]
    first = both.read([long, [0] * padding + short], mask)
    alone = Runtime(path, source.cfg, batch=1)
    np.testing.assert_allclose(first[1, padding:], alone.read([short])[0], atol=1e-4)
    np.testing.assert_allclose(both.read([[50], [51]])[1], alone.read([[51]])[0], atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_onnxruntime_writes_our_100_greedy_tokens(
    shape: str, exported: Callable[[str], tuple[Source, Path]]
) -> None:
    source, path = exported(shape)
    prompt = source.tokenizer.encode("The cat sat on the")
    sampling = Sampling(temperature=0, max_tokens=100)
    ours = generate(load_model(source.folder), source.tokenizer, [prompt], sampling, set())[0].ids
    runtime, theirs, new = Runtime(path, source.cfg, batch=1), [], prompt
    for _ in range(100):
        new = [int(runtime.read([new])[0, -1].argmax())]
        theirs += new
    assert theirs == ours


def test_a_tied_matrix_is_stored_once(exported: Callable[[str], tuple[Source, Path]]) -> None:
    source, path = exported("qwen3_tied")
    stored = [tuple(weight.dims) for weight in onnx.load(path).graph.initializer]
    wide = [shape for shape in stored if source.cfg.vocab_size in shape]
    assert wide == [(source.cfg.vocab_size, source.cfg.d_model)]


def test_a_shape_without_a_format_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    cfg = replace(SHAPES["gpt2"], positions="rope", vocab_size=tokenizer.vocab_size)
    save_model(tmp_path / "m", random_model(cfg), tokenizer)
    with pytest.raises(UserError, match=r'nearest is gpt2: set model\.positions="learned"'):
        write_onnx(open_source(str(tmp_path / "m")), tmp_path / "m.onnx")
