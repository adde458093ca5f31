"""The matrix limit: what is counted, measured and kept."""

import json
import time
from dataclasses import replace

import pytest
import torch

from onesitting.config import DeviceConfig, ModelConfig
from onesitting.model.transformer import Transformer
from onesitting.train import limit
from onesitting.train.device import plan_device
from onesitting.train.hardware import detect
from onesitting.train.limit import measure_matrix_limit, products

SHAPE = ModelConfig(
    n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=128, vocab_size=256, context_length=64
)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
def test_products_are_those_of_the_models_matrices(mlp):
    cfg = replace(SHAPE, mlp=mlp, tie_embeddings=False)
    expected = {}
    for name, parameter in Transformer(cfg).named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            outer, inner = parameter.shape
            expected[inner, outer] = expected.get((inner, outer), 0) + 1
    assert {(p.inner, p.outer): p.count for p in products(cfg)} == expected


def test_limit_is_measured_in_about_a_second_and_no_single_product_beats_it_by_much(tmp_path):
    plan = replace(
        plan_device(DeviceConfig(device="cpu", dtype="float32"), detect()), micro_batch_tokens=1024
    )
    began = time.process_time()
    rate = measure_matrix_limit(plan, SHAPE, tmp_path / "limits.json")
    assert time.process_time() - began < 1.5 * max(2, torch.get_num_threads())
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    best = min(_seconds(a, b) for _ in range(10))
    # A larger product may run faster than the model's small ones; far apart they cannot be on one machine.
    assert 0.02 < rate / (2 * 512**3 / best) < 5


def _seconds(a, b):
    began = time.perf_counter()
    a @ b
    return time.perf_counter() - began


def test_the_highest_measurement_is_kept(tmp_path, monkeypatch):
    cache = tmp_path / "deep" / "limits.json"
    plan = plan_device(DeviceConfig(device="cpu"), detect())
    rates = iter([3e9, 1e9, 5e9])
    seconds = []

    def measured(plan, shapes, time_s):
        seconds.append(time_s)
        return next(rates)

    monkeypatch.setattr(limit, "_measure", measured)
    assert [measure_matrix_limit(plan, SHAPE, cache) for _ in range(3)] == [3e9, 3e9, 5e9]
    assert seconds == [limit.FIRST_S, limit.AGAIN_S, limit.AGAIN_S]
    assert list(json.loads(cache.read_text()).values()) == [5e9]


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"a": "fast"}', "\x00\x01"])
def test_a_damaged_cache_is_measured_anew(tmp_path, monkeypatch, content):
    cache = tmp_path / "limits.json"
    cache.write_text(content)
    monkeypatch.setattr(limit, "_measure", lambda plan, shapes, time_s: 7e9)
    assert measure_matrix_limit(plan_device(DeviceConfig(device="cpu"), detect()), SHAPE, cache) == 7e9


def test_each_dtype_and_thread_count_has_its_own_entry(tmp_path, monkeypatch):
    cache = tmp_path / "limits.json"
    monkeypatch.setattr(limit, "_measure", lambda plan, shapes, time_s: 1e9)
    for dtype in ("float32", "bfloat16"):
        for threads in (1, 2):
            measure_matrix_limit(
                plan_device(DeviceConfig(device="cpu", dtype=dtype, threads=threads), detect()), SHAPE, cache
            )
    assert len(json.loads(cache.read_text())) == 4
