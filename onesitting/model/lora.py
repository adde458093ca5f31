"""Low-rank adapters: a frozen matrix W and a trained pair A, B beside it, `y = x W^T + s · (x A^T) B^T`.

Hu et al. 2021, arXiv:2106.09685. B starts at zero, so a new adapter changes nothing. The scale s is alpha / rank,
or alpha / sqrt(rank), which keeps the size of the update when the rank grows (Kalajdzievski 2023,
arXiv:2312.03732, "rsLoRA").

    add_adapter(model, LoraConfig(rank=16))      # from here on only the adapter is trained
    with disabled(model): ...                    # the model as it was: a reference that costs no memory
    merge(model)                                 # W + s B A; the model is a plain Transformer again

A base can carry several adapters under different names, of which one is in use at a time (`using`).

Shapes: I inputs and O outputs of a layer, R rank; A (R, I), B (O, R).
"""

import fnmatch
import hashlib
import re
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onesitting.config import LoraConfig
from onesitting.errors import UserError
from onesitting.model.linear import Linear
from onesitting.model.transformer import Transformer


class LoraLinear(Linear):
    """A `Linear` that shares its weight with the layer it stands for, with any number of named adapters."""

    def __init__(self, base: Linear) -> None:
        super().__init__(base.in_features, base.out_features, device="meta")
        self.weight, self.bias, self.training = base.weight, base.bias, base.training
        self.adapters: dict[str, LoraConfig] = {}
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        self.in_use: str | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(..., O) for input (..., I)."""
        y = super().forward(input)
        name = self.in_use
        if name is None or name not in self.adapters:
            return y
        adapter = self.adapters[name]
        dropped = F.dropout(input, adapter.dropout, self.training)
        low = F.linear(dropped, self.lora_A[name].to(input.dtype))  # (..., R)
        return y + scale_of(adapter) * F.linear(low, self.lora_B[name].to(input.dtype))

    def add(self, cfg: LoraConfig, generator: torch.Generator | None) -> None:
        """Add the float32 matrices of `cfg.name`; without a generator they are unset.

        A is uniform in ± 1 / sqrt(I), as PEFT has it (and any fresh linear layer of PyTorch), B zero.
        """
        a, b = torch.empty(cfg.rank, self.in_features), torch.empty(self.out_features, cfg.rank)
        if generator is not None:
            a = (torch.rand(a.shape, generator=generator) * 2 - 1) * self.in_features**-0.5
            b.zero_()
        device = self.weight.device
        self.lora_A[cfg.name], self.lora_B[cfg.name] = nn.Parameter(a.to(device)), nn.Parameter(b.to(device))
        self.adapters[cfg.name] = cfg

    def effective_weight(self) -> Tensor:
        """(O, I): the weight with the adapter in use added, for products that are not this layer's (no dropout)."""
        if self.in_use is None or self.in_use not in self.adapters:
            return self.weight
        return self.weight + self.update(self.in_use).to(self.weight.dtype)

    def update(self, name: str) -> Tensor:
        """(O, I) float32: what an adapter adds to the weight."""
        return scale_of(self.adapters[name]) * (self.lora_B[name].float() @ self.lora_A[name].float())


def scale_of(cfg: LoraConfig) -> float:
    """s: alpha / rank, or alpha / sqrt(rank) with rsLoRA; alpha 0 stands for twice the rank."""
    alpha = cfg.alpha or 2.0 * cfg.rank
    return alpha / (cfg.rank**0.5 if cfg.rslora else cfg.rank)


# ---- adding and choosing -----------------------------------------------------------------------------------


