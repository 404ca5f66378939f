"""Differentiable augmentation: DSA's (Zhao & Bilen 2021, arXiv 2102.08259) and FRePo's (Zhou et al. 2022).

Shapes: B images of C x H x W. Every function is differentiable in the images. Its parameters have one row an image, or
one row for all of them: then images of a real and a synthetic batch see the same transform, "siamese" augmentation.
Images are normalised, so 0 is the mean pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# ---------------------------------------------------------------- functions of explicit parameters


def colour(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Add `brightness`; scale the deviations from each pixel's mean over channels, then from the image's mean.

    Parameters (B,) or (1,). The three commute up to rounding.
    """
    brightness, saturation, contrast = (p.view(-1, 1, 1, 1) for p in (brightness, saturation, contrast))
    images = images + brightness
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * saturation + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * contrast + mean


def flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror left to right the images where `mask`, bool (B,) or (1,), holds."""
    return torch.where(mask.view(-1, 1, 1, 1), images.flip(-1), images)


def shift(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Move by whole pixels, int64 (B,) or (1,); what comes in from outside is 0."""
    height, width = images.shape[-2:]
    row, row_inside = _source(height, -down)
    column, column_inside = _source(width, -right)
    # two gathers with an index a row and a column: the same for all channels
    out = images.gather(2, row[:, None, :, None].expand(len(images), *images.shape[1:3], width))
    out = out.gather(3, column[:, None, None, :].expand(len(images), *images.shape[1:]))
    return out * (row_inside[:, None, :, None] & column_inside[:, None, None, :])


def _source(extent: int, offset: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, extent) position + offset, clamped; and whether it was inside."""
    position = torch.arange(extent, device=offset.device) + offset.view(-1, 1)
    return position.clamp(0, extent - 1), (position >= 0) & (position < extent)


def cutout(images: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Set to 0 a height x width rectangle with its corner at (top, left), int64 (B,) or (1,), clipped at the border."""

    def inside(extent: int, start: Tensor, size: int) -> Tensor:
        position = torch.arange(extent, device=images.device) - start.view(-1, 1)
        return (position >= 0) & (position < size)

    rows, columns = inside(images.shape[2], top, height), inside(images.shape[3], left, width)
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def affine(images: Tensor, theta: Tensor, *, padding: Literal["zeros", "border"], align_corners: bool) -> Tensor:
    """Bilinear samples at `theta (x, y, 1)'`, theta (B, 2, 3) or (1, 2, 3), in coordinates from -1 to 1."""
    theta = theta.to(images).expand(len(images), -1, -1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=align_corners)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=align_corners)


def rotation(angle: Tensor) -> Tensor:
    """(B,) radians -> theta (B, 2, 3)."""
    cos, sin = angle.cos(), angle.sin()
    return _theta(cos, -sin, torch.zeros_like(sin), sin, cos, torch.zeros_like(sin))


def scaling(horizontal: Tensor, vertical: Tensor) -> Tensor:
    """(B,), (B,) -> theta (B, 2, 3); above 1 the image becomes smaller."""
    zero = torch.zeros_like(vertical)
    return _theta(horizontal, zero, zero, zero, vertical, zero)


def zoom(factor: Tensor, down: Tensor, right: Tensor, size: tuple[int, int]) -> Tensor:
    """theta (B, 2, 3): enlarge by `factor` (B,) around the centre, then look (down, right) pixels beside it (B,).

    For sampling with align_corners, where a pixel is 2 / (size - 1).
    """
    zero = torch.zeros_like(factor)
    x, y = 2 * right / (size[1] - 1), 2 * down / (size[0] - 1)
    return _theta(1 / factor, zero, x / factor, zero, 1 / factor, y / factor)


def _theta(*entries: Tensor) -> Tensor:
    """Six times (B,) -> (B, 2, 3)."""
    return torch.stack(entries, -1).view(-1, 2, 3)


# ---------------------------------------------------------------- their parameters from uniform numbers
#
# u: (B, 3) or (1, 3) uniform in [0, 1).


def _signed(u: Tensor, limit: float | Tensor) -> Tensor:
    """Uniform in [-limit, limit)."""
    return (2 * u - 1) * limit


def _integer(u: Tensor, low: int, high: int) -> Tensor:
    """Uniform in low .. high, both included."""
    return low + (u * (high - low + 1)).long().clamp_(max=high - low)


def _log_uniform(u: Tensor, low: float, high: float) -> Tensor:
    return low * (high / low) ** u


def _flip(images: Tensor, u: Tensor) -> Tensor:
    return flip(images, u[:, 0] < 0.5)


def _dsa_colour(images: Tensor, u: Tensor) -> Tensor:
    return colour(images, u[:, 0] - 0.5, 2 * u[:, 1], u[:, 2] + 0.5)


def _dsa_crop(images: Tensor, u: Tensor) -> Tensor:
    """Pad by an eighth and crop."""
    down, right = (int(extent * 0.125 + 0.5) for extent in images.shape[-2:])
    return shift(images, _integer(u[:, 0], -down, down), _integer(u[:, 1], -right, right))


