"""The reward model: its loss by hand, its scores in transformers, accumulation, processes, resuming, use."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from onesitting.checkpoint import find_model_folder, load_model, save_model
from onesitting.config import RewardConfig
from onesitting.errors import UserError
from onesitting.model.flops import count_parameters
from onesitting.model.transformer import Transformer
from onesitting.rewards import Attempt
from onesitting.runlog import RunFolder, read_jsonl
from onesitting.stages.reward import (
    AT_ONCE,
    RewardStage,
    conversation_scores,
    load_reward_model,
    reward_losses,
    with_score_head,
)
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.tokenizer.chat import render
from onesitting.train.budget import StepTarget
from onesitting.train.distributed import Ranks
from onesitting.train.loop import FitSettings, fit

ATTEMPT = Attempt(
    prompt=[{"role": "user", "content": "What is it?"}],
    messages=[
        {"role": "assistant", "content": "", "tool_calls": [{"type": "invalid", "text": "{look"}]},
        {"role": "tool", "content": "It is cut."},
        {"role": "assistant", "content": "It is good."},
    ],
    tools=[{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {}}}],
)
TALK = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is good."}]


def test_loss_equals_values_computed_by_hand() -> None:
    losses = reward_losses(torch.tensor([2.0, 0.5, -1.0, 1.0]), 0.1)
    expected = [math.log(1 + math.exp(-1.5)) + 0.1 * 2.5**2, math.log(1 + math.exp(2.0)) + 0.0]
    assert losses.tolist() == pytest.approx(expected)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return tiny.tokenizer()


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, words: Tokenizer) -> Path:
    shape = tiny.shape(words.vocab_size, tie_embeddings=request.param)
    return tiny.trained_start(tmp_path_factory.mktemp("model"), words, shape)


def scorer(start: Path) -> Transformer:
    return with_score_head(load_model(start), seed=3)


def make(tmp_path: Path, words: Tokenizer, ranks: Ranks | None = None, **reward: Any) -> RewardStage:
    settings = {
        "step_tokens": 8 * tiny.ROW,
        "micro_batch_rows": 2,
        "warmup_steps": 2,
        "max_epochs": 0.0,
        **reward,
    }
    cfg = tiny.config(tiny.shape(words.vocab_size), reward=RewardConfig(**settings))
    data = tiny.preferences(tmp_path / "data", words, tiny.pairs(60))
    return RewardStage(cfg, words, data, tiny.plan(cfg), ranks or Ranks())


def test_a_batch_without_a_pair_adds_zero_and_no_nan(tmp_path: Path, words: Tokenizer, start: Path) -> None:
    stage, model = make(tmp_path, words), scorer(start)
    batch = stage.next_batches(None, 0, tiny.ROW)[0]
    none = dataclasses.replace(
        batch,
        sides=batch.sides[:0],
        lengths=batch.lengths[:0],
        owner=torch.full_like(batch.owner, -1),
        n_units=0,
    )
    loss, named = stage.loss_sum(model, none)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(float(value) == 0.0 for value in named.values())
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def gradients(stage: RewardStage, model: Transformer) -> tuple[float, dict[str, torch.Tensor], int]:
    total, n_units = 0.0, 0
    for batch in stage.next_batches(model, 0, tiny.ROW):
        loss, _ = stage.loss_sum(model, batch)
        loss.backward()
        total, n_units = total + float(loss.detach()), n_units + batch.n_units
    return total, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, n_units


def test_a_score_is_that_of_the_conversation_alone(tmp_path: Path, words: Tokenizer, start: Path) -> None:
    stage, model = make(tmp_path, words, micro_batch_rows=8), scorer(start)
    batch = stage.next_batches(None, 0, tiny.ROW)[0]
    packed = conversation_scores(model, batch)
    assert batch.n_units > len(batch.tokens) / 2
    assert model.score is not None
    for place, side in enumerate(batch.sides.tolist()):
        ids, _ = stage.data.train.side(side)
        alone = model.hidden(torch.from_numpy(ids)[None])[0, -1] @ model.score.weight[0]
        assert float(packed[place]) == pytest.approx(float(alone), abs=1e-5)


def test_accumulation_and_processes_change_no_gradient(tmp_path: Path, words: Tokenizer, start: Path) -> None:
    whole, grads, n_units = gradients(make(tmp_path / "a", words, micro_batch_rows=8), scorer(start))
    small = gradients(make(tmp_path / "b", words), scorer(start))
    parts = [gradients(make(tmp_path / str(r), words, Ranks(rank=r, world=2)), scorer(start)) for r in (0, 1)]
    assert small[2] == n_units == parts[0][2] + parts[1][2]
    assert small[0] == pytest.approx(whole, rel=1e-5)
    for name, grad in grads.items():
        assert torch.allclose(grad, small[1][name], rtol=1e-4, atol=1e-6), name
        assert torch.allclose(grad, parts[0][1][name] + parts[1][1][name], rtol=1e-4, atol=1e-6), name


def test_transformers_gives_equal_scores(tmp_path: Path, words: Tokenizer, start: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = scorer(start)
    save_model(tmp_path / "model", model, words)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert type(theirs).__name__ == "Qwen3ForSequenceClassification"
    assert theirs.num_labels == 1
    talks = [TALK, [*TALK, TALK[0], {"role": "assistant", "content": "It is bad. It is bad."}]]
    ids = [render(words, talk)[0] for talk in talks]
    width = max(map(len, ids))
    padded = torch.tensor([one + [words.eos_id] * (width - len(one)) for one in ids])
    mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in ids])
    with torch.inference_mode():
        expected = theirs(padded, attention_mask=mask).logits[:, 0].tolist()
    ours = load_reward_model(tmp_path / "model")
    assert ours.scores(talks) == pytest.approx(expected, abs=1e-5)
    assert ours.score(TALK) == pytest.approx(expected[0], abs=1e-5)


def test_the_folder_holds_the_parameters_that_the_formula_counts(
    tmp_path: Path, words: Tokenizer, start: Path
) -> None:
    model = scorer(start)
    save_model(tmp_path / "model", model, words)
    again = load_model(tmp_path / "model")
    assert again.cfg.n_scores == 1
    assert sum(p.numel() for p in again.parameters()) == count_parameters(again.cfg)
    assert all(torch.equal(p, again.get_parameter(n)) for n, p in model.named_parameters())


def test_training_raises_held_out_accuracy_and_resumes_bit_for_bit(
    tmp_path: Path, words: Tokenizer, start: Path
) -> None:
    def train(place: Path, n_steps: int, last: int) -> tuple[Transformer, list[float], RewardStage]:
        stage, model = make(place, words), scorer(start)
        checkpoint = dataclasses.replace(stage.cfg.checkpoint, every_s=0, every_steps=4)
        cfg = stage.cfg = dataclasses.replace(stage.cfg, checkpoint=checkpoint)
        target = StepTarget(
            cfg.reward, tokens=n_steps * cfg.reward.step_tokens, row_length=tiny.ROW, n_rows=stage.n_rows,
            evaluate_every=0.5,
        )  # fmt: skip
        if last < n_steps:  # the same schedule, cut short as by a kill
            real = stage.next_batches

            def killed(model: Transformer | None, step: int, row_length: int) -> Any:
                if step == last:
                    raise MemoryError
                return real(model, step, row_length)

            stage.next_batches = killed  # type: ignore[method-assign]
        folder = RunFolder(place).stage("reward")
        fit(
            stage, model, FitSettings(target=target, lr_scale=0.2), cfg=cfg, folder=folder, plan=stage.plan,
            ranks=stage.ranks, tokenizer=words,
        )  # fmt: skip
        return model, [r["loss"] for r in read_jsonl(folder.metrics_path) if "loss" in r], stage

    whole, losses, stage = train(tmp_path / "whole", 12, 12)
    with pytest.raises(MemoryError):
        train(tmp_path / "cut", 12, 7)
    resumed, again, _ = train(tmp_path / "cut", 12, 12)
    assert again == losses
    assert all(torch.equal(p, resumed.get_parameter(n)) for n, p in whole.named_parameters())
    with torch.no_grad():
        assert stage.evaluate(whole.eval())["preference_accuracy"] > 0.9


def test_a_reward_model_is_never_taken_for_one_that_writes(
    tmp_path: Path, words: Tokenizer, start: Path
) -> None:
    save_model(tmp_path / "run/sft/model", load_model(start), words)
    save_model(tmp_path / "run/reward/model", scorer(start), words)
    assert find_model_folder(tmp_path / "run") == tmp_path / "run/sft/model"
    assert load_reward_model(tmp_path / "run").model.cfg.n_scores == 1
    with pytest.raises(UserError, match="writes, not one that scores"):
        load_reward_model(tmp_path / "run/sft")


def test_a_conversation_longer_than_the_context_keeps_its_end(
    tmp_path: Path, words: Tokenizer, start: Path
) -> None:
    save_model(tmp_path / "model", scorer(start), words)
    reward_model = load_reward_model(tmp_path / "model")
    long = [{"role": "user", "content": "What is it? " * 200}, TALK[1]]
    assert math.isfinite(reward_model.score(long))
    assert reward_model.scores([]) == []


def test_attempts_are_judged_as_the_conversations_they_are(
    tmp_path: Path, words: Tokenizer, start: Path
) -> None:
    save_model(tmp_path / "model", scorer(start), words)
    judge = load_reward_model(tmp_path / "model")
    plain = Attempt(prompt=TALK[:1], messages=TALK[1:])
    scores = judge.judge([plain, ATTEMPT] * AT_ONCE)  # two passes
    assert scores[:2] == pytest.approx([judge.score(TALK), scores[-1]], abs=1e-5)
    with_tools = judge.score([*ATTEMPT.prompt, *ATTEMPT.messages], ATTEMPT.tools)
    assert scores[-1] == pytest.approx(with_tools, abs=1e-5)
    assert scores[0] != scores[1]


def test_a_long_context_costs_nothing_that_the_texts_do_not_need(
    tmp_path: Path, words: Tokenizer, start: Path
) -> None:
    save_model(tmp_path / "model", scorer(start), words)
    judge = load_reward_model(tmp_path / "model")
    wanted = judge.score(TALK)
    judge.model.cfg = dataclasses.replace(judge.model.cfg, context_length=1_000_000)  # a mask of 4 TB
    assert judge.score(TALK) == pytest.approx(wanted, abs=1e-5)
