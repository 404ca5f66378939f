"""From uint8 pixels to what a network sees, and back: channel normalisation, then a ZCA transform if there is one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ncdd.data.images import Normalisation


@dataclass(frozen=True, eq=False, kw_only=True)
class Whitening:
    """`z = (x - mean) matrix` on flattened images of D = C H W numbers, normalised by channel before.

    matrix:    (D, D), symmetric and invertible: `U (S + r I)^-1/2 U'`, r = 0.1 tr(cov) / D in KIP and FRePo.
    mean:      (D,); zeros where images are centred one by one.
    unit_norm: KIP's variant (Nguyen et al. 2021): each image is first centred by its own mean and divided by its own
               L2 norm. Both numbers are lost: `inverse` then gives images of mean 0 and norm 1.
    """

    matrix: Tensor
    mean: Tensor
    unit_norm: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        rows = images.flatten(1)
        if self.unit_norm:
            rows = rows - rows.mean(1, keepdim=True)
            rows = rows / rows.norm(dim=1, keepdim=True)
        return ((rows - self.mean) @ self.matrix).view(images.shape)

    def inverse(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        rows = torch.linalg.solve(self.matrix, images.flatten(1), left=False)
        return (rows + self.mean).view(images.shape)


def normalise(pixels: Tensor, normalisation: Normalisation) -> Tensor:
    """uint8 (N, C, H, W) -> float32 `(pixel / 255 - mean) / std`; floats are taken as normalised already."""
    if pixels.is_floating_point():
        return pixels.float()
    mean, std = _channels(normalisation, pixels.device)
    return torch.addcmul((-mean / std).float(), pixels.float(), (1 / (255 * std)).float())


def denormalise(images: Tensor, normalisation: Normalisation) -> Tensor:
    """float (N, C, H, W) -> the nearest uint8 pixels, clamped to 0..255."""
    mean, std = _channels(normalisation, images.device)
    return ((images.double() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _channels(normalisation: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, float64 (C, 1, 1)."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (normalisation.mean, normalisation.std))
    return mean.view(-1, 1, 1).to(device), std.view(-1, 1, 1).to(device)
