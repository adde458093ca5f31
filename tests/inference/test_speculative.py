"""A draft changes how fast a text is written, and nothing else."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from onesitting.config import ModelConfig
from onesitting.inference.generate import for_decoding, generate, stream
from onesitting.inference.row import Row, RowSettings, Thought
from onesitting.inference.sampling import Sampling, adjusted_logits
from onesitting.inference.speculative import Pair, accepted_or_drawn
from onesitting.inference.text_stream import spelled_bytes
from onesitting.model.kv_cache import CHUNK
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer

CORPUS = [
    "the cat sat on the mat and the dog ran to the cat",
    "naïve café: 漢字, 😀 and ünïcode",
    "1 + 2 = 3",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CORPUS * 20, vocab_size=384)


def shaken(model: Transformer, seed: int, size: float) -> Transformer:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return model.eval()


@pytest.fixture(scope="module")
def cfg(tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(
        n_layers=2, d_model=48, n_heads=4, n_kv_heads=2, head_dim=12, d_ff=64,
        vocab_size=tokenizer.vocab_size, context_length=160,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(cfg: ModelConfig) -> Transformer:
    return shaken(Transformer(cfg), 3, 0.2)


@pytest.fixture(scope="module")
def draft(cfg: ModelConfig) -> Transformer:
    """The same model a little changed: it agrees now and then."""
    return shaken(shaken(Transformer(cfg), 3, 0.2), 4, 0.03)


def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    long = tokenizer.encode(" ".join(CORPUS * 9))
    return [[], tokenizer.encode("the"), long[: CHUNK + 5], long[:150]]


GREEDY = Sampling(temperature=0.0, max_tokens=40)


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        replace(GREEDY, repetition_penalty=1.3),
        replace(GREEDY, max_tokens=2),
        replace(GREEDY, stop=("a",)),
    ],
)
def test_greedy_text_with_a_draft_is_the_text_without(
    model: Transformer, draft: Transformer, tokenizer: Tokenizer, sampling: Sampling
) -> None:
    rows, stop_ids = prompts(tokenizer), set(range(0, 384, 40))
    expected = generate(model, tokenizer, rows, sampling, stop_ids, logprobs=True)
    found = generate(model, tokenizer, rows, sampling, stop_ids, logprobs=True, draft=draft)
    assert found == expected
    assert {c.finish_reason for c in found} <= {"stop", "length"}
    for prompt, one in zip(rows, expected, strict=True):
        assert "".join(stream(model, tokenizer, prompt, sampling, stop_ids, draft=draft)) == one.text


def test_a_forced_end_of_a_thought_is_written_with_a_draft_too(
    model: Transformer, draft: Transformer, tokenizer: Tokenizer
) -> None:
    special = tokenizer.special_ids
    thought = Thought(
        open_id=special["<think>"], close_ids=(special["</think>"], 10), budget_tokens=7, is_open=True
    )
    rows = prompts(tokenizer)[:3]
    expected = generate(model, tokenizer, rows, GREEDY, set(), thought=thought)
    assert generate(model, tokenizer, rows, GREEDY, set(), thought=thought, draft=draft) == expected
    assert expected[0].ids[7:9] == [special["</think>"], 10]


def pair_of(model: Transformer, draft: Transformer, tokenizer: Tokenizer, sampling: Sampling) -> Pair:
    settings = RowSettings(sampling=sampling, stop_ids=set())
    row = Row(
        tokenizer.encode("the"), settings, tokenizer, spelled_bytes(tokenizer), model.cfg.context_length
    )
    with torch.inference_mode():
        pair = Pair(for_decoding(model, None), for_decoding(draft, None), row)
        while row.finish_reason is None:
            pair.step()
    return pair


def test_guesses_that_agree_are_taken_and_only_those(
    model: Transformer, draft: Transformer, tokenizer: Tokenizer
) -> None:
    some = pair_of(model, draft, tokenizer, GREEDY)
    assert 0 < some.n_accepted < some.n_drafted
    for sampling in (GREEDY, replace(GREEDY, temperature=1.0, top_k=20, seed=1)):
        itself = pair_of(model, model, tokenizer, sampling)
        # 40 tokens: the first, and 13 passes of 2 guesses and 1.
        assert itself.n_accepted == itself.n_drafted == 26


def test_draft_of_a_shorter_context_helps_as_far_as_it_reads(
    model: Transformer, cfg: ModelConfig, tokenizer: Tokenizer
) -> None:
    learned = replace(cfg, positions="learned", context_length=30, n_layers=1)
    short = shaken(Transformer(learned), 5, 0.1)
    expected = generate(model, tokenizer, prompts(tokenizer), GREEDY, set())
    assert generate(model, tokenizer, prompts(tokenizer), GREEDY, set(), draft=short) == expected


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities / probabilities.sum() * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_accepted_or_drawn_tokens_have_the_wanted_distribution() -> None:
    generator = torch.Generator().manual_seed(1)
    wanted = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0], dtype=torch.float64)
    drafted = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.3], dtype=torch.float64)
    guesses = torch.multinomial(drafted, 8000, replacement=True, generator=generator).tolist()
    uniforms = torch.rand(8000, 2, generator=generator, dtype=torch.float64).tolist()
    tokens = [accepted_or_drawn(g, wanted, drafted, *u) for g, u in zip(guesses, uniforms, strict=True)]
    counts = torch.bincount(torch.tensor(tokens), minlength=5).double()
    assert counts[4] == 0
    assert chi_square(counts[:4], wanted[:4]) < 16.3  # 3 degrees of freedom, one in a thousand
    kept = sum(g == t for g, t in zip(guesses, tokens, strict=True)) / 8000
    assert kept == pytest.approx(float(torch.minimum(wanted, drafted).sum()), abs=0.02)


def test_sampled_pairs_of_tokens_have_the_models_distribution(
    model: Transformer, draft: Transformer, tokenizer: Tokenizer
) -> None:
    # After the first token come a guess that is taken or not, and a token behind it.
    prompt, sampling = tokenizer.encode("the"), Sampling(temperature=1.5, top_k=2, seed=1, max_tokens=3)
    n = 300
    done = generate(model, tokenizer, [prompt] * n, sampling, set(), draft=draft)

    def candidates(ids: tuple[int, ...]) -> dict[int, float]:
        with torch.no_grad():
            logits = adjusted_logits(model(torch.tensor([[*prompt, *ids]]))[:, -1], sampling)
        values, tokens = logits.softmax(dim=1)[0].topk(2)
        return dict(zip(tokens.tolist(), values.tolist(), strict=True))

    exact: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        exact = {(*ids, t): p * q for ids, p in exact.items() for t, q in candidates(ids).items()}
    counts = dict.fromkeys(exact, 0)
    for completion in done:
        counts[tuple(completion.ids)] += 1
    assert len(counts) == 8
    common = sorted((p, counts[ids]) for ids, p in exact.items() if p * n >= 5)
    found = chi_square(torch.tensor([c for _, c in common]).double(), torch.tensor([p for p, _ in common]))
    assert len(common) >= 6
    assert found < 24.3  # 7 degrees of freedom or fewer, one in a thousand
