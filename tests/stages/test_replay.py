"""Replay: which rows of a stream are general data, and that every row of both sources is read once and in order."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import ROW, config, plan, shape, tokenizer

from onesitting.config import CorpusConfig, PretrainConfig, RunConfig, SFTConfig
from onesitting.data.prepare import prepare_conversations, prepare_documents
from onesitting.data.tokens import ChatFolder, Material
from onesitting.errors import UserError
from onesitting.stages.make import StageInputs, make_stage
from onesitting.stages.next_token import rank_rows, rest, share
from onesitting.stages.pretrain import PretrainStage
from onesitting.stages.sft import SFTStage
from onesitting.train.distributed import Ranks
from onesitting.tuning_config import ReplayConfig

TOKENIZER = tokenizer()


@given(st.integers(1, 64), st.floats(0, 0.95), st.integers(1, 40))
def test_two_sources_share_a_stream_without_gap_or_overlap(
    n_rows: int, fraction: float, n_steps: int
) -> None:
    read: tuple[list[int], list[int]] = ([], [])
    for step in range(n_steps):
        parts = [part(step * n_rows, n_rows, fraction) for part in (share, rest)]
        assert sum(count for _, count in parts) == n_rows
        for rows, (first, count) in zip(read, parts, strict=True):
            rows += range(first, first + count)
    for rows in read:
        assert rows == list(range(len(rows)))
    assert abs(len(read[0]) - fraction * n_rows * n_steps) < 1 + 1e-6


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(1, 8))
def test_processes_share_the_rows_of_all_sources_evenly_and_each_row_once(
    sizes: list[int], world: int
) -> None:
    parts = [(name, 100 * name, n_rows) for name, n_rows in enumerate(sizes)]
    read = [
        [(name, row) for name, first, n in rank_rows(parts, rank, world) for row in range(first, first + n)]
        for rank in range(world)
    ]
    every = [(name, row) for name, first, n in parts for row in range(first, first + n)]
    assert [row for rows in read for row in rows] == every
    assert max(map(len, read)) - min(map(len, read)) == bool(len(every) % world)


class Unwaited(Ranks):
    """One of two processes whose other one is not there."""

    def barrier(self) -> None:
        pass


def test_rows_that_sharded_processes_cannot_share_evenly_are_refused(
    own_and_general: tuple[Material, Material], tmp_path: Path
) -> None:
    cfg = replace(settings(), stages=("sft",), sft=SFTConfig(step_tokens=3 * ROW))
    inputs = StageInputs(
        cfg=replace(cfg, device=replace(cfg.device, shard="fsdp")), tokenizer=TOKENIZER, plan=plan(cfg),
        ranks=Unwaited(rank=0, world=2), data=None, chat=own_and_general[0].chat, start=None, folder=tmp_path,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"3 rows .* do not divide by 2 processes.* change sft\.step_tokens"):
        make_stage("sft", inputs)
    assert make_stage("sft", replace(inputs, cfg=cfg)).n_rows == 3


def material(folder: Path, word: str) -> Material:
    """Documents and conversations that hold a word no other material has."""
    folder.mkdir()
    (folder / "text.jsonl").write_text(
        "".join(f'{{"text": "{word} is {i}. {"It " * 60}"}}\n' for i in range(40))
    )
    talk = '{"messages": [{"role": "user", "content": "%d?"}, {"role": "assistant", "content": "%s %s"}]}\n'
    (folder / "chat.jsonl").write_text("".join(talk % (i, word, "It " * 60) for i in range(40)))
    corpus = CorpusConfig(cache="", val_fraction=0.1, workers=1)
    return Material(
        prepare_documents((str(folder / "text.jsonl"),), TOKENIZER, corpus, folder / "t", 0),
        prepare_conversations((str(folder / "chat.jsonl"),), TOKENIZER, corpus, folder / "c", 0),
    )


@pytest.fixture(scope="module")
def own_and_general(tmp_path_factory: pytest.TempPathFactory) -> tuple[Material, Material]:
    place = tmp_path_factory.mktemp("data")
    return material(place / "own", "good"), material(place / "general", "bad")


def settings(**replay: float) -> RunConfig:
    return config(
        shape(TOKENIZER.vocab_size), pretrain=PretrainConfig(step_tokens=8 * ROW),
        sft=SFTConfig(step_tokens=8 * ROW, max_epochs=2.0), replay=ReplayConfig(**replay),
    )  # fmt: skip


def chat(own: Material) -> ChatFolder:
    assert own.chat is not None
    return own.chat


def rows_with(stage: PretrainStage | SFTStage, word: str, n_steps: int = 8) -> list[int]:
    """How many rows of each step hold a word."""
    batches = [stage.next_batches(None, step, ROW) for step in range(n_steps)]
    texts = [[TOKENIZER.decode(row.tolist()) for b in step for row in b.tokens] for step in batches]
    assert all(len(step) == 8 for step in texts)
    return [sum(word in text for text in step) for step in texts]


def test_pretraining_replays_its_fraction_of_documents_and_conversations(
    own_and_general: tuple[Material, Material],
) -> None:
    own, general = own_and_general
    cfg = settings(fraction=0.25, chat_fraction=0.5)
    stage = PretrainStage(cfg, TOKENIZER, own.text, None, plan(cfg), Ranks(), general)
    steps = [stage.step_rows(step) for step in range(8)]
    assert general.text is not None
    read = [
        sum(n for s in steps for file, _, n in s if file is wanted)
        for wanted in (general.text.train, chat(general).train)
    ]
    assert read == [8, 8], "of 64 rows"
    assert rows_with(stage, "user") == [1] * 8, "a conversation in every step, and none of the run's own"


def test_without_replay_the_rows_are_the_runs_own(own_and_general: tuple[Material, Material]) -> None:
    own, general = own_and_general
    cfg = settings(fraction=0.0)
    for with_general, without in (
        (
            PretrainStage(cfg, TOKENIZER, own.text, None, plan(cfg), Ranks(), general),
            PretrainStage(cfg, TOKENIZER, own.text, None, plan(cfg), Ranks()),
        ),
        (
            SFTStage(cfg, TOKENIZER, chat(own), plan(cfg), Ranks(), general.chat),
            SFTStage(cfg, TOKENIZER, chat(own), plan(cfg), Ranks()),
        ),
    ):
        for a, b in zip(
            with_general.next_batches(None, 3, ROW), without.next_batches(None, 3, ROW), strict=True
        ):
            assert torch.equal(a.tokens, b.tokens)


def test_fine_tuning_replays_conversations_and_counts_its_own_epochs(
    own_and_general: tuple[Material, Material],
) -> None:
    own, general = own_and_general
    cfg = settings(fraction=0.25)
    stage = SFTStage(cfg, TOKENIZER, chat(own), plan(cfg), Ranks(), general.chat)
    assert rows_with(stage, "bad") == [2] * 8
    alone = SFTStage(replace(cfg, replay=ReplayConfig()), TOKENIZER, chat(own), plan(cfg), Ranks())
    steps, steps_alone = stage.max_steps(), alone.max_steps()
    assert steps is not None
    assert steps_alone is not None
    assert steps == pytest.approx(steps_alone / 0.75, abs=1)


def test_the_processes_together_read_what_one_reads_alone(own_and_general: tuple[Material, Material]) -> None:
    own, general = own_and_general
    cfg = settings(fraction=0.3)

    def rows(ranks: Ranks) -> list[tuple[int, ...]]:
        stage = SFTStage(cfg, TOKENIZER, chat(own), plan(cfg), ranks, general.chat)
        return [tuple(row.tolist()) for b in stage.next_batches(None, 1, ROW) for row in b.tokens]

    parts = [rows(Ranks(rank=rank, world=3)) for rank in range(3)]
    assert sorted(row for part in parts for row in part) == sorted(rows(Ranks()))
