"""Which settings a stage that is added to a run may bring with it."""

from dataclasses import replace
from pathlib import Path

import pytest

from onesitting.config import GRPOConfig, LoraConfig, RunConfig
from onesitting.errors import UserError
from onesitting.recipe import load_recipe, resolve
from onesitting.run_settings import check_adapters, claim, remarks
from onesitting.runlog import RunFolder, append_jsonl, write_atomic


def finished(folder: RunFolder, stage: str, *, done: bool = True) -> None:
    append_jsonl(folder.stage(stage).metrics_path, {"step": 1})
    if done:
        write_atomic(folder.stage(stage).path / "summary.json", "{}\n")


def test_an_added_stage_may_learn_from_other_preferences(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "mine")
    cfg = RunConfig(name="mine", out=str(tmp_path))
    claim(folder, cfg)
    for stage in cfg.stages:
        finished(folder, stage)
    added = replace(cfg, stages=("pretrain", "sft", "dpo"), preferences=("pairs.jsonl",))
    claim(folder, added)
    assert resolve(load_recipe(folder.path)).preferences == ("pairs.jsonl",)
    finished(folder, "dpo", done=False)
    other = replace(added, stages=(*added.stages, "reward"), preferences=("other.jsonl",))
    with pytest.raises(UserError, match="preferences is"):
        claim(folder, other)
    finished(folder, "dpo")
    claim(folder, other)
    assert resolve(load_recipe(folder.path)).stages == ("pretrain", "sft", "dpo", "reward")


def test_a_run_whose_folder_is_named_like_a_recipe_is_read_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("demo"))
    cfg = RunConfig(name="demo", out=".", seed=7)
    claim(folder, cfg)
    claim(folder, cfg)
    with pytest.raises(UserError, match="seed is 7 there"):
        claim(folder, replace(cfg, seed=8))


def test_a_stage_that_is_added_may_learn_from_other_conversations(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "mine")
    cfg = RunConfig(name="mine", out=str(tmp_path), stages=("pretrain",))
    claim(folder, cfg)
    finished(folder, "pretrain", done=False)
    added = replace(cfg, stages=("pretrain", "sft"), chat=("mine.jsonl",))
    with pytest.raises(UserError, match="chat is"):
        claim(folder, added)  # pretraining may read them, and has not ended
    finished(folder, "pretrain")
    claim(folder, added)
    assert resolve(load_recipe(folder.path)).chat == ("mine.jsonl",)
    finished(folder, "sft")
    with pytest.raises(UserError, match="chat is"):
        claim(folder, replace(added, chat=("other.jsonl",)))


def test_a_reward_model_and_an_adapter_do_not_go_together_until_it_is_trained(tmp_path: Path) -> None:
    cfg = RunConfig(stages=("sft", "reward", "grpo"), lora=LoraConfig(rank=4))
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match=r"lora\.rank = 4: a reward model trains all weights.*--lora\.rank 0"):
        check_adapters(cfg, ("reward",), folder)
    check_adapters(cfg, ("sft", "grpo"), folder)
    check_adapters(replace(cfg, lora=LoraConfig()), cfg.stages, folder)
    finished(folder, "reward")
    check_adapters(cfg, cfg.stages, folder)


def test_what_an_adapter_leaves_out_and_what_is_not_gspo_is_said() -> None:
    plain = RunConfig()
    assert remarks(plain, "grpo", 4) == []
    adapted = replace(plain, lora=LoraConfig(rank=4))
    assert remarks(adapted, "sft", 0) == []
    (said,) = remarks(adapted, "sft", 4)
    assert "experts and routers get no adapter" in said
    sequences = replace(plain, grpo=GRPOConfig(ratio="sequence"))
    (said,) = remarks(sequences, "grpo", 0)
    assert "grpo.aggregation=sequence" in said
    assert remarks(sequences, "sft", 0) == []
    assert remarks(replace(plain, grpo=GRPOConfig(ratio="sequence", aggregation="sequence")), "grpo", 0) == []
