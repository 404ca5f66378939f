"""What all distillation methods are to the Trainer and to the callbacks: a synthetic set that is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncdd.data.draws import Sampling
from ncdd.data.seeding import fold_in
from ncdd.distill import SyntheticSet
from ncdd.distill.start import start
from ncdd.methods.optim import Optimizer, Scheduler
from ncdd.models import Network, with_learned_head

Batch = tuple[Tensor, Tensor]
NewNetwork = Callable[[], Network]
START = 200  # stream of random numbers, apart from those of `ncdd.data.seeding` and `ncdd.distill.evaluate`


class Distillation(pl.LightningModule):
    """A synthetic set, learned by one optimizer; a subclass says by which gradient.

    One training step is one update of the set, so the Trainer's global step counts them. An epoch is as many as there
    are between two evaluations.

    new_network: a `ncdd.models.Network` with fresh weights from torch's global generator, which is seeded each step.
    optimizer, scheduler: factories (`_partial_` in the YAML); the scheduler is stepped after each update.
    images_per_class, init, learn_labels: see `ncdd.config.Distill` and `ncdd.distill.start`.
    sampling: how the real batch of a step is drawn.
    partition: in the place of each image partition^2 are learned, of a partition-th of its height and width, which
        networks see enlarged: more images of as many numbers (multi-formation, Kim et al. 2022, arXiv 2205.14959).
        The set has images_per_class partition^2 images a class, as they are seen. 1: images of the real size.

    After `setup`: images (N, C, H, W), normalised as the data are, and labels, (N,) int64 or, learned, (N, K). What
    networks see of the images is `enlarged`.
    """

    def __init__(
        self,
        *,
        new_network: NewNetwork,
        optimizer: Optimizer,
        scheduler: Scheduler,
        images_per_class: int,
        init: str,
        learn_labels: bool,
        sampling: Sampling,
        partition: int = 1,
    ) -> None:
        if partition < 1:
            raise ValueError(f"method.partition={partition}: a number >= 1 is needed")
        super().__init__()
        self.automatic_optimization = False
        self.new_network, self.optimizer, self.scheduler = new_network, optimizer, scheduler
        self.images_per_class, self.init, self.learn_labels = images_per_class * partition**2, init, learn_labels
        self.sampling, self.partition = sampling, partition
        self._loss, self._updates = torch.zeros((), dtype=torch.float64), 0  # summed up since the last evaluation

    # ------------------------------------------------------------ what a method says

    def outer_step(self, batch: Batch) -> Tensor:
        """Add the gradient of a real batch to the set's `grad`; returns the loss, without graph."""
        raise NotImplementedError

    def after_update(self, batch: Batch) -> None:
        """What follows the update of the set in the same step; training a network on it, say."""

    def first_labels(self, classes: Tensor) -> Tensor:
        """What the labels start from: classes (N,) as they are, or one-hot (N, K) to be learned."""
        return F.one_hot(classes, self.num_classes).float() if self.learn_labels else classes

    def judges(self) -> NewNetwork:
        """The networks that an evaluation trains on a set, always with a learned head; known before `setup`."""
        return with_learned_head(self.new_network)

    def held_out(self) -> NewNetwork:
        """Those that a step-wise set is tested on by its own steps, where these are others; known after `setup`."""
        return self.judges()

    def measure(self, synthetic: SyntheticSet, loader: Iterable[Batch]) -> dict[str, float]:
        """Further numbers of the set on real images, by name; those of a kernel regression, say."""
        return {}

    # ------------------------------------------------------------ the rest

    @property
    def data(self) -> Any:
        """The Trainer's data module."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def num_classes(self) -> int:
        return self.data.num_classes

    def setup(self, stage: str) -> None:
        """Make the set from the data, before a checkpoint is restored and the optimizer is built."""
        size = self.data.image_size
        if size % self.partition:
            choices = ", ".join(str(part) for part in range(1, size + 1) if size % part == 0)
            raise ValueError(f"method.partition={self.partition}: choose from {choices} for images of {size} pixels")
        images, classes = start(
            self.init,
            self.data.splits["train"],
            self.data.normalisation,
            num_classes=self.num_classes,
            per_class=self.images_per_class,
            seed=fold_in(self.data.seed, START),
        )
        if self.partition > 1:
            part = size // self.partition
            noise = self.init == "noise"  # means of which would be fainter
            images = images[..., :part, :part].contiguous() if noise else F.avg_pool2d(images, self.partition)
        self.images = nn.Parameter(images)
        labels = self.first_labels(classes)
        if self.learn_labels:
            self.labels = nn.Parameter(labels)
        else:
            self.register_buffer("labels", labels)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = self.outer_step(batch)
        optimizer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.after_update(batch)
        self._loss, self._updates = self._loss + loss.detach(), self._updates + 1
        self.log("train/outer_loss", loss, prog_bar=True, logger=False)
        return loss

    def mean_loss(self) -> float | None:
        """Of the updates since it was last asked for, None of none; a checkpoint is made when all are told."""
        total, updates = self._loss, self._updates
        self._loss, self._updates = torch.zeros_like(total), 0
        return float(total) / updates if updates else None

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer([{"params": list(self.learned())}])
        return [optimizer], [self.scheduler(optimizer)]

    def learned(self) -> Iterable[nn.Parameter]:
        """What the optimizer updates; a subclass adds its own."""
        return [p for p in (self.images, self.labels) if isinstance(p, nn.Parameter)]

    @property
    def enlarged(self) -> Tensor:
        """(N, C, H, W): the learned images at the size of the real ones."""
        if self.partition == 1:
            return self.images
        return F.interpolate(self.images, size=(self.data.image_size,) * 2, mode="bilinear", align_corners=False)

    def synthetic_set(self) -> SyntheticSet:
        """The set as it is now, a copy on the CPU, and how to read it."""
        labels = self.labels.detach().cpu()
        return SyntheticSet(
            images=self.enlarged.detach().float().cpu().clone(),
            labels=labels.to(torch.float32 if labels.is_floating_point() else torch.int64, copy=True),
            dataset=self.data.source_name,
            class_names=tuple(self.data.class_names),
            normalisation=self.data.normalisation,
            whitening=getattr(self.data, "whitening", None),
            method=type(self).__name__.lower(),
        )

    def network(self) -> Network:
        """A fresh network where the set is."""
        return self.new_network().to(self.images.device)

    def generator(self) -> torch.Generator:
        """One on the CPU, seeded by torch's global one: so by the step."""
        return torch.Generator().manual_seed(int(torch.randint(2**62, ())))
