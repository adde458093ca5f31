"""GRPO through the real engine, rewards and loop: contracts 1, 3, 7, 14 and 15."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_maker import config, device_plan, memorised, random_model
from torch import Tensor

from onesitting.checkpoint import load_model, save_model
from onesitting.config import LoraConfig, RunConfig
from onesitting.errors import UserError
from onesitting.model import moe
from onesitting.model.lora import add_adapter
from onesitting.model.transformer import Transformer
from onesitting.rewards import REWARDS
from onesitting.runlog import RunFolder, read_jsonl
from onesitting.stages.attempt_batches import RLBatch, make_batches, shared_rows
from onesitting.stages.attempts import Rewarded
from onesitting.stages.grpo import GRPOStage
from onesitting.stages.rollout import Trajectory
from onesitting.tools.protocol import make_schema
from onesitting.train import distributed
from onesitting.train.budget import StepTarget
from onesitting.train.loop import FitSettings, fit
from onesitting.train.signals import Interrupted

TOKENIZER = memorised()[1]


def make_stage(
    cfg: RunConfig, start: Path | None = None, ranks: distributed.Ranks | None = None
) -> GRPOStage:
    return GRPOStage(cfg, TOKENIZER, device_plan(cfg), ranks or distributed.Ranks(), start)


def gradient(stage: GRPOStage, model: Transformer, batches: list[RLBatch]) -> tuple[float, Tensor]:
    """(loss, flat gradient), the sums divided by the number of units as the loop does it."""
    model.zero_grad()
    n_units = sum(batch.n_units for batch in batches)
    loss = 0.0
    for batch in batches:
        part, _ = stage.loss_sum(model, batch)
        (part / n_units).backward()
        loss += float(part.detach()) / n_units
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    return loss, torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_the_ratio_is_exactly_one_before_the_first_update(epochs: int, temperature: float):
    cfg = config(TOKENIZER, epochs=epochs, temperature=temperature)
    stage, model = make_stage(cfg), random_model(TOKENIZER)
    batches = stage.next_batches(model, 0, 256)
    for batch in batches:
        _, sums = stage.loss_sum(model, batch)
        assert float(sums["approx_kl"]) == 0.0
        assert float(sums["clip_fraction"]) == 0.0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_log_probabilities_of_the_engine_and_of_training_agree_at_the_sampling_temperature(
    temperature: float,
):
    cfg = config(TOKENIZER, epochs=2, temperature=temperature, kl_weight=0.0)
    stage, model = make_stage(cfg), random_model(TOKENIZER)
    (part,) = stage.maker.make(model, 0)
    batches = make_batches(
        part.trajectories,
        part.rewards,
        [1.0] * 8,
        aggregation="token",
        max_tokens=12,
        micro_tokens=10_000,
        keep_zero=True,
        pad_id=0,
    )
    trained = torch.cat([stage.fixed_logprobs(model, batch) for batch in batches])
    order = [i for row in shared_rows(part.trajectories, range(8)) for i in row]
    engine = torch.tensor([logprob for i in order for logprob in part.trajectories[i].logprobs])
    assert torch.allclose(trained, engine, atol=1e-4)


def test_groups_with_equal_rewards_give_no_gradient():
    cfg = config(TOKENIZER, rewards=("scorer",))
    stage, model = make_stage(cfg), random_model(TOKENIZER)
    (part,) = stage.maker.make(model, 0)
    assert set(part.rewards) == {0.0}, "an untrained model solves no sum"
    loss, grads = gradient(stage, model, stage.micro_batches(model, part))
    assert loss == 0.0
    assert float(grads.abs().max()) == 0.0


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_loss_and_gradient_are_independent_of_the_micro_batch_split(aggregation: str):
    model = random_model(TOKENIZER)
    found: list[tuple[float, Tensor]] = []
    for rows in (1, 3, 8):
        cfg = config(TOKENIZER, grpo={"micro_batch_rows": rows, "aggregation": aggregation})
        stage = make_stage(cfg)
        batches = stage.next_batches(model, 0, 256)
        n_rows = sum(len(batch.tokens) for batch in batches)
        assert n_rows >= 1, "a group without a difference is left out"
        assert len(batches) == -(-n_rows // rows)
        found.append(gradient(stage, model, batches))
    for loss, grads in found[:2]:
        assert loss == pytest.approx(found[2][0], rel=1e-5, abs=1e-7)
        assert torch.allclose(grads, found[2][1], atol=1e-6)
        assert float(grads.abs().max()) > 1e-4


def moved(model: Transformer, seed: int = 5) -> Transformer:
    """The model a little changed, in place: ratios and divergences are no longer trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    "grpo",
    [{}, {"ratio": "sequence", "aggregation": "sequence"}, {"clip": "cispo"}],
    ids=["token", "GSPO", "CISPO"],
)
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_variants_of_the_loss_are_independent_of_the_micro_batch_split_after_an_update_too(
    grpo: dict[str, Any], kl_weight: float, tmp_path: Path
):
    save_model(tmp_path / "start", random_model(TOKENIZER), TOKENIZER)
    found: list[tuple[float, Tensor]] = []
    for rows in (1, 3, 8):
        settings = {"micro_batch_rows": rows, "clip_low": 0.02, "clip_high": 0.02, **grpo}
        cfg = config(TOKENIZER, epochs=2, prompts_per_batch=4, kl_weight=kl_weight, grpo=settings)
        stage, model = make_stage(cfg, tmp_path / "start"), random_model(TOKENIZER)
        stage.next_batches(model, 0, 256)
        moved(model)
        batches = stage.next_batches(model, 1, 256)
        clipped = sum(float(stage.loss_sum(model, batch)[1]["clip_fraction"]) for batch in batches)
        assert clipped > 0, "the clip is at work"
        found.append(gradient(stage, model, batches))
    for loss, grads in found[:2]:
        assert loss == pytest.approx(found[2][0], rel=1e-4, abs=1e-6)
        assert torch.allclose(grads, found[2][1], atol=2e-6)
        assert float(grads.abs().max()) > 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
