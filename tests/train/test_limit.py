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


def cpu_plan(**settings):
    return plan_device(DeviceConfig(device="cpu", **settings), detect())


def rates_in_turn(monkeypatch, *rounds):
    """Make every probe of the n-th measurement reach rounds[n]; returns the seconds that each was given."""
    seconds = []
    todo = [rate for rate in rounds for _ in products(SHAPE)]

    def measured(plan, probe, time_s):
        seconds.append(time_s)
        return todo.pop(0)

    monkeypatch.setattr(limit, "_rate", measured)
    return seconds


def test_the_highest_measurement_is_kept_and_looked_for_again_in_a_quarter_of_the_time(tmp_path, monkeypatch):
    cache = tmp_path / "deep" / "limits.json"
    seconds = rates_in_turn(monkeypatch, 3e9, 1e9, 5e9)
    found = [measure_matrix_limit(cpu_plan(), SHAPE, cache) for _ in range(3)]
    assert found == pytest.approx([3e9, 3e9, 5e9])
    n = len(products(SHAPE))
    assert [sum(seconds[i : i + n]) for i in (0, n, 2 * n)] == pytest.approx(
        [limit.FIRST_S, limit.AGAIN_S, limit.AGAIN_S]
    )
    assert set(json.loads(cache.read_text()).values()) == {5e9}


def test_the_limit_is_operations_over_time_each_shape_at_its_own_rate(tmp_path, monkeypatch):
    rates = {(p.inner, p.outer): 1e9 * (i + 1) for i, p in enumerate(products(SHAPE))}

    def measured(plan, probe, time_s):
        _, inner, outer = probe.name.split()[-1].split("x")
        return rates[int(inner), int(outer)]

    monkeypatch.setattr(limit, "_rate", measured)
    operations = {(p.inner, p.outer): p.inner * p.outer * p.count for p in products(SHAPE)}
    expected = sum(operations.values()) / sum(operations[shape] / rates[shape] for shape in rates)
    assert measure_matrix_limit(cpu_plan(), SHAPE, tmp_path / "limits.json") == pytest.approx(expected)


def test_a_shape_that_two_models_share_is_known_from_the_first(tmp_path, monkeypatch):
    cache = tmp_path / "limits.json"
    seconds = rates_in_turn(monkeypatch, 1e9, 1e9)
    measure_matrix_limit(cpu_plan(), SHAPE, cache)
    measure_matrix_limit(cpu_plan(), replace(SHAPE, n_layers=9), cache)
    assert seconds[-1] == pytest.approx(limit.AGAIN_S / len(products(SHAPE)))


def test_measuring_afresh_forgets_what_was_known(tmp_path, monkeypatch):
    cache = tmp_path / "limits.json"
    for rate, fresh, expected in ((9e9, False, 9e9), (4e9, False, 9e9), (4e9, True, 4e9)):
        monkeypatch.setattr(limit, "_rate", lambda plan, probe, time_s, rate=rate: rate)
        found = limit.measure_limits(cpu_plan(), SHAPE, 32, cache, fresh=fresh)
        assert found.matrix == pytest.approx(expected)
        assert found.memory_bytes_per_s == expected


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"a": "fast"}', "\x00\x01"])
def test_a_damaged_cache_is_measured_anew(tmp_path, monkeypatch, content):
    cache = tmp_path / "limits.json"
    cache.write_text(content)
    monkeypatch.setattr(limit, "_rate", lambda plan, probe, time_s: 7e9)
    assert measure_matrix_limit(cpu_plan(), SHAPE, cache) == pytest.approx(7e9)


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(limit, "_rate", lambda plan, probe, time_s: 7e9)
    assert measure_matrix_limit(cpu_plan(), SHAPE, tmp_path / "file" / "limits.json") == pytest.approx(7e9)


def test_each_dtype_and_thread_count_has_its_own_entries(tmp_path, monkeypatch):
    cache = tmp_path / "limits.json"
    monkeypatch.setattr(limit, "_rate", lambda plan, probe, time_s: 1e9)
    for dtype in ("float32", "bfloat16"):
        for threads in (1, 2):
            measure_matrix_limit(cpu_plan(dtype=dtype, threads=threads), SHAPE, cache)
    assert len(json.loads(cache.read_text())) == 4 * len(products(SHAPE))


def test_all_limits_of_a_small_model_are_measured(tmp_path):
    plan = replace(cpu_plan(dtype="float32"), micro_batch_tokens=256)
    found = limit.measure_limits(plan, SHAPE, 32, tmp_path / "limits.json", seconds=0.2)
    assert [one.product for one in found.products] == list(products(SHAPE))
    for one in found.products:
        assert min(one.forward, one.input_gradient, one.weight_gradient) > 1e7
    assert 1e7 < found.matrix < 1e14
    assert 1e6 < found.attention_training < 1e14
    assert 1e8 < found.memory_bytes_per_s < 1e13
