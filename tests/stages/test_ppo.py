"""PPO: values, advantages and its training through the loop."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rl_maker import config, device_plan, memorised, random_model
from torch import Tensor

from onesitting.checkpoint import latest_checkpoint, load_checkpoint, load_model, save_checkpoint, save_model
from onesitting.config import LoraConfig, ModelConfig, PPOConfig, RunConfig
from onesitting.model.hf import hf_format
from onesitting.model.lora import add_adapter
from onesitting.model.transformer import Transformer
from onesitting.runlog import RunFolder, read_jsonl
from onesitting.stages.attempt_batches import RLBatch, make_batches
from onesitting.stages.ppo import PPOStage, add_value_head, attempt_advantages
from onesitting.stages.rollout import Trajectory
from onesitting.train import distributed
from onesitting.train.budget import StepTarget
from onesitting.train.loop import FitSettings, fit
from onesitting.train.signals import Interrupted

TOKENIZER = memorised()[1]


def ppo_config(ppo: dict[str, object] | None = None, **rl: object) -> RunConfig:
    cfg = config(TOKENIZER, **{"prompts_per_batch": 8, **rl})
    settings = PPOConfig(**{"warmup_steps": 2, "lr_scale": 0.5, **(ppo or {})})  # pyright: ignore
    return replace(cfg, stages=("ppo",), ppo=settings)


def make(cfg: RunConfig) -> tuple[PPOStage, Transformer]:
    model = random_model(TOKENIZER)
    add_value_head(model)
    return PPOStage(cfg, TOKENIZER, device_plan(cfg), distributed.Ranks(), None), model


def test_advantages_of_attempts_in_one_batch_equal_values_worked_out_by_hand():
    # Attempts of 2 and 1 sampled tokens, rewards 1 and -1; gamma 0.9, lambda 0.5.
    made = [
        Trajectory(ids=[1, 2, 3], n_prompt=1, sampled=[False, True, True]),
        Trajectory(ids=[1, 2], n_prompt=1, sampled=[False, True]),
    ]
    (batch,) = make_batches(
        made,
        [1.0, -1.0],
        [0.0, 0.0],
        aggregation="token",
        max_tokens=2,
        micro_tokens=100,
        keep_zero=True,
        pad_id=0,
    )
    # Both stand in one row, behind the prompt that they share. Values 0.5, 0.4 | 0.2.
    assert len(batch.tokens) == 1
    advantages, returns = attempt_advantages(batch, torch.tensor([0.5, 0.4, 0.2]), gamma=0.9, lam=0.5)
    # last: 1 - 0.4 = 0.6; first: 0.9*0.4 - 0.5 + 0.45*0.6 = 0.13 | -1 - 0.2 = -1.2
    assert advantages.tolist() == pytest.approx([0.13, 0.6, -1.2])
    assert returns.tolist() == pytest.approx([0.63, 1.0, -1.0])


def test_normalised_advantages_have_mean_zero_and_deviation_one_over_the_whole_step():
    stage, model = make(ppo_config({"micro_batch_rows": 3}))
    batches = stage.next_batches(model, 0, 256)
    every = torch.cat([batch.advantages for batch in batches])
    assert len(batches) > 1
    assert float(every.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(every.std(correction=0)) == pytest.approx(1.0, abs=1e-3)


def gradients(stage: PPOStage, model: Transformer, batches: list[RLBatch]) -> Tensor:
    model.zero_grad()
    n_units = sum(batch.n_units for batch in batches)
    for batch in batches:
        (stage.loss_sum(model, batch)[0] / n_units).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_the_gradient_is_independent_of_the_micro_batch_split_and_reaches_the_value_head():
    found = []
    for rows in (3, 8):
        stage, model = make(ppo_config({"micro_batch_rows": rows}))
        found.append(gradients(stage, model, stage.next_batches(model, 0, 256)))
        assert model.value is not None
        assert model.value.weight.grad is not None
        assert float(model.value.weight.grad.abs().max()) > 0
    assert torch.allclose(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_ratio_is_exactly_one_before_the_first_update(epochs: int):
    stage, model = make(ppo_config(epochs=epochs, temperature=0.8))
    for batch in stage.next_batches(model, 0, 256):
        assert float(stage.loss_sum(model, batch)[1]["approx_kl"]) == 0.0


def test_a_step_without_a_sampled_token_is_empty_and_one_without_a_reward_teaches_no_nan():
    stage, model = make(ppo_config(rewards=("scorer",)))
    (part,) = stage.maker.make(model, 0)
    silent = [
        replace(attempt, ids=attempt.ids[: attempt.n_prompt], sampled=[False] * attempt.n_prompt, logprobs=[])
        for attempt in part.trajectories
    ]
    assert stage.micro_batches(model, replace(part, trajectories=silent)) == []
    grads = gradients(stage, model, stage.micro_batches(model, part))  # all rewards and values are 0
    assert not set(part.rewards) - {0.0}
    assert torch.isfinite(grads).all()
    assert float(grads.abs().max()) == 0.0


def test_the_value_head_learns_the_returns():
    stage, model = make(ppo_config({"value_clip": 0.0}))
    batches = stage.next_batches(model, 0, 256)
    assert model.value is not None
    losses: list[float] = []
    for _ in range(30):
        sums = [stage.loss_sum(model, batch)[1] for batch in batches]
        losses.append(sum(float(one["value_loss"]) for one in sums))
        gradients(stage, model, batches)
        with torch.no_grad():
            model.value.weight -= 0.02 * model.value.weight.grad  # pyright: ignore
    assert losses[-1] < 0.9 * losses[0]


def test_the_values_do_not_shape_the_trunk():
    stage, model = make(ppo_config())
    batches = [
        replace(batch, advantages=torch.zeros_like(batch.advantages))
        for batch in stage.next_batches(model, 0, 256)
    ]
    gradients(stage, model, batches)
    moved = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved == {"value.weight"}


def test_training_raises_the_reward_and_its_checkpoints_load(tmp_path: Path):
    cfg = ppo_config(rewards=("length",), eval_prompts=1)
    stage, model = make(cfg)
    target = StepTarget(
        cfg.ppo, tokens=6 * stage.row_length * stage.n_rows, row_length=stage.row_length, n_rows=stage.n_rows,
        evaluate_every=1.0,
    )  # fmt: skip
    folder = RunFolder(tmp_path).stage("ppo")
    fit(
        stage, model, FitSettings(target=target, lr_scale=0.5), cfg=cfg, folder=folder, plan=device_plan(cfg),
        ranks=distributed.Ranks(),
    )  # fmt: skip
    steps = [r for r in read_jsonl(folder.metrics_path) if "loss" in r]
    assert sum(r["reward"] for r in steps[-2:]) > sum(r["reward"] for r in steps[:2]) + 0.1
    newest, _ = latest_checkpoint(folder.checkpoints)
    assert newest is not None
    assert load_model(newest).value is None, "a checkpoint speaks without its value head"


def test_a_checkpoint_in_gpt2s_format_holds_the_value_head(tmp_path: Path):
    gpt2 = ModelConfig(
        n_layers=2, d_model=32, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=64, vocab_size=64, context_length=16,
        norm="layer", positions="learned", mlp="gelu", bias=True, qk_norm=False,
    )  # fmt: skip
    saved, resumed = Transformer(gpt2, seed=0), Transformer(gpt2, seed=1)
    add_value_head(saved)
    add_value_head(resumed)
    assert saved.value is not None
    torch.nn.init.ones_(saved.value.weight)
    save_checkpoint(tmp_path / "000001", saved, tensors={}, state={})
    assert hf_format(gpt2) == "gpt2"
    load_checkpoint(tmp_path / "000001", resumed)
    assert resumed.value is not None
    assert torch.equal(resumed.value.weight, saved.value.weight)
    assert load_model(tmp_path / "000001").value is None


def test_a_checkpoint_of_an_adapter_holds_the_value_head_that_is_trained_beside_it(tmp_path: Path):
    def made(seed: int) -> Transformer:
        model = load_model(tmp_path / "start")
        add_adapter(model, LoraConfig(rank=2), seed=seed, base=tmp_path / "start")
        add_value_head(model)
        return model

    save_model(tmp_path / "start", random_model(TOKENIZER))
    trained = made(0)
    stage = PPOStage(ppo_config(), TOKENIZER, device_plan(ppo_config()), distributed.Ranks(), None)
    gradients(stage, trained, stage.next_batches(trained, 0, 256))
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                parameter -= parameter.grad
    assert trained.value is not None
    assert trained.value.weight.any()
    save_checkpoint(tmp_path / "000001", trained, tensors={}, state={})
    resumed = made(1)
    load_checkpoint(tmp_path / "000001", resumed)
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
    assert load_model(tmp_path / "000001").value is None, "it speaks without its value head"


class Stopping(PPOStage):
    """Asks for a stop, as SIGTERM would, while step `stop_at` computes."""

    stop_at = -1

    def next_batches(self, model: Transformer, step: int, row_length: int) -> list[RLBatch]:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().next_batches(model, step, row_length)


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapter"])
def test_resume_in_the_middle_of_a_batch_of_attempts_equals_never_stopping_bit_for_bit(
    lora: bool, tmp_path: Path
):
    start = tmp_path / "start"
    save_model(start, random_model(TOKENIZER), TOKENIZER)
    cfg = ppo_config(prompts_per_batch=8, samples=2, minibatches=2, epochs=2, eval_prompts=1, kl_weight=0.05)
    cfg = replace(cfg, lora=LoraConfig(rank=2 if lora else 0))

    def train(place: Path, stop_at: int = -1) -> tuple[Transformer, list[tuple[float, float]]]:
        model = load_model(start).train()
        if lora:
            add_adapter(model, cfg.lora, seed=0, base=start)
        add_value_head(model)
        stage = Stopping(cfg, TOKENIZER, device_plan(cfg), distributed.Ranks(), start)
        stage.stop_at = stop_at
        target = StepTarget(
            cfg.ppo, tokens=8 * stage.row_length * stage.n_rows, row_length=stage.row_length, n_rows=stage.n_rows,
            evaluate_every=1.0,
        )  # fmt: skip
        folder = RunFolder(place).stage("ppo")
        fit(
            stage, model, FitSettings(target=target, lr_scale=0.5), cfg=cfg, folder=folder, plan=device_plan(cfg),
            ranks=distributed.Ranks(),
        )  # fmt: skip
        steps = [r for r in read_jsonl(folder.metrics_path) if "loss" in r]
        return model, [
            (r["loss"], r.get("value_loss", 0.0)) for r in steps
        ]  # no value where prompts fill the context

    whole, losses = train(tmp_path / "whole")
    with pytest.raises(Interrupted, match="interrupted at step 4"):
        train(tmp_path / "cut", stop_at=2)
    resumed, again = train(tmp_path / "cut")
    assert len(losses) == 8
    assert again == losses
    assert whole.value is not None
    assert whole.value.weight.any()
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
