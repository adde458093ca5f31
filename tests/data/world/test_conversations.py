import json
from collections import Counter
from typing import Any

import pytest

from onesitting.data.world import World
from onesitting.data.world.conversations import MIXTURE, conversation, conversations, talk
from onesitting.data.world.preferences import preferences
from onesitting.data.world.prompts import prompts
from onesitting.data.world.scoring import Reply
from onesitting.data.world.splits import split_of
from onesitting.data.world.suite import SCORERS, reply_of
from onesitting.data.world.tools import call_tool, lookup_in
from onesitting.tools.protocol import validate_call

WORLD = World(0)
N = 1500


@pytest.fixture(scope="module")
def training() -> list[dict[str, Any]]:
    return list(conversations(WORLD, "train", N))


def test_a_conversation_is_a_function_of_seed_split_and_index(training: list[dict[str, Any]]):
    assert conversation(World(0), "train", 77) == training[77]
    assert next(conversations(WORLD, "train", 1, start=77)) == training[77]
    assert conversation(World(1), "train", 77) != training[77]
    assert conversation(WORLD, "val", 77) != training[77]


def test_turns_are_in_openai_form_and_end_with_the_assistant(training: list[dict[str, Any]]):
    follows = {
        "start": {"system", "user"},
        "system": {"user"},
        "user": {"assistant"},
        "assistant": {"user", "tool"},
        "tool": {"assistant"},
    }
    for made in training:
        last = "start"
        for message in made["messages"]:
            assert message["role"] in follows[last], made
            last = message["role"]
            assert isinstance(message["content"], str)
            assert message["content"].strip() or message.get("tool_calls"), made
            assert message["content"] == message["content"].strip()
        assert last == "assistant"


def test_each_tool_call_is_valid_and_has_the_tools_true_result(training: list[dict[str, Any]]):
    lookup, n_calls = lookup_in(0), 0
    for made in training:
        for message, after in zip(made["messages"], [*made["messages"][1:], {}], strict=True):
            for call in message.get("tool_calls", ()):
                n_calls += 1
                assert validate_call(call, made["tools"]) is None
                function = call["function"]
                assert isinstance(function["arguments"], str)
                assert after["role"] == "tool"
                assert after["tool_call_id"] == call["id"]
                assert after["content"] == call_tool(function["name"], function["arguments"], lookup)
    assert n_calls > 0.08 * N


def test_kinds_come_up_as_often_as_the_table_says(training: list[dict[str, Any]]):
    counts = Counter(made["meta"]["kind"] for made in training)
    assert abs(sum(share for share, _ in MIXTURE.values()) - 1) < 1e-9
    for kind, (share, _) in MIXTURE.items():
        # Four standard deviations of a binomial count.
        assert abs(counts[kind] - share * N) < 4 * (N * share * (1 - share)) ** 0.5 + 1, (kind, counts)


def test_what_is_asked_belongs_to_the_split_of_the_conversation():
    for split in ("train", "val", "test"):
        for index in range(200):
            made = talk(WORLD, split, index)
            # A fact asked with a rule, or in one word, has the split of the fact's question.
            if made.key and not made.key.startswith("fact|") and made.kind not in ("arithmetic", "tools"):
                assert split_of(made.key) == split, made.key


def test_the_scored_turn_of_every_conversation_is_right_by_its_own_scorer():
    n_scored = 0
    for index in range(N):
        made = talk(WORLD, "train", index)
        if made.scored >= 0:
            n_scored += 1
            verdict = SCORERS[made.scorer](reply_of(made.messages[made.scored]), made.reference)
            assert verdict.correct, (verdict, made.messages)
            assert not SCORERS[made.scorer](Reply(""), made.reference).correct
    assert n_scored > 0.7 * N


def test_thinking_comes_where_the_system_prompt_asks_for_it_and_nowhere_else(training: list[dict[str, Any]]):
    n_thoughts = 0
    for made in training:
        first = made["messages"][0]
        asks = first["role"] == "system" and "think" in first["content"].lower()
        for message in made["messages"]:
            if message["role"] == "assistant":
                n_thoughts += "reasoning_content" in message
                assert ("reasoning_content" in message) == asks
    assert n_thoughts > 10


def test_few_conversations_come_up_twice_and_most_are_short(training: list[dict[str, Any]]):
    texts = [json.dumps(made["messages"]) for made in training]
    assert len(set(texts)) > 0.97 * N
    sizes = sorted(sum(len(m["content"]) for m in made["messages"]) for made in training)
    assert sizes[N // 2] < 500
    assert sizes[-1] < 2500


def test_the_chosen_reply_is_right_and_the_rejected_one_wrong_or_endless():
    flaws: Counter[str] = Counter()
    for pair in preferences(WORLD, "train", 150):
        flaw = pair["meta"]["flaw"]
        flaws[flaw] += 1
        assert pair["chosen"] != pair["rejected"]
        assert pair["prompt"][-1]["role"] in ("user", "tool")
        if flaw == "invalid_call":
            call = pair["rejected"]["tool_calls"][0]
            assert validate_call(call, pair["tools"]) is not None
        if flaw == "runs_on":
            assert pair["rejected"]["content"].startswith(pair["chosen"]["content"])
    assert set(flaws) == {"invalid_call", "runs_on", "wrong_answer", "cut_short", "evasive"}


def test_reinforcement_prompts_carry_a_reference_that_the_right_reply_satisfies():
    for made in prompts(WORLD, "train", 100):
        scorer = SCORERS[made["scorer"]]
        assert scorer(reply_of(made["oracle"]), made["reference"]).correct
        assert not scorer(Reply("Hm."), made["reference"]).correct
        assert made["messages"][-1]["role"] in ("user", "tool")
