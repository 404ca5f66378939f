"""Images of one data set in the shape and normalisation of another, for a network that was trained on the other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ncdd.data.images import Images, Normalisation
from ncdd.data.loader import DeviceLoader
from ncdd.data.whitening import Whitening

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL converts to grey


def adapt(pixels: Tensor, *, channels: int, image_size: int) -> Tensor:
    """Pixels (B, C, H, H) of any scale -> (B, channels, image_size, image_size), for 1 and 3 channels.

    Bilinear and anti-aliased where it shrinks; grey is repeated, colour becomes its luma.
    """
    if pixels.shape[1] != channels:
        if {pixels.shape[1], channels} != {1, 3}:
            raise ValueError(f"images of {pixels.shape[1]} channels cannot become {channels}: 1 and 3 can")
        luma = pixels.new_tensor(LUMA).view(-1, 1, 1)
        pixels = (pixels * luma).sum(1, keepdim=True) if channels == 1 else pixels.expand(-1, channels, -1, -1)
    if pixels.shape[-1] == image_size:
        return pixels
    size = (image_size, image_size)
    return F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)


class AdaptedLoader:
    """Iterates (x, y) over uint8 `images` as a network knows images: `channels`, `image_size`, `normalisation`, and
    `whitening` where there is one.

    Images that are of that shape already are, to the last bit, what their own loader would give.
    """

    def __init__(
        self,
        *,
        images: Images,
        channels: int,
        image_size: int,
        normalisation: Normalisation,
        batch_size: int,
        whitening: Whitening | None = None,
    ) -> None:
        if images.is_float:
            raise ValueError("images: pixels are needed to adapt them; leave the second data set's whiten at null")
        plain = Normalisation((0.0,) * images.shape[0], (1 / 255,) * images.shape[0])  # 0 to 255, as they are stored
        self.loader = DeviceLoader(images=images, normalisation=plain, batch_size=batch_size)
        self.channels, self.image_size, self.whitening = channels, image_size, whitening
        mean, std = (
            torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (normalisation.mean, normalisation.std)
        )
        self._scale, self._black = (1 / (255 * std)).float(), (-mean / std).float()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in self.loader:
            x = adapt(pixels, channels=self.channels, image_size=self.image_size)
            x = torch.addcmul(self._black, x, self._scale)
            yield x if self.whitening is None else self.whitening(x), labels
