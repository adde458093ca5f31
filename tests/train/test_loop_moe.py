"""A mixture of experts through the loop: contract 1, the metrics, and what counts as the loss."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_loop import N_ROWS, ROW, CountingStage, StopAfter, config, losses

from onesitting.model.transformer import Transformer
from onesitting.runlog import RunFolder, StageFolder, read_jsonl
from onesitting.train import distributed
from onesitting.train.budget import StepTarget
from onesitting.train.device import detect, plan_device
from onesitting.train.loop import FitSettings, fit
from onesitting.train.signals import Interrupted


def train(
    place: Path, stage: CountingStage, *, aux_loss: float = 0.05, bias_rate: float = 0.01
) -> tuple[Transformer, StageFolder]:
    cfg = config()
    shape = replace(
        cfg.model,
        d_ff=16,
        n_experts=4,
        n_active_experts=2,
        router_aux_loss=aux_loss,
        router_bias_rate=bias_rate,
    )
    cfg = replace(cfg, model=shape)
    folder, model = RunFolder(place).stage("pretrain"), Transformer(shape, seed=3).train()
    target = StepTarget(
        cfg.pretrain, tokens=cfg.pretrain.tokens, row_length=ROW, n_rows=N_ROWS, evaluate_every=0.5
    )
    fit(
        stage, model, FitSettings(target=target), cfg=cfg, folder=folder,
        plan=plan_device(cfg.device, detect()), ranks=distributed.Ranks(),
    )  # fmt: skip
    return model, folder


def test_resuming_a_mixture_equals_never_stopping_bit_for_bit(tmp_path: Path) -> None:
    whole, whole_folder = train(tmp_path / "whole", CountingStage())
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", StopAfter(stop_at=7))
    resumed, cut_folder = train(tmp_path / "cut", CountingStage())
    assert losses(cut_folder) == losses(whole_folder)
    state = resumed.state_dict()
    assert "model.layers.0.mlp.choice_bias" in state
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_loads_and_the_balance_loss_are_in_the_metrics_and_the_loss_is_the_text_s_alone(
    tmp_path: Path,
) -> None:
    _, folder = train(tmp_path / "with", CountingStage(), bias_rate=0.0)
    _, plain = train(tmp_path / "without", CountingStage(), aux_loss=0.0, bias_rate=0.0)
    lines = [r for r in read_jsonl(folder.metrics_path) if "loss" in r]
    assert lines[0]["balance_loss"] == pytest.approx(0.05 * 2, rel=1e-4), (
        "even before anything is known: c a layer"
    )
    for line in lines:
        assert line["expert_load_max"] >= 1 >= line["expert_load_min"] >= 0
    assert losses(folder)[0] == losses(plain)[0]
    assert losses(folder)[-1] != losses(plain)[-1]
    assert "balance_loss" not in read_jsonl(plain.metrics_path)[0]


def test_the_split_into_micro_batches_does_not_matter(tmp_path: Path) -> None:
    _, one = train(tmp_path / "one", CountingStage(micro_rows=4))
    _, four = train(tmp_path / "four", CountingStage(micro_rows=1))
    a, b = ([r for r in read_jsonl(f.metrics_path) if "loss" in r] for f in (one, four))
    # Later steps drift apart: Adam divides by gradients that are only rounding, and a choice of experts may flip.
    for key, rel in (("loss", 1e-3), ("balance_loss", 1e-3), ("grad_norm", 1e-2), ("expert_load_max", 0.05)):
        assert a[0][key] == pytest.approx(b[0][key], rel=1e-5), key
        assert a[1][key] == pytest.approx(b[1][key], rel=rel), key
    assert a[-1]["loss"] == pytest.approx(b[-1]["loss"], rel=0.05)