def _dsa_cutout(images: Tensor, u: Tensor) -> Tensor:
    """Half the image's sides, centred anywhere."""
    extents = images.shape[-2:]
    height, width = (int(extent * 0.5 + 0.5) for extent in extents)
    centre = [_integer(u[:, i], 0, extents[i] - size % 2) for i, size in enumerate((height, width))]
    return cutout(images, centre[0] - height // 2, centre[1] - width // 2, height, width)


def _dsa_scale(images: Tensor, u: Tensor) -> Tensor:
    ratio = 1 / 1.2 + u * (1.2 - 1 / 1.2)
    return affine(images, scaling(ratio[:, 0], ratio[:, 1]), padding="zeros", align_corners=False)


def _dsa_rotate(images: Tensor, u: Tensor) -> Tensor:
    angle = _signed(u[:, 0], math.radians(15))
    return affine(images, rotation(angle), padding="zeros", align_corners=False)


def _frepo_colour(images: Tensor, u: Tensor) -> Tensor:
    saturation, contrast = _log_uniform(u[:, 1:3], math.exp(-0.25), math.exp(0.25)).unbind(1)
    return colour(images, _signed(u[:, 0], 0.25), saturation, contrast)


def _frepo_crop(images: Tensor, u: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    factor = _log_uniform(u[:, 0], 0.8, 1.25)
    down, right = (_signed(u[:, i], ((factor - 1) * extent / 2).abs()) for i, extent in ((1, height), (2, width)))
    return affine(images, zoom(factor, down, right, (height, width)), padding="border", align_corners=True)


def _frepo_rotate(images: Tensor, u: Tensor) -> Tensor:
    return affine(images, rotation(_signed(u[:, 0], math.radians(15))), padding="border", align_corners=True)


def _frepo_translate(images: Tensor, u: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    down, right = _signed(u[:, 0], height * 0.125), _signed(u[:, 1], width * 0.125)
    theta = zoom(torch.ones_like(down), -down, -right, (height, width))
    return affine(images, theta, padding="border", align_corners=True)


def _frepo_cutout(images: Tensor, u: Tensor) -> Tensor:
    """A quarter of the image's sides, wholly inside."""
    height, width = images.shape[-2:]
    top, left = _integer(u[:, 0], 0, height - height // 4), _integer(u[:, 1], 0, width - width // 4)
    return cutout(images, top, left, height // 4, width // 4)


OPERATIONS: dict[str, dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "dsa": {
        "color": _dsa_colour,
        "crop": _dsa_crop,
        "cutout": _dsa_cutout,
        "flip": _flip,
        "scale": _dsa_scale,
        "rotate": _dsa_rotate,
    },
    "frepo": {
        "flip": _flip,
        "color": _frepo_colour,
        "crop": _frepo_crop,
        "rotate": _frepo_rotate,
        "translate": _frepo_translate,
        "cutout": _frepo_cutout,
    },
}


class Draw(NamedTuple):
    """One random transform: which operation, and its uniform numbers, (B, 3), or (1, 3) for all images alike."""

    operation: str
    uniform: Tensor


@dataclass(frozen=True, kw_only=True)
class DiffAugment:
    """One operation a batch, drawn uniformly from `strategy`, its strength drawn for each image.

    strategy: names joined by "_", as published: "color_crop_cutout_flip_scale_rotate" (DSA), which leaves out flip for
              digits, "flip_color_crop_rotate_translate_cutout" (FRePo); "none" changes nothing.
    family:   "dsa" or "frepo": the operations of the same name differ in strength, border and interpolation.
    """

    strategy: str
    family: Literal["dsa", "frepo"] = "dsa"

    def __post_init__(self) -> None:
        if self.family not in OPERATIONS:
            raise ValueError(f"family={self.family!r}: choose from {', '.join(OPERATIONS)}")
        for name in self.names:
            if name not in OPERATIONS[self.family]:
                choices = ", ".join(OPERATIONS[self.family])
                raise ValueError(
                    f"strategy={self.strategy!r}: no {name!r} among {self.family}'s operations; choose from {choices}"
                )

    @property
    def names(self) -> list[str]:
        return [] if self.strategy == "none" else self.strategy.split("_")

    @property
    def active(self) -> bool:
        return bool(self.names)

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """For `count` images, or 1 for a siamese draw; numbers come from the CPU, the same on every machine."""
        if not self.names:
            return Draw("none", torch.empty(count, 0))
        chosen = int(torch.randint(len(self.names), (), generator=generator))
        return Draw(self.names[chosen], torch.rand(count, 3, generator=generator))

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), with a draw for B images or for one."""
        if draw.operation == "none":
            return images
        uniform = draw.uniform.to(images.device, images.dtype)
        return OPERATIONS[self.family][draw.operation](images, uniform)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), each image with strengths of its own."""
        return self.apply(images, self.draw(len(images), generator))

    def siamese(self, generator: torch.Generator, *batches: Tensor) -> list[Tensor]:
        """Several batches, of any sizes, under one and the same transform."""
        draw = self.draw(1, generator)
        return [self.apply(images, draw) for images in batches]
