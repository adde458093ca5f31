"""Muon and AdamW against PyTorch's own and against the singular value decomposition."""

import math

import pytest
import torch
from torch import nn

from onesitting.config import ModelConfig, OptimConfig
from onesitting.errors import UserError
from onesitting.model.transformer import Transformer
from onesitting.train.muon import (
    N_ITERATIONS,
    POLAR,
    SMALLEST_SINGULAR_VALUE,
    best_quintic,
    orthogonalise,
    polar_coefficients,
    rate_scale,
)
from onesitting.train.optim import ADAM_EPS, MuonAdamW, build_optimizer, role

SHAPE = ModelConfig(
    n_layers=2, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=56, vocab_size=64, context_length=16
)
JORDAN = ((3.4445, -4.7750, 2.0315),) * 5


def value(coefficients, x):
    a, b, c = coefficients
    return a * x + b * x**3 + c * x**5


def random_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in params:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


# ---- orthogonalisation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [1e-3, 0.05, 0.5])
def test_quintic_is_the_minimax_one(low):
    best = best_quintic(low, 1.0)
    x = torch.linspace(low, 1.0, 20_001, dtype=torch.float64)
    error = (value(best, x) - 1).abs().max().item()
    at_ends = [value(best, end) - 1 for end in (low, 1.0)]
    assert at_ends == pytest.approx([-error, error], rel=1e-6)  # Chebyshev: the same error with changing sign
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        nudge = 1e-3 * torch.randn(3, generator=generator, dtype=torch.float64)
        nudged = tuple(c * (1 + n) for c, n in zip(best, nudge.tolist(), strict=True))
        assert (value(nudged, x) - 1).abs().max() > error


@pytest.mark.parametrize(("n_iterations", "smallest", "error"), [(5, 1e-3, 0.14), (4, 3e-3, 0.22)])
def test_iterations_bring_singular_values_close_to_one(n_iterations, smallest, error):
    x = torch.logspace(math.log10(smallest), 0, 5001, dtype=torch.float64)
    for coefficients in polar_coefficients(n_iterations, smallest):
        x = value(coefficients, x)
    assert (x - 1).abs().max() < error
    assert polar_coefficients(N_ITERATIONS, SMALLEST_SINGULAR_VALUE) == POLAR


@pytest.mark.parametrize(
    ("coefficients", "dtype", "tolerance"),
    [
        (polar_coefficients(5, 1e-3), torch.float32, 0.14),
        (polar_coefficients(5, 1e-3), torch.bfloat16, 0.17),
        (POLAR, torch.float32, 0.22),
        (POLAR, torch.bfloat16, 0.25),
    ],
)
def test_orthogonalised_matrix_has_the_singular_vectors_of_the_svd_and_values_near_one(
    coefficients, dtype, tolerance
):
    torch.manual_seed(0)
    matrices = torch.randn(3, 24, 60) * torch.tensor([1e-4, 1.0, 300.0]).view(3, 1, 1)
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalise(matrices.to(dtype), coefficients).float()
    rotated = u.mT @ result @ vt.mT  # diagonal, if the singular vectors are kept
    diagonal = rotated.diagonal(dim1=-2, dim2=-1)
    assert (diagonal - 1).abs().max() < tolerance
    assert (rotated - torch.diag_embed(diagonal)).abs().max() < (1e-4 if dtype == torch.float32 else 0.05)


def test_a_zero_matrix_stays_zero():
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 8)), torch.zeros(1, 4, 8))


# ---- Muon ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (24, 48), (48, 24)])
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_muon_equals_pytorchs_with_the_same_settings(shape):
    torch.manual_seed(0)
    start = torch.randn(3, *shape)
    ours = [nn.Parameter(matrix.clone()) for matrix in start]
    theirs = [nn.Parameter(matrix.clone()) for matrix in start]
    cfg = OptimConfig(matrix_lr=0.02, momentum=0.95, weight_decay=0.1)
    named = [(f"model.layers.{i}.weight", parameter) for i, parameter in enumerate(ours)]
    optimizer = MuonAdamW(named, cfg, dtype=torch.bfloat16, coefficients=JORDAN)
    reference = torch.optim.Muon(
        theirs, lr=0.02, momentum=0.95, weight_decay=0.1, nesterov=True, ns_coefficients=JORDAN[0], ns_steps=5
    )
    for step in range(5):
        random_gradients(ours, step)
        random_gradients(theirs, step)
        optimizer.step(1.0)
        reference.step()
    for a, b, first in zip(ours, theirs, start, strict=True):
        moved = (b - first).norm()
        # bfloat16 products of a batch and of one matrix round differently; decay and rates must agree closely.
        assert (a - b).norm() < 0.01 * moved


