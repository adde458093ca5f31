import json
import math
import time
from collections.abc import Sequence

import pytest
import torch

from onesitting.config import EvaluationConfig, ModelConfig
from onesitting.data.world import World
from onesitting.data.world.suite import Item, base_suite, suite
from onesitting.evaluation.suite import (
    RawReply,
    parsed,
    prompt_ids,
    run_suite,
    run_suite_thinking,
    score_suite,
    wilson_interval,
)
from onesitting.inference import generate as generation
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer

WORLD = World(0)
N = 12


def as_text(item: Item) -> str:
    """The right reply as a model would write it, special tokens spelled out."""
    calls = [
        f'<tool_call>\n{{"name": "{f["name"]}", "arguments": {f["arguments"]}}}\n</tool_call>'
        for f in (call["function"] for call in item.oracle.get("tool_calls", ()))
    ]
    thought = item.oracle.get("reasoning_content")
    return (f"<think>{thought}</think>\n" if thought else "") + item.oracle["content"] + "".join(calls)


def oracle(items: Sequence[Item]) -> list[RawReply]:
    return [RawReply(as_text(item), True) for item in items]


def silence(items: Sequence[Item]) -> list[RawReply]:
    return [RawReply("", False) for _ in items]


def test_the_oracle_scores_everything_and_silence_nothing():
    items = suite(WORLD, N)
    best, worst = score_suite(items, oracle), score_suite(items, silence)
    assert set(best) == set(worst) | set(best)
    assert {task: result.accuracy for task, result in best.items()} == dict.fromkeys(best, 1.0)
    assert {task: result.accuracy for task, result in worst.items()} == dict.fromkeys(worst, 0.0)
    assert best["reading"].n == N
    assert best["stops"].n == N * len(items)


def test_the_oracle_scores_everything_in_completion_form_too():
    items = base_suite(WORLD, N)
    assert all(item.prompt and not item.messages for group in items.values() for item in group)
    best = score_suite(items, oracle, mode="base")
    assert {task: result.accuracy for task, result in best.items()} == dict.fromkeys(best, 1.0)
    assert "stops" not in best
    assert all(result.accuracy == 0 for result in score_suite(items, silence, mode="base").values())


def test_parts_of_a_score_are_reported_as_tasks_of_their_own():
    results = score_suite(suite(WORLD, N), oracle)
    assert {"stories_grammatical", "stories_consistent", "stories_as_asked", "tools_valid"} <= set(results)


def test_baselines_are_scored_by_the_same_scorers_and_lie_below_the_oracle():
    results = score_suite(suite(WORLD, 60), silence)
    for task, result in results.items():
        if task == "stops":
            assert result.baseline is None
        elif task in ("tools_valid", "stories_grammatical"):
            # Any call of the right form is valid; good sentences stay good in any order.
            assert result.baseline is not None
            assert result.baseline > 0.7
        else:
            assert result.baseline is not None
            assert result.baseline < 0.7, task


def test_a_call_that_is_no_json_is_invalid_and_one_with_another_argument_is_valid_but_wrong():
    items = [item for item in suite(WORLD, 30)["tools"] if item.reference["name"] == "calculator"]
    wrong = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "1 + 1"}}\n</tool_call>'
    results = score_suite({"tools": items}, lambda batch: [RawReply(wrong, True) for _ in batch])
    assert results["tools"].accuracy == 0
    assert results["tools_valid"].accuracy == 1
    broken = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "1 + 1"\n</tool_call>'
    results = score_suite({"tools": items}, lambda batch: [RawReply(broken, True) for _ in batch])
    assert results["tools_valid"].accuracy == 0


def test_the_thinking_trace_is_no_part_of_the_answer():
    assert parsed("<think>40 + 30 = 70.</think>\nThe answer is 85.", "chat").content == "The answer is 85."
    assert parsed("The answer is 85.<|im_end|>", "chat").content == "The answer is 85."
    assert parsed(" 85.<|endoftext|>Once", "base").content == "85."


def test_replies_that_did_not_stop_are_counted_over_all_tasks():
    items = {"facts": suite(WORLD, 10)["facts"], "memory": suite(WORLD, 10)["memory"]}
    calls: list[int] = []

    def reply(batch: Sequence[Item]) -> list[RawReply]:
        calls.append(len(batch))
        return [RawReply(as_text(item), item.task == "facts") for item in batch]

    results = score_suite(items, reply)
    assert (results["stops"].correct, results["stops"].n) == (10, 20)
    assert (results["facts"].correct, results["memory"].correct) == (10, 10)
    assert calls == [20]


def test_where_the_time_ends_each_task_was_asked_about_as_often_and_says_what_is_left_out():
    items = suite(WORLD, N)

    def reply(asked: Sequence[Item]) -> list[RawReply | None]:
        n = 3 * len(items) + 2
        return [*oracle(asked[:n]), *[None] * (len(asked) - n)]

    results = score_suite(items, reply)
    tasks = list(items)
    assert [results[task].n for task in tasks] == [4, 4, *[3] * (len(tasks) - 2)]
    assert [results[task].left_out for task in tasks] == [N - results[task].n for task in tasks]
    assert results["stops"].n == 3 * len(items) + 2
    assert all(result.accuracy == 1 for result in results.values())
    assert results["stories_grammatical"].left_out == 0, "each question is counted once"
    nothing = score_suite(items, lambda asked: [None] * len(asked))
    assert {results.n for results in nothing.values()} == {0}


