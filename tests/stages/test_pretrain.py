"""Pretraining's own validation."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import config, plan, shape, tokenizer

from onesitting.evaluation.bits_per_byte import BitsPerByte
from onesitting.stages import pretrain
from onesitting.stages.pretrain import PretrainStage, counting, explicit_counting
from onesitting.train.distributed import Ranks


@pytest.mark.parametrize(
    ("isolate", "on_gpu", "isolated"),
    [("on", False, True), ("off", True, False), ("auto", True, True), ("auto", False, False)],
)
def test_validation_hides_documents_from_each_other_where_training_does(
    isolate: Any, on_gpu: bool, isolated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def measure(*_: Any, isolate: bool, **__: Any) -> BitsPerByte:
        asked.append(isolate)
        return BitsPerByte(bits_per_byte=1.0, nats_per_token=1.0, n_tokens=1, n_bytes=1)

    monkeypatch.setattr(pretrain, "bits_per_byte", measure)
    words = tokenizer()
    cfg = config(shape(words.vocab_size))
    cfg = replace(cfg, pretrain=replace(cfg.pretrain, isolate=isolate))
    data: Any = SimpleNamespace(val=None)
    device = replace(plan(cfg), isolates_documents=on_gpu)
    stage = PretrainStage(cfg, words, data, None, device, Ranks())
    stage.evaluate(None)  # pyright: ignore[reportArgumentType]
    assert asked == [isolated]
    assert stage.isolate == isolated


@pytest.mark.parametrize(
    ("settings", "budget", "part"),
    [
        ({}, "5m", 1.0),
        ({}, "tokens=1M", 1.0),
        ({}, "9s", 0.2),
        ({"budget": "18s"}, "5m", 0.4),
        ({"counting": 0.7}, "9s", 0.7),
        ({"counting": 0.0}, "5m", 0.0),
    ],
)
def test_short_budgets_count_less_and_what_they_counted_can_be_asked_for(
    settings: Any, budget: str, part: float
) -> None:
    cfg = config(shape(256))
    cfg = replace(cfg, budget=budget, pretrain=replace(cfg.pretrain, **settings))
    assert counting(cfg) == pytest.approx(part)
    again = {"counting": part} if part < 1 else {}
    assert explicit_counting(cfg, "pretrain") == pytest.approx(again)
    assert explicit_counting(cfg, "sft") == {}
