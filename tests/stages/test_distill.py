"""Distillation: divergences by hand and against PyTorch, kept logits, accumulation, processes, on-policy rows."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from onesitting.config import CorpusConfig, DistillConfig, RunConfig
from onesitting.data.examples import n_chat_rows
from onesitting.data.prepare import prepare_conversations
from onesitting.errors import UserError
from onesitting.inference.generate import Completion
from onesitting.model.transformer import Transformer
from onesitting.runlog import RunFolder, read_jsonl
from onesitting.stages import kept
from onesitting.stages import make as stages_make
from onesitting.stages.distill import DistillStage
from onesitting.stages.divergence import TopK, distillation_sums, divergence, top_k, with_rest
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer
from onesitting.train.budget import StepTarget
from onesitting.train.distributed import Ranks
from onesitting.train.loop import FitSettings, fit

TEACHER = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]])
STUDENT = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.4, 0.4]])


def test_divergences_equal_values_computed_by_hand() -> None:
    forward = divergence(STUDENT.log(), TEACHER.log(), "forward")
    assert forward.tolist() == pytest.approx([0.25 * math.log(2), math.log(0.5 / 0.4)], rel=1e-5)
    reverse = divergence(STUDENT.log()[:1], TEACHER.log()[:1], "reverse")
    assert reverse.tolist() == pytest.approx([0.25 * math.log(2)], rel=1e-5)
    middle = [0.3 * t + 0.7 * s for t, s in zip(TEACHER[0].tolist(), STUDENT[0].tolist(), strict=True)]
    expected = sum(
        0.3 * t * math.log(t / m) + 0.7 * s * math.log(s / m)
        for t, s, m in zip(TEACHER[0].tolist(), STUDENT[0].tolist(), middle, strict=True)
    )
    assert divergence(STUDENT.log()[:1], TEACHER.log()[:1], "jsd", 0.3).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_equal_distributions_are_no_distance_apart(kind: Any) -> None:
    logprobs = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert divergence(logprobs, logprobs, kind).abs().max() < 1e-5
    assert (divergence(logprobs, logprobs.flip(0), kind) > 0.01).sum() >= 4, "all but the row in the middle"


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = {"student": (70, 6), "ours": (11, 6), "teacher": (70, 4), "theirs": (11, 4)}
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**found, "targets": torch.randint(11, (70,), generator=generator)}


def test_sums_and_gradients_equal_pytorchs_on_whole_logits() -> None:
    t = tensors()
    t["student"].requires_grad_()
    ce, apart = distillation_sums(
        t["student"],
        t["ours"],
        t["teacher"],
        t["theirs"],
        t["targets"],
        kind="forward",
        temperature=2.0,
        beta=0.5,
    )
    (got,) = torch.autograd.grad(ce + 3 * apart, t["student"])
    logits, taught = t["student"] @ t["ours"].T, t["teacher"] @ t["theirs"].T
    whole = F.kl_div(
        (logits / 2).log_softmax(-1), (taught / 2).log_softmax(-1), reduction="sum", log_target=True
    )
    expected = F.cross_entropy(logits, t["targets"], reduction="sum")
    assert float(ce.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(apart.detach()) == pytest.approx(float(whole.detach()), rel=1e-4)
    (gradient,) = torch.autograd.grad(expected + 3 * whole, t["student"])
    assert torch.allclose(got, gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_all_tokens_kept_give_the_divergence_and_fewer_never_more(kind: Any) -> None:
    t = tensors()
    arguments = {"targets": t["targets"], "kind": kind, "temperature": 1.5, "beta": 0.5}
    _, whole = distillation_sums(t["student"], t["ours"], t["teacher"], t["theirs"], **arguments)
    apart = [
        float(
            distillation_sums(
                t["student"], t["ours"], top_k(t["teacher"], t["theirs"], k, 1.5), t["theirs"], **arguments
            )[1]
        )
        for k in (2, 5, 11)
    ]
    assert apart[0] <= apart[1] + 1e-4 <= apart[2] + 2e-4
    assert apart[2] == pytest.approx(float(whole), rel=1e-2)
    kept = with_rest(TEACHER[:1, :2].log())
    assert kept.exp().tolist()[0] == pytest.approx([0.5, 0.25, 0.25])


# ---- the stage ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, words: Tokenizer) -> Path:
    return tiny.trained_start(
        tmp_path_factory.mktemp("teacher"), words, tiny.shape(words.vocab_size, n_layers=1), noise=0.4
    )


def make(
    tmp_path: Path, words: Tokenizer, teacher: Path, ranks: Ranks | None = None, **distill: Any
) -> DistillStage:
    settings = {
        "teacher": str(teacher), "step_tokens": 8 * tiny.ROW, "micro_batch_rows": 2, "warmup_steps": 2,
        "max_epochs": 0.0, "lr_scale": 0.3, "temperature": 2.0, **distill,
    }  # fmt: skip
    cfg = tiny.config(tiny.shape(words.vocab_size), distill=DistillConfig(**settings))
    talks = tmp_path / "talks.jsonl"
    tmp_path.mkdir(exist_ok=True)
    import json

    talks.write_text(
        "".join(json.dumps({"prompt": p["prompt"], "response": p["chosen"]}) + "\n" for p in tiny.pairs(80))
    )
    corpus = CorpusConfig(cache="", workers=1, val_fraction=0.2)
    chat = prepare_conversations((str(talks),), words, corpus, tmp_path / "chat", 0)
    return DistillStage(cfg, words, chat, tiny.plan(cfg), ranks or Ranks(), folder=tmp_path)


def student(words: Tokenizer) -> Transformer:
    return Transformer(tiny.shape(words.vocab_size), seed=1)


def gradients(stage: DistillStage, model: Transformer) -> tuple[float, dict[str, torch.Tensor], int]:
    total, n_units = 0.0, 0
    for batch in stage.next_batches(model, 0, tiny.ROW):
        loss, _ = stage.loss_sum(model, batch)
        loss.backward()
        total, n_units = total + float(loss.detach()), n_units + batch.n_units
    return total, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, n_units


@pytest.mark.parametrize("changes", [{}, {"top_k": 4}, {"on_policy": 0.5}], ids=str)
def test_accumulation_and_processes_change_no_gradient(
    tmp_path: Path, words: Tokenizer, teacher: Path, changes: dict[str, Any]
) -> None:
    whole = gradients(make(tmp_path / "a", words, teacher, micro_batch_rows=8, **changes), student(words))
    small = gradients(make(tmp_path / "b", words, teacher, **changes), student(words))
    parts = [
        gradients(make(tmp_path / str(r), words, teacher, Ranks(rank=r, world=2), **changes), student(words))
        for r in (0, 1)
    ]
    assert whole[2] == small[2] == parts[0][2] + parts[1][2]
    assert small[0] == pytest.approx(whole[0], rel=1e-4)
    for name, grad in whole[1].items():
        assert torch.allclose(grad, small[1][name], rtol=1e-3, atol=1e-4), name
        assert torch.allclose(grad, parts[0][1][name] + parts[1][1][name], rtol=1e-3, atol=1e-4), name


def test_the_loss_weighs_cross_entropy_and_divergence(
    tmp_path: Path, words: Tokenizer, teacher: Path
) -> None:
    stage, model = make(tmp_path, words, teacher, kl_weight=0.25), student(words)
    batch = stage.next_batches(model, 0, tiny.ROW)[0]
    loss, named = stage.loss_sum(model, batch)
    expected = 0.75 * named["cross_entropy"] + 0.25 * 4 * named["divergence"]
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    inputs = batch.batch
    logits = model(inputs.tokens, doc_ids=inputs.doc_ids, positions=inputs.positions).flatten(0, 1)
    plain = F.cross_entropy(logits, inputs.targets.flatten(), ignore_index=-100, reduction="sum")
    assert float(named["cross_entropy"].detach()) == pytest.approx(float(plain.detach()), rel=1e-4)


def test_kept_logits_are_those_of_the_teacher_and_are_read_the_second_time(
    tmp_path: Path, words: Tokenizer, teacher: Path
) -> None:
    stage, model = make(tmp_path, words, teacher, top_k=8), student(words)
    batches = stage.next_batches(model, 0, tiny.ROW)
    first = [float(stage.loss_sum(model, batch)[0].detach()) for batch in batches]
    stage.teacher_hidden = None  # type: ignore[method-assign,assignment]  # it must not be asked again
    assert [float(stage.loss_sum(model, batch)[0].detach()) for batch in batches] == first
    again = make(tmp_path, words, teacher, top_k=8)
    again.teacher_hidden = None  # type: ignore[method-assign,assignment]
    regrouped = dataclasses.replace(again.cfg.distill, micro_batch_rows=4)
    again.cfg = dataclasses.replace(again.cfg, distill=regrouped)
    losses = [float(again.loss_sum(model, b)[0].detach()) for b in again.next_batches(model, 0, tiny.ROW)]
    assert sum(losses) == pytest.approx(sum(first), rel=1e-5)


def test_rows_of_the_student_are_its_own_words_and_count_the_divergence_alone(
    tmp_path: Path, words: Tokenizer, teacher: Path
) -> None:
    stage, model = make(tmp_path, words, teacher, on_policy=1.0), student(words)
    batches = stage.next_batches(model, 3, tiny.ROW)
    again = stage.next_batches(model, 3, tiny.ROW)
    assert all(a.batch.tokens.equal(b.batch.tokens) for a, b in zip(batches, again, strict=True))
    assert stage.cycle == 1
    for batch in batches:
        assert batch.rows is None
        loss, named = stage.loss_sum(model, batch)
        assert float(loss.detach()) == pytest.approx(4 * float(named["divergence"].detach()), rel=1e-5)


@pytest.mark.parametrize("changes", [{}, {"top_k": 4}], ids=str)
def test_a_batch_without_a_target_adds_zero_and_no_nan(
    tmp_path: Path, words: Tokenizer, teacher: Path, changes: dict[str, Any]
) -> None:
    stage, model = make(tmp_path, words, teacher, **changes), student(words)
    batch = stage.next_batches(model, 0, tiny.ROW)[0]
    untrained = torch.full_like(batch.batch.targets, -100)
    inner = dataclasses.replace(batch.batch, targets=untrained, n_units=0)
    loss, named = stage.loss_sum(model, dataclasses.replace(batch, batch=inner, rows=None))
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == 0.0
    assert all(float(value.detach()) == 0.0 for value in named.values())
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(("fraction", "n_rows"), [(0.1, 4), (0.25, 3), (0.9, 5), (1.0, 2)])
def test_the_student_writes_the_fraction_of_the_rows_that_is_asked_for(
    tmp_path: Path, words: Tokenizer, teacher: Path, fraction: float, n_rows: int
) -> None:
    stage = make(tmp_path, words, teacher, on_policy=fraction, step_tokens=n_rows * tiny.ROW)
    model = student(words)
    own, rows, n_steps = 0, [], 10
    for step in range(n_steps):
        batches = stage.next_batches(model, step, tiny.ROW)
        assert sum(len(b.batch.tokens) for b in batches) == n_rows
        own += sum(len(b.batch.tokens) for b in batches if b.rows is None)
        rows += [row for b in batches for row in b.rows or ()]
    assert own == pytest.approx(fraction * n_rows * n_steps, abs=1)
    per_epoch = n_chat_rows(stage.chat.train, row_length=tiny.ROW, seed=stage.cfg.seed)
    assert len(set(rows[:per_epoch])) == min(len(rows), per_epoch), "each row of the data in turn"


def test_replies_of_the_student_are_masked_like_replies_of_the_data_and_cut_ones_do_not_teach_to_stop(
    tmp_path: Path, words: Tokenizer, teacher: Path
) -> None:
    stage = make(tmp_path, words, teacher, on_policy=1.0)
    prompts = [stage.chat.train.prompt(i) for i in range(3)]
    reply, stop = words.encode("It is good."), words.im_end_id
    replies = [
        Completion(ids=reply, text="", finish_reason="stop", stop_id=stop, logprobs=None),
        Completion(ids=reply, text="", finish_reason="length", stop_id=None, logprobs=None),
        Completion(ids=reply * 40, text="", finish_reason="stop", stop_id=stop, logprobs=None),
    ]
    row = stage.own_row(prompts, replies, tiny.ROW)
    assert len(row.tokens) == 1
    assert row.doc_ids is not None
    taught = {
        tuple(row.targets[(row.doc_ids == number) & (row.targets != -100)].tolist()) for number in (0, 1)
    }
    assert taught == {(*reply, stop), tuple(reply)}, "the third has no room and is left out"
    for number in (0, 1):
        here = row.doc_ids == number
        n_prompt = int((row.targets[here] == -100).sum()) + 1  # the last one of the prompt predicts the reply
        assert row.tokens[here].tolist()[:n_prompt] in prompts
    assert row.n_units == 2 * len(reply) + 1
    whole = stage.own_row(prompts[2:], replies[2:], tiny.ROW)
    assert whole.n_tokens == tiny.ROW, "one that is too long alone is cut at the end of the row"
    assert stop not in whole.targets


def test_a_new_file_of_kept_numbers_is_filled_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "CHUNK_NUMBERS", 7)
    largest: list[int] = []
    real = np.full
    monkeypatch.setattr(kept.np, "full", lambda n, *a, **k: largest.append(n) or real(n, *a, **k))
    found = kept.open_filled(tmp_path / "a", (5, 4), "<f2", np.nan)
    assert found.shape == (5, 4)
    assert np.isnan(found).all()
    assert largest == [7, 7, 6]
    found[0] = 1
    assert not np.isnan(kept.open_filled(tmp_path / "a", (5, 4), "<f2", np.nan)[0]).any()
    assert len(kept.open_filled(tmp_path / "b", (0, 4), "<f2", np.nan)) == 0


def test_a_row_of_kept_logits_counts_as_computed_once_all_of_it_is_written(
    tmp_path: Path, words: Tokenizer, teacher: Path
) -> None:
    stage = make(tmp_path, words, teacher, top_k=4)
    it = stage.kept
    assert it is not None
    n = int(it.edges[1] - it.edges[0])
    found = TopK(torch.ones(n, 4, dtype=torch.long), torch.full((n, 4), -1.0))

    class Broken:
        """The file, whose process ends after one more write."""

        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 1

        def __getitem__(self, at: Any) -> Any:
            return self.file[at]

        def __setitem__(self, at: Any, value: Any) -> None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.file[at] = value

    whole, it.logprobs = it.logprobs, Broken(it.logprobs)
    with pytest.raises(KeyboardInterrupt):
        it.write([0], found)
    it.logprobs = whole
    assert it.read([0]) is None
    it.write([0], found)
    again = it.read([0])
    assert again is not None
    assert torch.equal(again.logprobs, found.logprobs)


def test_files_that_all_processes_read_are_made_by_the_first_before_the_others_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []

    class Place(Ranks):
        def barrier(self) -> None:
            happened.append("barrier")

    monkeypatch.setattr(
        stages_make, "_stage", lambda *_: happened.append("made") or SimpleNamespace(n_rows=2)
    )
    for rank in (0, 1):
        inputs = SimpleNamespace(ranks=Place(rank=rank, world=2), cfg=RunConfig())
        stages_make.make_stage("distill", inputs)  # type: ignore[arg-type]
    assert happened == ["made", "barrier", "barrier", "made"]


def test_a_teacher_with_another_vocabulary_is_refused(tmp_path: Path, teacher: Path) -> None:
    with pytest.raises(UserError, match=r"vocabulary .* distill-data"):
        make(tmp_path, train_tokenizer(["Other words entirely. " * 40], 320), teacher)


def test_the_student_comes_closer_to_its_teacher_and_resumes_bit_for_bit(
    tmp_path: Path, words: Tokenizer, teacher: Path
) -> None:
    def train(place: Path, last: int) -> tuple[Transformer, list[float], DistillStage]:
        stage, model = make(place, words, teacher, top_k=16, kl_weight=1.0, temperature=1.0), student(words)
        checkpoint = dataclasses.replace(stage.cfg.checkpoint, every_s=0, every_steps=4)
        cfg = stage.cfg = dataclasses.replace(stage.cfg, checkpoint=checkpoint)
        target = StepTarget(
            cfg.distill, tokens=10 * cfg.distill.step_tokens, row_length=tiny.ROW, n_rows=stage.n_rows,
            evaluate_every=0.5,
        )  # fmt: skip
        real = stage.next_batches

        def killed(model: Transformer | None, step: int, row_length: int) -> Any:
            if step == last:
                raise MemoryError
            return real(model, step, row_length)

        stage.next_batches = killed  # type: ignore[method-assign]
        folder = RunFolder(place).stage("distill")
        fit(
            stage, model, FitSettings(target=target, lr_scale=0.3), cfg=cfg, folder=folder, plan=stage.plan,
            ranks=stage.ranks, tokenizer=words,
        )  # fmt: skip
        return model, [r["loss"] for r in read_jsonl(folder.metrics_path) if "loss" in r], stage

    whole, losses, stage = train(tmp_path / "whole", -1)
    with pytest.raises(MemoryError):
        train(tmp_path / "cut", 6)
    resumed, again, _ = train(tmp_path / "cut", -1)
    assert again == losses
    assert all(torch.equal(p, resumed.get_parameter(n)) for n, p in whole.named_parameters())
    with torch.no_grad():
        after, before = (stage.evaluate(model)["teacher_kl_nats"] for model in (whole.eval(), student(words)))
    assert after < 0.9 * before
    assert np.isfinite(losses).all()
