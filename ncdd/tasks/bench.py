"""What a task works with that trains networks of its own, rather than look at a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from ncdd.callbacks.record import Record
from ncdd.data import ImageDataModule
from ncdd.runfolder import write_json


@dataclass(frozen=True)
class Bench:
    """Networks, data, and where what is found goes.

    new_network: a `ncdd.models.Network` with fresh weights from torch's global generator, on the CPU.
    data: set up.  folder: of this run.  trainer, record: as for training, but nothing is fitted.
    """

    new_network: Callable[[], nn.Module]
    data: ImageDataModule
    seed: int
    device: torch.device
    folder: Path
    trainer: pl.Trainer
    record: Record

    def summarise(self, final: Mapping[str, float]) -> None:
        """summary.json, as a training run leaves one."""
        facts: dict[str, Any] = {**self.record.facts, "epochs": 0, "seconds": self.record.seconds}
        write_json(self.folder / "summary.json", {"status": "done", **facts, "initial": {}, "final": dict(final)})
