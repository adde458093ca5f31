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


def add_scalars(writer: Any, stage: str, record: dict[str, Any]) -> None:
    """The numbers of one line of metrics, those of a validation too."""
    for key, value in {**record, **record.get("evaluation", {})}.items():
        if isinstance(value, int | float) and key != "step":
            writer.add_scalar(f"{stage}/{key}", value, record["step"])
