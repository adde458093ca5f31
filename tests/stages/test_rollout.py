"""Attempts keep the tokens that the model wrote, and only those are trained: contracts 6, 8 and 10."""

from dataclasses import replace

import pytest
import torch
from rl_maker import CONVERSATION, PROMPT, memorised, random_model

from onesitting.data.prompts import Prompt
from onesitting.data.world.tools import CALCULATOR, world_tools
from onesitting.inference.generate import generate
from onesitting.inference.row import thought_of
from onesitting.inference.sampling import Sampling
from onesitting.stages.attempt_batches import lay_out
from onesitting.stages.rollout import RolloutSettings, Trajectory, rollout
from onesitting.tokenizer.chat import render
from onesitting.tools.process import ToolProcess
from onesitting.tools.sandbox import Limits

GREEDY = RolloutSettings(temperature=0.0, max_tokens=100, max_turns=3)


@pytest.fixture(scope="module")
def played() -> Trajectory:
    """The memorised conversation, played with the real tool."""
    model, tokenizer = memorised()
    with ToolProcess(world_tools(0), Limits(seconds=30)) as tools:
        return rollout(model, tokenizer, [PROMPT], GREEDY, indices=[0], seed="0", tools=tools)[0]


def test_the_model_calls_the_tool_answers_and_the_model_goes_on(played: Trajectory):
    assert [message["role"] for message in played.messages] == ["assistant", "tool", "assistant"]
    assert played.messages[1]["content"] == "42"
    assert played.messages[-1]["content"] == "It is 42."
    assert played.stopped


def test_an_attempt_of_several_turns_is_token_for_token_the_rendered_conversation(played: Trajectory):
    ids, trained = render(memorised()[1], CONVERSATION, [CALCULATOR])
    n = len(played.ids)  # the rendered conversation ends with a line's end behind the last <|im_end|>
    assert played.ids == ids[:n]
    assert len(ids) - n <= 1
    assert played.sampled == trained[:n], "trained are the model's words and the tokens that end its turns"
    assert played.n_sampled == len(played.logprobs)


def test_with_one_turn_the_call_is_the_end():
    model, tokenizer = memorised()
    attempt = rollout(model, tokenizer, [PROMPT], replace(GREEDY, max_turns=1), indices=[0], seed="0")[0]
    assert [message["role"] for message in attempt.messages] == ["assistant"]
    assert attempt.messages[0]["tool_calls"]


def test_a_turn_that_was_cut_is_not_taught_to_stop():
    model, tokenizer = memorised()
    settings = replace(GREEDY, max_tokens=5)
    attempt = rollout(model, tokenizer, [PROMPT], settings, indices=[0], seed="0")[0]
    assert not attempt.stopped
    assert attempt.n_sampled == 5
    assert attempt.ids[-1] not in tokenizer.stop_ids


def test_thinking_can_be_opened_and_left_out():
    model, tokenizer = memorised()
    opened, closed = (
        rollout(model, tokenizer, [PROMPT], replace(GREEDY, thinking=on), indices=[0], seed="0")[0]
        for on in (True, False)
    )
    think, unthink = tokenizer.special_id("<think>"), tokenizer.special_id("</think>")
    assert opened.ids[opened.n_prompt - 1] == think
    assert opened.messages[0]["reasoning_content"] == "I add."
    assert think in closed.ids[: closed.n_prompt]
    assert unthink in closed.ids[: closed.n_prompt]


def test_an_attempt_is_a_function_of_its_number_not_of_its_company():
    _, tokenizer = memorised()
    model = random_model(tokenizer)
    prompts = [
        Prompt(messages=[{"role": "user", "content": text}], scorer="answer") for text in ("a", "bcd", "ef")
    ]
    settings = RolloutSettings(max_tokens=20)
    together = rollout(model, tokenizer, prompts, settings, indices=[4, 5, 6], seed="s")
    for i, prompt in enumerate(prompts):
        alone = rollout(model, tokenizer, [prompt], settings, indices=[4 + i], seed="s")[0]
        assert alone.ids == together[i].ids
    other = rollout(model, tokenizer, prompts, settings, indices=[7, 8, 9], seed="s")
    assert [a.ids for a in other] != [a.ids for a in together]


def test_a_tool_result_that_does_not_fit_the_context_ends_the_attempt():
    model, tokenizer = memorised()
    short = type(model)(replace(model.cfg, context_length=len(played_ids()) - 20))
    short.load_state_dict(model.state_dict())
    with ToolProcess(world_tools(0), Limits(seconds=30)) as tools:
        attempt = rollout(short.eval(), tokenizer, [PROMPT], GREEDY, indices=[0], seed="0", tools=tools)[0]
    assert not attempt.stopped
    assert attempt.messages[-1]["role"] == "assistant"


def played_ids() -> list[int]:
    return render(memorised()[1], CONVERSATION, [CALCULATOR])[0]


def test_turns_are_counted_each_by_itself():
    sampled = [False, False, True, True, False, True, False, False, True, True, True]
    attempt = Trajectory(ids=list(range(11)), n_prompt=2, sampled=sampled)
    assert attempt.turn_tokens == [2, 1, 3]


def test_padding_changes_no_log_probability():
    _, tokenizer = memorised()
    model = random_model(tokenizer)
    rows = [[5, 9, 20, 31, 7, 40], [8, 30, 12]]
    made = [Trajectory(ids=ids, n_prompt=1, sampled=[False] + [True] * (len(ids) - 1)) for ids in rows]
    tokens, targets, _, _, _ = lay_out([[attempt] for attempt in made], tokenizer.eos_id)
    assert targets.tolist() == [[9, 20, 31, 7, 40], [30, 12, -100, -100, -100]]
    together = model.hidden(tokens)
    for i, ids in enumerate(rows):
        alone = model.hidden(torch.tensor([ids[:-1]]))
        assert torch.allclose(together[i, : len(ids) - 1], alone[0], atol=1e-5)


def test_a_thought_is_closed_when_its_budget_is_spent():
    model, tokenizer = memorised()
    ids, _ = render(tokenizer, PROMPT.messages, PROMPT.tools, add_generation_prompt=True, thinking=True)
    sampling, close = Sampling(temperature=0.0, max_tokens=40), tokenizer.special_id("</think>")
    (free,) = generate(model, tokenizer, [ids], sampling)
    n_free = free.ids.index(close)
    assert n_free >= 2
    for budget in (0, n_free - 1):
        (done,) = generate(model, tokenizer, [ids], sampling, thought=thought_of(tokenizer, budget, True))
        assert done.ids.index(close) == budget
