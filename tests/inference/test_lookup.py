"""Guesses from the text itself change how fast a text is written, and nothing else."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from noisy_model import noisy_model

from onesitting.inference import batch as batches
from onesitting.inference.batch import Batch
from onesitting.inference.engine import Engine, Request
from onesitting.inference.generate import for_decoding, generate, stream
from onesitting.inference.lookup import GUESSED_TOKENS, MOST_GUESSED, TRIAL, Lookup
from onesitting.inference.row import Row, RowSettings, Thought
from onesitting.inference.sampling import Sampling
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


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    return noisy_model(tokenizer.vocab_size, 220)


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[Lookup]:
    """All that are made while a test runs."""
    made: list[Lookup] = []

    class Watched(Lookup):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(batches, "Lookup", Watched)
    return made


def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    long = tokenizer.encode(" ".join(CORPUS * 9))
    return [[], tokenizer.encode("the cat sat on the"), long[: CHUNK + 5], long[:150]]


GREEDY = Sampling(temperature=0.0, max_tokens=60)
# Two candidates each: a random model hardly ever repeats itself else.
SAMPLED = replace(GREEDY, temperature=0.7, top_k=2, seed=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        replace(GREEDY, max_tokens=2),
        replace(GREEDY, repetition_penalty=1.05),
        SAMPLED,
        replace(SAMPLED, temperature=1.5, top_p=0.9, min_p=0.01, seed=4),
        replace(SAMPLED, stop=("a", "e")),
    ],
)
def test_text_with_guesses_is_the_text_without_at_any_temperature(
    model: Transformer, tokenizer: Tokenizer, sampling: Sampling, dtype: torch.dtype, lookups: list[Lookup]
) -> None:
    stop_ids = set(range(0, 384, 40))
    for number, prompt in enumerate(prompts(tokenizer)):
        with_guesses, without = (
            generate(
                model, tokenizer, [prompt], sampling, stop_ids,
                logprobs=True, dtype=dtype, indices=[number], guess=guess,
            )
            for guess in (True, False)
        )  # fmt: skip
        assert with_guesses == without
        if number == 0:
            pieces = stream(model, tokenizer, prompt, sampling, stop_ids, dtype=dtype)
            assert "".join(pieces) == without[0].text
    if sampling in (GREEDY, SAMPLED):
        assert sum(one.n_accepted for one in lookups) > 10
        assert any(one.n_accepted < one.n_guessed for one in lookups)


def test_a_text_alone_is_that_of_a_batch_without_guesses(
    model: Transformer, tokenizer: Tokenizer, lookups: list[Lookup]
) -> None:
    rows = prompts(tokenizer)
    together = generate(model, tokenizer, rows, SAMPLED, set(), guess=False)
    assert not lookups
    for number, prompt in enumerate(rows):
        assert generate(model, tokenizer, [prompt], SAMPLED, set(), indices=[number]) == [together[number]]
    assert len(lookups) == len(rows)


def test_forced_tokens_penalties_and_biases_hold_within_a_pass(
    model: Transformer, tokenizer: Tokenizer, lookups: list[Lookup]
) -> None:
    special = tokenizer.special_ids
    thought = Thought(
        open_id=special["<think>"], close_ids=(special["</think>"], 10), budget_tokens=27, is_open=True
    )
    settings = RowSettings(
        sampling=GREEDY, stop_ids=set(), thought=thought, frequency_penalty=0.02, presence_penalty=0.01,
        logit_bias={7: 0.5}, n_top=3, tempered_logprobs=True,
    )  # fmt: skip

    def written(guess: bool) -> Row:
        row = Row(tokenizer.encode("the cat"), settings, tokenizer, spelled_bytes(tokenizer), 220)
        with torch.inference_mode():
            batch = Batch(for_decoding(model, None), 3, 100, 64, guess=guess)
            batch.add(row)
            n_steps = 0
            while row.finish_reason is None:
                batch.step()
                n_steps += 1
        assert batch.n_written == len(row.ids) == 60
        assert n_steps == 60 - sum(one.n_accepted for one in lookups)
        return row

    without, with_guesses = written(guess=False), written(guess=True)
    assert with_guesses.completion() == without.completion()
    assert with_guesses.top == without.top
    assert special["</think>"] in without.ids
    assert sum(one.n_accepted for one in lookups) > 0


@pytest.mark.parametrize("alike_rows", [4, 16])
def test_a_pass_has_as_many_rows_as_have_the_same_bits(
    model: Transformer, tokenizer: Tokenizer, alike_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_guessed: list[int] = []

    class Looping(Lookup):
        def guess(self, prompt: Sequence[int], ids: Sequence[int], n: int) -> list[int]:
            found = super().guess(prompt, ids, n)
            n_guessed.append(len(found))
            return found

        def learn(self, n_guessed: int, n_accepted: int) -> None:
            super().learn(n_guessed, n_guessed)  # as if all had been right

    monkeypatch.setattr(batches, "Lookup", Looping)
    laid_out = for_decoding(model, None)
    expected = generate(laid_out, tokenizer, [[5]], GREEDY, set(), guess=False)
    monkeypatch.setattr(laid_out, "alike_rows", alike_rows)
    assert generate(laid_out, tokenizer, [[5]], GREEDY, set()) == expected
    assert max(n_guessed) == alike_rows - 1


def test_the_engine_guesses_for_a_client_alone_and_counts_every_token(
    model: Transformer, tokenizer: Tokenizer, lookups: list[Lookup]
) -> None:
    engine = Engine(model, tokenizer)
    settings = RowSettings(sampling=GREEDY, stop_ids=set())
    found = [engine.complete(Request(prompt=p or [5], settings=settings))[0] for p in prompts(tokenizer)]
    assert engine.close()
    for prompt, one in zip(prompts(tokenizer), found, strict=True):
        assert [one] == generate(model, tokenizer, [prompt or [5]], GREEDY, set(), guess=False)
    n_accepted = sum(one.n_accepted for one in lookups)
    assert n_accepted > 0
    assert engine.statistics.written_tokens == sum(len(one.ids) for one in found)
    assert engine.statistics.steps < engine.statistics.written_tokens


def test_a_guess_is_what_followed_the_longest_known_run_last() -> None:
    prompt = [1, 2, 3, 4, 9, 2, 3, 5, 6, 7]
    assert Lookup().guess(prompt, [2, 3], 3) == [5, 6, 7]
    assert Lookup().guess(prompt, [1, 2, 3], 2) == [4, 9]
    assert Lookup().guess(prompt, [8], 3) == []
    assert Lookup().guess([1, 2], [1, 2], 3) == [1, 2, 1]  # beyond the end it goes round
    growing, whole = Lookup(), prompt + prompt
    for n in range(len(whole) + 1):
        assert growing.guess(prompt, whole[:n], 3) == Lookup().guess(prompt, whole[:n], 3)


def test_guesses_that_fail_become_rare_and_come_back_when_they_are_right() -> None:
    lookup, ids = Lookup(), [1]

    def n_passes_with_guesses(n: int, n_accepted: int) -> int:
        found = 0
        for _ in range(n):
            ids.append(1)
            guesses = lookup.guess([1, 1, 1], ids, GUESSED_TOKENS)
            if guesses:
                lookup.learn(len(guesses), n_accepted)
                found += 1
        return found

    assert n_passes_with_guesses(20, 0) < 12
    assert n_passes_with_guesses(10 * TRIAL, 0) == 10
    n_passes_with_guesses(TRIAL, 3)
    assert n_passes_with_guesses(20, 3) == 20


def test_while_all_guesses_are_right_the_next_pass_takes_more_up_to_what_fits() -> None:
    lookup, ids = Lookup(), [1, 2, 1, 2]
    passes = [(99, 3, 3), (99, 7, 7), (99, 15, 15), (4, 4, 4), (99, 15, 8), (99, 3, 0)]
    for n_fit, n_guessed, n_right in passes:
        guesses = lookup.guess([], ids, n_fit)
        assert guesses == ([1, 2] * 8)[: len(guesses)]
        assert len(guesses) == n_guessed <= MOST_GUESSED
        lookup.learn(n_guessed, n_right)
        ids += [1, 2] * 2  # whatever was kept
