"""Candidates and probabilities against transformers' own processors; draws against their distribution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from onesitting.errors import UserError
from onesitting.inference.sampling import Sampling, adjusted_logits, choose


def logits(rows: int = 5, vocab: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=1.3, top_k=5),
        Sampling(temperature=0.9, top_p=0.8),
        Sampling(temperature=1.0, min_p=0.1),
        Sampling(temperature=1.0, repetition_penalty=1.4),
        Sampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.2),
    ],
)
def test_candidates_and_logits_are_those_of_transformers(sampling: Sampling) -> None:
    ids = torch.randint(0, 40, (5, 7), generator=torch.Generator().manual_seed(1))
    reference = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
            TemperatureLogitsWarper(sampling.temperature),
        ]
    )
    if sampling.top_k:
        reference.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        reference.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        reference.append(MinPLogitsWarper(sampling.min_p))
    seen = torch.zeros(5, 40, dtype=torch.bool).scatter_(1, ids, value=True)
    torch.testing.assert_close(adjusted_logits(logits(), sampling, seen), reference(ids, logits()))


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    sampling, one = Sampling(temperature=0.9, top_k=6), logits(1, 12)
    n = 4000
    uniforms = [(i + 0.5) / n for i in range(n)]  # evenly spaced: the counts are exact up to one
    counts = choose(one.expand(n, -1), sampling, uniforms).bincount(minlength=12)
    expected = adjusted_logits(one, sampling).softmax(-1)[0] * n
    assert (counts - expected).abs().max() <= 1


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 12))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_token_of_probability_zero_is_never_drawn(uniform: float, top_k: int) -> None:
    sampling = Sampling(temperature=1.0, top_k=top_k)
    chosen = choose(logits(1, 12), sampling, [uniform])
    assert adjusted_logits(logits(1, 12), sampling)[0, chosen].isfinite().all()


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 5e-324},
        {"top_p": 1e-300},
        {"min_p": 1.0},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300},
        {"repetition_penalty": 1e-300, "temperature": 1e-300, "top_p": 1e-300, "min_p": 1e-300},
    ],
)
def test_extreme_setting_never_takes_a_masked_token(extreme: dict[str, float]) -> None:
    """Numbers that float32 rounds to 0 made all logits NaN, and the last token of the vocabulary was written."""
    logits = torch.tensor([[-3.0, 12.0, 80.0, -torch.inf, -torch.inf]])
    seen = torch.tensor([[True, True, False, False, True]])
    for uniform in (0.0, 0.5, 0.999):
        [token] = choose(logits, Sampling(**extreme), [uniform], seen).tolist()  # pyright: ignore[reportArgumentType]
        assert token <= 2


def test_temperature_zero_takes_the_most_likely() -> None:
    assert choose(logits(), Sampling(temperature=0.0), []).tolist() == logits().argmax(-1).tolist()


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_p": 0}, {"min_p": 2}, {"repetition_penalty": 0}, {"max_tokens": -1}, {"stop": ("",)},
     {"stop": "end"}, {"top_k": -1}, {"temperature": float("nan")}],
)  # fmt: skip
def test_setting_out_of_range_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"sampling setting {next(iter(wrong))} is "):
        Sampling(**wrong)  # pyright: ignore