@pytest.mark.parametrize("lora", [False, True])
def test_the_ratio_is_exactly_one_in_every_precision_with_an_adapter_and_a_divergence(
    dtype: Any, kl_weight: float, lora: bool, tmp_path: Path
):
    start = tmp_path / "start"
    save_model(start, random_model(TOKENIZER), TOKENIZER)
    cfg = config(TOKENIZER, epochs=2, temperature=0.7, prompts_per_batch=4, kl_weight=kl_weight)
    cfg = dataclasses.replace(cfg, device=dataclasses.replace(cfg.device, dtype=dtype))
    model = load_model(start).train()
    if lora:
        cfg = dataclasses.replace(cfg, lora=LoraConfig(rank=4))
        add_adapter(model, cfg.lora, seed=0, base=start)
    moved(model)
    stage = make_stage(cfg, start)
    batches = stage.next_batches(model, 0, 256)
    with stage.plan.autocast():
        sums = [stage.loss_sum(model, batch)[1] for batch in batches]
    assert [float(one["approx_kl"]) for one in sums] == [0.0] * len(sums)
    assert [float(one["clip_fraction"]) for one in sums] == [0.0] * len(sums)
    if kl_weight:
        assert (stage.reference is None) == lora, "an adapter needs no second model"
        plain = load_model(start)
        for batch in batches:
            assert batch.reference is not None
            assert torch.equal(batch.reference, stage.fixed_logprobs(plain, batch))
        assert sum(float(one["kl"].detach()) for one in sums) > 0


def test_the_gradient_equals_the_policy_gradient_worked_out_from_full_logits():
    model, temperature = random_model(TOKENIZER), 0.7
    cfg = config(TOKENIZER, temperature=temperature, grpo={"aggregation": "sequence"})
    stage = make_stage(cfg)
    (part,) = stage.maker.make(model, 0)
    _, grads = gradient(stage, model, stage.micro_batches(model, part))
    rewards = torch.tensor(part.rewards, dtype=torch.float64).view(-1, 4)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, correction=0, keepdim=True)
    model.zero_grad()
    total = torch.zeros(())
    for attempt, advantage in zip(part.trajectories, advantages.flatten().tolist(), strict=True):
        ids = torch.tensor([attempt.ids])
        logp = (model(ids[:, :-1])[0] / temperature).log_softmax(-1)
        taken = logp[range(ids.shape[1] - 1), ids[0, 1:]][attempt.n_prompt - 1 :]
        total = total - advantage * taken.mean() / len(part.trajectories)
    total.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert torch.allclose(grads, expected, atol=1e-6)


def test_the_divergence_from_the_start_is_zero_at_the_start_and_pulls_back_later(tmp_path: Path):
    start = random_model(TOKENIZER)
    save_model(tmp_path / "start", start, TOKENIZER)
    cfg = config(TOKENIZER, rewards=("scorer",), kl_weight=1.0)
    stage, model = make_stage(cfg, tmp_path / "start"), random_model(TOKENIZER)
    batches = stage.next_batches(model, 0, 256)
    assert sum(float(stage.loss_sum(model, batch)[1]["kl"]) for batch in batches) == pytest.approx(
        0.0, abs=1e-6
    )
    with torch.no_grad():
        model.output_weight.add_(torch.randn(model.output_weight.shape, generator=torch.Generator()) * 0.05)
    batches = stage.next_batches(model, 1, 256)
    before, grads = gradient(stage, model, batches)
    assert before > 0
    with torch.no_grad():
        flat = torch.cat([p.flatten() for p in model.parameters()]) - 0.05 * grads / grads.norm()
        at = 0
        for p in model.parameters():
            p.copy_(flat[at : at + p.numel()].view_as(p))
            at += p.numel()
    assert gradient(stage, model, batches)[0] < before


