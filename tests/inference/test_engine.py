"""The engine with a real tokenizer and a small random model: no request changes another's text."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from noisy_model import noisy_model

from onesitting.errors import UserError
from onesitting.inference.engine import Closed, Delta, Engine, EngineSettings, QueueFull, Request
from onesitting.inference.generate import generate
from onesitting.inference.row import RowSettings, Thought
from onesitting.inference.sampling import Sampling
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer

TEXT = 'the cat sat on the mat and the dog ran to the cat. {"name": "Ann", "age": 7} naïve café 漢字 😀 '


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT] * 20, vocab_size=384)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    return noisy_model(tokenizer.vocab_size, 256)


@pytest.fixture
def engine(model: Transformer, tokenizer: Tokenizer) -> Iterator[Engine]:
    engine = Engine(model, tokenizer, EngineSettings(n_slots=4, prefill_tokens=64, max_waiting=100))
    yield engine
    engine.close(0)


def prompts(tokenizer: Tokenizer, n: int) -> list[list[int]]:
    """Of very different lengths; half of them share a beginning of two pieces."""
    shared = tokenizer.encode(TEXT * 8)[:130]
    return [
        [*(shared if i % 2 else []), *tokenizer.encode(f"{i} " + "the cat sat" * (i % 5))] for i in range(n)
    ]


def settings(tokenizer: Tokenizer, sampling: Sampling, **more: object) -> RowSettings:
    return RowSettings(sampling=sampling, stop_ids=tokenizer.stop_ids, **more)  # pyright: ignore


def together(engine: Engine, requests: list[Request]) -> list[list[str]]:
    """Texts of requests that are submitted at once, from deltas."""
    deltas: SimpleQueue[tuple[int, Delta]] = SimpleQueue()
    for number, request in enumerate(requests):
        engine.submit(request, lambda delta, number=number: deltas.put((number, delta)))
    texts = [[""] * request.n for request in requests]
    n_left = sum(request.n for request in requests)
    while n_left:
        number, delta = deltas.get(timeout=30)
        texts[number][delta.index] += delta.text
        n_left -= delta.finish_reason is not None
    return texts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_texts_are_those_of_one_stream_at_a_time(
    model: Transformer, tokenizer: Tokenizer, dtype: torch.dtype
) -> None:
    engine = Engine(model, tokenizer, EngineSettings(n_slots=5, prefill_tokens=100, dtype=dtype))
    sampling = Sampling(temperature=0.0, max_tokens=40)
    many = prompts(tokenizer, 14)
    requests = [Request(prompt=p, settings=settings(tokenizer, sampling)) for p in many]
    alone = [[generate(model, tokenizer, [p], sampling, dtype=dtype)[0].text] for p in many]
    assert together(engine, requests) == alone
    assert together(engine, requests[::-1]) == alone[::-1]  # now with prefixes from the cache
    assert engine.prefixes.n_hit_tokens > 0
    assert engine.close(5)


def test_seeded_texts_do_not_depend_on_what_else_runs(engine: Engine, tokenizer: Tokenizer) -> None:
    sampling = Sampling(temperature=1.3, top_p=0.95, repetition_penalty=1.1, seed=7, max_tokens=30)
    many = prompts(tokenizer, 8)
    requests = [
        Request(prompt=p, settings=settings(tokenizer, replace(sampling, seed=i, top_k=10 * i)), n=2)
        for i, p in enumerate(many)
    ]
    alone = [[done.text for done in engine.complete(request)] for request in requests]
    assert together(engine, requests) == alone
    assert all(first != second for first, second in alone)


def test_cancelled_request_frees_its_slot_and_leaves_the_others_alone(
    engine: Engine, tokenizer: Tokenizer
) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=200)
    endless = RowSettings(sampling=sampling, stop_ids=set())
    deltas: SimpleQueue[Delta] = SimpleQueue()
    jobs = [engine.submit(Request(prompt=[9], settings=endless), deltas.put) for _ in range(6)]
    deltas.get(timeout=10)
    started = time.monotonic()
    for job in jobs:
        engine.cancel(job)
    while engine.n_running or engine.n_waiting:
        time.sleep(0.001)
    assert time.monotonic() - started < 1
    assert {job.rows[0].finish_reason for job in jobs} == {"cancelled"}


def test_request_ends_at_its_deadline_waiting_or_not(engine: Engine, tokenizer: Tokenizer) -> None:
    endless = RowSettings(sampling=Sampling(temperature=0.0, max_tokens=250), stop_ids=set())
    [done] = engine.complete(Request(prompt=[9], settings=endless, deadline_s=0.0))
    assert done.finish_reason == "deadline"


def test_clients_take_turns(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, EngineSettings(n_slots=1))
    order: SimpleQueue[str] = SimpleQueue()
    gate = threading.Event()

    def deliver(name: str, delta: Delta) -> None:
        gate.wait(10)
        if delta.finish_reason:
            order.put(name)

    one = settings(tokenizer, Sampling(temperature=0.0, max_tokens=1))
    for name in ("first", "greedy", "greedy", "greedy", "modest"):
        engine.submit(Request(prompt=[9], settings=one, client=name), lambda d, name=name: deliver(name, d))
    gate.set()
    assert [order.get(timeout=10) for _ in range(5)] == ["first", "greedy", "modest", "greedy", "greedy"]
    engine.close(1)


def test_queue_has_a_bound_and_says_when_to_come_back(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, EngineSettings(n_slots=1, max_waiting=2))
    endless = RowSettings(sampling=Sampling(max_tokens=200), stop_ids=set())
    request = Request(prompt=[9], settings=endless)

    def submit_many() -> None:
        for _ in range(9):
            engine.submit(request, lambda _: None)

    with pytest.raises(QueueFull) as full:
        submit_many()
    assert 1 <= full.value.retry_after_s <= 60
    assert engine.close(0) is False
    with pytest.raises(Closed):
        engine.submit(Request(prompt=[9], settings=endless), lambda _: None)


def test_closing_finishes_what_was_begun(engine: Engine, tokenizer: Tokenizer) -> None:
    deltas: SimpleQueue[Delta] = SimpleQueue()
    one = settings(tokenizer, Sampling(temperature=0.0, max_tokens=20))
    jobs = [engine.submit(Request(prompt=[9, i], settings=one), deltas.put) for i in range(8)]
    assert engine.close(20)
    assert {job.rows[0].finish_reason for job in jobs} <= {"stop", "length"}


def test_prompt_that_fills_the_context_is_refused_with_both_numbers(engine: Engine) -> None:
    with pytest.raises(UserError, match=r"256 tokens, this model's context is 256"):
        engine.submit(
            Request(prompt=[9] * 256, settings=RowSettings(sampling=Sampling(), stop_ids=set())), print
        )


def test_logprobs_are_the_models_own_with_the_likeliest_tokens(
    engine: Engine, model: Transformer, tokenizer: Tokenizer
) -> None:
    prompt = tokenizer.encode("the cat")
    sampling = Sampling(temperature=1.5, top_k=5, seed=1, max_tokens=6)
    job = engine.submit(
        Request(prompt=prompt, settings=settings(tokenizer, sampling, n_top=3)), lambda _: None
    )
    while job.rows[0].finish_reason is None:
        time.sleep(0.01)
    row = job.rows[0]
    with torch.no_grad():
        expected = model(torch.tensor([prompt + row.ids]))[0, len(prompt) - 1 :].log_softmax(-1)
    for at, found in enumerate(row.top):
        assert found.logprob == pytest.approx(expected[at, found.token].item(), abs=1e-4)
        assert [t for t, _ in found.top] == expected[at].topk(3).indices.tolist()


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(6))
def test_constrained_text_is_json_of_the_schema(engine: Engine, tokenizer: Tokenizer, seed: int) -> None:
    from onesitting.inference.grammar import JsonGrammars

    grammars = JsonGrammars(tokenizer)
    sampling = Sampling(temperature=1.2, seed=seed, max_tokens=200)
    request = Request(
        prompt=[9], settings=settings(tokenizer, sampling), constrain=lambda: grammars.follow(SCHEMA), n=2
    )
    for done in engine.complete(request):
        value = json.loads(done.text)
        assert list(value) == ["name", "age"]
        assert isinstance(value["name"], str)
        assert value["age"] <= 99
        assert done.finish_reason == "stop"


def test_wrong_schema_is_refused_before_anything_runs(tokenizer: Tokenizer) -> None:
    from onesitting.inference.grammar import JsonGrammars

    with pytest.raises(UserError, match="JSON schema"):
        JsonGrammars(tokenizer).follow({"type": "nonsense"})


@pytest.mark.parametrize("budget", [0, 5])
def test_thought_is_closed_when_its_budget_is_spent(
    engine: Engine, tokenizer: Tokenizer, budget: int
) -> None:
    open_id, close_id = tokenizer.special_ids["<think>"], tokenizer.special_ids["</think>"]
    ends = (close_id, *tokenizer.encode("\n"))
    thought = Thought(open_id=open_id, close_ids=ends, budget_tokens=budget, is_open=True)
    # The random model never closes a thought by itself here: the token is made impossible.
    one = settings(
        tokenizer, Sampling(temperature=0.0, max_tokens=20), thought=thought, logit_bias={close_id: -1e9}
    )
    [done] = engine.complete(Request(prompt=[9, open_id], settings=one))
    assert done.ids.index(close_id) == budget
    assert tuple(done.ids[budget : budget + len(ends)]) == ends
    assert len(done.ids) > budget + len(ends)


def test_penalties_and_biases_change_the_logits_by_their_definition(
    engine: Engine, tokenizer: Tokenizer
) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=30)
    [biased] = engine.complete(
        Request(prompt=[9], settings=settings(tokenizer, sampling, logit_bias={70: 1000.0}))
    )
    assert biased.ids == [70] * 30
    [varied] = engine.complete(
        Request(prompt=[9], settings=settings(tokenizer, sampling, presence_penalty=1000.0))
    )
    assert len(set(varied.ids)) == len(varied.ids)


def test_a_step_that_fails_ends_its_texts_and_leaves_no_trace(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, tokenizer, EngineSettings(n_slots=2))
    request = Request(
        prompt=prompts(tokenizer, 1)[0], settings=settings(tokenizer, Sampling(temperature=0.0, max_tokens=8))
    )
    whole = engine.complete(request)[0].text
    read = engine._batch.cache.read  # pyright: ignore[reportPrivateUsage]

    def failing(*arguments: Any) -> Any:
        read(*arguments)
        engine._batch.cache.keys.fill_(float("nan"))  # pyright: ignore[reportPrivateUsage]
        raise MemoryError

    monkeypatch.setattr(engine._batch.cache, "read", failing)  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(engine, "_new_batch", failing)  # there is no memory for a second one either
    with pytest.raises(RuntimeError, match="MemoryError"):
        engine.complete(request)
    monkeypatch.undo()
    assert engine.complete(request)[0].text == whole
    assert engine.close(5)


def test_an_engine_that_ends_keeps_no_client_waiting(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, tokenizer, EngineSettings(n_slots=2))
    request = Request(prompt=[9], settings=settings(tokenizer, Sampling(max_tokens=8)), n=5)

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(engine, "_admit", broken)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        engine.complete(request)
    with pytest.raises(Closed):
        engine.complete(request)
    assert not engine.is_alive