def add_adapter(
    model: Transformer, cfg: LoraConfig, *, seed: int | None = 0, base: Path | None = None
) -> list[str]:
    """Names of the layers that got the adapter `cfg.name`; it is in use, and nothing else is trained from here on.

    seed: A is a function of it and of the layers chosen; None leaves both matrices unset, for a file to fill.
    base: folder that the model was read from; checkpoints then refer to it and hold the adapter alone.
    Raises UserError for a name that is taken and for a pattern that no linear layer has.
    """
    check_lora(cfg)
    if base is not None and (base / "adapter_config.json").is_file():
        raise UserError(
            f"lora.rank = {cfg.rank}: {base} is an adapter, and another one cannot stand on it; start from the merged "
            f"model, {base.parent / 'model'}"
        )
    if base is not None and model.frozen_base is None:
        model.frozen_base = (str(base), weights_hash(model))
    if cfg.name in adapter_names(model):
        raise UserError(f"lora.name = {cfg.name!r}: the model has an adapter of that name; choose another")
    names = matching_layers(model, cfg.targets)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for name in names:
        layer = model.get_submodule(name)
        if not isinstance(layer, LoraLinear):
            assert isinstance(layer, Linear)
            layer = LoraLinear(layer)
            _replace(model, name, layer)
        layer.add(cfg, generator)
    use(model, cfg.name)
    train_only(model, cfg.name)
    return names


def check_lora(cfg: LoraConfig) -> None:
    """Raise UserError for numbers and names that no adapter can have."""
    if cfg.rank < 1:
        raise UserError(f"lora.rank = {cfg.rank}: an adapter needs a rank of at least 1")
    if not 0 <= cfg.dropout < 1:
        raise UserError(f"lora.dropout = {cfg.dropout}: give a probability of at least 0 and below 1")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", cfg.name):
        raise UserError(
            f"lora.name = {cfg.name!r}: letters, digits, - and _ only; it is part of tensor names"
        )


def matching_layers(model: nn.Module, patterns: tuple[str, ...]) -> list[str]:
    """Names of the linear layers that any of the patterns fits, in the model's order.

    A pattern is a glob over the whole name (`*.0.self_attn.*`) or its last part (`q_proj`), or `re:` and a regular
    expression over the whole name. Raises UserError for one that fits nothing.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in layers if _fits(name, pattern)}
        if not found:
            kinds = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            raise UserError(f"lora.targets: no linear layer is named {pattern!r}; the model has {kinds}")
        chosen |= found
    return [name for name in layers if name in chosen]


def _fits(name: str, pattern: str) -> bool:
    if not pattern.startswith("re:"):
        return any(fnmatch.fnmatchcase(part, pattern) for part in (name, name.rpartition(".")[2]))
    try:
        return re.fullmatch(pattern[3:], name) is not None
    except re.error as error:
        raise UserError(f"lora.targets: {pattern!r} is no regular expression ({error}); correct it") from None


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def lora_layers(model: nn.Module, name: str | None = None) -> dict[str, LoraLinear]:
    """Name -> layer, of the layers with adapters, or with that adapter; {} without any."""
    layers = {at: module for at, module in model.named_modules() if isinstance(module, LoraLinear)}
    return {at: layer for at, layer in layers.items() if name is None or name in layer.adapters}


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters that the model carries, the first added first."""
    return list(dict.fromkeys(name for layer in lora_layers(model).values() for name in layer.adapters))


def adapter_in_use(model: nn.Module) -> str | None:
    """The adapter that forward passes apply; None: the base alone."""
    return next((layer.in_use for layer in lora_layers(model).values() if layer.in_use), None)


def use(model: nn.Module, name: str | None) -> None:
    """Apply that adapter from here on; None: none. Raises UserError when the model has no such adapter."""
    if name is not None:
        _require(model, name)
    for layer in lora_layers(model).values():
        layer.in_use = name


@contextmanager
def using(model: nn.Module, name: str | None) -> Generator[None]:
    """Apply that adapter, or none, within the block; afterwards the one from before."""
    before = adapter_in_use(model)
    use(model, name)
    try:
        yield
    finally:
        use(model, before)


def disabled(model: nn.Module) -> AbstractContextManager[None]:
    """The base model within the block: the reference of DPO and RL at no memory. Raises UserError without adapters."""
    if not adapter_names(model):
        raise UserError("the model has no adapter to disable; give it one with --lora.rank 16")
    return using(model, None)


def train_only(model: nn.Module, name: str) -> None:
    """Let gradients flow to that adapter's matrices and to nothing else."""
    _require(model, name)
    for at, parameter in model.named_parameters():
        parameter.requires_grad_(is_of_adapter(at, name))


