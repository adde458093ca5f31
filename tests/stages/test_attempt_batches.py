"""Attempts at one prompt in one row: as if each stood alone."""

import pytest
import torch
from rl_maker import memorised, random_model
from torch import Tensor

from onesitting.model.documents import SHARED, document_bias
from onesitting.model.transformer import Transformer
from onesitting.stages import attempt_batches
from onesitting.stages.attempt_batches import (
    RLBatch,
    lay_out,
    make_batches,
    row_inputs,
    sampled_hidden,
    sampled_logprobs,
    shared_rows,
)
from onesitting.stages.rollout import Trajectory

TOKENIZER = memorised()[1]


def attempt(prompt: list[int], reply: list[int], sampled: list[bool] | None = None) -> Trajectory:
    mask = [True] * len(reply) if sampled is None else sampled
    return Trajectory(ids=[*prompt, *reply], n_prompt=len(prompt), sampled=[False] * len(prompt) + mask)


ONE, OTHER = [5, 9, 20, 31], [8, 30]
MADE = [
    attempt(ONE, [7, 40, 3]),
    attempt(OTHER, [11, 12, 13, 14]),
    attempt(ONE, [7, 41], [True, False]),  # a tool's result is read, not trained
    attempt(ONE, [50, 51, 52, 53, 54], [True, True, False, False, True]),
]


def batches_of(made: list[Trajectory], advantages: list[float], micro_tokens: int = 10_000) -> list[RLBatch]:
    return make_batches(
        made,
        [float(i) for i in range(len(made))],
        advantages,
        aggregation="sequence",
        max_tokens=5,
        micro_tokens=micro_tokens,
        keep_zero=True,
        pad_id=0,
    )


def test_a_prompt_stands_once_before_its_attempts():
    rows = lay_out([[MADE[0], MADE[2]], [MADE[1]]], pad_id=0)
    assert rows.tokens.tolist() == [[5, 9, 20, 31, 7, 40, 31, 7], [8, 30, 11, 12, 13, 0, 0, 0]]
    none = -100
    assert rows.targets.tolist() == [
        [none, none, none, 7, 40, 3, 7, none],
        [none, 11, 12, 13, 14, none, none, none],
    ]
    assert rows.doc_ids is not None
    assert rows.positions is not None
    assert rows.doc_ids[0].tolist() == [SHARED] * 3 + [0] * 3 + [1] * 2
    assert rows.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 3, 4]


def test_a_branch_sees_the_prompt_and_itself():
    seen = document_bias(torch.tensor([[SHARED, SHARED, 0, 0, 1, 1]]), torch.float32)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]


def log_probabilities(model: Transformer, made: list[Trajectory], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of all sampled tokens, attempt after attempt, and the gradient of their weighted sum."""
    model.zero_grad()
    found: dict[int, Tensor] = {}
    for batch in batches_of(made, [1.0] * len(made)):
        logp = sampled_logprobs(model, batch, sampled_hidden(model, batch), 0.7)
        for place in range(batch.n_attempts):
            found[int(batch.rewards[place])] = logp[batch.attempts == place]
    together = torch.cat([found[i] for i in range(len(made))])
    (together * weights).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return together.detach(), gradient


def test_sharing_changes_no_log_probability_and_no_gradient(monkeypatch: pytest.MonkeyPatch):
    model = random_model(TOKENIZER)
    weights = torch.linspace(-1, 1, sum(made.n_sampled for made in MADE))
    shared, shared_gradient = log_probabilities(model, MADE, weights)
    monkeypatch.setattr(attempt_batches, "LONGEST_SHARED_ROW", 0)
    assert all(batch.doc_ids is None for batch in batches_of(MADE, [1.0] * 4))
    alone, gradient = log_probabilities(model, MADE, weights)
    assert torch.allclose(shared, alone, atol=1e-5)
    assert torch.allclose(shared_gradient, gradient, atol=1e-5)
    assert float(gradient.abs().max()) > 1e-3


def test_every_sampled_token_keeps_the_advantage_weight_and_reward_of_its_attempt():
    (batch,) = batches_of(MADE, [0.5, -0.5, 2.0, 4.0])
    of = {0: (0.5, 3), 1: (-0.5, 4), 2: (2.0, 1), 3: (4.0, 3)}
    assert sorted(batch.rewards.tolist()) == [0, 1, 2, 3]
    for place, number in enumerate(batch.rewards.int().tolist()):
        mine = batch.attempts == place
        advantage, length = of[number]
        assert batch.advantages[mine].tolist() == [advantage] * length
        assert batch.weights[mine].tolist() == pytest.approx([1 / length] * length)
    trained = batch.targets[batch.targets != -100]
    assert len(trained) == len(batch.attempts)


def test_rows_hold_as_many_attempts_as_fit_and_batches_as_many_rows(monkeypatch: pytest.MonkeyPatch):
    assert shared_rows(MADE, range(4)) == [[0, 2, 3], [1]]
    assert row_inputs(MADE, [0, 2, 3]) == 3 + 3 + 2 + 5
    monkeypatch.setattr(attempt_batches, "LONGEST_SHARED_ROW", 8)
    rows = shared_rows(MADE, range(4))
    assert sorted(map(sorted, rows)) == [[0, 2], [1], [3]]
    assert len(batches_of(MADE, [1.0] * 4, micro_tokens=16)) == 2
    assert len(batches_of(MADE, [1.0] * 4, micro_tokens=1)) == 3


def test_attempts_without_an_advantage_are_left_out_of_the_row():
    made = make_batches(
        MADE, [0.0] * 4, [1.0, 0.0, 0.0, -1.0], aggregation="token", max_tokens=5, micro_tokens=100,
        keep_zero=False, pad_id=0,
    )  # fmt: skip
    (batch,) = made
    assert batch.n_attempts == 2
    assert batch.n_units == sum(attempt.n_sampled for attempt in MADE)