def test_tall_and_wide_matrices_move_alike_but_for_the_rate_scale():
    torch.manual_seed(0)
    wide = nn.Parameter(torch.zeros(16, 64))
    tall = nn.Parameter(torch.zeros(64, 16))
    cfg = OptimConfig(weight_decay=0.0)
    optimizer = MuonAdamW([("m.layers.0.a", wide), ("m.layers.0.b", tall)], cfg, dtype=torch.float32)
    assert len(optimizer.matrices) == 1
    wide.grad = torch.randn(16, 64)
    tall.grad = wide.grad.T.clone()
    optimizer.step(1.0)
    torch.testing.assert_close(tall.detach(), wide.detach().T * 2.0)
    assert (rate_scale(64, 16), rate_scale(16, 64), rate_scale(5, 5)) == (2.0, 1.0, 1.0)


# ---- AdamW ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_everything_else_and_matrices_on_request_move_as_pytorchs_adamw_moves_them(matrices):
    model = Transformer(
        ModelConfig(**{**vars(SHAPE), "tie_embeddings": False, "positions": "learned", "norm": "layer", "bias": True,
                       "mlp": "gelu", "qk_norm": False})
    )  # fmt: skip
    cfg = OptimConfig(matrices=matrices, weight_decay=0.1)
    optimizer = build_optimizer(model, cfg, torch.float32)
    named = dict(model.named_parameters())
    rates = {"embed": cfg.embed_lr, "head": cfg.head_lr, "scalar": cfg.scalar_lr, "matrix": cfg.matrix_lr}
    copies, groups = {}, []
    for name, parameter in named.items():
        which = role(name, parameter)
        if which != "matrix" or matrices == "adamw":
            copies[name] = nn.Parameter(parameter.detach().clone())
            decay = 0.1 if which == "matrix" else 0.0
            groups.append({"params": [copies[name]], "lr": rates[which] * 0.5, "weight_decay": decay})
    assert {role(name, p) for name, p in named.items()} == {"matrix", "embed", "head", "scalar"}
    assert role("model.embed_positions.weight", named["model.embed_positions.weight"]) == "scalar"
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=ADAM_EPS, weight_decay=0.0, foreach=False)
    for step in range(5):
        random_gradients(named.values(), step)
        for name, copy in copies.items():
            copy.grad = named[name].grad.clone()
        optimizer.step(0.5)
        reference.step()
    for name, copy in copies.items():
        torch.testing.assert_close(named[name], copy, rtol=1e-5, atol=1e-6)


def test_tied_embedding_is_updated_once_with_the_embeddings_rate():
    model = Transformer(SHAPE)
    optimizer = build_optimizer(model, OptimConfig())
    assert sum(parameter is model.output_weight for parameter in optimizer.params) == 1
    before = model.output_weight.detach().clone()
    random_gradients(optimizer.params, 0)
    optimizer.step(1.0)
    # AdamW's first step moves every entry by exactly its rate.
    torch.testing.assert_close(
        (model.output_weight.detach() - before).abs(), torch.full_like(before, 0.02), rtol=1e-3, atol=0
    )


# ---- the rest of the contract -----------------------------------------------------------------------------------


