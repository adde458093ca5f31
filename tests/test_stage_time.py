"""Seconds of a stage: its share of what is left for all stages that are still to come."""

import time
from pathlib import Path

import pytest

from onesitting.clock import CLOSING_S, Clock
from onesitting.config import DeviceConfig, DPOConfig, EvaluationConfig, PretrainConfig, RunConfig, SFTConfig
from onesitting.errors import UserError
from onesitting.stage_time import LEAST_SHARE, questions_end_at, stage_seconds

CFG = RunConfig(
    budget="1000s",
    evaluation=EvaluationConfig(suite="none"),
    pretrain=PretrainConfig(share=0.7),
    sft=SFTConfig(share=0.3),
    dpo=DPOConfig(share=0.1),
)


class Asked:
    """Seconds of stages by a clock of which each used a part."""

    def __init__(self, folder: Path, budget_s: float | None = 1000.0) -> None:
        self.clock, self.said = Clock(folder / "timing.json", budget_s, writes=False), list[str]()
        self.clock.set("start", 10.0)
        self.n_rehearsals = 0

    def rehearse(self) -> float:
        self.n_rehearsals += 1
        return 20.0

    def __call__(self, name: str, cfg: RunConfig = CFG) -> float | None:
        return stage_seconds(cfg, name, self.clock, self.rehearse, start_s=10.0, say=self.said.append)


def test_a_stage_alone_gets_what_it_would_get_in_a_whole_run(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    left = 1000 - 10 - CLOSING_S
    assert asked("pretrain") == pytest.approx(0.7 * left), (
        "the rest is for fine-tuning, also if it is not asked for yet"
    )
    asked.clock.set("pretrain", 0.7 * left)
    assert asked("sft") == pytest.approx(0.3 * left)
    asked.clock.set("sft", 50.0)
    assert asked("sft") == pytest.approx(0.3 * left), "a resumed stage counts its own earlier seconds"
    assert not asked.said


def test_without_a_time_budget_there_are_no_seconds(tmp_path: Path) -> None:
    assert Asked(tmp_path, None)("pretrain") is None


def test_a_stage_with_a_budget_of_its_own_takes_that_and_leaves_the_rest_to_the_others(
    tmp_path: Path,
) -> None:
    cfg = RunConfig(**{**vars(CFG), "stages": ("pretrain", "dpo"), "dpo": DPOConfig(budget="100s")})
    asked = Asked(tmp_path, 1100.0)
    assert asked("pretrain", cfg) == pytest.approx(1100 - 10 - CLOSING_S - 100)
    assert asked("dpo", cfg) == pytest.approx(100 - 10 - CLOSING_S)


def test_a_later_stage_is_never_given_up_and_the_first_needs_time(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    asked.clock.set("prepare", 2000.0)
    with pytest.raises(UserError, match="nothing is left to train in"):
        asked("pretrain")
    assert asked("sft") == LEAST_SHARE * 1000
    assert "ends late" in asked.said[0]


def test_the_suites_time_is_as_the_last_pass_took_else_as_rehearsed(tmp_path: Path) -> None:
    cfg = RunConfig(**{**vars(CFG), "evaluation": EvaluationConfig(suite="world")})
    asked = Asked(tmp_path)
    left = 1000 - 10 - CLOSING_S
    assert asked("pretrain", cfg) == pytest.approx(0.7 * (left - 2 * 20.0), abs=0.1)
    asked.clock.set("pretrain", 600.0)
    asked.clock.set("evaluate pretrain", 10.0)
    # What completing texts took says little of a conversation.
    assert asked("sft", cfg) == pytest.approx(left - 600 - 10 - 20.0, abs=0.1)
    assert asked.n_rehearsals == 2
    asked.clock.set("evaluate pretrain", 30.0)
    assert asked("sft", cfg) == pytest.approx(left - 600 - 30 - 30.0, abs=0.1)
    asked.clock.set("evaluate pretrain", 10.0)
    asked.clock.set("sft", 200.0)
    asked.clock.set("evaluate sft", 15.0)
    dpo = RunConfig(**{**vars(cfg), "stages": ("pretrain", "sft", "dpo")})
    assert asked("dpo", dpo) == pytest.approx(left - 600 - 200 - 10 - 15 - 1.8 * 1.1 * 15, abs=0.1)
    assert asked.n_rehearsals == 3


def test_without_a_suite_or_with_a_sharded_model_nothing_is_rehearsed(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    asked("pretrain")
    with_suite = {**vars(CFG), "evaluation": EvaluationConfig(suite="world")}
    asked("pretrain", RunConfig(**{**with_suite, "device": DeviceConfig(shard="fsdp")}))
    asked("sft", RunConfig(**{**with_suite, "sft": SFTConfig(budget="tokens=1M")}))
    assert asked.n_rehearsals == 0


def test_a_suite_never_takes_all_of_a_short_budget(tmp_path: Path) -> None:
    asked = Asked(tmp_path, 40.0)
    cfg = RunConfig(**{**vars(CFG), "evaluation": EvaluationConfig(suite="world")})
    assert asked("pretrain", cfg) == pytest.approx(0.7 * (40 - 10 - CLOSING_S - 2 * 6.0), abs=0.1)


def test_questions_after_the_last_stage_end_with_the_budget(tmp_path: Path) -> None:
    clock = Asked(tmp_path).clock

    def seconds(cfg: RunConfig, name: str) -> float | None:
        ends_at = questions_end_at(cfg, name, clock)
        return None if ends_at is None else ends_at - time.monotonic()

    clock.set("sft", 900.0)
    left = 1000 - 10 - 900 - CLOSING_S
    assert seconds(CFG, "sft") == pytest.approx(left, abs=1)
    assert seconds(CFG, "pretrain") is None, "fine-tuning can make up for what these take"
    clock.set("measure start", 20.0)
    assert seconds(CFG, "sft") == pytest.approx(left - 20 - 22, abs=1), "the last model is measured as well"
    aligned = RunConfig(**{**vars(CFG), "stages": ("pretrain", "sft", "dpo")})
    assert seconds(aligned, "dpo") == pytest.approx((left - 20 - 22) / 1.8, abs=1), "and replies compared"
    own = RunConfig(**{**vars(CFG), "sft": SFTConfig(budget="100s")})
    assert seconds(own, "sft") is None
    clock.budget_s = None
    assert seconds(CFG, "sft") is None
