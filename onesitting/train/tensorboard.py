"""TensorBoard event files, behind `log.tensorboard`."""

from typing import Any

from onesitting.errors import UserError
from onesitting.runlog import StageFolder


def open_tensorboard(folder: StageFolder) -> Any:
    """A TensorBoard writer in the stage's folder; needs the `tensorboard` extra."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as missing:
        raise UserError(
            "log.tensorboard=true needs the tensorboard package: pip install 'onesitting[tensorboard]'"
        ) from missing
    return SummaryWriter(str(folder.path / "tensorboard"))
