"""Preference losses against values by hand and against trl; masking, accumulation, two processes, resuming."""

import dataclasses
import itertools
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F

from onesitting.checkpoint import load_model
from onesitting.config import DPOConfig, RunConfig
from onesitting.data.preference_rows import mismatched
from onesitting.evaluation.preferences import held_out_batches, reply_logprobs
from onesitting.model.transformer import Transformer
from onesitting.runlog import RunFolder, read_jsonl
from onesitting.stages.dpo import DPOStage, ipo_loss, kto_loss, pair_losses, sigmoid_loss
from onesitting.tokenizer.bpe import Tokenizer
from onesitting.train.budget import StepTarget
from onesitting.train.distributed import Ranks
from onesitting.train.loop import FitSettings, fit
from onesitting.train.signals import Interrupted

# ---- losses by hand ----------------------------------------------------------------------------------------

# log-probabilities of (chosen, rejected) for two pairs, and their lengths
POLICY = torch.tensor([-10.0, -12.0, -20.0, -9.0])
REFERENCE = torch.tensor([-11.0, -11.0, -18.0, -10.0])
LENGTHS = torch.tensor([4, 6, 10, 3])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dpo_equals_values_computed_by_hand() -> None:
    losses, rewards = pair_losses(POLICY, REFERENCE, LENGTHS, DPOConfig(beta=0.5))
    # log-ratios: +1, -1 and -2, +1; leads 2 and -3
    assert losses.tolist() == pytest.approx([-math.log(sigmoid(1.0)), -math.log(sigmoid(-1.5))])
    assert rewards.tolist() == pytest.approx([0.5, -0.5, -1.0, 0.5])


def test_label_smoothing_mixes_the_loss_of_the_swapped_pair() -> None:
    losses, _ = pair_losses(POLICY, REFERENCE, LENGTHS, DPOConfig(beta=0.5, label_smoothing=0.1))
    expected = [-0.9 * math.log(sigmoid(x)) - 0.1 * math.log(sigmoid(-x)) for x in (1.0, -1.5)]
    assert losses.tolist() == pytest.approx(expected)


def test_length_normalisation_is_an_option_of_its_own() -> None:
    losses, _ = pair_losses(POLICY, REFERENCE, LENGTHS, DPOConfig(beta=0.5, normalise_length=True))
    leads = [1 / 4 + 1 / 6, -2 / 10 - 1 / 3]
    assert losses.tolist() == pytest.approx([-math.log(sigmoid(0.5 * x)) for x in leads])


def test_ipo_equals_values_computed_by_hand() -> None:
    losses, _ = pair_losses(POLICY, REFERENCE, LENGTHS, DPOConfig(loss="ipo", beta=0.25))
    assert losses.tolist() == pytest.approx([(2 - 2) ** 2, (-3 - 2) ** 2])


def test_simpo_equals_values_computed_by_hand_and_reads_no_reference() -> None:
    cfg = DPOConfig(loss="simpo", beta=2.0, margin=0.3)
    losses, _ = pair_losses(POLICY, POLICY * math.nan, LENGTHS, cfg)
    leads = [-10 / 4 + 12 / 6, -20 / 10 + 9 / 3]
    assert losses.tolist() == pytest.approx([-math.log(sigmoid(2 * x - 0.3)) for x in leads])


def test_kto_equals_values_computed_by_hand() -> None:
    cfg = DPOConfig(loss="kto", beta=0.5, desirable_weight=2.0, undesirable_weight=0.5)
    rewards = 0.5 * (POLICY - REFERENCE)  # 0.5, -0.5, -1, 0.5
    losses = kto_loss(rewards, torch.tensor([True, False, True, False]), 0.2, cfg)
    expected = [
        2.0 * (1 - sigmoid(0.3)), 0.5 * (1 - sigmoid(0.7)), 2.0 * (1 - sigmoid(-1.2)), 0.5 * (1 - sigmoid(-0.3)),
    ]  # fmt: skip
    assert losses.tolist() == pytest.approx(expected)


