"""What is compiled while training, and how often: a backend that counts its graphs plays the compiler."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_loop import N_ROWS, ROW, SHAPE, CountingStage, config, make_loop

from onesitting.data.examples import Batch
from onesitting.inference.generate import generate
from onesitting.inference.sampling import Sampling
from onesitting.model import logprobs, transformer
from onesitting.model.kernels import rms_norm
from onesitting.model.transformer import Transformer
from onesitting.runlog import RunFolder
from onesitting.stages.next_token import next_token_loss
from onesitting.train import loop
from onesitting.train.budget import StepTarget
from onesitting.train.device import DevicePlan, compile_model, detect, plan_device
from onesitting.train.distributed import Ranks
from onesitting.train.state import FitResult


class Graphs:
    """A backend that runs what it is given as it is; counts."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.n += 1
        return graph.forward


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """Loops made in the test compile with this, and compute the loss as off a processor."""
    torch._dynamo.reset()
    found = Graphs()
    monkeypatch.setattr(loop, "compile_model", partial(compile_model, backend=found))
    monkeypatch.setattr(logprobs, "_gathers", lambda hidden: False)
    return found


class FineTuning(CountingStage):
    """Rows of two documents, of whose tokens a number that changes with each step is trained; validates for real."""

    def next_batches(self, model: Transformer, step: int, row_length: int) -> list[Batch]:
        batches = super().next_batches(model, step, row_length)
        return [self.masked(batch, step + 1) for batch in batches]

    def masked(self, batch: Batch, n: int) -> Batch:
        targets = batch.targets.clone()
        targets[:, :n] = -100
        docs = (torch.arange(targets.shape[1]) >= 5).int().expand(targets.shape)
        return replace(batch, targets=targets, doc_ids=docs, n_units=int((targets != -100).sum()))

    def evaluate(self, model: Transformer) -> dict[str, float]:
        batch = super().next_batches(model, 99, 9)[0]
        return {"bits_per_byte": float(next_token_loss(model, batch))}

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        tokenizer: Any = SimpleNamespace(token_bytes=[b"a"] * 64, special_ids={})
        done = generate(model, tokenizer, [[1, 2, 3]], Sampling(max_tokens=3, seed=0), set())
        return [{"prompt": "", "text": str(one.ids)} for one in done]


def compiled_plan(cfg: Any) -> DevicePlan:
    return replace(plan_device(cfg.device, detect()), compile=True)


def test_all_blocks_share_a_graph_and_nothing_but_training_adds_one(tmp_path: Path, graphs: Graphs) -> None:
    one = make_loop(tmp_path, FineTuning(), plan=compiled_plan(config()))
    one.train_step()
    first = graphs.n
    assert first <= 4  # the probe, a block, the norm, the loss
    one.train_step()  # another number of trained tokens
    assert graphs.n == first
    assert one.evaluate()
    assert graphs.n == first
    one.train_step()
    assert graphs.n == first
    one.prefetch.close()


def test_compiled_steps_are_the_plain_ones(tmp_path: Path, graphs: Graphs) -> None:
    cfg = config()
    found = {}
    for name, plan in {"plain": plan_device(cfg.device, detect()), "compiled": compiled_plan(cfg)}.items():
        one = make_loop(tmp_path / name, FineTuning(), plan=plan)
        found[name] = [one.train_step()["loss"] for _ in range(4)]
        one.prefetch.close()
    assert graphs.n > 1
    assert found["compiled"] == pytest.approx(found["plain"], rel=3e-3)


def test_a_new_mask_of_documents_is_no_new_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    graphs = Graphs()
    monkeypatch.setattr(transformer, "route_on", lambda *_, compiled, **__: "flex" if compiled else "blocked")
    shape = replace(SHAPE, context_length=256)
    model = Transformer(shape, seed=3)
    assert compile_model(model, compiled_plan(config()), backend=graphs) == ""
    monkeypatch.setattr(
        Transformer, "parts", model.training_parts
    )  # FlexAttention has no gradients on a processor
    tokens, first = torch.randint(0, 64, (2, 256)), 0
    for seed in range(3):
        doc_ids = (torch.arange(256) // (40 + 7 * seed)).int().expand(2, -1)
        with torch.no_grad():
            found = model.hidden(tokens, doc_ids=doc_ids)
            first = first or graphs.n
            with monkeypatch.context() as plain:
                plain.setattr(Transformer, "parts", transformer.PLAIN)
                expected = model.hidden(tokens, doc_ids=doc_ids)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert graphs.n == first


def fit_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Any) -> FitResult:
    """Two steps with a backend in the compiler's place."""
    torch._dynamo.reset()
    monkeypatch.setattr(loop, "compile_model", partial(compile_model, backend=backend))
    cfg = config(n_steps=2)
    target = StepTarget(cfg.pretrain, tokens=cfg.pretrain.tokens, row_length=ROW, n_rows=N_ROWS)
    return loop.fit(
        FineTuning(), Transformer(SHAPE, seed=3), loop.FitSettings(target=target), cfg=cfg,
        folder=RunFolder(tmp_path).stage("pretrain"), plan=compiled_plan(cfg), ranks=Ranks(),
    )  # fmt: skip


def test_a_compiler_that_fails_later_is_reported_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(graph: Any, inputs: Any) -> Any:
        if len(inputs) > 1:  # the probe has one
            raise RuntimeError("no kernel")
        return graph.forward

    result = fit_compiled(tmp_path, monkeypatch, breaks)
    assert not result.compiled
    assert result.steps == 2
    assert "torch.compile failed, training goes on without" in capsys.readouterr().out


def test_a_cut_graph_is_reported_and_still_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(x: Any, weight: Any, eps: float) -> Any:
        torch._dynamo.graph_break()
        return rms_norm(x, weight, eps)

    monkeypatch.setattr(transformer, "rms_norm", cut)
    result = fit_compiled(tmp_path, monkeypatch, Graphs())
    assert result.compiled
    assert "cut its graphs" in capsys.readouterr().out


def test_a_compiler_that_does_its_work_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit_compiled(tmp_path, monkeypatch, Graphs()).compiled
    assert "compile" not in capsys.readouterr().out
