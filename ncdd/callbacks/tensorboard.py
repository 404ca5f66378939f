"""TensorBoard files in the run folder."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger


def tensorboard(
    *, folder: Path, name: str, group: str | None, job_type: str, tags: Sequence[str], settings: Mapping[str, Any]
) -> TensorBoardLogger:
    """Lightning's logger, writing to FOLDER/tensorboard; `tensorboard --logdir runs` shows all runs."""
    if not find_spec("tensorboard"):
        raise ValueError("logger=tensorboard needs the package tensorboard: uv sync --extra tensorboard")
    return TensorBoardLogger(folder, name="tensorboard", version="")
