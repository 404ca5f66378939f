"""`ImageDataModule`: a source, split, thinned and relabelled as a run asks, and its loaders."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

import pytorch_lightning as pl
import torch
from torch import Tensor

from ncdd.data import corrupt
from ncdd.data.augment import Augment
from ncdd.data.distilled import distilled
from ncdd.data.draws import DrawLoader, Sampling
from ncdd.data.images import Images, Normalisation, Source, channel_statistics
from ncdd.data.loader import DeviceLoader
from ncdd.data.pixels import normalise
from ncdd.data.whitening import CHUNK, Variant, Whitening, fit_whitening


class ImageDataModule(pl.LightningDataModule):
    """Works without a Trainer too: after `setup()` the loaders run on the CPU, with one rank.

    source:            a Source, or what returns one: called as source(root=, download=), or without arguments where
                       `root` is None.
    mean, std:         of each channel, pixels in [0, 1]; None: what a synthetic set's file says, else computed from
                       the source's train split.
    val_fraction:      of each class of the train split, held out first, with its true labels.
    samples_per_class, imbalance: then thin the rest; random_labels, label_noise: then relabel it.
    whiten:            as KIP or FRePo do it, fitted to the train split that is left: all images become float32 in
                       memory. A synthetic set's file brings its own.
    batch_size:        of a global training batch; measure_batch_size: of every other loader.

    draws: how the training batches are drawn and how many an epoch, where a method wants other ones (DrawLoader).

    After `setup()`: num_classes, in_channels, image_size, class_names, mean, std, whitening (None for none), counts
    (int64 (K,), of the train samples' classes) and splits, name -> Images ("train", "val", "test" and, for a
    synthetic set, "real").
    """

    def __init__(
        self,
        *,
        source: Source | Callable[..., Source],
        batch_size: int,
        measure_batch_size: int,
        seed: int,
        root: str | None = None,
        download: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: Augment | None = None,
        val_fraction: float = 0.0,
        samples_per_class: int | None = None,
        imbalance: float = 1.0,
        random_labels: bool = False,
        label_noise: float = 0.0,
        whiten: Variant | None = None,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        _check_arguments(
            batch_size=batch_size,
            measure_batch_size=measure_batch_size,
            val_fraction=val_fraction,
            samples_per_class=samples_per_class,
            imbalance=imbalance,
            label_noise=label_noise,
            whiten=whiten,
            num_workers=num_workers,
        )
        if (mean is None) != (std is None):
            raise ValueError(f"dataset.mean={mean}, dataset.std={std}: give both, or null for both")
        if random_labels and label_noise:
            raise ValueError(f"dataset.random_labels=true already replaces every label: drop label_noise={label_noise}")
        self.source, self.root, self.download = source, root, download
        self.given = None if mean is None or std is None else Normalisation(tuple(mean), tuple(std))
        self.batch_size, self.measure_batch_size, self.drop_last = batch_size, measure_batch_size, drop_last
        self.augment, self.seed, self.num_workers = augment, seed, num_workers
        self.val_fraction, self.samples_per_class, self.imbalance = val_fraction, samples_per_class, imbalance
        self.random_labels, self.label_noise, self.whiten = random_labels, label_noise, whiten
        self.splits: dict[str, Images] = {}
        self.draws: tuple[Sampling, int] | None = None

    # ------------------------------------------------------------ reading

    def prepare_data(self) -> None:
        """Lightning calls this on one process a machine, before `setup` on all: the one that downloads."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read and split the data, once."""
        if self.splits:
            return
        source = self._read()
        self.source_name, self.class_names, self.num_classes = source.name, source.class_names, len(source.class_names)
        self.in_channels, height, width = source.train.shape
        if height != width:
            raise ValueError(f"{source.name}: images of {height} x {width} pixels; square ones are needed")
        if self.num_classes < 2:
            raise ValueError(f"{source.name}: only one class, {self.class_names}; at least two are needed")
        self.image_size = height
        self.normalisation = self._normalisation(source)
        self.mean, self.std = self.normalisation.mean, self.normalisation.std
        self.splits = self._split(source)
        self.counts = self._counts(self.splits["train"])
        self.whitening = self._whiten(source)

    def normalise_as(self, other: ImageDataModule) -> None:
        """Take over normalisation and whitening of the data set that a network was trained on; both are set up."""
        if self.whitening is not None:
            raise ValueError(f"dataset.whiten={self.whiten}: the network's own data decide it; leave it at null")
        self.normalisation = other.normalisation
        self.mean, self.std = self.normalisation.mean, self.normalisation.std
        if other.whitening is not None:
            self.whitening = other.whitening
            self._apply(other.whitening, self._normalised())

    def _read(self) -> Source:
        if isinstance(self.source, Source):
            return self.source
        return self.source() if self.root is None else self.source(root=self.root, download=self.download)

    def _normalisation(self, source: Source) -> Normalisation:
        """The argument, the synthetic set's, or the train images' own; these must agree and fit the channels."""
        stated = source.normalisation
        if self.given and stated and not self.given.close_to(stated):
            raise ValueError(
                f"dataset.mean={list(self.given.mean)}, dataset.std={list(self.given.std)} differ from what the "
                f"synthetic set was normalised with, {list(stated.mean)}, {list(stated.std)}: give these, or null"
            )
        known = self.given or stated
        if known is None and source.train.is_float:
            raise ValueError(
                "dataset.mean=null, dataset.std=null: the synthetic set's file does not say what its images were "
                "normalised with; set dataset.mean and dataset.std to that"
            )
        known = known or channel_statistics(source.real or source.train, self.num_workers)
        if len(known.mean) != self.in_channels:
            raise ValueError(f"dataset.mean={list(known.mean)}: {self.in_channels} numbers are needed, one a channel")
        return known

    def _split(self, source: Source) -> dict[str, Images]:
        held = {"test": source.test} if source.real is None else {"test": source.test, "real": source.real}
        if not self._changes_train():
            return {"train": source.train, **held}
        if source.train.labels.ndim != 1:
            raise ValueError(
                "soft labels: dataset.val_fraction, samples_per_class, imbalance, random_labels and label_noise "
                "need one class a sample; leave them at 0, null, 1, false and 0"
            )
        labels, num_classes = source.train.labels, self.num_classes
        keep, val = corrupt.split(labels, num_classes, self.val_fraction, self.seed)
        if self.samples_per_class is not None:
            keep = keep[corrupt.samples_per_class(labels[keep], num_classes, self.samples_per_class, self.seed)]
        keep = keep[corrupt.imbalance(labels[keep], num_classes, self.imbalance, self.seed)]
        train = source.train.select(keep)
        if self.val_fraction:
            if not len(val):
                raise ValueError(
                    f"dataset.val_fraction={self.val_fraction}: leaves no validation sample of {len(labels)}; use more"
                )
            held["val"] = source.train.select(val)
        return {"train": Images(train.pixels, self._relabel(train.labels)), **held}

    def _changes_train(self) -> bool:
        thinned = self.val_fraction > 0 or self.samples_per_class is not None or self.imbalance != 1
        return thinned or self.random_labels or self.label_noise > 0

    def _relabel(self, labels: Tensor) -> Tensor:
        if self.random_labels:
            return corrupt.random_labels(labels, self.num_classes, self.seed)
        return corrupt.label_noise(labels, self.num_classes, self.label_noise, self.seed)

    def _counts(self, train: Images) -> Tensor:
        counts = train.classes.bincount(minlength=self.num_classes)
        absent = [self.class_names[index] for index in (counts == 0).nonzero().squeeze(1).tolist()]
        if absent:
            raise ValueError(
                f"{self.source_name}: no train sample of {len(absent)} of {self.num_classes} classes "
                f"({', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}); "
                "every class needs one: use more samples_per_class, or less imbalance or label noise"
            )
        return counts

    def _whiten(self, source: Source) -> Whitening | None:
        """The synthetic set's, or one that is fitted; and every split of pixels whitened by it."""
        if self.whiten is None and source.whitening is None:
            return None
        if self.whiten is not None and source.train.is_float:
            raise ValueError(f"dataset.whiten={self.whiten}: the synthetic set's file decides it; leave it at null")
        changed = self._normalised()
        whitening = source.whitening
        if whitening is None:
            assert self.whiten is not None
            whitening = fit_whitening(changed["train"], variant=self.whiten)
        self._apply(whitening, changed)
        return whitening

    def _normalised(self) -> dict[str, Tensor]:
        """Every split of pixels, as float32 images (N, C, H, W) of its own that are normalised."""
        found = {}
        for name, images in self.splits.items():
            if not isinstance(images.pixels, Tensor):
                raise ValueError("whitening needs images in memory: raise dataset.source.memory_budget")
            if not images.is_float:
                found[name] = torch.empty(images.pixels.shape)
                for part, pixels in zip(found[name].split(CHUNK), images.pixels.split(CHUNK), strict=True):
                    part.copy_(normalise(pixels, self.normalisation))
        return found

    def _apply(self, whitening: Whitening, normalised: dict[str, Tensor]) -> None:
        """In place: what does not fit twice into memory still can be whitened."""
        for name, images in normalised.items():
            for part in images.split(CHUNK):
                part.copy_(whitening(part))
            self.splits[name] = Images(images, self.splits[name].labels)

    # ------------------------------------------------------------ loaders

    def train_dataloader(self) -> DeviceLoader:
        """Shuffled and augmented; or, for a method that draws its batches, as they are."""
        if self.draws is not None:
            sampling, steps = self.draws
            return DrawLoader(
                images=self._placed("train"),
                normalisation=self.normalisation,
                sampling=sampling,
                steps=steps,
                seed=self.seed,
                num_workers=self.num_workers,
            )
        loader = DeviceLoader(
            images=self._placed("train"),
            normalisation=self._units,
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=self.drop_last,
            augment=self.augment,
            seed=self.seed,
            rank=self._rank,
            world_size=self._world_size,
            num_workers=self.num_workers,
        )
        if not len(loader):
            raise ValueError(
                f"dataset.batch_size={self.batch_size}: no batch in {len(self.splits['train'])} train samples with "
                f"drop_last={self.drop_last} on {self._world_size} ranks"
            )
        return loader

    def val_dataloader(self) -> DeviceLoader | list[DeviceLoader]:
        """The validation split, or [] where there is none."""
        if self.val_fraction:
            return self._measure("val")
        # Lightning takes [] for no validation, but not without a word.
        warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
        return []

    def test_dataloader(self) -> DeviceLoader:
        return self._measure("test")

    def measure_dataloaders(self) -> dict[str, DeviceLoader]:
        """Un-augmented, in the stored order, each sample once: the train samples with the labels they are trained with,
        the test split and, for a synthetic set, the real train split."""
        self.setup()
        return {name: self._measure(name) for name in ("train", "real", "test") if name in self.splits}

    def _measure(self, split: str) -> DeviceLoader:
        return DeviceLoader(
            images=self._placed(split),
            normalisation=self.normalisation,
            batch_size=self.measure_batch_size,
            rank=self._rank,
            world_size=self._world_size,
            num_workers=self.num_workers,
        )

    @property
    def _units(self) -> Normalisation:
        """Where black is for the loader, whose crop pads with it; whitening has no one value for it, and 0 will do."""
        if self.whitening is None:
            return self.normalisation
        return Normalisation((0.0,) * self.in_channels, (1.0,) * self.in_channels)

    def _placed(self, split: str) -> Images:
        """The split on the trainer's device; moved there once, and not kept twice."""
        self.setup()
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        self.splits[split] = self.splits[split].to(device)
        return self.splits[split]

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size


