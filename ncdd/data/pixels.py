"""From uint8 pixels to normalised images, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ncdd.data.images import Normalisation


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
