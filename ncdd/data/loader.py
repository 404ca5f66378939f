"""`DeviceLoader`: batches that are indexed, normalised and augmented where the model is, and that resume exactly."""

import itertools
import math
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ncdd.data import seeding
from ncdd.data.augment import Augment
from ncdd.data.images import Images, Normalisation


class DeviceLoader:
    """Iterates (x float32 (B, C, H, W), y int64 (B,) or float32 (B, K)) over `images`, on the device of its labels.

    images:     uint8 pixels are normalised to (pixel / 255 - mean) / std; float ones are taken as they are.
    batch_size: of a global batch, over all ranks.
    shuffle:    the order of epoch e is a permutation drawn from (seed, e), and the augmentation of its step i is drawn
                from (seed, e, i): neither depends on what ran before, on the device or on the number of ranks. Each
                global batch is shared equally among the ranks, so that every rank makes the same steps; of the last
                one, the up to world_size - 1 samples that cannot be shared are left out for this epoch.
                Without shuffle, for measuring: the stored order, rank r takes samples r, r + world_size, ..., and
                every sample is seen exactly once, none padded.
    augment:    None, or what to apply after normalisation. Its crop pads with black, in normalised units.

    The epoch is `set_epoch`'s, or goes up by one when an iteration comes to its end. `state_dict` says how many
    batches of the epoch have been handed out; after `load_state_dict` the next iteration starts behind them.
    """

    def __init__(
        self,
        *,
        images: Images,
        normalisation: Normalisation,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        augment: Augment | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: a number >= 1 is needed")
        if shuffle and batch_size % world_size:
            raise ValueError(f"batch_size={batch_size}: cannot be shared equally by {world_size} ranks; use a multiple")
        self.images = images
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self.augment = augment if augment is not None and augment.active else None
        self.seed, self.rank, self.world_size, self.num_workers = seed, rank, world_size, num_workers
        self.epoch, self.position, self._resume_at = 0, 0, 0
        device = images.labels.device
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (normalisation.mean, normalisation.std))
        self._scale = (1 / (255 * std)).to(device, torch.float32).view(-1, 1, 1)
        self._black = (-mean / std).to(device, torch.float32).view(-1, 1, 1)

    def __len__(self) -> int:
        """Batches an epoch, on this rank."""
        if not self.shuffle:
            mine = len(range(self.rank, len(self.images), self.world_size))
            return math.ceil(mine / self._rank_batch)
        full, rest = divmod(len(self.images), self.batch_size)
        return full + (not self.drop_last and rest >= self.world_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator runs up to here only at its first batch: Lightning creates the iterator before it sets the epoch.
        epoch, start = self.epoch, self._resume_at
        self._resume_at = 0
        batches = itertools.islice(self._indices(epoch), start, None)
        for step, (pixels, labels) in enumerate(self.images.batches(batches, self.num_workers), start):
            images = self._normalise(pixels)
            if self.augment is not None:
                images = self.augment(images, self._draws(epoch, step), self._black)
            self.position = step + 1
            yield images, labels
        self.epoch, self.position = epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is of this epoch: from its start, or from where `load_state_dict` left this same epoch."""
        if epoch != self.epoch:
            self.epoch, self.position, self._resume_at = epoch, 0, 0

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Lightning calls `loader.batch_sampler.sampler.set_epoch(epoch)` at the start of each epoch."""
        return SimpleNamespace(sampler=self)

    def state_dict(self) -> dict[str, int]:
        fixed = {"seed": self.seed, "samples": len(self.images), "batch_size": self.batch_size}
        return {"epoch": self.epoch, "position": self.position, **fixed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        mine = self.state_dict()
        changed = [name for name in ("seed", "samples", "batch_size") if state[name] != mine[name]]
        if changed and 0 < state["position"] < len(self):
            was = ", ".join(f"{name}={state[name]} (now {mine[name]})" for name in changed)
            raise ValueError(
                f"cannot resume in the middle of epoch {state['epoch']}: the checkpoint was made with {was}"
            )
        self.epoch, self.position = state["epoch"], state["position"]
        self._resume_at = self.position

    @property
    def _rank_batch(self) -> int:
        return max(1, self.batch_size // self.world_size)

    def _indices(self, epoch: int) -> Iterable[Tensor]:
        """This rank's index vector for each step of an epoch, on the labels' device."""
        count, device = len(self.images), self.images.labels.device
        if not self.shuffle:
            return list(torch.arange(self.rank, count, self.world_size, device=device).split(self._rank_batch))
        order = torch.randperm(count, generator=seeding.generator(self.seed, seeding.SHUFFLE, epoch)).to(device)
        return [self._share(batch) for batch in order.split(self.batch_size)[: len(self)]]

    def _share(self, rows: Tensor) -> Tensor:
        """The rows of a global batch that are this rank's: as many as every other rank's."""
        equal = len(rows) - len(rows) % self.world_size
        return rows[self.rank : equal : self.world_size]

    def _draws(self, epoch: int, step: int) -> Tensor:
        assert self.augment is not None
        size = min(self.batch_size, len(self.images) - step * self.batch_size)
        return self._share(self.augment.draw(size, seeding.generator(self.seed, seeding.AUGMENT, epoch, step)))

    def _normalise(self, pixels: Tensor) -> Tensor:
        if pixels.is_floating_point():
            return pixels
        return torch.addcmul(self._black, pixels.float(), self._scale)
