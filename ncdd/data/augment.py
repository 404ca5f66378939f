"""Batched augmentation: pure functions with explicit parameters, and `Augment`, which draws the parameters.

Shapes: B images in a batch, C channels, H x W pixels. Images may be uint8 or float; no function loops over samples.
"""

import torch
from torch import Tensor


def _padded(images: Tensor, padding: int, fill: Tensor | float) -> Tensor:
    """(B, C, H, W) -> (B, C, H + 2 padding, W + 2 padding), the border `fill`: a number or (C,) of them."""
    batch, channels, height, width = images.shape
    values = torch.as_tensor(fill, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
    out = values.expand(batch, channels, height + 2 * padding, width + 2 * padding).clone()
    out[:, :, padding : padding + height, padding : padding + width] = images
    return out


def crop(images: Tensor, top: Tensor, left: Tensor, padding: int, fill: Tensor | float = 0.0) -> Tensor:
    """Pad by `padding` and cut an H x W window whose corner is at (top, left) of the padded image.

    top, left: int64 (B,) in 0 .. 2 padding; padding, padding is the image itself.
    """
    batch, channels, height, width = images.shape
    padded = _padded(images, padding, fill)
    tall, wide = padded.shape[-2:]
    # Every row of every window is a run of W neighbours in memory: one index_select copies them all, which on a CPU
    # is two to ten times faster than gather or advanced indexing.
    plane = torch.arange(batch * channels, device=images.device).view(batch, channels, 1) * tall
    row = plane + top.view(-1, 1, 1) + torch.arange(height, device=images.device)
    start = row * wide + left.view(-1, 1, 1)
    return padded.view(-1).unfold(0, width, 1).index_select(0, start.view(-1)).view(images.shape)


def flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror left to right the images where `mask`, bool (B,), holds."""
    return torch.where(mask.view(-1, 1, 1, 1), images.flip(-1), images)


def cutout(images: Tensor, row: Tensor, column: Tensor, size: int, fill: float = 0.0) -> Tensor:
    """Set a size x size square centred at (row, column), int64 (B,), to `fill`; it is clipped at the border.

    DeVries & Taylor 2017: the centre is anywhere in the image, and the fill is 0 after normalisation.
    """
    height, width = images.shape[-2:]

    def inside(centre: Tensor, extent: int) -> Tensor:
        start = centre.view(-1, 1) - size // 2
        position = torch.arange(extent, device=images.device)
        return (position >= start) & (position < start + size)

    square = inside(row, height)[:, None, :, None] & inside(column, width)[:, None, None, :]
    return images.masked_fill(square, fill)


def _below(uniform: Tensor, count: int) -> Tensor:
    """Uniform floats in [0, 1) -> integers in 0 .. count - 1 (the clamp is for a product that rounds up to count)."""
    return (uniform * count).long().clamp_(max=count - 1)


class Augment:
    """Random crop with padding, horizontal flip and cutout, in this order, each drawn per image; zeros mean none.

    The draws are made apart from their use, so that ranks of a distributed run can draw for the whole global batch
    and each apply its own share: the images a global batch holds do not depend on the number of ranks.
    """

    def __init__(self, *, crop: int = 0, flip: bool = False, cutout: int = 0) -> None:
        for name, value in (("crop", crop), ("cutout", cutout)):
            if value < 0:
                raise ValueError(f"augment.{name}={value}: a number of pixels >= 0 is needed; 0 means none")
        self.crop, self.flip, self.cutout = crop, flip, cutout

    def __repr__(self) -> str:
        return f"Augment(crop={self.crop}, flip={self.flip}, cutout={self.cutout})"

    @property
    def active(self) -> bool:
        return bool(self.crop or self.flip or self.cutout)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 5) uniform floats in [0, 1): crop top and left, flip, cutout row and column."""
        return torch.rand(count, 5, generator=generator)

    def __call__(self, images: Tensor, draws: Tensor, fill: Tensor | float = 0.0) -> Tensor:
        """(B, C, H, W) and (B, 5) -> (B, C, H, W). `fill` is black in the images' own units: it pads the crop."""
        draws = draws.to(images.device, non_blocking=True)
        if self.crop:
            top, left = _below(draws[:, 0], 2 * self.crop + 1), _below(draws[:, 1], 2 * self.crop + 1)
            images = crop(images, top, left, self.crop, fill)
        if self.flip:
            images = flip(images, draws[:, 2] < 0.5)
        if self.cutout:
            height, width = images.shape[-2:]
            images = cutout(images, _below(draws[:, 3], height), _below(draws[:, 4], width), self.cutout)
        return images
