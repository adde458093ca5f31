"""Log-probabilities of replies under the model that training started from: computed once, kept on disk.

Shapes: N sides of a batch, D preferences of a file.
"""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onesitting.data.packing import Ints
from onesitting.data.preference_rows import PreferenceBatch, preference_rows
from onesitting.data.tokens import PreferenceFile
from onesitting.evaluation.preferences import reply_logprobs
from onesitting.model.transformer import Transformer
from onesitting.stages.kept import open_filled
from onesitting.train.device import DevicePlan

BLOCK_ROWS = 8
"""Packed rows that are computed together. Always the same ones, whichever of them is asked for first, so that a value
depends on the file and the model alone and resuming finds the same bits."""

ReferenceModel = Callable[[Transformer], AbstractContextManager[Transformer]]
"""From the trained model to the reference: itself with its adapter disabled, or a frozen start model."""


class ReferenceLogprobs:
    """The reference log-probability of every side that was asked for so far."""

    def __init__(
        self,
        model: ReferenceModel,
        file: PreferenceFile,
        folder: Path,
        identity: str,
        plan: DevicePlan,
        *,
        row_length: int,
        seed: int,
        paired: bool,
    ) -> None:
        """folder: gets a file whose name is a hash of identity (of the model), file, rows and dtype."""
        self.model, self.file, self.plan = model, file, plan
        self.row_length, self.seed, self.paired = row_length, seed, paired
        parts = (identity, file.hash, str(row_length), str(seed), str(paired), plan.dtype, str(BLOCK_ROWS))
        path = folder / f"{hashlib.sha256('/'.join(parts).encode()).hexdigest()[:16]}.f32"
        n_sides = 2 * file.n_preferences
        self.values = open_filled(path, (n_sides,), "<f4", np.nan)  # (2 D,) nats, NaN where not computed yet
        members, first, _ = file.pack(row_length, seed, paired)
        self.n_rows = len(first) - 1
        row_of_member = np.repeat(np.arange(self.n_rows), np.diff(first))
        self.row_of: Ints = np.full(n_sides, -1, dtype=np.int64)
        if paired:
            self.row_of[2 * members] = self.row_of[2 * members + 1] = row_of_member
        else:
            self.row_of[members] = row_of_member

    def of(self, batch: PreferenceBatch, model: Transformer) -> Tensor:
        """(N,) float32 nats, on the batch's device; model: the trained one."""
        sides = batch.sides.cpu().numpy()
        missing = sides[np.isnan(self.values[sides])]
        if len(missing):
            self._compute(np.unique(self.row_of[missing] // BLOCK_ROWS), model)
        return torch.from_numpy(self.values[sides]).to(batch.sides.device)

    def _compute(self, blocks: Ints, trained: Transformer) -> None:
        with self.model(trained) as model, torch.no_grad(), self.plan.autocast():
            for block in blocks.tolist():
                rows = range(block * BLOCK_ROWS, min(self.n_rows, (block + 1) * BLOCK_ROWS))
                batch = preference_rows(
                    self.file, rows, row_length=self.row_length, seed=self.seed, paired=self.paired
                )
                values = reply_logprobs(model, batch.to(self.plan.torch_device))
                self.values[batch.sides.numpy()] = values.float().cpu().numpy()


def model_identity(folder: Path) -> str:
    """A hash of the weights in a model folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
