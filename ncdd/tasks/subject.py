"""What a task looks at, and one forward pass over it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ncdd.callbacks.record import Record
from ncdd.data import ImageDataModule
from ncdd.data.loader import DeviceLoader
from ncdd.models.checkpoint import Checkpoint, put, read, series
from ncdd.runfolder import write_json
from ncdd.tasks.bench import sample_loader


@dataclass(frozen=True)
class Subject:
    """A network, its data, and where what is found goes.

    method: LightningModule with `model` and `head`, on its device.  checkpoint: file or folder of its weights.
    data: set up; its normalisation is the network's.  ood: a second data set, set up, or None.
    folder: of this run.  trainer, record: as for training, but nothing is fitted.
    """

    method: Any
    checkpoint: Path
    data: ImageDataModule
    ood: ImageDataModule | None
    folder: Path
    trainer: pl.Trainer
    record: Record

    def load(self, file: Path) -> Checkpoint:
        """Read one file into the network, and put it in eval mode."""
        checkpoint = read(file)
        put(checkpoint, self.method.model, self.method.head)
        self.method.eval()
        return checkpoint

    def load_last(self) -> tuple[int, Path]:
        """Of a folder of checkpoints load the one trained longest: its epochs and file."""
        epochs, file = series(self.checkpoint)[-1]
        self.load(file)
        return epochs, file

    def loader(self, split: str, max_samples: int | None) -> DeviceLoader:
        """At most `max_samples` of a split, drawn once by the data's seed, un-augmented and in their stored order."""
        return sample_loader(self.data, split, max_samples)

    @torch.no_grad()
    def features(self, loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """What the head sees of all images (N, D), and their labels (N,), int64, on the network's device."""
        weight = self.method.head.weight
        found = [(self.method.features(x.to(weight)), y.to(weight.device)) for x, y in loader]
        labels = torch.cat([y for _, y in found])
        return torch.cat([x for x, _ in found]), labels if labels.ndim == 1 else labels.argmax(1)

    def logits(self, features_ND: Tensor) -> Tensor:
        """The head on features, in float64."""
        head: nn.Linear = self.method.head
        logits = features_ND.double() @ head.weight.detach().double().T
        return logits if head.bias is None else logits + head.bias.detach().double()

    def summarise(self, epochs: int, file: Path, final: Mapping[str, float]) -> None:
        """summary.json, as a training run leaves one."""
        facts = {**self.record.facts, "checkpoint": str(file), "epochs": epochs, "seconds": self.record.seconds}
        write_json(self.folder / "summary.json", {"status": "done", **facts, "initial": {}, "final": dict(final)})
