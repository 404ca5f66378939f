"""What a synthetic set starts from: noise, real images, or a coreset."""

from __future__ import annotations

import torch
from torch import Tensor

from ncdd.data.images import Images, Normalisation
from ncdd.data.pixels import normalise
from ncdd.distill.coresets import CORESETS, coreset


def start(
    init: str, real: Images, normalisation: Normalisation, *, num_classes: int, per_class: int, seed: int
) -> tuple[Tensor, Tensor]:
    """(images float32 (K per_class, C, H, W), classes int64 (K per_class,)), ordered by class, on the CPU.

    init: "noise" (standard normal), "real" (drawn at random), or the name of a coreset, of the images `real`.
    ValueError for another name, and where a class has too few real images.
    """
    choices = ["noise", "real", *(name for name in CORESETS if name != "random")]
    if init not in choices:
        raise ValueError(f"init={init!r}: choose from {', '.join(choices)}")
    generator = torch.Generator().manual_seed(seed)
    labels = real.classes.cpu()
    if init == "noise":
        classes = torch.arange(num_classes).repeat_interleave(per_class)
        return torch.randn(len(classes), *real.shape, generator=generator), classes
    if init == "real":  # indices first: the images may be in files
        everything = torch.arange(len(labels))
        chosen, classes = coreset(
            "random", everything, labels, num_classes=num_classes, per_class=per_class, generator=generator
        )
        return read(real, normalisation, chosen), classes
    images = read(real, normalisation)
    return coreset(init, images, labels, num_classes=num_classes, per_class=per_class, generator=generator)


def read(images: Images, normalisation: Normalisation, rows: Tensor | None = None) -> Tensor:
    """Some of them, or all, as float32 (N, C, H, W) on the CPU, normalised."""
    rows = torch.arange(len(images)) if rows is None else rows
    chunks = images.batches(rows.to(images.labels.device).split(1024))
    return torch.cat([normalise(pixels, normalisation).cpu() for pixels, _ in chunks])