def test_clipping_equals_pytorchs_and_returns_the_norm_before():
    model, copy = Transformer(SHAPE), Transformer(SHAPE)
    random_gradients(model.parameters(), 0)
    random_gradients(copy.parameters(), 0)
    optimizer = build_optimizer(model, OptimConfig())
    norm = optimizer.clip(1.0)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(copy.parameters(), 1.0))
    for a, b in zip(model.parameters(), copy.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    small = optimizer.clip(5.0)
    assert small == pytest.approx(1.0, rel=1e-4)
    assert optimizer.clip(0.0) == pytest.approx(float(small), rel=1e-6)  # nothing was scaled up


def test_a_norm_that_is_not_finite_is_returned_as_such():
    model = Transformer(SHAPE)
    random_gradients(model.parameters(), 0)
    model.output_weight.grad[3, 3] = float("inf")
    assert not torch.isfinite(build_optimizer(model, OptimConfig()).clip(1.0))


def test_training_from_a_restored_state_is_bit_for_bit_the_same():
    def train(model, optimizer, steps):
        for step in steps:
            random_gradients(model.parameters(), step)
            optimizer.clip(1.0)
            optimizer.step(0.7)

    whole = Transformer(SHAPE)
    whole_optimizer = build_optimizer(whole, OptimConfig())
    train(whole, whole_optimizer, range(3))
    saved = {name: tensor.clone() for name, tensor in whole_optimizer.state_tensors().items()}
    weights = {name: tensor.clone() for name, tensor in whole.state_dict().items()}

    resumed = Transformer(SHAPE, seed=5)
    resumed.load_state_dict(weights)
    resumed_optimizer = build_optimizer(resumed, OptimConfig())
    resumed_optimizer.load_state_tensors(saved)
    again = resumed_optimizer.state_tensors()
    assert again.keys() == saved.keys()
    assert all(torch.equal(again[name], saved[name]) for name in saved)
    assert resumed_optimizer.n_steps == 3

    train(whole, whole_optimizer, range(3, 6))
    train(resumed, resumed_optimizer, range(3, 6))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_another_model_is_refused():
    optimizer = build_optimizer(Transformer(SHAPE), OptimConfig())
    deeper = build_optimizer(Transformer(ModelConfig(**{**vars(SHAPE), "n_layers": 3})), OptimConfig())
    wider = build_optimizer(Transformer(ModelConfig(**{**vars(SHAPE), "d_ff": 64})), OptimConfig())
    for other in (deeper, wider):
        with pytest.raises(UserError, match="does not fit the model"):
            optimizer.load_state_tensors(other.state_tensors())


def test_a_missing_gradient_counts_as_zero():
    one, other = Transformer(SHAPE), Transformer(SHAPE)
    optimizers = [build_optimizer(model, OptimConfig()) for model in (one, other)]
    for step in range(3):
        for model in (one, other):
            random_gradients(model.parameters(), step)
        if step:
            last = one.model.layers[1].mlp.down_proj.weight, one.model.norm.weight
            twins = other.model.layers[1].mlp.down_proj.weight, other.model.norm.weight
            for parameter, twin in zip(last, twins, strict=True):
                parameter.grad, twin.grad = None, torch.zeros_like(twin)
        for optimizer in optimizers:
            optimizer.step(1.0)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_parameters_stay_and_take_no_memory():
    model = Transformer(SHAPE)
    frozen = model.model.layers[0].mlp.up_proj.weight
    frozen.requires_grad_(False)
    before = frozen.detach().clone()
    optimizer = build_optimizer(model, OptimConfig())
    random_gradients(optimizer.params, 0)
    optimizer.step(1.0)
    assert torch.equal(frozen, before)
    assert not any("layers.0.mlp.up_proj" in name for name in optimizer.state_tensors())


def test_weight_decay_shrinks_matrices_alone_by_rate_times_decay():
    model = Transformer(SHAPE)
    cfg = OptimConfig(weight_decay=0.1)
    optimizer = build_optimizer(model, cfg)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step(0.5)  # no gradients: only the decay acts
    for name, parameter in model.named_parameters():
        factor = 1 - cfg.matrix_lr * 0.5 * 0.1 if role(name, parameter) == "matrix" else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_state_names_do_not_depend_on_compilation():
    model = Transformer(SHAPE)
    compiled = torch.compile(model, backend="eager")
    plain = build_optimizer(model, OptimConfig()).state_tensors().keys()
    assert build_optimizer(compiled, OptimConfig()).state_tensors().keys() == plain


class Graphs:
    """PyTorch's tracing and differentiation without its compiler; counts the graphs."""

    def __init__(self):
        self.n = 0

    def __call__(self, graph, inputs):
        self.n += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@pytest.mark.parametrize(
    "shape", [SHAPE, ModelConfig(**{**vars(SHAPE), "n_experts": 2, "n_active_experts": 1})]
)
def test_the_compiled_update_is_the_plain_one_with_a_graph_for_each_shape(shape):
    torch._dynamo.reset()
    graphs = Graphs()
    models = [Transformer(shape, seed=0) for _ in range(2)]
    cfg = OptimConfig(weight_decay=0.1)
    plain, compiled = (
        build_optimizer(model, cfg, torch.float32, compiler)
        for model, compiler in zip(models, (None, graphs), strict=True)
    )
    for step in range(20):
        for optimizer in (plain, compiled):
            random_gradients(optimizer.params, step)
            optimizer.step(1.0 - step / 20)
            optimizer.zero_grad()
    assert graphs.n == len(plain.matrices)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    for name, tensor in plain.state_tensors().items():
        torch.testing.assert_close(compiled.state_tensors()[name], tensor, atol=1e-6, rtol=1e-5)


def test_small_gradients_are_orthogonalised_in_float16_too():
    found = {}
    for dtype in (torch.float32, torch.float16):
        model = Transformer(SHAPE, seed=0)
        before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
        optimizer = build_optimizer(model, OptimConfig(), dtype)
        random_gradients(optimizer.params, 0)
        for parameter in optimizer.params:
            parameter.grad *= 1e-9  # float16 ends at 6e-8
        optimizer.step(1.0)
        found[dtype] = model.model.layers[0].mlp.up_proj.weight.detach() - before
    assert (found[torch.float16] - found[torch.float32]).norm() < 0.02 * found[torch.float32].norm()