def test_the_added_cross_entropy_is_per_token_of_the_chosen_reply() -> None:
    plain, _ = pair_losses(POLICY, REFERENCE, LENGTHS, DPOConfig())
    added, _ = pair_losses(POLICY, REFERENCE, LENGTHS, DPOConfig(sft_weight=0.7))
    assert (added - plain).tolist() == pytest.approx([0.7 * 10 / 4, 0.7 * 20 / 10], rel=1e-5)


def test_a_pair_at_the_reference_has_loss_log_2_and_half_an_accuracy() -> None:
    losses, rewards = pair_losses(POLICY, POLICY, LENGTHS, DPOConfig())
    assert losses.tolist() == pytest.approx([math.log(2)] * 2)
    assert rewards.abs().max() == 0


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "robust"])
def test_losses_have_the_gradient_of_their_formula(loss: str) -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    function = {
        "sigmoid": lambda x: sigmoid_loss(x), "ipo": lambda x: ipo_loss(x, 0.1),
        "robust": lambda x: sigmoid_loss(x, 0.2),
    }[loss]  # fmt: skip
    assert torch.autograd.gradcheck(function, (x,))


# ---- the stage ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, words: Tokenizer) -> Path:
    return tiny.trained_start(tmp_path_factory.mktemp("model"), words, tiny.shape(words.vocab_size))


def config(words: Tokenizer, **dpo: Any) -> RunConfig:
    settings = {
        "step_tokens": 8 * tiny.ROW,
        "micro_batch_rows": 2,
        "warmup_steps": 2,
        "max_epochs": 0.0,
        **dpo,
    }
    return tiny.config(tiny.shape(words.vocab_size), dpo=DPOConfig(**settings))


def make(tmp_path: Path, words: Tokenizer, start: Path, ranks: Ranks | None = None, **dpo: Any) -> DPOStage:
    cfg = config(words, **dpo)
    data = tiny.preferences(tmp_path / "data", words, tiny.pairs(60))
    return DPOStage(cfg, words, data, tiny.plan(cfg), ranks or Ranks(), start=start, folder=tmp_path)


def moved(start: Path) -> Transformer:
    """The start model a little changed, so that log-ratios are not zero."""
    model = load_model(start)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(
    stage: DPOStage, model: Transformer, step: int = 0
) -> tuple[float, dict[str, torch.Tensor], int]:
    """(sum of losses, its gradients, units) of one step of one process."""
    model.zero_grad()
    total, n_units = 0.0, 0
    for batch in stage.next_batches(model, step, tiny.ROW):
        loss, _ = stage.loss_sum(model, batch)
        loss.backward()
        total, n_units = total + float(loss.detach()), n_units + batch.n_units
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, n_units


def test_a_replys_log_probability_is_that_of_the_conversation_alone(
    tmp_path: Path, words: Tokenizer, start: Path
) -> None:
    stage, model = make(tmp_path, words, start), moved(start)
    batch = stage.next_batches(model, 0, tiny.ROW)[0]
    packed = reply_logprobs(model, batch)
    assert batch.n_units > 1, "several pairs share the rows"
    for place, side in enumerate(batch.sides.tolist()):
        ids, trained = stage.data.train.side(side)
        logprobs = model(torch.from_numpy(ids)[None]).log_softmax(-1)[0]
        expected = sum(float(logprobs[i - 1, ids[i]]) for i in range(1, len(ids)) if trained[i])
        assert float(packed[place]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "simpo", "kto"])