def test_attempts_without_a_sampled_token_teach_nothing_and_are_no_nan():
    empty = Trajectory(ids=[1, 2, 3], n_prompt=3, sampled=[False] * 3)
    one = Trajectory(ids=[1, 2, 3], n_prompt=2, sampled=[False, False, True], logprobs=[-1.0])
    arguments: dict[str, Any] = {"max_tokens": 5, "micro_tokens": 100, "keep_zero": False, "pad_id": 0}
    assert make_batches([empty], [0.0], [0.0], aggregation="sequence", **arguments) == []
    (batch,) = make_batches([empty, one], [0.0, 1.0], [0.0, 1.0], aggregation="sequence", **arguments)
    assert batch.n_units == 1
    assert len(batch.tokens) == 1
    statistics = Rewarded([empty], [0.0], {}, 1).statistics()
    assert statistics["entropy"] == (0, 0)


class Stopping(GRPOStage):
    """Asks for a stop, as SIGTERM would, while step `stop_at` computes; remembers what was attempted."""

    stop_at = -1

    def next_batches(self, model: Transformer, step: int, row_length: int) -> list[RLBatch]:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().next_batches(model, step, row_length)


def train(place: Path, cfg: RunConfig, stop_at: int = -1) -> Transformer:
    """One fit() of ten steps from the same weights."""
    stage = Stopping(cfg, TOKENIZER, device_plan(cfg), distributed.Ranks(), None)
    stage.stop_at = stop_at
    model = random_model(TOKENIZER)
    tokens = 8 * stage.row_length * stage.n_rows
    target = StepTarget(
        cfg.grpo, tokens=tokens, row_length=stage.row_length, n_rows=stage.n_rows, evaluate_every=0.5
    )
    fit(
        stage, model, FitSettings(target=target, lr_scale=0.5), cfg=cfg, folder=RunFolder(place).stage("grpo"),
        plan=device_plan(cfg), ranks=distributed.Ranks(),
    )  # fmt: skip
    return model


def test_resume_in_the_middle_of_a_batch_of_attempts_equals_never_stopping_bit_for_bit(tmp_path: Path):
    cfg = config(TOKENIZER, minibatches=2, epochs=2)
    whole = train(tmp_path / "whole", cfg)
    with pytest.raises(Interrupted, match="interrupted at step 8"):
        train(tmp_path / "cut", cfg, stop_at=5)
    resumed = train(tmp_path / "cut", cfg)
    lines = [
        [
            {k: v for k, v in r.items() if not k.endswith("_s")}
            for r in read_jsonl(tmp_path / name / "grpo/metrics.jsonl")
        ]
        for name in ("whole", "cut")
    ]
    assert lines[0] == lines[1]
    steps = [line for line in lines[0] if "loss" in line]
    assert [line["step"] for line in steps if "reward" in line] == [1, 5], "attempts are made once a batch"
    assert any(line["approx_kl"] > 0 for line in steps)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_a_rewarded_length_changes_the_attempts(tmp_path: Path):
    cfg = config(TOKENIZER, prompts_per_batch=8, rewards=("length",))
    train(tmp_path, dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, samples=0)))
    rewards = [r["reward"] for r in read_jsonl(tmp_path / "grpo/metrics.jsonl") if "reward" in r]
    assert len(rewards) == 8
    assert sum(rewards[-2:]) > sum(rewards[:2]) + 0.2


def test_probabilities_that_stay_fixed_are_those_without_dropout_and_leave_no_trace():
    """A mixture records what its router chose for the balance loss: tokens that are trained, and no others."""
    cfg = config(TOKENIZER, epochs=2)
    mixed = dataclasses.replace(cfg.model, n_experts=4, n_active_experts=2, router_aux_loss=0.01)
    stage, model = make_stage(dataclasses.replace(cfg, model=mixed)), Transformer(mixed, seed=1)
    stage.next_batches(model, 0, 256)
    assert model.training
    layers = [part for part in model.modules() if isinstance(part, moe.MoE)]
    assert layers
    assert all(part.probability_sum is None and part.counts is None for part in layers)
    dense = random_model(TOKENIZER)
    add_adapter(dense, LoraConfig(rank=4, dropout=0.5), seed=0)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    stage = make_stage(cfg)
    batch = stage.next_batches(dense, 0, 256)[0]
    assert batch.old is not None
    assert torch.equal(batch.old, stage.fixed_logprobs(dense, batch)), "no mask was drawn"


