"""Checkpoints: whole or absent, verified byte by byte, of this model or refused."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from onesitting import checkpoint
from onesitting.checkpoint import (
    discard_newer_checkpoints,
    find_model_folder,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_model,
    prune_checkpoints,
    save_checkpoint,
    save_model,
)
from onesitting.config import ModelConfig
from onesitting.errors import UserError
from onesitting.model.transformer import Transformer

CFG = ModelConfig(
    n_layers=2, d_model=24, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32, vocab_size=50, context_length=16
)
NON_STANDARD = replace(CFG, positions="learned", bias=True)


def training_tensors() -> dict[str, Tensor]:
    base = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    return {
        "momentum": base.bfloat16(),
        "view": base[2:4],  # shares its storage with the next one
        "other_view": base[:2].t(),
        "step": torch.tensor(400),
        "empty": torch.zeros(0),
    }


def write(folder: Path, seed: int = 1, cfg: ModelConfig = CFG) -> Transformer:
    model = Transformer(cfg, seed=seed)
    save_checkpoint(folder, model, tensors=training_tensors(), state={"step": 400, "name": "ünï"})
    return model


@pytest.mark.parametrize("cfg", [CFG, replace(CFG, tie_embeddings=False), NON_STANDARD])
def test_training_state_comes_back_bit_for_bit(tmp_path: Path, cfg: ModelConfig) -> None:
    saved = write(tmp_path / "checkpoints/000400", cfg=cfg)
    model = Transformer(cfg, seed=2)
    tensors, state = load_checkpoint(tmp_path / "checkpoints/000400", model)
    assert state == {"step": 400, "name": "ünï"}
    for name, expected in training_tensors().items():
        assert tensors[name].dtype == expected.dtype, name
        assert torch.equal(tensors[name], expected), name
    for (name, a), b in zip(saved.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_checkpoint_is_itself_a_model_folder(tmp_path: Path) -> None:
    saved = write(tmp_path / "000400")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "000400")(tokens), saved.eval()(tokens))


@pytest.mark.parametrize("damage", ["cut", "flip", "missing"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "training.safetensors", "training.json", "config.json"]
)
def test_damaged_file_is_named_and_the_checkpoint_before_it_is_taken(
    tmp_path: Path, damage: str, name: str
) -> None:
    good, bad = tmp_path / "000100", tmp_path / "000200"
    write(good), write(bad)
    victim = bad / name
    content = bytearray(victim.read_bytes())
    if damage == "missing":
        victim.unlink()
    elif damage == "cut":
        victim.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*delete this checkpoint"):
        load_checkpoint(bad, Transformer(CFG))
    newest, skipped = latest_checkpoint(tmp_path)
    assert newest == good
    assert len(skipped) == 1
    assert name in skipped[0]


def test_checkpoint_of_another_model_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    write(tmp_path / "000400")
    with pytest.raises(
        UserError, match=r"model\.n_layers is 2 there and 3 here; model\.rope_theta is 10000\.0"
    ):
        load_checkpoint(tmp_path / "000400", Transformer(replace(CFG, n_layers=3, rope_theta=5e5)))


def test_kill_in_the_middle_of_a_save_leaves_the_older_checkpoint_as_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "000100")

    class Killed(BaseException):
        pass

    for doomed_name, doomed in (
        ("000200", "_write_safetensors"),
        ("000300", "_sha256"),
        ("000400", "_replace_folder"),
    ):
        with monkeypatch.context() as patch:

            def die(*_: object) -> None:
                raise Killed

            patch.setattr(checkpoint, doomed, die)
            # A SIGKILL runs no clean-up either.
            patch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
            with pytest.raises(Killed):
                write(tmp_path / doomed_name)
        assert any(p.name.startswith(f".writing-{doomed_name}") for p in tmp_path.iterdir())
        assert latest_checkpoint(tmp_path) == (tmp_path / "000100", [])
    prune_checkpoints(tmp_path, keep_last=2)
    assert [p.name for p in tmp_path.iterdir()] == ["000100"]


def test_full_disk_is_one_message_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "_write_safetensors", full)
    with pytest.raises(UserError, match=r"No space left on device.*free space"):
        write(tmp_path / "000100")
    assert list(tmp_path.iterdir()) == []


def test_write_that_the_system_cuts_off_is_a_user_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit on file size stands in for the full disk: the real writer meets a real failing write."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*free space"):
            write(tmp_path / "000100")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (100, 200, 300, 1_000_000):
        write(tmp_path / f"{step:06d}")
    deleted = prune_checkpoints(tmp_path, keep_last=2, best="000100")
    assert [p.name for p in deleted] == ["000200"]
    assert [p.name for p in list_checkpoints(tmp_path)] == ["000100", "000300", "1000000"]


def test_checkpoints_that_training_went_back_from_are_deleted(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        write(tmp_path / f"{step:06d}")
    discard_newer_checkpoints(tmp_path, 200)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["000100", "000200"]
    discard_newer_checkpoints(tmp_path / "nothing", 0)


def test_saving_a_model_again_replaces_it_and_writes_its_card(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_model(tmp_path / "model", Transformer(CFG, seed=seed), card=f"# seed {seed}\n")
    assert (tmp_path / "model/README.md").read_text() == "# seed 2\n"
    assert torch.equal(load_model(tmp_path / "model").output_weight, Transformer(CFG, seed=2).output_weight)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert json.loads((tmp_path / "model/config.json").read_text())["model_type"] == "qwen3"


def test_run_folder_means_its_last_finished_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        find_model_folder(tmp_path)
    write(tmp_path / "pretrain/checkpoints/000100")
    assert find_model_folder(tmp_path) == tmp_path / "pretrain/checkpoints/000100"
    save_model(tmp_path / "pretrain/model", Transformer(CFG))
    assert find_model_folder(tmp_path) == tmp_path / "pretrain/model"
    save_model(tmp_path / "sft/model", Transformer(CFG))
    assert find_model_folder(tmp_path) == tmp_path / "sft/model"
    assert find_model_folder(tmp_path / "pretrain") == tmp_path / "pretrain/model"
    save_model(tmp_path / "distill/model", Transformer(CFG))
    (tmp_path / "config.toml").write_text('stages = ["distill", "sft"]\n')
    assert find_model_folder(tmp_path) == tmp_path / "sft/model", "the last in the run's own order"
    (tmp_path / "config.toml").write_text('stages = ["sft", "distill"]\n')
    assert find_model_folder(tmp_path) == tmp_path / "distill/model"
    with pytest.raises(UserError, match="does not exist"):
        find_model_folder(tmp_path / "nothing")
