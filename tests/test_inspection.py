"""The views of the data show what is trained, what is context and what is wrong, in colours and in marks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from onesitting import inspection
from onesitting.config import CorpusConfig, ModelConfig, PretrainConfig, RunConfig, SFTConfig, TokenizerConfig
from onesitting.data.examples import Batch
from onesitting.errors import UserError
from onesitting.runlog import RunFolder, append_jsonl

TALK = [
    {"role": "user", "content": "What is the colour of the sky?"},
    {"role": "assistant", "content": "The sky is blue today."},
]


@pytest.fixture
def cfg(tmp_path: Path) -> RunConfig:
    """A small corpus of files: texts, and conversations in OpenAI's form."""
    texts = [f"Document {i} tells of {'green hills and ' * (i % 7)}the sea." for i in range(200)]
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"id": i, "story": t}) + "\n" for i, t in enumerate(texts))
    )
    (tmp_path / "chat.jsonl").write_text(
        "".join(json.dumps({"messages": TALK, "n": i}) + "\n" for i in range(50))
    )
    return RunConfig(
        name="small",
        out=str(tmp_path / "runs"),
        data=(str(tmp_path / "text.jsonl"),),
        chat=(str(tmp_path / "chat.jsonl"),),
        corpus=CorpusConfig(cache=str(tmp_path / "cache"), val_fraction=0.1, workers=1),
        tokenizer=TokenizerConfig(vocab_size=320),
        model=ModelConfig(
            n_layers=1, d_model=16, n_heads=1, n_kv_heads=1, head_dim=16, d_ff=16, context_length=64
        ),
        pretrain=PretrainConfig(step_tokens=512),
        sft=SFTConfig(step_tokens=256),
    )


@pytest.fixture
def plain() -> Console:
    """A console that is no terminal and keeps what it is given."""
    return Console(record=True, force_terminal=False, no_color=True, width=200, soft_wrap=True)


def batch(tokens: list[int], targets: list[int], doc_ids: list[int] | None) -> Batch:
    return Batch(
        tokens=torch.tensor([tokens]),
        targets=torch.tensor([targets]),
        doc_ids=None if doc_ids is None else torch.tensor([doc_ids], dtype=torch.int32),
        positions=None,
        n_units=sum(target >= 0 for target in targets),
        n_tokens=len(tokens),
    )


def test_the_pieces_of_a_row_hold_each_target_once_and_count_the_padding() -> None:
    pieces, n_padding = inspection.row_pieces(
        batch([10, 11, 12, 20, 21, 0, 0], [-100, 12, 13, 21, -100, -100, -100], [0, 0, 0, 1, 1, -1, -1]), 0
    )
    assert pieces == [
        [(10, False), (11, False), (12, True), (13, True)],
        [(20, False), (21, True)],
    ]
    assert n_padding == 2


def test_a_row_without_document_numbers_is_one_piece() -> None:
    pieces, n_padding = inspection.row_pieces(batch([1, 2, 3], [2, 3, 4], None), 0)
    assert pieces == [[(1, False), (2, True), (3, True), (4, True)]]
    assert n_padding == 0


def test_documents_are_shown_with_their_source_and_the_guessed_field(cfg: RunConfig, plain: Console) -> None:
    inspection.inspect_data(cfg, 2, plain)
    shown = plain.export_text()
    assert "text.jsonl:1" in shown
    assert "Document 1 tells" in shown
    assert "Document 2 tells" not in shown
    assert "'story'" in shown
    assert "200 documents read" in shown
    assert "What is the colour of the sky?" in shown


def test_bad_records_are_counted_and_shown_instead_of_refused(cfg: RunConfig, plain: Console) -> None:
    with open(cfg.data[0], "a") as file:
        file.write("{broken\n" * 50)
    inspection.inspect_data(cfg, 1, plain)
    shown = plain.export_text()
    assert "bad: 50" in shown
    assert "text.jsonl:201" in shown


def test_tokens_are_split_by_marks_and_join_to_the_text(cfg: RunConfig, plain: Console) -> None:
    inspection.inspect_tokens(cfg, "the hills and the sea", plain)
    shown = plain.export_text()
    line = next(line for line in shown.splitlines() if "|" in line)
    assert line.replace("|", "") == "the hills and the sea"
    assert "21 bytes" in shown
    assert "bytes per token" in shown


def test_without_a_text_the_first_document_is_cut(cfg: RunConfig, plain: Console) -> None:
    inspection.inspect_tokens(cfg, "", plain)
    lines = plain.export_text().splitlines()
    assert any(line.replace("|", "") == "Document 0 tells of the sea." for line in lines)


def test_part_of_a_character_is_shown_as_bytes(cfg: RunConfig, plain: Console) -> None:
    inspection.inspect_tokens(cfg, "漢", plain)
    assert r"\xe6|\xbc|\xa2" in plain.export_text()


def test_on_a_terminal_colours_stand_for_marks(cfg: RunConfig) -> None:
    console = Console(record=True, force_terminal=True, color_system="truecolor", width=200)
    inspection.inspect_tokens(cfg, "the sea", console)
    shown = console.export_text(styles=True)
    assert "\x1b[" in shown
    assert "|" not in console.export_text()


def test_fine_tuning_trains_the_reply_and_its_end_alone(cfg: RunConfig, plain: Console) -> None:
    inspection.inspect_batch(cfg, "sft", 0, 1, plain)
    shown = plain.export_text().replace("⏎\n", "⏎")
    assert "⟦The sky is blue today.<|im_end|>⟧" in shown
    assert "⟦What" not in shown
    assert "<|im_start|>assistant" in shown
    assert "padding:" in shown
    assert "hidden from each other" in shown


def test_pretraining_trains_every_token(cfg: RunConfig, plain: Console) -> None:
    inspection.inspect_batch(cfg, "pretrain", 0, 2, plain)
    shown = plain.export_text()
    assert "pretrain, step 0: 8 rows of 64 tokens" in shown
    assert "100.0 % of them trained; documents in one row see each other" in shown
    assert "6 more rows" in shown


def test_different_steps_have_different_rows_and_the_same_step_the_same(cfg: RunConfig) -> None:
    def view(step: int) -> str:
        console = Console(record=True, force_terminal=False, no_color=True, width=200)
        inspection.inspect_batch(cfg, "pretrain", step, 8, console)
        return console.export_text()

    assert view(0) == view(0)
    assert view(0).splitlines()[5:] != view(1).splitlines()[5:]


def test_the_row_length_of_a_trained_step_is_the_recorded_one(cfg: RunConfig, plain: Console) -> None:
    cfg = replace(cfg, pretrain=replace(cfg.pretrain, short_context=16, short_fraction=0.5))
    run = RunFolder(Path(cfg.out) / cfg.name)
    for step, row_length in ((1, 16), (2, 64)):
        append_jsonl(run.stage("pretrain").metrics_path, {"step": step, "row_length": row_length})
    inspection.inspect_batch(cfg, "pretrain", 0, 1, plain)
    assert "32 rows of 16 tokens" in plain.export_text()
    inspection.inspect_batch(cfg, "pretrain", 1, 1, plain)
    assert "8 rows of 64 tokens" in plain.export_text()


@pytest.mark.parametrize(("stage", "step"), [("dpo", 0), ("sft", -1)])
def test_a_stage_or_step_that_is_not_there_is_refused(cfg: RunConfig, stage: str, step: int) -> None:
    with pytest.raises(UserError, match="--st"):
        inspection.inspect_batch(cfg, stage, step)
