"""Batches drawn for as many steps as asked, whatever the size of the data set: what a distillation trains on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ncdd.data import seeding
from ncdd.data.images import Images, Normalisation
from ncdd.data.loader import DeviceLoader


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the real batch of a step is drawn; one of the two is given.

    per_class:  so many of each class, without repetition, independently at each step; all of a class that has fewer.
    batch_size: so many of all, without repetition until no full batch is left, then in a new order.
    """

    per_class: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        given = [number for number in (self.per_class, self.batch_size) if number is not None]
        if len(given) != 1 or given[0] < 1:
            raise ValueError(
                f"per_class={self.per_class}, batch_size={self.batch_size}: one of them, a number >= 1, is needed"
            )


class DrawLoader(DeviceLoader):
    """Iterates `steps` batches (x, y) an epoch, un-augmented; the batch of step t is a pure function of (seed, t)."""

    def __init__(
        self,
        *,
        images: Images,
        normalisation: Normalisation,
        sampling: Sampling,
        steps: int,
        seed: int,
        num_workers: int,
    ) -> None:
        size = sampling.batch_size or len(images)
        super().__init__(
            images=images,
            normalisation=normalisation,
            batch_size=min(size, len(images)),
            seed=seed,
            num_workers=num_workers,
        )
        self.sampling, self.steps = sampling, steps
        self._of_class = [rows.to("cpu") for rows in _by_class(images.classes)] if sampling.per_class else []

    def __len__(self) -> int:
        return self.steps

    def _indices(self, epoch: int) -> Iterator[Tensor]:
        steps = range(epoch * self.steps, (epoch + 1) * self.steps)
        draw = self._balanced if self.sampling.per_class else self._shuffled
        return (rows.to(self.images.labels.device) for rows in draw(steps))

    def _balanced(self, steps: range) -> Iterator[Tensor]:
        for step in steps:
            generator = seeding.generator(self.seed, seeding.SHUFFLE, step)
            chosen = [
                torch.randperm(len(rows), generator=generator)[: self.sampling.per_class] for rows in self._of_class
            ]
            yield torch.cat([rows[c] for rows, c in zip(self._of_class, chosen, strict=True)])

    def _shuffled(self, steps: range) -> Iterator[Tensor]:
        each = len(self.images) // self.batch_size  # full batches in one order
        for turn, of_turn in itertools.groupby(steps, lambda step: step // each):
            order = torch.randperm(len(self.images), generator=seeding.generator(self.seed, seeding.SHUFFLE, turn))
            for step in of_turn:
                yield order[(step % each) * self.batch_size :][: self.batch_size]


def _by_class(labels: Tensor) -> list[Tensor]:
    """The indices of each class."""
    order = labels.argsort(stable=True)
    return list(order.split(labels.bincount().tolist()))
