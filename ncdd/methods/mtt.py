"""`method=matching objective=mtt`: images on which a network trains along the way of one trained on real images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ncdd.data.draws import Sampling
from ncdd.distill import unrolled
from ncdd.distill.augment import DiffAugment
from ncdd.distill.matching import trajectory_distance
from ncdd.methods.distill import Batch, Distillation, NewNetwork
from ncdd.methods.optim import Optimizer, Scheduler
from ncdd.models import Network
from ncdd.models.checkpoint import put, read, series

TRAIN = "train experts by callbacks=every_epoch, a run a seed"


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The stretch of an expert's way that is matched, and the steps that are to lead along it.

    epochs: of the expert.  last_start: where it begins at the latest, in epochs completed; None: wherever it fits.
    steps: of gradient descent, each on `batch_size` synthetic images (None: all).
    step_size: of these at first; it is learned, as softplus of what has the learning rate step_size_lr.
    memory: "full" or "recompute", see `ncdd.distill.unrolled.train`.
    """

    epochs: int
    last_start: int | None
    steps: int
    batch_size: int | None
    step_size: float
    step_size_lr: float
    memory: Literal["full", "recompute"]

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"method.trajectory.{name}={number}: a number >= 1 is needed")


class MTT(Distillation):
    """Trajectories of experts in the space of weights (Cazenavette et al. 2022, arXiv 2203.11932, algorithm 1).

    From an expert's weights, its first or those after a random epoch, a network takes `trajectory.steps` steps on
    the set, to where the expert is `trajectory.epochs` later; the distance left, as a fraction of the expert's way,
    is differentiated through all steps, in images and step size. Where the set does not divide into batches, each
    order's remainder is left out.

    experts: folder below which runs lie that were trained on real images with callbacks=every_epoch; read as needed.
    augment: one draw a step on the set.
    Other arguments: `Distillation`.
    """

    def __init__(
        self,
        *,
        new_network: NewNetwork,
        optimizer: Optimizer,
        scheduler: Scheduler,
        images_per_class: int,
        init: str,
        augment: DiffAugment,
        experts: str,
        trajectory: Trajectory,
    ) -> None:
        super().__init__(
            new_network=new_network,
            optimizer=optimizer,
            scheduler=scheduler,
            images_per_class=images_per_class,
            init=init,
            learn_labels=False,
            sampling=Sampling(batch_size=1),  # the experts know the real images
        )
        self.augment, self.experts, self.trajectory = augment, Path(experts), trajectory

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.stretches = stretches(self.experts, epochs=self.trajectory.epochs, last_start=self.trajectory.last_start)
        for ways in self.stretches:
            self.expert(ways[0][0])  # found now if it is of another architecture
        self.raw_size = nn.Parameter(unrolled.raw_step_sizes(self.trajectory.step_size, 1))

    def configure_optimizers(self) -> Any:
        of_size: dict[str, Any] = {"params": [self.raw_size], "lr": self.trajectory.step_size_lr}
        groups = [{"params": [self.images]}, of_size]
        optimizer = self.optimizer(groups)
        return [optimizer], [self.scheduler(optimizer)]

    def outer_step(self, batch: Batch) -> Tensor:
        ways = self.stretches[int(torch.randint(len(self.stretches), ()))]
        network, goal = (self.expert(file) for file in ways[int(torch.randint(len(ways), ()))])
        start, target = (
            {name: w.to(self.images.device) for name, w in unrolled.weights_of(n).items()} for n in (network, goal)
        )
        size = unrolled.step_sizes(self.raw_size)
        (loss,) = unrolled.outer_step(
            unrolled.inner_loss(unrolled.functional(network.to(self.images.device))),
            lambda weights: trajectory_distance(weights, target, start),
            [start],
            self.steps(size),
            memory=self.trajectory.memory,
        )
        self.log("train/step_size", size.detach())
        return loss

    def steps(self, size: Tensor) -> unrolled.Steps:
        """The images that each step trains on, each time it does in an augmentation of their own."""
        generator, count = self.generator(), len(self.images)
        each = min(self.trajectory.batch_size or count, count)
        rows: list[Tensor] = []
        while len(rows) < self.trajectory.steps:
            order = torch.randperm(count, generator=generator).to(self.images.device)
            rows += order.split(each)[: count // each]
        rows = rows[: self.trajectory.steps]
        images = torch.cat([self.augment(self.images[of_step], generator) for of_step in rows])
        order = torch.arange(len(images)).view(len(rows), each)
        return unrolled.Steps(images, self.labels[torch.cat(rows)], order, size.expand(len(rows)))

    def expert(self, file: Path) -> Network:
        """The network of a checkpoint."""
        network = self.new_network()
        put(read(file), network.model, network.head)
        return network


def stretches(folder: Path, *, epochs: int, last_start: int | None) -> list[list[tuple[Path, Path]]]:
    """Of each run below `folder` the checkpoints (t, t + epochs), t at most `last_start`.

    ValueError where there is no run, or one without such a pair.
    """
    runs = sorted(path.parent for path in folder.rglob("checkpoints"))
    if not runs:
        raise ValueError(f"method.experts={folder}: no run with checkpoints below it; {TRAIN}")
    found = []
    for run in runs:
        files = dict(series(run))
        starts = [t for t in files if t + epochs in files and (last_start is None or t <= last_start)]
        if not starts:
            raise ValueError(
                f"method.experts={folder}: {run.name} has checkpoints after epoch {', '.join(map(str, files))}; needed "
                f"are two with trajectory.epochs={epochs} between them, last_start={last_start}: {TRAIN}"
            )
        found.append([(files[t], files[t + epochs]) for t in starts])
    return found
