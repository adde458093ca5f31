"""Passes that are recorded and replayed; a tape plays the graph (tape.py), benchmarks/gpu_checks.py has real ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tape import TapeRecorder
from test_compile import FineTuning
from test_loop import ROW, CountingStage, config, make_loop
from torch import Tensor

from onesitting.data.examples import Batch
from onesitting.model import logprobs, transformer
from onesitting.model.transformer import Transformer
from onesitting.stages.next_token import next_token_loss
from onesitting.train.device import detect, plan_device
from onesitting.train.loop import Loop
from onesitting.train.parts import StepParts
from onesitting.train.passes import MOST_RECORDINGS, Passes, RecordedPasses, make_passes


@pytest.fixture(autouse=True)
def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and attention of devices other than a processor, whose work does not depend on the numbers."""
    monkeypatch.setattr(logprobs, "_gathers", lambda hidden: False)
    monkeypatch.setattr(transformer, "route_on", lambda *_, gqa, **__: "sdpa_expanded" if gqa else "sdpa")


def recording_loop(tmp_path: Path, stage: Any) -> tuple[Loop, TapeRecorder, list[str]]:
    """A loop whose passes are recorded on a tape, and the notes of its failures."""
    one, notes = make_loop(tmp_path, stage), list[str]()
    recorder: Any = TapeRecorder(one.model)
    one.passes = RecordedPasses(stage, one.model, one.plan, one.parts, notes.append, recorder)
    return one, recorder, notes


def losses_of(one: Loop, n_steps: int) -> list[float]:
    found = [one.train_step()["loss"] for _ in range(n_steps)]
    one.prefetch.close()
    return found


def plain_losses(tmp_path: Path, stage: Any, n_steps: int) -> list[float]:
    return losses_of(make_loop(tmp_path, stage), n_steps)


@pytest.mark.parametrize("stage", [CountingStage, FineTuning])
def test_replayed_steps_are_the_plain_ones(tmp_path: Path, stage: type[CountingStage]) -> None:
    """Among them the masks and documents that change from batch to batch."""
    one, recorder, notes = recording_loop(tmp_path / "recorded", stage())
    found = losses_of(one, 6)
    plain = make_loop(tmp_path / "plain", stage())
    assert found == losses_of(plain, 6)
    assert notes == []
    assert len(recorder.tapes) == 1
    assert recorder.n_replays == 11  # two micro-batches a step, of which the very first runs plainly
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter, one.model.get_parameter(name)), name


