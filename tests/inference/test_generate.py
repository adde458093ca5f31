"""Generation with a real tokenizer and a small random model: rows are independent, streams equal batches."""

import sys
from dataclasses import replace

import pytest
import torch
from noisy_model import noisy_model

from onesitting.inference import generate as generation
from onesitting.inference.batch import PrefixCache
from onesitting.inference.generate import generate, stream
from onesitting.inference.sampling import Sampling
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer

CORPUS = [
    "the cat sat on the mat and the dog ran to the cat",
    "naïve café: 漢字, 😀 and ünïcode",
    "1 + 2 = 3",
]
PROMPTS = ["the", "the cat sat on the mat and the dog", "漢", "", "1 + 2", "café and"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CORPUS * 20, vocab_size=384)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    return noisy_model(tokenizer.vocab_size, 64)


def with_context(model: Transformer, context_length: int) -> Transformer:
    other = Transformer(replace(model.cfg, context_length=context_length))
    other.load_state_dict(model.state_dict())
    return other


def encoded(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(text) for text in PROMPTS]


def no_cache_greedy(model: Transformer, prompt: list[int], stop_ids: set[int], n: int) -> list[int]:
    """The independent reference: a full forward pass for every token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n):
            token = int(model(torch.tensor([ids]))[0, -1].argmax())
            if token in stop_ids:
                break
            ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_rows", [1, 4, 64])
def test_greedy_rows_of_any_batch_are_those_of_full_forward_passes(
    model: Transformer, tokenizer: Tokenizer, batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "BATCH_ROWS", batch_rows)
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 8)  # several chunks
    stop_ids = set(range(0, 384, 9))  # frequent stops, so that rows leave the batch at different times
    done = generate(model, tokenizer, encoded(tokenizer), Sampling(temperature=0.0, max_tokens=20), stop_ids)
    for prompt, completion in zip(encoded(tokenizer), done, strict=True):
        assert completion.ids == no_cache_greedy(model, prompt or [tokenizer.eos_id], stop_ids, 20)
        assert completion.finish_reason == ("length" if len(completion.ids) == 20 else "stop")
        assert (completion.stop_id in stop_ids) is (completion.finish_reason == "stop")
        assert completion.text == tokenizer.decode(completion.ids, skip_special=False)
    assert {c.finish_reason for c in done} == {"stop", "length"}


SETTINGS = [
    Sampling(seed=1, max_tokens=25),
    Sampling(seed=2, max_tokens=25, temperature=1.2, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.3),
    Sampling(seed=3, max_tokens=25, temperature=1.5, stop=("a", "e")),
]


@pytest.mark.parametrize("sampling", SETTINGS)
def test_sampled_row_does_not_depend_on_the_batch_it_is_in(
    model: Transformer, tokenizer: Tokenizer, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = encoded(tokenizer) * 2
    together = generate(model, tokenizer, prompts, sampling)
    monkeypatch.setattr(generation, "BATCH_ROWS", 1)
    assert generate(model, tokenizer, prompts, sampling) == together
    assert generate(model, tokenizer, prompts[:1], sampling) == together[:1]
    assert together[0] != together[6]  # the same prompt in another row is another sample
    assert generate(model, tokenizer, prompts, replace(sampling, seed=9)) != together


def test_a_prompt_that_comes_again_is_read_once_and_writes_the_same(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = with_context(model, 256)
    first, second = tokenizer.encode(CORPUS[0] * 40)[:150], tokenizer.encode(CORPUS[1] * 40)[:140]
    prompts, sampling = [first, first, first, second, second], Sampling(seed=4, max_tokens=9)
    alone = [generate(longer, tokenizer, [ids], sampling, indices=[i])[0] for i, ids in enumerate(prompts)]
    caches: list[PrefixCache] = []

    class Watched(PrefixCache):
        def __init__(self) -> None:
            super().__init__()
            caches.append(self)

    monkeypatch.setattr(generation, "PrefixCache", Watched)
    monkeypatch.setattr(generation, "BATCH_ROWS", 2)
    assert generate(longer, tokenizer, prompts, sampling) == alone
    assert [cache.n_hit_tokens for cache in caches] == [3 * 2 * 64], "two pieces of 64 in each further copy"
    assert generate(longer, tokenizer, [first, second], sampling)[0] == alone[0]
    assert len(caches) == 1, "nothing is kept where nothing comes again"


def test_what_an_earlier_call_has_read_is_not_read_again(model: Transformer, tokenizer: Tokenizer) -> None:
    longer, beginning = with_context(model, 256), [300 + i % 5 for i in range(70)]
    sampling, prefixes = Sampling(temperature=0.8, max_tokens=6, seed=3), PrefixCache()
    for number, prompt in enumerate((beginning, [*beginning, 5, 6, 7], [*beginning, 8])):
        (alone,) = generate(longer, tokenizer, [prompt], sampling)
        (again,) = generate(longer, tokenizer, [prompt], sampling, prefixes=prefixes)
        assert again == alone
        assert prefixes.n_hit_tokens == 64 * number


@pytest.mark.parametrize("sampling", SETTINGS)
def test_stream_is_the_text_of_generate_in_whole_characters(
    model: Transformer, tokenizer: Tokenizer, sampling: Sampling
) -> None:
    prompt = encoded(tokenizer)[2]
    pieces = list(stream(model, tokenizer, prompt, sampling))
    assert all(pieces)
    assert "".join(pieces) == generate(model, tokenizer, [prompt], sampling)[0].text


def test_text_ends_before_a_stop_string(model: Transformer, tokenizer: Tokenizer) -> None:
    plain = generate(model, tokenizer, encoded(tokenizer), Sampling(seed=5, max_tokens=30))
    stopped = generate(model, tokenizer, encoded(tokenizer), Sampling(seed=5, max_tokens=30, stop=("t", "e")))
    cuts = [min((c.text.find(s) for s in "te" if s in c.text), default=-1) for c in plain]
    assert any(cut >= 0 for cut in cuts)
    for before, after, cut in zip(plain, stopped, cuts, strict=True):
        assert after.text == (before.text if cut < 0 else before.text[:cut])
        assert after.finish_reason == ("stop" if cut >= 0 else before.finish_reason)


def test_logprobs_are_those_of_the_tempered_softmax_stop_token_included(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    sampling = Sampling(seed=1, temperature=0.7, top_k=20, max_tokens=12)
    prompts, stop_ids = encoded(tokenizer), set(range(0, 384, 9))
    for prompt, done in zip(
        prompts, generate(model, tokenizer, prompts, sampling, stop_ids, logprobs=True), strict=True
    ):
        prompt = prompt or [tokenizer.eos_id]
        sampled = done.ids + ([] if done.stop_id is None else [done.stop_id])
        with torch.no_grad():
            logits = model(torch.tensor([prompt + sampled]))[0, len(prompt) - 1 : -1]
        expected = (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(sampled)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(done.logprobs), expected, atol=1e-4, rtol=1e-4)


def test_text_ends_by_length_at_the_end_of_the_context(model: Transformer, tokenizer: Tokenizer) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=1000)
    near, full, beyond = generate(model, tokenizer, [[9] * 60, [9] * 64, [9] * 99], sampling, stop_ids=set())
    assert (len(near.ids), near.finish_reason) == (4, "length")
    assert [(c.ids, c.text, c.finish_reason) for c in (full, beyond)] == [([], "", "length")] * 2
    assert list(stream(model, tokenizer, [9] * 64, sampling)) == []


def test_short_dtype_gives_nearly_the_same_logprobs_and_leaves_the_model_alone(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=1)
    exact = generate(model, tokenizer, encoded(tokenizer), sampling, logprobs=True)
    short = generate(model, tokenizer, encoded(tokenizer), sampling, logprobs=True, dtype=torch.bfloat16)
    assert next(model.parameters()).dtype == torch.float32
    for a, b in zip(exact, short, strict=True):
        assert a.logprobs is not None
        assert b.logprobs == pytest.approx(a.logprobs, abs=0.2)


def test_memory_stays_flat_from_one_call_to_the_next(model: Transformer, tokenizer: Tokenizer) -> None:
    resource = pytest.importorskip("resource")
    sampling = Sampling(seed=1, max_tokens=10)

    def peak_bytes() -> int:
        for _ in range(4):
            generate(model, tokenizer, encoded(tokenizer) * 16, sampling)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    peak_bytes()
    before = peak_bytes()
    # A call's caches are 0.7 MB; keeping those of 16 calls would show.
    assert max(peak_bytes() for _ in range(4)) - before < 6e6


class Ticks:
    """A clock that moves on by a second each time that it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize(("ends_at", "n_written"), [(0.0, 2), (20.0, 4), (36.0, 8), (1000.0, 12)])
