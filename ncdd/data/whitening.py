"""A ZCA transform that somebody has fitted: applied to images, and undone to show them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Whitening:
    """`z = (x - mean) matrix` on flattened images of D = C H W numbers, channel-normalised before.

    matrix:    (D, D), symmetric and invertible (`U (S + r I)^-1/2 U'`, with r = 0.1 tr(cov)/D in KIP and FRePo).
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
