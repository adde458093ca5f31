"""Mixtures and adapters in the stages that tune: contracts 3, 11 and 23."""

from pathlib import Path
from typing import Any

import first_steps
import pytest
import tiny
import torch
from torch import Tensor

from onesitting.checkpoint import load_model
from onesitting.data.examples import concatenate
from onesitting.evaluation.preferences import reply_logprobs
from onesitting.model import moe
from onesitting.model.lora import disabled, is_of_adapter, merge
from onesitting.stages.dpo import DPOStage
from onesitting.train.distributed import Ranks
from onesitting.train.loop import Loop

LOAD = torch.tensor([0.4, 0.3, 0.2, 0.1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    first_steps.prepare(place)
    return place


def loop_of(name: str, place: Path, out: Path) -> Loop:
    return first_steps.make_loop(name, place, out, Ranks(), first_steps.shared_by_all(place))


def batches_of(loop: Loop) -> tuple[list[Any], int, int]:
    """(micro-batches, units, real tokens) of the first step."""
    batches = loop.stage.next_batches(loop.model, 0, loop.stage.row_length)  # type: ignore[attr-defined]
    return batches, sum(b.n_units for b in batches), sum(b.n_tokens for b in batches)


def routers(loop: Loop) -> Tensor:
    """The gradients of all routers."""
    grads = [layer.gate.weight.grad for layer in moe.moe_layers(loop.model)]
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo"])
def test_the_balance_loss_of_real_tokens_reaches_the_total_of_every_stage(
    stage: str, place: Path, tmp_path: Path
) -> None:
    found: list[tuple[Tensor, dict[str, Tensor], int]] = []
    for weight in (0.05, 0.0):
        loop = loop_of(f"{stage}, mixture", place, tmp_path / str(weight))
        for layer in moe.moe_layers(loop.model):
            layer.load, layer.aux_loss = LOAD, weight
        batches, n_units, n_tokens = batches_of(loop)
        sums = loop.accumulate(batches, n_units, n_tokens)
        found.append((routers(loop), sums, n_units))
    # The same from the routers' outputs: c E sum of f p, a mean over the real tokens, for each layer.
    loop.optimizer.zero_grad()
    seen: list[Tensor] = []
    hooks = [
        layer.gate.register_forward_hook(lambda _, __, out: seen.append(out.softmax(-1)))
        for layer in moe.moe_layers(loop.model)
    ]
    total = torch.zeros(())
    for batch in batches:
        loop.stage.loss_sum(loop.model, batch)
        real = batch.real if hasattr(batch, "real") else batch.doc_ids >= 0
        assert int(real.sum()) == batch.n_tokens
        for probabilities in seen:
            total = total + 0.05 * 4 * (LOAD * probabilities[real.flatten()].sum(0)).sum() / n_tokens
        seen.clear()
    total.backward()
    for hook in hooks:
        hook.remove()
    (with_balance, sums, n_units), (alone, others, _) = found
    assert float(sums["balance_loss"]) / n_units == pytest.approx(float(total.detach()), rel=1e-4)
    assert float(sums["loss"]) == pytest.approx(float(others["loss"]), rel=1e-5)
    assert "balance_loss" not in others
    assert torch.allclose(with_balance - alone, routers(loop), atol=1e-6)
    assert float(routers(loop).abs().max()) > 1e-5


def test_sft_s_gradient_is_independent_of_the_micro_batch_split(place: Path, tmp_path: Path) -> None:
    gradients: list[dict[str, Tensor]] = []
    for rows in (8, 3, 1):
        loop = loop_of("sft", place, tmp_path / str(rows))
        (whole, *others), n_units, n_tokens = batches_of(loop)
        joined = whole if not others else concatenate([whole, *others])
        masks = [int((row != -100).sum()) for row in joined.targets]
        assert len(set(masks)) > 1, "rows of unequal numbers of targets"
        sums = loop.accumulate(joined.split(rows), n_units, n_tokens)
        grads = {at: p.grad.clone() for at, p in loop.model.named_parameters() if p.grad is not None}
        gradients.append({**grads, "loss": sums["loss"]})
    for other in gradients[1:]:
        for name, grad in gradients[0].items():
            assert torch.allclose(grad, other[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("loss", ["dpo, adapter", "kto, adapter"])
def test_the_reference_of_preferences_is_the_model_with_its_adapter_disabled(
    loss: str, place: Path, tmp_path: Path
) -> None:
    loop = loop_of(loss, place, tmp_path)
    stage, model = loop.stage, loop.model
    assert isinstance(stage, DPOStage)
    batch = batches_of(loop)[0][0]
    start = load_model(place / "dense").train()
    with torch.no_grad():
        policy, wanted = reply_logprobs(model, batch), reply_logprobs(start, batch)
    assert float((policy - wanted).abs().max()) > 0.01, "the adapter does something"
    with stage.reference_model(model) as reference:
        assert reference is model, "no second model in memory"
        with torch.no_grad():
            assert torch.allclose(reply_logprobs(reference, batch), wanted, atol=1e-4)
    assert torch.allclose(stage.reference("train").of(batch, model), wanted, atol=1e-4)
    assert stage.frozen is None
    loop.train_step()
    assert torch.allclose(stage.reference("train").of(batch, model), wanted, atol=1e-4), "after a step, too"
    loop.prefetch.close()


def test_a_student_with_an_adapter_leaves_its_start_alone_and_merges_into_what_it_was(
    place: Path, tmp_path: Path
) -> None:
    loop = loop_of("distill, adapter", place, tmp_path)
    model, start = loop.model, load_model(place / "dense")
    before = {at: p.detach().clone() for at, p in model.named_parameters()}
    batches, n_units, n_tokens = batches_of(loop)
    loop.accumulate(batches, n_units, n_tokens)
    loop.optimizer.step(1.0)
    loop.prefetch.close()
    for at, parameter in model.named_parameters():
        assert torch.equal(parameter, before[at]) != is_of_adapter(at), at
    tokens = batches[0].batch.tokens[:2, : tiny.ROW]
    model.eval()
    with torch.no_grad():
        adapted, plain = model(tokens), start(tokens)
        with disabled(model):
            assert torch.allclose(model(tokens), plain, atol=1e-5)
        assert float((adapted - plain).abs().max()) > 0.01
        merge(model)
        assert torch.allclose(model(tokens), adapted, atol=1e-4)