def is_of_adapter(parameter_name: str, name: str | None = None) -> bool:
    """Whether a parameter belongs to that adapter, or to any."""
    return re.search(rf"\.lora_[AB]\.{name or '[^.]+'}$", parameter_name) is not None


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Parameter name -> parameter of one adapter."""
    return {at: parameter for at, parameter in model.named_parameters() if is_of_adapter(at, name)}


def n_adapter_parameters(model: nn.Module) -> int:
    """Numbers in the adapter in use; 0 without one."""
    name = adapter_in_use(model)
    return sum(p.numel() for p in adapter_parameters(model, name).values()) if name else 0


def _require(model: nn.Module, name: str) -> None:
    names = adapter_names(model)
    if name not in names:
        raise UserError(
            f"the model has no adapter {name!r} (it has {', '.join(names) or 'none'}); "
            "once merged, an adapter is part of the weights and cannot be merged or used again"
        )


# ---- merging and removing ------------------------------------------------------------------------------------


@torch.no_grad()
def merge(model: Transformer, name: str = "default") -> None:
    """Add an adapter to the weights and remove it; the model then gives the same logits without it.

    That is checked on a probe: a difference above sqrt(epsilon) of the weights' dtype, relative to the largest
    logit, puts the weights back and raises UserError. So does merging what is not, or no longer, there, and merging
    beside other adapters: these stand on the weights that a merge changes.
    """
    _require(model, name)
    others = [other for other in adapter_names(model) if other != name]
    if others:
        raise UserError(
            f"merging adapter {name!r} would change the weights that adapter {others[0]!r} stands on; take that away "
            f"with remove(model, {others[0]!r}), or merge into a model that carries {name!r} alone"
        )
    layers = lora_layers(model, name)
    kept = {at: layer.weight.detach().clone() for at, layer in layers.items()}
    was_training = model.training
    model.eval()
    with using(model, name):
        before = _probe(model)
    for layer in layers.values():
        layer.weight.add_(layer.update(name).to(layer.weight.dtype))
    with using(model, None):
        after = _probe(model)
    model.train(was_training)
    error = float((after - before).abs().max() / before.abs().max().clamp_min(1e-6))
    tolerance = torch.finfo(model.output_weight.dtype).eps ** 0.5
    if not error <= tolerance:  # true for NaN as well
        for at, layer in layers.items():
            layer.weight.copy_(kept[at])
        raise UserError(
            f"merging adapter {name!r} would change the model's logits by {error:.2g} of the largest, more than "
            f"{tolerance:.2g}; use the adapter unmerged, or merge it into float32 weights"
        )
    remove(model, name)


def _probe(model: Transformer) -> Tensor:
    """(2, T, V) logits of fixed random tokens."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, min(32, model.cfg.context_length))
    tokens = torch.randint(model.cfg.vocab_size, shape, generator=generator)
    return model.forward(tokens.to(model.device))  # not the compiled call: this shape comes once


def remove(model: Transformer, name: str) -> None:
    """Take an adapter away. Without any left, the layers are plain ones again and everything can be trained."""
    _require(model, name)
    for at, layer in lora_layers(model, name).items():
        del layer.adapters[name], layer.lora_A[name], layer.lora_B[name]
        layer.in_use = None if layer.in_use == name else layer.in_use
        if not layer.adapters:
            plain = Linear(layer.in_features, layer.out_features, device="meta")
            plain.weight, plain.bias, plain.training = layer.weight, layer.bias, layer.training
            _replace(model, at, plain)
    if not adapter_names(model):
        model.frozen_base = None
        model.requires_grad_(True)


def skeleton(model: Transformer) -> Transformer:
    """A model of the same shape, with the same adapters, whose weights and matrices are unset."""
    twin = Transformer(model.cfg, seed=None)
    for at, layer in lora_layers(model).items():
        stand_in = LoraLinear(twin.get_submodule(at))  # pyright: ignore[reportArgumentType]
        for adapter in layer.adapters.values():
            stand_in.add(adapter, None)
        stand_in.in_use = layer.in_use
        _replace(twin, at, stand_in)
    twin.frozen_base = model.frozen_base
    return twin


def weights_hash(model: Transformer) -> str:
    """SHA-256 of the base's weights as float32, in the order of their names: independent of file, dtype and device.

    The choice biases of a mixture's routers are weights too.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda pair: pair[0]):
        if not is_of_adapter(name):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
