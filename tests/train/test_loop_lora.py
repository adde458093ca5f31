"""Training an adapter through the loop: contract 1, small checkpoints, a base that stays as it is."""

from pathlib import Path

import pytest
import torch
from test_loop import N_ROWS, ROW, CountingStage, StopAfter, config, losses

from onesitting.checkpoint import list_checkpoints, load_model, save_model
from onesitting.config import LoraConfig
from onesitting.model.lora import add_adapter, is_of_adapter, weights_hash
from onesitting.model.transformer import Transformer
from onesitting.runlog import RunFolder, StageFolder
from onesitting.train import distributed
from onesitting.train.budget import StepTarget
from onesitting.train.device import detect, plan_device
from onesitting.train.loop import FitSettings, fit
from onesitting.train.signals import Interrupted

CFG = config()
LORA = LoraConfig(rank=2, dropout=0.2)


def train(place: Path, stage: CountingStage) -> tuple[Transformer, StageFolder]:
    """One fit() of an adapter on the model in place/base."""
    if not (place / "base").exists():
        base = Transformer(CFG.model, seed=3)
        for parameter in base.parameters():  # no matrix is zero in a trained model
            torch.nn.init.normal_(parameter, 0.2, 0.2, generator=torch.Generator().manual_seed(1))
        save_model(place / "base", base)
    folder = RunFolder(place).stage("pretrain")
    model = load_model(place / "base").train()
    add_adapter(model, LORA, seed=CFG.seed, base=place / "base")
    target = StepTarget(
        CFG.pretrain, tokens=CFG.pretrain.tokens, row_length=ROW, n_rows=N_ROWS, evaluate_every=0.5
    )
    fit(
        stage, model, FitSettings(target=target), cfg=CFG, folder=folder,
        plan=plan_device(CFG.device, detect()), ranks=distributed.Ranks(),
    )  # fmt: skip
    return model, folder


def test_a_resumed_adapter_equals_one_that_never_stopped_bit_for_bit_with_dropout(tmp_path: Path) -> None:
    whole, whole_folder = train(tmp_path / "whole", CountingStage())
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", StopAfter(stop_at=7))
    resumed, cut_folder = train(tmp_path / "cut", CountingStage())
    assert losses(cut_folder) == losses(whole_folder)
    assert losses(cut_folder)[-1] < losses(cut_folder)[0]
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_its_checkpoints_are_small_and_its_base_untouched(tmp_path: Path) -> None:
    model, folder = train(tmp_path, CountingStage())
    trained = sum(p.numel() for n, p in model.named_parameters() if is_of_adapter(n))
    for checkpoint in list_checkpoints(folder.checkpoints):
        size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        assert size < 3 * 4 * trained + 20_000, "the adapter and Adam's two moments; names take the rest"
    assert weights_hash(model) == weights_hash(load_model(tmp_path / "base"))