def test_texts_for_which_there_is_no_time_are_not_begun(
    model: Transformer,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    ends_at: float,
    n_written: int,
) -> None:
    """Two texts at a time, eight steps each, one reading of the clock a step."""
    monkeypatch.setattr(generation, "BATCH_ROWS", 2)
    prompts, eight = encoded(tokenizer) * 2, Sampling(temperature=0.0, max_tokens=8)
    expected = generate(model, tokenizer, prompts, eight, set())
    monkeypatch.setattr(generation, "time", clock := Ticks())
    done = generate(model, tokenizer, prompts, eight, set(), ends_at=ends_at)
    assert done[:n_written] == expected[:n_written]
    assert {text.finish_reason for text in done[n_written:]} <= {"deadline"}
    assert all(text.ids == [] and text.text == "" for text in done[n_written:])
    assert clock.now <= max(ends_at, 10) + 2


def test_each_text_may_have_its_own_sampling(model: Transformer, tokenizer: Tokenizer) -> None:
    prompts = encoded(tokenizer)
    each = [Sampling(temperature=0.0, max_tokens=n) for n in range(1, len(prompts) + 1)]
    together = generate(model, tokenizer, prompts, each, set())
    assert [len(text.ids) for text in together] == [1, 2, 3, 4, 5, 6]
    for prompt, sampling, text in zip(prompts, each, together, strict=True):
        assert generate(model, tokenizer, [prompt], sampling, set()) == [text]
