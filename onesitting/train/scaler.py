"""The loss scale that float16 needs."""

# torch._foreach_*: PyTorch's multi-tensor operations have no public names.
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from typing import Any, Protocol

import torch
from torch import nn

from onesitting.train.shards import local


class HasParams(Protocol):
    """An optimizer, as far as the scaler is concerned."""

    params: list[nn.Parameter]


class LossScaler:
    """Keeps float16 gradients within range: the loss is multiplied by `scale`, gradients are divided by it.

    A step whose gradients are not finite is skipped and the scale halved; after GROWTH_STEPS good ones in a row it
    doubles (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2). Powers of two lose no precision.
    """

    GROWTH_STEPS = 1000
    LARGEST = 2.0**24
    """A float32 loss times a larger scale gains nothing."""

    def __init__(self) -> None:
        self.scale = 2.0**16
        self.good_steps = 0

    def unscale(self, optimizer: "HasParams") -> None:
        """Divide all gradients by the scale, once, before they are clipped."""
        grads = [local(p.grad) for p in optimizer.params if p.grad is not None]
        if grads:
            torch._foreach_mul_(grads, 1.0 / self.scale)

    def update(self, overflow: bool) -> bool:
        """Learn whether the step's gradients were not finite; returns whether the scale explains it.

        At scale 1 there is nothing left to halve: the loss itself is not finite.
        """
        if overflow:
            explained = self.scale > 1.0
            self.scale, self.good_steps = max(1.0, self.scale / 2), 0
            return explained
        self.good_steps += 1
        if self.good_steps >= self.GROWTH_STEPS:
            self.scale, self.good_steps = min(self.LARGEST, self.scale * 2), 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