def test_a_number_of_pythons_would_be_repeated() -> None:
    """What `replayable` is about, and that the tape would show it."""

    class Fading(CountingStage):
        n = 0

        def loss_sum(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            self.n += 1
            return next_token_loss(model, batch) * 0.5**self.n, {}

    sums = []
    for _ in range(2):
        stage, model = Fading(), Transformer(config().model, seed=3).train()
        plan = plan_device(config().device, detect())
        recorder: Any = TapeRecorder(model)
        kinds = (Passes(stage, model, plan, StepParts(plan.torch_device)),
                 RecordedPasses(stage, model, plan, StepParts(plan.torch_device), print, recorder))  # fmt: skip
        passes = kinds[len(sums)]
        batches = stage.next_batches(model, 0, ROW)
        sums.append([float(passes(batch, 1.0, 1.0)["loss"]) for batch in [*batches, *batches]])
    assert sums[0] != sums[1]


def test_each_shape_is_recorded_once_and_only_so_many(tmp_path: Path) -> None:
    class Ragged(CountingStage):
        def next_batches(self, model: Transformer, step: int, row_length: int) -> list[Batch]:
            whole = super().next_batches(model, 0, row_length)[0]
            return [self.cut(whole, 1 + step % 10)]

        def cut(self, batch: Batch, n: int) -> Batch:
            short = replace(batch, tokens=batch.tokens[:, :n].clone(), targets=batch.targets[:, :n].clone())
            return replace(short, n_units=short.targets.numel(), n_tokens=short.tokens.numel())

    one, recorder, notes = recording_loop(tmp_path / "recorded", Ragged())
    found = losses_of(one, 30)
    assert len(recorder.tapes) == MOST_RECORDINGS
    assert recorder.n_replays == 2 * MOST_RECORDINGS
    assert found == plain_losses(tmp_path / "plain", Ragged(), 30)
    assert notes == []


def test_what_a_graph_cannot_hold_runs_without(tmp_path: Path) -> None:
    class Waiting(CountingStage):
        def loss_sum(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            loss, named = super().loss_sum(model, batch)
            assert float(loss.detach()) > 0  # waits for the device
            return loss, named

    one, recorder, notes = recording_loop(tmp_path / "recorded", Waiting())
    assert losses_of(one, 4) == plain_losses(tmp_path / "plain", Waiting(), 4)
    assert recorder.tapes == []
    assert len(notes) == 1
    assert "cannot hold this step, training goes on without: operation not permitted" in notes[0]


def hold_one_row_from_step_two(one: Loop) -> list[int]:
    """Let memory run out behind the passes of larger micro-batches; rows of those that fit come back."""
    passes, done = one.passes, list[int]()

    class Tight:
        forget = passes.forget

        def __call__(self, there: Batch, scale: float, balance: float) -> dict[str, Tensor]:
            sums = passes(there, scale, balance)
            if one.state.step >= 2 and there.n_rows > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            done.append(there.n_rows)
            return sums

    tight: Any = Tight()
    one.passes = tight
    return done


def test_memory_that_runs_out_drops_the_recordings(tmp_path: Path) -> None:
    class Shrinking(CountingStage):
        plan = plan_device(config().device, detect())

        def next_batches(self, model: Transformer, step: int, row_length: int) -> list[Batch]:
            self.micro_rows = self.plan.most_rows or 2
            return super().next_batches(model, step, row_length)

    one, recorder, notes = recording_loop(tmp_path / "recorded", Shrinking())
    plain = make_loop(tmp_path / "plain", Shrinking())
    done, expected = hold_one_row_from_step_two(one), hold_one_row_from_step_two(plain)
    assert losses_of(one, 5) == losses_of(plain, 5)
    assert done == expected == [2] * 4 + [1] * 12
    assert one.stage.plan.most_rows == 1
    assert len(recorder.tapes) == 2
    assert notes == []


def test_the_stopwatch_sees_parts(tmp_path: Path) -> None:
    """Steps with the stopwatch on and off, in turns, are those without it."""
    one, recorder, _ = recording_loop(tmp_path / "recorded", CountingStage())
    found = []
    for is_on in (False, True, False, True):
        one.parts.is_on = is_on
        found.append(one.train_step()["loss"])
    one.prefetch.close()
    assert found == plain_losses(tmp_path / "plain", CountingStage(), 4)
    assert {"data", "forward", "backward"} <= set(one.parts.seconds)
    assert recorder.n_replays == 3


def test_parameters_that_learn_nothing_stay_where_they_are(tmp_path: Path) -> None:
    """Their gradient is zeros here and none otherwise: the same weights come out."""

    class Half(CountingStage):
        def loss_sum(self, model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            table = model.model.embed_tokens.weight
            return (table[batch.tokens] - 0.5).square().sum(), {}

    one, _, notes = recording_loop(tmp_path / "recorded", Half())
    plain = make_loop(tmp_path / "plain", Half())
    assert losses_of(one, 3) == losses_of(plain, 3)
    assert notes == []
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter, one.model.get_parameter(name)), name


def test_only_what_can_be_replayed_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder: Any = TapeRecorder
    monkeypatch.setattr("onesitting.train.passes.Recorder", lambda: recorder(torch.nn.Module()))
    plan = replace(plan_device(config().device, detect()), graphs=True)
    model, parts = Transformer(config().model, seed=0), StepParts(plan.torch_device)

    class Rollouts(CountingStage):
        replayable = False

    mixture = Transformer(replace(config().model, n_experts=4, n_active_experts=2), seed=0)
    assert type(make_passes(CountingStage(), model, plan, parts, print)) is RecordedPasses
    assert type(make_passes(CountingStage(), model, replace(plan, graphs=False), parts, print)) is Passes
    notes: list[str] = []
    assert type(make_passes(Rollouts(), model, plan, parts, notes.append)) is Passes
    assert type(make_passes(CountingStage(), mixture, plan, parts, notes.append)) is Passes
    assert len(notes) == 2
    assert all("no CUDA graphs" in note for note in notes)