def mixture(cfg: RunConfig) -> tuple[RunConfig, Transformer]:
    """A random mixture of four experts with uneven loads, and the run that trains it."""
    shape = dataclasses.replace(cfg.model, n_experts=4, n_active_experts=2, router_aux_loss=0.05, d_ff=64)
    model, generator = Transformer(shape, seed=1).train(), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.08)
        model.output_weight[sorted(TOKENIZER.stop_ids)] *= 3.0
    for layer in moe.moe_layers(model):
        layer.load = torch.tensor([0.4, 0.3, 0.2, 0.1])
    return dataclasses.replace(cfg, model=shape), model


def balanced(cfg: RunConfig, model: Transformer, batches: list[RLBatch]) -> tuple[float, list[int], Tensor]:
    """(balance loss, assignments of each layer, gradients of the routers) of a step, as the loop computes them."""
    stage = make_stage(cfg)
    n_units, n_tokens = sum(b.n_units for b in batches), sum(b.n_tokens for b in batches)
    balance = 0.0
    for batch in batches:
        loss, _ = stage.loss_sum(model, batch)
        total, named = moe.add_balance_loss(model, loss, {}, n_units / max(1, n_tokens))
        (total / n_units).backward()
        balance += float(named["balance_loss"].detach()) / n_units
    layers = moe.moe_layers(model)
    counts = [int(layer.counts.sum()) for layer in layers if layer.counts is not None]
    grads = [layer.gate.weight.grad for layer in layers if layer.gate.weight.grad is not None]
    return balance, counts, torch.cat([grad.flatten() for grad in grads])


def test_a_mixture_balances_the_real_tokens_of_attempts_whatever_the_split():
    found = []
    for rows in (1, 3, 8):
        cfg = config(TOKENIZER, prompts_per_batch=8, grpo={"micro_batch_rows": rows})
        cfg, model = mixture(cfg)
        batches = make_stage(cfg).next_batches(model, 0, 256)
        n_tokens = sum(b.n_tokens for b in batches)
        assert n_tokens < sum(b.tokens.numel() for b in batches) or rows == 1
        found.append(balanced(cfg, model, batches))
        assert found[-1][1] == [2 * n_tokens] * 2, "two experts a token, in two layers"
    for balance, _, grads in found[1:]:
        assert balance == pytest.approx(found[0][0], rel=1e-5)
        assert torch.allclose(grads, found[0][2], atol=1e-6)


def test_an_attempt_that_stands_in_for_none_is_not_balanced():
    cfg, model = mixture(config(TOKENIZER, rewards=("scorer",)))
    (batch,) = make_stage(cfg).next_batches(model, 0, 256)
    assert batch.n_units > 0
    assert batch.n_tokens == 0
    balance, counts, grads = balanced(cfg, model, [batch])
    assert (balance, counts) == (0.0, [0, 0])
    assert not grads.any()


def test_rewards_see_the_turns_of_an_attempt_and_the_limit_of_each():
    stage = make_stage(config(TOKENIZER, max_turns=3, max_tokens=12))
    sampled = [False] + [True] * 12 + [False] * 3 + [True] * 2
    cut = Trajectory(
        ids=[5] * 18, n_prompt=1, sampled=sampled, messages=[{"role": "assistant", "content": "x"}]
    )
    seen = stage.maker.judged(stage.maker.prompts.get("train", 0), cut)
    assert (list(seen.turn_tokens), seen.max_turn_tokens) == ([12, 2], 12)
    assert (seen.n_tokens, seen.max_tokens) == (14, 36)
    assert REWARDS["overlong"](seen) == -1.0


def test_a_tool_that_prompts_offer_and_nobody_runs_is_refused(tmp_path: Path):
    schema = make_schema("area", "Area.", {"width": {"type": "number"}})
    record = {"messages": [{"role": "user", "content": "?"}], "reference": "x", "tools": [schema]}
    (tmp_path / "p.jsonl").write_text(json.dumps(record) + "\n")
    cfg = config(TOKENIZER, prompts=(str(tmp_path / "p.jsonl"),), max_turns=2)
    with pytest.raises(UserError, match="the tool 'area', and nobody can run it"):
        make_stage(cfg)
    (tmp_path / "mine.py").write_text('def area(width: float) -> str:\n    """Area."""\n    return "1"\n')
    stage = make_stage(
        dataclasses.replace(cfg, rl=dataclasses.replace(cfg.rl, tools=str(tmp_path / "mine.py")))
    )
    assert stage.maker.tools is not None
    assert stage.maker.tools.call({"name": "area", "arguments": {"width": 2}}) == "1"
    stage.maker.tools.close()