def test_accumulated_gradient_is_independent_of_micro_batch_split(
    tmp_path: Path, words: Tokenizer, start: Path, loss: str
) -> None:
    results = [
        gradients(make(tmp_path / str(rows), words, start, loss=loss, micro_batch_rows=rows), moved(start))
        for rows in (2, 8)
    ]
    (loss_a, grads_a, units_a), (loss_b, grads_b, units_b) = results
    assert units_a == units_b > 4
    assert loss_a == pytest.approx(loss_b, rel=1e-5)
    for name, grad in grads_a.items():
        assert torch.allclose(grad, grads_b[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("loss", ["sigmoid", "simpo"])
def test_processes_read_disjoint_pairs_whose_gradients_add_up(
    tmp_path: Path, words: Tokenizer, start: Path, loss: str
) -> None:
    whole, grads, n_units = gradients(make(tmp_path / "one", words, start, loss=loss), moved(start))
    parts = [
        gradients(make(tmp_path / str(r), words, start, Ranks(rank=r, world=2), loss=loss), moved(start))
        for r in (0, 1)
    ]
    assert sum(part[2] for part in parts) == n_units
    assert sum(part[0] for part in parts) == pytest.approx(whole, rel=1e-5)
    for name, grad in grads.items():
        assert torch.allclose(grad, parts[0][1][name] + parts[1][1][name], rtol=1e-4, atol=1e-5), name


def test_the_prompt_changes_no_target_and_padding_no_loss(
    tmp_path: Path, words: Tokenizer, start: Path
) -> None:
    stage, model = make(tmp_path, words, start), moved(start)
    batch = stage.next_batches(model, 0, tiny.ROW)[0]
    before = reply_logprobs(model, batch)
    free = batch.doc_ids < 0
    changed = dataclasses.replace(batch, tokens=torch.where(free, 7, batch.tokens))
    assert free.any()
    assert torch.allclose(before, reply_logprobs(model, changed))


def test_the_reference_is_the_start_model_and_is_read_from_disk_the_second_time(
    tmp_path: Path, words: Tokenizer, start: Path
) -> None:
    stage, model = make(tmp_path, words, start), moved(start)
    batch = stage.next_batches(model, 0, tiny.ROW)[0]
    values = stage.reference("train").of(batch, model)
    assert torch.allclose(values, reply_logprobs(load_model(start), batch), atol=1e-4)
    again = make(tmp_path, words, start)
    kept = again.reference("train")
    kept.model = None  # type: ignore[method-assign,assignment]  # it must not be asked
    assert kept.of(batch, model).equal(values)


def test_ktos_baseline_is_the_mean_log_ratio_of_replies_to_other_prompts(
    tmp_path: Path, words: Tokenizer, start: Path
) -> None:
    stage, model = make(tmp_path, words, start, loss="kto"), moved(start)
    with torch.no_grad():  # far enough from the reference that the estimate is above zero
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.mul_(0.5)
    batches = stage.next_batches(model, 0, tiny.ROW)
    reference = load_model(start)
    total, n = 0.0, 0
    file = stage.data.train
    members, first, _ = file.pack(tiny.ROW, 0, False)
    rows = [members[a:b].tolist() for a, b in itertools.pairwise(first)]
    for number, row in enumerate(rows):
        for place, side in enumerate(row):
            if side not in torch.cat([b.sides for b in batches]):
                continue
            other = rows[(number + 1) % len(rows)]
            later = members.tolist().index(other[place % len(other)])
            while members[later % len(members)] // 2 == side // 2:  # the other reply to the same prompt
                later += 1
            (ids, a), (reply, b) = file.side(side), file.side(int(members[later % len(members)]))
            text = [*ids[: a.argmax()], *reply[b.argmax() :]][: tiny.ROW + 1]
            tokens, n_prompt = torch.tensor([text]), int(a.argmax())
            for sign, each in ((1, model), (-1, reference)):
                logprobs = (
                    each(tokens[:, :-1]).log_softmax(-1).gather(2, tokens[:, 1:, None])[0, n_prompt - 1 :, 0]
                )
                kept = torch.tensor(b[b.argmax() :][: len(logprobs)])
                total += sign * float(logprobs[kept].sum())
            n += 1
    assert {b.baseline for b in batches} == {batches[0].baseline}
    assert batches[0].baseline == pytest.approx(max(0.0, total / n), rel=1e-3, abs=1e-4)


def test_a_batch_without_a_target_adds_zero_and_no_nan(tmp_path: Path, words: Tokenizer, start: Path) -> None:
    stage, model = make(tmp_path, words, start), moved(start)
    batch = stage.next_batches(model, 0, tiny.ROW)[0]
    none = dataclasses.replace(
        batch, sides=batch.sides[:0], lengths=batch.lengths[:0], owner=torch.full_like(batch.owner, -1),
        targets=torch.full_like(batch.targets, -100), n_units=0,
    )  # fmt: skip
    loss, named = stage.loss_sum(model, none)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(float(value) == 0.0 for value in named.values())
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def train(tmp_path: Path, stage: DPOStage, start: Path, n_steps: int = 6) -> tuple[Transformer, list[float]]:
    """n_steps through the one loop, with a checkpoint every two."""
    cfg = dataclasses.replace(
        stage.cfg, checkpoint=dataclasses.replace(stage.cfg.checkpoint, every_s=0, every_steps=2)
    )
    stage.cfg = cfg
    folder, model = RunFolder(tmp_path).stage("dpo"), load_model(start).train()
    target = StepTarget(
        cfg.dpo,
        tokens=n_steps * cfg.dpo.step_tokens,
        row_length=tiny.ROW,
        n_rows=stage.n_rows,
        evaluate_every=0.5,
    )
    fit(
        stage, model, FitSettings(target=target, lr_scale=0.3), cfg=cfg, folder=folder, plan=stage.plan,
        ranks=stage.ranks, tokenizer=stage.tokenizer,
    )  # fmt: skip
    return model, [r["loss"] for r in read_jsonl(folder.metrics_path) if "loss" in r]


class Stopped(DPOStage):
    """Asks for a stop, as SIGTERM would, after some micro-batches."""

    left = 0

    def loss_sum(self, model: Transformer, batch: Any) -> Any:
        import os
        import signal

        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss_sum(model, batch)


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_resume_equals_never_stopping_bit_for_bit(
    tmp_path: Path, words: Tokenizer, start: Path, loss: str
) -> None:
    whole, losses = train(tmp_path / "whole", make(tmp_path / "whole", words, start, loss=loss), start)
    cut = make(tmp_path / "cut", words, start, loss=loss)
    cut.__class__, cut.left = Stopped, 14  # type: ignore[attr-defined]
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", cut, start)
    resumed, again = train(tmp_path / "cut", make(tmp_path / "cut", words, start, loss=loss), start)
    assert again == losses
    assert len(losses) == 6
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


@pytest.mark.parametrize(("loss", "beta"), [("sigmoid", 0.1), ("ipo", 0.1), ("simpo", 2.0), ("kto", 0.1)])
def test_training_raises_held_out_preference_accuracy(
    tmp_path: Path, words: Tokenizer, start: Path, loss: str, beta: float
) -> None:
    stage = make(tmp_path, words, start, loss=loss, beta=beta, micro_batch_rows=8)
    with torch.no_grad():
        before = stage.evaluate(load_model(start))
    model, _ = train(tmp_path, stage, start, n_steps=12)
    model.eval()
    with torch.no_grad():
        after = stage.evaluate(model)
    assert after["preference_accuracy"] > 0.9
    if loss != "simpo":
        assert before["preference_accuracy"] == 0.5, "at the reference all rewards are 0"


def test_logsigmoid_is_finite_far_out() -> None:
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    sigmoid_loss(far).sum().backward()
    assert torch.isfinite(F.logsigmoid(far)).all()
    assert far.grad is not None
    assert torch.isfinite(far.grad).all()


# ---- trl: its own code, on the same log-probabilities --------------------------------------------------------


def stand_in(**attributes: Any) -> Any:
    """What the loss functions of trl's trainers read of `self`."""
    same = lambda x: x  # noqa: E731
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=same, gather=same)
    return SimpleNamespace(
        accelerator=accelerator, model=SimpleNamespace(training=True), _metrics=defaultdict(lambda: defaultdict(list)),
        aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, _total_train_tokens=0, _tp_size=1,
        **attributes,
    )  # fmt: skip


def written(logprobs: list[float], lengths: list[int]) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model that gives each reply its log-probability, spread over its tokens, and the batch that it is asked."""
    width = max(lengths)
    spread = torch.zeros(len(lengths), width)
    for row, (value, n) in enumerate(zip(logprobs, lengths, strict=True)):
        spread[row, :n] = value / n
    mask = torch.zeros(len(lengths), width + 1, dtype=torch.long)
    for row, n in enumerate(lengths):
        mask[row, 1 : n + 1] = 1
    blank = torch.zeros_like(spread)
    outputs = SimpleNamespace(log_probs=spread, entropy=blank, mean_logits=blank, is_top1=blank.bool())
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
    }
    return (lambda **_: outputs), inputs


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("sigmoid", {}),
        ("sigmoid_norm", {"normalise_length": True}),
        ("ipo", {"loss": "ipo", "normalise_length": True}),
    ],
)
def test_pair_losses_equal_trls(theirs: str, ours: dict[str, Any]) -> None:
    import trl

    order = [0, 2, 1, 3]  # trl has the chosen replies first
    model, inputs = written(POLICY[order].tolist(), LENGTHS[order].tolist())
    inputs |= {"ref_chosen_logps": REFERENCE[0::2], "ref_rejected_logps": REFERENCE[1::2]}
    trainer = stand_in(
        beta=0.3, f_divergence_type="reverse_kl", loss_types=[theirs], loss_weights=[1.0], use_weighting=False
    )
    loss = trl.DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    mine, _ = pair_losses(POLICY, REFERENCE, LENGTHS, DPOConfig(beta=0.3, **ours))
    assert float(mine.mean()) == pytest.approx(float(loss), rel=1e-5)


def test_kto_losses_equal_trls() -> None:
    import trl

    model, inputs = written(POLICY.tolist(), LENGTHS.tolist())
    chosen, divergence = torch.tensor([True, False, True, False]), 0.7
    inputs |= {"label": chosen, "ref_logps": REFERENCE, "ref_KL_logps": torch.full((4,), -divergence)}
    trainer = stand_in(
        beta=0.3, loss_type="kto", calculate_KL=True, desirable_weight=1.3, undesirable_weight=0.8,
        _compute_kl_logps=lambda model, batch: torch.zeros(4),
    )  # fmt: skip
    loss = trl.KTOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    cfg = DPOConfig(loss="kto", beta=0.3, desirable_weight=1.3, undesirable_weight=0.8)
    mine = kto_loss(0.3 * (POLICY - REFERENCE), chosen, 0.3 * divergence, cfg)
    assert float(mine.mean()) == pytest.approx(float(loss), rel=1e-5)


def test_held_out_rewards_are_those_that_are_trained(tmp_path: Path, words: Tokenizer, start: Path) -> None:
    model = moved(start).eval()
    for settings in ({}, {"normalise_length": True}, {"loss": "simpo"}):
        stage = make(tmp_path, words, start, **settings)
        stage.data.val = stage.data.train
        stage.references.clear()
        (batch,) = held_out_batches(
            stage.data.val, row_length=tiny.ROW, paired=True, seed=0, max_tokens=10**9, micro_rows=10**6
        )
        with torch.no_grad():
            _, sums = stage.loss_sum(model, batch)
            found = stage.evaluate(model)
        assert found["n_pairs"] == batch.n_units
        assert found["reward_margin"] == pytest.approx(float(sums["reward_margin"]) / batch.n_units, rel=1e-4)


def test_ktos_partner_is_never_the_other_reply_to_the_same_prompt(tmp_path: Path, words: Tokenizer) -> None:
    # Replies of one length, a row for each: the two to a prompt are neighbours in the order of packing.
    records = [
        {"prompt": f"What is {i}?", "chosen": f"It is {i} {'good ' * i}", "rejected": f"It is {i} {'bad ' * i}"}
        for i in range(9, 21)
    ]  # fmt: skip
    file = tiny.preferences(tmp_path, words, records).train
    row_length = 70
    members, _, _ = file.pack(row_length, 0, False)
    own = [
        words.decode(file.side(side)[0].tolist()).split("It is ")[1].split()[0] for side in members.tolist()
    ]
    assert any(a == b for a, b in itertools.pairwise(own))
    batch = mismatched(file, members.tolist(), row_length=row_length, seed=0)
    for place in range(len(members)):
        reply = words.decode(batch.targets[batch.owner == place].tolist())
        assert reply.split("It is ")[1].split()[0] != own[place]