def distilled_module(
    *,
    path: str,
    real: str | None,
    root: str,
    download: bool,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    batch_size: int,
    measure_batch_size: int,
    augment: Augment | None,
    num_workers: int,
    drop_last: bool,
    seed: int,
) -> ImageDataModule:
    """Train on the synthetic set in the file `path`; measure and test on the dataset `real`, read from `root`.

    real: a name of `ncdd.data.distilled.REAL`; None: the one that the file names. mean, std: None: the file's.
    """
    return ImageDataModule(
        source=partial(distilled, path=path, real=real),
        root=root,
        download=download,
        mean=mean,
        std=std,
        batch_size=batch_size,
        measure_batch_size=measure_batch_size,
        augment=augment,
        num_workers=num_workers,
        drop_last=drop_last,
        seed=seed,
    )


def _check_arguments(
    *,
    batch_size: int,
    measure_batch_size: int,
    val_fraction: float,
    samples_per_class: int | None,
    imbalance: float,
    label_noise: float,
    whiten: Variant | None,
    num_workers: int,
) -> None:
    """Before any data is read: a name, the value found and what is allowed."""
    rules = (
        ("batch_size", batch_size, batch_size >= 1, "a number >= 1"),
        ("measure_batch_size", measure_batch_size, measure_batch_size >= 1, "a number >= 1"),
        ("val_fraction", val_fraction, 0 <= val_fraction < 1, "a fraction in [0, 1), 0 for none,"),
        ("samples_per_class", samples_per_class, samples_per_class is None or samples_per_class >= 1, "null or >= 1"),
        ("imbalance", imbalance, imbalance >= 1, "a factor >= 1, 1 for balanced,"),
        ("label_noise", label_noise, 0 <= label_noise <= 1, "a fraction in [0, 1], 0 for none,"),
        ("whiten", whiten, whiten is None or whiten in get_args(Variant), "null, kip or frepo"),
        ("num_workers", num_workers, num_workers >= 0, "a number >= 0"),
    )
    for name, value, allowed, needed in rules:
        if not allowed:
            raise ValueError(f"dataset.{name}={value}: {needed} is needed")
