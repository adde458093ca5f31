"""Preferences from a model's own attempts: what is paired, from which prompts, going on, and DPO reading it."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from onesitting.data.prompts import FilePrompts, Prompt, Prompts
from onesitting.data.world import World
from onesitting.data.world.prompts import prompt as world_prompt
from onesitting.errors import UserError
from onesitting.own_pairs import Judged, new_prompts, pairs_of, write_pairs
from onesitting.runlog import read_jsonl

sys.path.insert(0, str(Path(__file__).parent / "stages"))
import tiny


def judged(text: str, reward: float, finished: bool = True) -> Judged:
    return Judged(message={"role": "assistant", "content": text}, reward=reward, finished=finished)


def texts(pairs: Sequence[tuple[Judged, Judged]]) -> list[tuple[str, str]]:
    return [(better.message["content"], worse.message["content"]) for better, worse in pairs]


def test_the_best_attempt_meets_the_worst_and_equally_good_ones_never_meet() -> None:
    group = [judged("b", 0.5), judged("w", 0.0), judged("a", 1.0), judged("v", 0.0), judged("c", 0.5)]
    assert texts(pairs_of(group, 1)) == [("a", "v")]
    assert texts(pairs_of(group, 9)) == [("a", "v"), ("b", "w")]
    assert pairs_of([judged("a", 1.0), judged("b", 1.0)], 9) == []


def test_attempts_that_were_cut_said_nothing_or_were_made_before_are_in_no_pair() -> None:
    right = judged("a", 1.0)
    assert pairs_of([right, judged("on and on", 0.0, finished=False)], 9) == []
    assert pairs_of([right, judged("", 0.0)], 9) == []
    assert texts(pairs_of([right, right, judged("w", 0.0), judged("w", 0.0)], 9)) == [("a", "w")]


def test_a_call_that_cannot_be_read_is_a_reply_that_can_be_rejected() -> None:
    from onesitting.data.preference_records import preference_of
    from onesitting.tokenizer.chat import parse_assistant, render

    text = '<tool_call>\n{"name": "add", "arguments": {"a": 1\n</tool_call>'
    broken = Judged(message=parse_assistant(text), reward=0.0, finished=True)
    [(better, worse)] = pairs_of([broken, judged("3", 1.0)], 1)
    record = {"prompt": "1 + 2?", "chosen": better.message, "rejected": worse.message}
    found = preference_of(json.loads(json.dumps(record)), "here")
    assert found.rejected is not None
    words = tiny.tokenizer()
    ids, trained = render(words, [{"role": "user", "content": "1 + 2?"}, *found.rejected])
    reply = [token for token, is_trained in zip(ids, trained, strict=True) if is_trained]
    assert words.decode(reply, skip_special=False) == text + "<|im_end|>", "the tokens that the model wrote"


def test_equal_prompts_are_asked_once_and_validation_prompts_never() -> None:
    def ask(text: str) -> Prompt:
        return Prompt(messages=[{"role": "user", "content": text}], scorer="answer")

    by_split = {"train": [ask("a"), ask("b"), ask("a")], "val": [ask("held out")]}
    prompts = Prompts([FilePrompts(by_split, seed=0)], ())
    found = [(index, prompt.messages[0]["content"]) for index, prompt in new_prompts(prompts, 0, 9)]
    assert sorted(text for _, text in found) == ["a", "b"]
    assert list(new_prompts(prompts, found[1][0], 9)) == [(found[1][0], prompts.get("train", found[1][0]))], (
        "going on knows what was asked before"
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = tiny.tokenizer()
    folder = tmp_path_factory.mktemp("model")
    return tiny.trained_start(folder, words, tiny.shape(words.vocab_size, context_length=256), noise=0.3)


def options(folder: Path, model: Path, **changes: Any) -> argparse.Namespace:
    settings: dict[str, Any] = {
        "run": str(model), "out": str(folder / "pairs.jsonl"), "prompts": ["world:arithmetic"], "n": 40, "samples": 4,
        "per_prompt": 2, "temperature": 1.0, "max_tokens": 12, "seed": 3, "rewards": ["length"], "best": "",
        "oracle": "never", "best_from": 0.5, "first": 0, "world_seed": 3, "judge": "", "device": "cpu", **changes,
    }  # fmt: skip
    return argparse.Namespace(**settings)


Make = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def make(tmp_path: Path, model: Path) -> Make:
    """Runs the command, with attempts that end: a model without training seldom does."""

    def run(**changes: Any) -> list[dict[str, Any]]:
        asked = options(tmp_path, model, **changes)
        write_pairs(asked)
        return read_jsonl(Path(asked.out))

    return run


def test_pairs_are_attempts_at_training_prompts_and_differ_in_reward(make: Make) -> None:
    lines = make()
    world = World(3)
    assert lines
    for line in lines:
        assert line["meta"]["rewards"][0] > line["meta"]["rewards"][1]
        asked = world_prompt(world, "train", line["meta"]["prompt"], "arithmetic")
        assert line["prompt"] == asked["messages"]


def test_the_same_seed_gives_the_same_file_and_another_one_does_not(make: Make, tmp_path: Path) -> None:
    first = make()
    again = make(out=str(tmp_path / "again.jsonl"))
    other = make(out=str(tmp_path / "other.jsonl"), seed=4)
    assert first == again
    assert [line["chosen"] for line in first] != [line["chosen"] for line in other]


def test_going_on_after_an_interruption_equals_never_stopping(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, whole = tmp_path / "best.jsonl", make(best=str(tmp_path / "best.jsonl"))
    all_best = best.read_text()
    path = tmp_path / "pairs.jsonl"
    kept = len(whole) // 3
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]) + '{"prompt": [')
    best.write_text("".join(all_best.splitlines(keepends=True)[:-5]))
    monkeypatch.setattr("onesitting.own_pairs.CHUNK", 12)  # other batches, the same attempts
    assert make(best=str(best)) == whole
    assert best.read_text() == all_best
    more = make(n=60)
    assert more[: len(whole)] == whole, "more prompts follow the others"
    part = make(first=40, n=20, out=str(tmp_path / "part.jsonl"))
    assert part == more[len(whole) :], "and may be asked for alone"


def test_a_file_of_another_model_or_other_settings_is_refused(make: Make) -> None:
    make(n=8)
    with pytest.raises(UserError, match=r"another model, other prompts or settings"):
        make(n=8, temperature=0.9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": 1}, "--samples 1: give at least 2"),
        ({"temperature": 0.0}, "--temperature 0.0: all attempts"),
        ({"out": "pairs.json"}, "name it"),
        ({"rewards": ["scorr"]}, "no reward 'scorr'"),
        ({"prompts": ["world:tulips"]}, "no task 'tulips'"),
    ],
)
def test_mistakes_are_said_before_anything_is_asked(make: Make, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(**changes)


def test_a_written_reply_is_chosen_where_no_attempt_is_right(make: Make, tmp_path: Path) -> None:
    world = World(3)
    for oracle in ("missing", "first"):
        lines = make(oracle=oracle, rewards=["scorer"], out=str(tmp_path / f"{oracle}.jsonl"), n=80)
        asked = [world_prompt(world, "train", line["meta"]["prompt"], "arithmetic") for line in lines]
        taken = [line["chosen"] == one["oracle"] for line, one in zip(lines, asked, strict=True)]
        assert len(lines) > 10
        # A model without training is hardly ever right; where it is, its own reply comes first, or after.
        assert sum(taken) >= len(lines) - (0 if oracle == "first" else 3)
        assert all(line["rejected"] != one["oracle"] for line, one in zip(lines, asked, strict=True))


def test_best_attempts_are_conversations_and_pairs_are_preferences_that_dpo_learns_from(
    make: Make, model: Path, tmp_path: Path
) -> None:
    from onesitting.config import CorpusConfig
    from onesitting.data.problems import Problems
    from onesitting.data.sources import read_conversations
    from onesitting.pipeline import run_pipeline
    from onesitting.recipe import resolve

    lines = make(best=str(tmp_path / "best.jsonl"), n=100, samples=6, max_tokens=48)
    problems = Problems(0.0)
    found = list(read_conversations((str(tmp_path / "best.jsonl"),), CorpusConfig(), problems))
    assert found
    assert all(one.messages[-1]["role"] == "assistant" for one in found)
    cfg = resolve(
        {
            "name": "t", "out": str(tmp_path / "runs"), "start_from": str(model), "stages": ["dpo"],
            "budget": "tokens=12288", "preferences": [str(tmp_path / "pairs.jsonl")], "evaluation.suite": "none",
            "corpus.cache": "", "corpus.workers": 1, "corpus.val_fraction": 0.4, "dpo.step_tokens": 1024,
            "dpo.lr_scale": 0.3, "dpo.max_epochs": 0, "device.device": "cpu", "device.threads": 1,
            "evaluation.samples": 0,
        },
        {},
    )  # fmt: skip
    folder = run_pipeline(cfg, "t")
    learned = json.loads((folder / "dpo/summary.json").read_text())["evaluation"]
    assert learned["n_pairs"] > 1
    assert learned["preference_accuracy"] > 0.5, f"learned nothing from {len(lines)} pairs"
    assert learned["reward_margin"] > 0.1, "at the start it is 0"
    assert json.loads((folder / "dpo/preferences.json").read_text())["ranking_accuracy"]["before"]["n"] > 1


def test_a_reward_model_may_judge_and_is_part_of_what_a_file_was_made_by(
    make: Make, model: Path, tmp_path: Path
) -> None:
    from onesitting.checkpoint import load_model, save_model
    from onesitting.stages.reward import with_score_head
    from onesitting.tokenizer.bpe import Tokenizer

    for seed in (0, 1):
        scorer = with_score_head(load_model(model), seed)
        save_model(tmp_path / f"judge{seed}", scorer, Tokenizer.load(model))
    lines = make(rewards=["judge=1"], judge=str(tmp_path / "judge0"), n=10)
    assert all(line["meta"]["rewards"][0] > line["meta"]["rewards"][1] for line in lines)
    assert lines
    with pytest.raises(UserError, match="lines of another model"):
        make(rewards=["judge=1"], judge=str(tmp_path / "judge1"), n=10)
