"""`bench train` and `bench limit`: the numbers belong together and the steps are the real loop's."""

import json

import pytest

from onesitting.bench import corpus
from onesitting.bench.limit import bench_limit
from onesitting.bench.train import PARTS, bench_train
from onesitting.model.flops import count_matrix_parameters
from onesitting.recipe import load_recipe, resolve
from onesitting.train import limit
from onesitting.train.loop import Loop


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    given = {
        "name": "tiny", "out": str(folder / "runs"), "corpus.cache": str(folder / "cache"), "corpus.workers": "1",
        "pretrain.step_tokens": "512",
    }  # fmt: skip
    return resolve(load_recipe("tiny"), given)


def test_rates_shares_and_counts_agree_with_each_other(cfg, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(corpus, "WORLD_MB", 0.2)
    monkeypatch.setattr(corpus, "TOKENIZER_MB", 0.05)
    steps = []
    real = Loop.train_step
    monkeypatch.setattr(Loop, "train_step", lambda loop: steps.append(real(loop)) or steps[-1])
    save, trace = tmp_path / "speed.json", tmp_path / "trace.json"
    found = bench_train(cfg, steps=4, save=save, profile_to=trace, cache=tmp_path / "limits.json")
    assert json.loads(save.read_text()) == found
    counted = steps[2:6]  # after the first and one to warm up
    # The stopwatch of the benchmark lies around that of the loop, and the tokens are the loop's own.
    assert found["step_s"] >= sum(step["step_s"] for step in counted) / 4 * 0.99
    assert found["tokens_per_s"] == pytest.approx(
        (steps[5]["tokens"] - steps[1]["tokens"]) / (4 * found["step_s"])
    )
    assert found["flops_per_s"] == pytest.approx(found["tokens_per_s"] * found["flops_per_token"])
    assert found["fraction_of_limit"] == pytest.approx(found["flops_per_s"] / found["limit_flops_per_s"])
    assert 0 < found["fraction_of_limit_6n"] < found["fraction_of_limit"]
    assert set(found["parts_s"]) == {*PARTS, "other"}
    assert all(seconds >= 0 for seconds in found["parts_s"].values())
    for part in ("forward", "backward", "optimizer"):
        assert found["parts_s"][part] > 0
    assert found["peak_memory_bytes"] >= found["memory_before_bytes"] > 1e7
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"forward", "backward", "optimizer"} <= names
    shown = capsys.readouterr().out
    assert "synthetic world" in shown
    assert "fraction of the limit" in shown
    assert count_matrix_parameters(cfg.model) < found["n_parameters"]


def test_the_limit_command_prints_every_shape_and_saves_json(cfg, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(limit, "_rate", lambda plan, probe, seconds: 1e9)
    found = bench_limit(cfg, save=tmp_path / "limit.json", cache=tmp_path / "limits.json")
    assert json.loads((tmp_path / "limit.json").read_text())["matrix"] == found["matrix"]
    shown = capsys.readouterr().out
    for inner, outer in ((64, 64), (64, 32), (64, 192), (192, 64), (64, 512)):
        assert f"{inner} x {outer}" in shown


def test_an_unknown_benchmark_is_refused_with_those_that_exist(cli):
    done = cli("bench", "speed")
    assert done.returncode == 2
    assert "limit, train, race, generate, prepare" in done.stderr


def test_help_of_the_benchmarks_needs_no_torch(cli):
    done = cli("bench", "--help", timeout_s=20)
    assert done.returncode == 0
    assert "race" in done.stdout
