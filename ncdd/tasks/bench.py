"""What a task works with that trains networks of its own, rather than look at a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ncdd.callbacks.record import Record
from ncdd.data import ImageDataModule
from ncdd.data.loader import DeviceLoader
from ncdd.distill.compute import hardware
from ncdd.models import Network
from ncdd.runfolder import write_json


@dataclass(frozen=True)
class Bench:
    """Networks, data, and where what is found goes.

    method: a LightningModule, of the run that made the set, which has seen no data.
    new_network: a `ncdd.models.Network` with fresh weights from torch's global generator, on the CPU.
    data: set up.  folder: of this run.  trainer, record: as for training, but nothing is fitted.
    resume: whether what a stopped run has left in the folder counts, see `ncdd.tasks.kept`.
    """

    method: pl.LightningModule
    new_network: Callable[[], Network]
    data: ImageDataModule
    seed: int
    device: torch.device
    folder: Path
    trainer: pl.Trainer
    record: Record
    resume: bool

    def summarise(self, final: Mapping[str, float]) -> None:
        """summary.json, as a training run leaves one; the seconds of a resumed task are those of its last part."""
        facts: dict[str, Any] = {**self.record.facts, "epochs": 0, "seconds": round(self.record.seconds, 3)}
        facts["hardware"] = hardware(self.device)
        write_json(self.folder / "summary.json", {"status": "done", **facts, "initial": {}, "final": dict(final)})


def sample_loader(data: ImageDataModule, split: str, max_samples: int | None) -> DeviceLoader:
    """At most `max_samples` of a split, drawn once by the data's seed, un-augmented and in their stored order."""
    images = data.splits[split]
    if max_samples is not None and len(images) > max_samples:
        generator = torch.Generator().manual_seed(data.seed)
        images = images.select(torch.randperm(len(images), generator=generator)[:max_samples].sort().values)
    return DeviceLoader(
        images=images,
        normalisation=data.normalisation,
        batch_size=data.measure_batch_size,
        num_workers=data.num_workers,
    )