def test_a_suite_whose_time_is_over_asks_the_first_batch_alone(
    model_and_tokenizer: tuple[Transformer, Tokenizer], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(generation, "BATCH_ROWS", 8)
    items = suite(WORLD, 4)
    results = run_suite(*model_and_tokenizer, items, max_tokens=4, ends_at=time.monotonic())
    assert sum(results[task].n for task in items) == 8
    assert sum(results[task].left_out for task in items) == 4 * len(items) - 8
    settings = EvaluationConfig(thinking="both", thinking_tokens=2)
    both = run_suite_thinking(*model_and_tokenizer, items, settings, time.monotonic())
    assert both["stops"].n == both["stops_thinking"].n == 8


def test_examples_show_wrong_and_right_replies():
    def reply(batch: Sequence[Item]) -> list[RawReply]:
        return [RawReply(as_text(item) if i % 2 else "Hm.", True) for i, item in enumerate(batch)]

    examples = score_suite({"facts": suite(WORLD, 10)["facts"]}, reply)["facts"].examples
    assert [example.correct for example in examples] == [False, True, False, True]
    assert all(example.prompt.startswith(("user:", "system:")) for example in examples)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # Computed with statsmodels.stats.proportion.proportion_confint(method="wilson").
    [
        (8, 10, 0.4901625, 0.9433178),
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (50, 100, 0.4038315, 0.5961685),
    ],
)
def test_the_interval_is_wilsons(correct: int, n: int, low: float, high: float):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=1e-6)


def test_the_interval_solves_the_equation_that_defines_it():
    # Its ends are the p at which the observed share lies exactly 1.96 standard errors away.
    low, high = wilson_interval(37, 90)
    for p in (low, high):
        assert abs(37 / 90 - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / 90), rel=1e-9)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_results_are_plain_enough_for_json():
    from dataclasses import asdict

    results = score_suite({"facts": suite(WORLD, 3)["facts"]}, oracle)
    assert (
        json.loads(json.dumps({task: asdict(result) for task, result in results.items()}))["facts"]["n"] == 3
    )


@pytest.fixture(scope="module")
def model_and_tokenizer() -> tuple[Transformer, Tokenizer]:
    made = [json.dumps(conversation) for conversation in WORLD.conversations("train", 200)]
    tokenizer = train_tokenizer(made, 512)
    cfg = ModelConfig(
        n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=64, vocab_size=tokenizer.vocab_size,
        context_length=1024,
    )  # fmt: skip
    torch.manual_seed(0)
    return Transformer(cfg), tokenizer


def test_an_untrained_model_is_asked_greedily_and_scores_next_to_nothing(
    model_and_tokenizer: tuple[Transformer, Tokenizer],
):
    model, tokenizer = model_and_tokenizer
    items = suite(WORLD, 3)
    results = run_suite(model, tokenizer, items, max_tokens=8)
    for task, of_task in items.items():  # replies do not depend on what else is asked
        assert run_suite(model, tokenizer, {task: of_task}, max_tokens=8)[task] == results[task]
    assert results["stops"].n == 3 * len(items)
    assert results["reading"].n == 3
    assert sum(result.correct for task, result in results.items() if task != "stops") <= 2


def test_the_suite_is_asked_without_and_with_thoughts(model_and_tokenizer: tuple[Transformer, Tokenizer]):
    model, tokenizer = model_and_tokenizer
    items = {"arithmetic": suite(WORLD, 2)["arithmetic"]}
    both = run_suite_thinking(model, tokenizer, items, EvaluationConfig(thinking="both", thinking_tokens=4))
    assert set(both) == {"arithmetic", "stops", "arithmetic_thinking", "stops_thinking"}
    without, with_thoughts = both["arithmetic"].examples[0], both["arithmetic_thinking"].examples[0]
    assert not without.reply.startswith("<think>")
    assert with_thoughts.reply.startswith("<think>")
    assert "</think>" in with_thoughts.reply
    # Broken bytes of a random model are shown as one character each, so characters count, not tokens.
    thought = with_thoughts.reply.removeprefix("<think>").partition("</think>")[0]
    assert len(thought.strip()) <= 4 * max(map(len, (*tokenizer.token_bytes, *tokenizer.special_ids)))


def test_completion_form_stops_at_the_end_of_the_line_except_in_stories(
    model_and_tokenizer: tuple[Transformer, Tokenizer],
):
    model, tokenizer = model_and_tokenizer
    results = run_suite(model, tokenizer, base_suite(WORLD, 2), mode="base", max_tokens=8)
    assert {"stories", "reading", "facts", "arithmetic"} <= set(results)
    assert all(
        "\n" not in example.reply for task in ("reading", "facts") for example in results[task].examples
    )


def test_the_prompt_ends_where_the_reply_begins(model_and_tokenizer: tuple[Transformer, Tokenizer]):
    _, tokenizer = model_and_tokenizer
    item = suite(WORLD, 1)["tools"][0]
    ids = prompt_ids(tokenizer, item, "chat")
    assert tokenizer.decode(ids, skip_special=False).endswith("<|im_start|>assistant\n")
    assert item.tools is not None
    assert item.tools[0]["function"]["name"] in tokenizer.decode(ids)
    base = base_suite(WORLD, 1)["facts"][0]
    ids = prompt_ids(tokenizer, base, "base")
    assert ids[0] == tokenizer.eos_id
    assert tokenizer.decode(ids).endswith("Answer:")
