"""Adapters on disk: what PEFT reads and writes, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_lora import SHAPES, TOKENS, logits, model

from onesitting.checkpoint import (
    find_model_folder,
    load_checkpoint,
    load_model,
    save_adapter,
    save_checkpoint,
    save_model,
)
from onesitting.config import LoraConfig
from onesitting.errors import UserError
from onesitting.model import moe
from onesitting.model.lora import add_adapter, merge
from onesitting.model.peft import load_adapter
from onesitting.model.transformer import Transformer

CONFIGS = {
    "all": LoraConfig(rank=4, alpha=12.0),
    "rslora": LoraConfig(rank=4, rslora=True, targets=("q_proj", "v_proj")),
    "one layer": LoraConfig(rank=2, dropout=0.1, targets=("*.1.self_attn.*",)),
}


def adapted(tmp_path: Path, cfg: LoraConfig, kind: str = "qwen3") -> Transformer:
    """A model with an adapter, its base in tmp_path/base and the adapter in tmp_path/adapter."""
    it = model(kind)
    save_model(tmp_path / "base", it)
    add_adapter(it, cfg, base=tmp_path / "base")
    it = fill_trained(it)
    save_adapter(tmp_path / "adapter", it, cfg.name)
    return it.eval()


@torch.no_grad()
def fill_trained(it: Transformer) -> Transformer:
    for name, parameter in it.named_parameters():
        if ".lora_B." in name:
            parameter.normal_(generator=torch.Generator().manual_seed(5))
    return it


@pytest.mark.parametrize("which", CONFIGS)
def test_peft_loads_our_adapter_and_gives_the_same_logits(which: str, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    ours = logits(adapted(tmp_path, CONFIGS[which]))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(theirs(TOKENS).logits, ours, atol=1e-4)
        with theirs.disable_adapter():
            assert torch.allclose(theirs(TOKENS).logits, logits(load_model(tmp_path / "base")), atol=1e-4)


@pytest.mark.parametrize("which", CONFIGS)
def test_what_peft_saves_gives_the_same_logits_here(which: str, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    save_model(tmp_path / "base", model())
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    options: dict[str, Any] = {
        "all": {"r": 4, "lora_alpha": 12, "target_modules": "all-linear"},
        "rslora": {"r": 4, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
        "one layer": {"r": 2, "target_modules": r".*\.1\.self_attn\.[qkvo]_proj", "init_lora_weights": False},
    }[which]
    theirs = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        theirs.save_pretrained(tmp_path / "theirs")
        wanted = theirs(TOKENS).logits
    it = load_model(tmp_path / "base")
    load_adapter(tmp_path / "theirs", it)
    assert torch.allclose(logits(it), wanted, atol=1e-4)
    merge(it)
    assert torch.allclose(logits(it), wanted, atol=1e-4)
    assert torch.allclose(logits(load_model(tmp_path / "theirs")), wanted, atol=1e-4), "merged into its base"


@pytest.mark.parametrize("kind", SHAPES)
def test_an_adapter_survives_the_disk_bit_for_bit(kind: str, tmp_path: Path) -> None:
    wanted = logits(adapted(tmp_path, CONFIGS["all"], kind))
    it = load_model(tmp_path / "base")
    load_adapter(tmp_path / "adapter", it, "other")
    assert torch.equal(logits(it), wanted)


def test_the_folder_of_an_adapter_is_a_model_to_start_from(tmp_path: Path) -> None:
    wanted = logits(adapted(tmp_path, CONFIGS["all"]))
    assert find_model_folder(tmp_path / "adapter") == tmp_path / "adapter"
    assert torch.allclose(logits(load_model(tmp_path / "adapter")), wanted, atol=1e-4)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("base", "adapter"):
        shutil.move(tmp_path / name, moved / name)
    assert torch.allclose(logits(load_model(moved / "adapter")), wanted, atol=1e-4), "found beside it"


def test_a_base_that_changed_or_vanished_is_said(tmp_path: Path) -> None:
    adapted(tmp_path, CONFIGS["all"])
    save_model(tmp_path / "base", Transformer(SHAPES["qwen3"], seed=9))
    with pytest.raises(UserError, match="SHA-256"):
        load_model(tmp_path / "adapter")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match="which is not there"):
        load_model(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_dora", True),
        ("rank_pattern", {"q_proj": 2}),
        ("bias", "all"),
        ("init_lora_weights", "pissa_niter_4"),
        ("alora_invocation_tokens", [5]),
        ("lora_alpha", 0),
        ("use_qalora", True),
        ("qalora_group_size", 8),
        ("kasa_config", {"rank": 1}),
        ("monteclora_config", {"n": 2}),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 1}),
        ("a_later_option", "on"),
    ],
)
def test_options_of_peft_that_are_not_plain_lora_are_refused(option: str, value: Any, tmp_path: Path) -> None:
    adapted(tmp_path, CONFIGS["all"])
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {option: value}))
    with pytest.raises(UserError, match=option):
        load_model(tmp_path / "adapter")


def test_matrices_of_another_shape_are_refused(tmp_path: Path) -> None:
    adapted(tmp_path, CONFIGS["all"])
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 3}))
    with pytest.raises(UserError, match="does not fit"):
        load_model(tmp_path / "adapter")


def test_a_checkpoint_holds_the_adapter_and_refers_to_the_base(tmp_path: Path) -> None:
    it = adapted(tmp_path, CONFIGS["all"])
    wanted = logits(it)
    save_checkpoint(tmp_path / "000001", it, tensors={"a": torch.ones(2)}, state={"loop": 1})
    names = {path.name for path in (tmp_path / "000001").iterdir()}
    assert "model.safetensors" not in names
    base = json.loads((tmp_path / "000001/base.json").read_text())
    assert Path(base["folder"]) == tmp_path / "base"
    again = load_model(tmp_path / "base")
    add_adapter(again, CONFIGS["all"], base=tmp_path / "base")
    tensors, state = load_checkpoint(tmp_path / "000001", again)
    assert torch.equal(logits(again), wanted)
    assert state == {"loop": 1}
    assert list(tensors) == ["a"]


def test_a_checkpoint_of_another_kind_or_another_base_is_refused(tmp_path: Path) -> None:
    it = adapted(tmp_path, CONFIGS["all"])
    save_checkpoint(tmp_path / "000001", it, tensors={}, state={})
    with pytest.raises(UserError, match=r"lora\.rank"):
        load_checkpoint(tmp_path / "000001", load_model(tmp_path / "base"))
    save_checkpoint(tmp_path / "000002", load_model(tmp_path / "base"), tensors={}, state={})
    with pytest.raises(UserError, match=r"lora\.rank"):
        load_checkpoint(tmp_path / "000002", it)
    other = Transformer(SHAPES["qwen3"], seed=9)
    add_adapter(other, CONFIGS["all"], base=tmp_path / "elsewhere")
    with pytest.raises(UserError, match="SHA-256"):
        load_checkpoint(tmp_path / "000001", other)


def test_the_choice_biases_under_an_adapter_stay_those_of_the_base(tmp_path: Path) -> None:
    shape = replace(
        SHAPES["qwen3"], n_experts=4, n_active_experts=2, router_bias_rate=0.05, router_aux_loss=0.0
    )
    save_model(tmp_path / "base", Transformer(shape, seed=1))
    it = load_model(tmp_path / "base").train()
    add_adapter(it, LoraConfig(rank=2), base=tmp_path / "base")
    before = [layer.choice_bias.clone() for layer in moe.moe_layers(it)]
    it(TOKENS, targets=TOKENS)
    moe.update_routers(it, lambda counts: counts)
    assert all(torch.equal(a.choice_bias, b) for a, b in zip(moe.moe_layers(it), before, strict=True))
    save_adapter(tmp_path / "adapter", fill_trained(it))
    assert torch.allclose(logits(load_model(tmp_path / "adapter")), logits(it.eval()), atol=1e-5)
    other = load_model(tmp_path / "base")
    moe.moe_layers(other)[0].choice_bias += torch.tensor([0.5, 0.0, -0.5, 0.0])
    save_model(tmp_path / "base", other)
    with pytest.raises(UserError, match="SHA-256"):
        load_model(tmp_path / "adapter")


def test_an_adapter_is_no_base_of_another(tmp_path: Path) -> None:
    adapted(tmp_path, CONFIGS["all"])
    with pytest.raises(UserError, match="start from the merged model"):
        add_adapter(Transformer(SHAPES["qwen3"], seed=9), CONFIGS["all"], base=tmp_path / "adapter")


def test_the_adapter_file_has_nothing_of_the_base(tmp_path: Path) -> None:
    it = adapted(tmp_path, CONFIGS["all"])
    size = (tmp_path / "adapter/adapter_model.safetensors").stat().st_size
    assert size < 4 * sum(p.numel() for n, p in it.named_parameters() if ".lora_" in n) + 8192
