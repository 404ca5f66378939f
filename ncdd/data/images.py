"""What a dataset is once it is read: `Images` in memory or still in files, and the `Source` that holds its splits.

Shapes: N images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ncdd.data.whitening import Whitening


def decode(path: str, size: int) -> np.ndarray:
    """Read one image file as RGB uint8 (3, size, size): the shorter side resized to `size`, then the centre cropped."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot decode the image {path} ({error}); replace the file or remove it") from error
    if image.size != (size, size):
        scale = size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).transpose(2, 0, 1)


@dataclass(frozen=True, eq=False)
class ImageFiles(Dataset[Tensor]):
    """Images left on disk: decoded to uint8 (3, size, size) when indexed, in the workers of a DataLoader."""

    paths: tuple[str, ...]
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(decode(self.paths[index], self.size).copy())


@dataclass(frozen=True, eq=False)
class Images:
    """Images with labels.

    pixels: uint8 (N, C, H, W), or float32 (N, C, H, W) that is already normalised (a synthetic set), or files.
    labels: int64 (N,), or float32 (N, K) soft labels.
    """

    pixels: Tensor | ImageFiles
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        if isinstance(self.pixels, ImageFiles):
            return 3, self.pixels.size, self.pixels.size
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def is_float(self) -> bool:
        """Whether these are normalised images already, not pixels."""
        return isinstance(self.pixels, Tensor) and self.pixels.is_floating_point()

    @property
    def classes(self) -> Tensor:
        """(N,) int64: the labels, or the largest entry of soft ones."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(1)

    def select(self, indices: Tensor) -> Images:
        if len(indices) == len(self) and bool((indices == torch.arange(len(self))).all()):
            return self  # all of them: share the memory
        if isinstance(self.pixels, ImageFiles):
            paths = tuple(self.pixels.paths[index] for index in indices.tolist())
            return Images(ImageFiles(paths, self.pixels.size), self.labels[indices])
        return Images(self.pixels.index_select(0, indices), self.labels[indices])

    def to(self, device: torch.device) -> Images:
        """In device memory, pixels too unless they are in files; the same tensors where they already lie there."""
        pixels = self.pixels if isinstance(self.pixels, ImageFiles) else self.pixels.to(device)
        return Images(pixels, self.labels.to(device))

    def batches(self, indices: Iterable[Tensor], num_workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """For each index vector, in order, (pixels (B, C, H, W), labels (B, ...)) on the labels' device."""
        if not isinstance(self.pixels, ImageFiles):
            # index_select copies whole images; pixels[index] copies byte by byte (70 times slower on a CPU).
            yield from ((self.pixels.index_select(0, index), self.labels.index_select(0, index)) for index in indices)
            return
        indices, device = list(indices), self.labels.device
        loader = DataLoader(
            self.pixels,
            batch_sampler=[index.tolist() for index in indices],
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
            # Without a generator of its own a DataLoader draws from the global one, and so would change the
            # model's dropout when the images do not fit into memory.
            generator=torch.Generator(),
        )
        for index, pixels in zip(indices, loader, strict=True):
            yield pixels.to(device, non_blocking=True), self.labels.index_select(0, index)


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, in units where a pixel is in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean={list(self.mean)}, std={list(self.std)}: one number a channel is needed in both")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std={list(self.std)}: every channel needs a number > 0 (0: all its pixels are equal)")

    def close_to(self, other: Normalisation) -> bool:
        """Equal up to the rounding of published constants."""
        mine, theirs = (*self.mean, *self.std), (*other.mean, *other.std)
        return len(mine) == len(theirs) and all(abs(a - b) < 1e-4 for a, b in zip(mine, theirs, strict=True))


@dataclass(frozen=True, eq=False)
class Source:
    """A dataset as it was published, before a run splits, thins or relabels it.

    train, test:   its splits.
    class_names:   K names; label k is class_names[k].
    name:          what it is called in conf/dataset/ or, for a folder of the user's own, "image_folder".
    real:          for a synthetic train split, the real one it stands for.
    normalisation: for float train images, what they were normalised with, where that is known.
    whitening:     for float train images, what they were whitened by then; None for nothing.
    """

    train: Images
    test: Images
    class_names: list[str]
    name: str
    real: Images | None = None
    normalisation: Normalisation | None = None
    whitening: Whitening | None = None

    def __post_init__(self) -> None:
        for split, images in (("train", self.train), ("test", self.test)):
            if len(images.pixels) != len(images.labels):
                raise ValueError(
                    f"{self.name}: {len(images.pixels)} images but {len(images.labels)} labels in its {split} split"
                )
            if len(images) and not 0 <= int(images.classes.min()) <= int(images.classes.max()) < len(self.class_names):
                raise ValueError(
                    f"{self.name}: a label in its {split} split is outside 0..{len(self.class_names) - 1}, "
                    f"found {int(images.classes.min())}..{int(images.classes.max())}"
                )


def channel_statistics(images: Images, num_workers: int = 0) -> Normalisation:
    """Mean and standard deviation of uint8 images, exactly: from the histogram of each channel's 256 values."""
    chunks = torch.arange(len(images)).split(1024)
    histogram = torch.zeros(images.shape[0], 256, dtype=torch.int64)
    for pixels, _ in images.batches(chunks, num_workers):
        for channel, values in enumerate(pixels.transpose(0, 1).flatten(1)):
            histogram[channel] += values.bincount(minlength=256)
    level = torch.arange(256, dtype=torch.float64) / 255
    probability = histogram.double() / len(images) / (images.shape[1] * images.shape[2])
    mean = probability @ level
    variance = (probability * (level - mean[:, None]) ** 2).sum(1)
    return Normalisation(tuple(mean.tolist()), tuple(variance.sqrt().tolist()))
