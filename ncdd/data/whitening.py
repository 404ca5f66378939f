"""Regularised ZCA whitening of images: the preprocessing of KIP and of FRePo.

Shapes: N images (C, H, W), flattened in this order to D = C H W numbers, each channel normalised before.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Literal

import torch
from torch import Tensor

Variant = Literal["kip", "frepo"]
CHUNK = 4096


@dataclass(frozen=True, eq=False, kw_only=True)
class Whitening:
    """``z = (x - mean) W``, as in FRePo; or, as in KIP, ``z = x' W`` of images x' with mean 0 and norm 1 each.

    matrix: W (D, D), symmetric and invertible
    mean:   (D,), the mean image; in KIP's variant the same number everywhere, the average of the images' means
    norm:   in KIP's variant, the average L2 norm of the images without their means; None in FRePo's
    """

    matrix: Tensor
    mean: Tensor
    norm: float | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), in the dtype and on the device of the images."""
        rows = images.flatten(1)
        rows = rows - self.mean.to(rows) if self.norm is None else _unit(rows)[0]
        return (rows @ self.matrix.to(rows)).view(images.shape)

    def inverse(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W). In KIP's variant with mean and norm of an average image: its own are lost."""
        rows = torch.linalg.solve(self.matrix.to(images.device), images.flatten(1).to(self.matrix.dtype), left=False)
        rows = rows * (1.0 if self.norm is None else self.norm) + self.mean.to(rows)
        return rows.to(images.dtype).view(images.shape)


def fit_whitening(images: Tensor, *, variant: Variant, reg: float = 0.1) -> Whitening:
    """Fit to training images (N, C, H, W); float64.

    W is ``(S + reg tr(S)/D I)^(-1/2)``. "kip": S is the second moment of the images, each centred by its own mean and
    divided by its own norm (Nguyen et al. 2021, arXiv 2107.13034, appendix B). "frepo": S is their covariance (Zhou et
    al. 2022, arXiv 2206.00719). Where N < D, S says nothing about D - N directions; W leaves them as they are.
    """
    N, D = len(images), images[0].numel()
    chunks = images.flatten(1).split(CHUNK)
    mean = sum((part.double().sum(0) for part in chunks), images.new_zeros(D, dtype=torch.float64)) / N
    second, norms = mean.new_zeros(D, D), mean.new_zeros(())
    for part in chunks:
        unit, norm = _unit(part.double())
        norms += norm.sum()
        centred = unit if variant == "kip" else part.double() - mean
        second.addmm_(centred.T, centred)
    second /= N
    second.diagonal().add_(reg * second.trace() / D)
    values, vectors = torch.linalg.eigh(second)
    scale = values.rsqrt()
    scale[: max(0, D - N)] = 1.0  # eigenvalues ascend
    matrix = (vectors * scale) @ vectors.T
    if variant == "frepo":
        return Whitening(matrix=matrix, mean=mean)
    return Whitening(matrix=matrix, mean=mean.mean().expand(D).clone(), norm=norms.item() / N)


def packed(matrix: Tensor) -> Tensor:
    """W (D, D), which is symmetric, as files hold it: its upper triangle row by row, (D (D + 1) / 2,) in float32.

    A quarter of W in float64. Images in float32 are whitened by W in float32, so it is the same to them, bit for bit.
    Back in pixels an error grows by the condition number of W: on CIFAR-10, 94, to 5e-5 of 255 levels.
    """
    return matrix[_upper(len(matrix), matrix.device)].float()


def unpacked(values: Tensor) -> Tensor:
    """W (D, D) in float64 from what `packed` made of it."""
    D = (isqrt(8 * len(values) + 1) - 1) // 2
    matrix = values.new_zeros(D, D, dtype=torch.float64)
    matrix[_upper(D, values.device)] = values.double()
    return matrix + matrix.triu(1).T


def _upper(D: int, device: torch.device) -> Tensor:
    return torch.ones(D, D, dtype=torch.bool, device=device).triu()


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, D) with mean 0 and norm 1, constant ones 0; and the norms (N, 1) that they had without their means."""
    rows = rows - rows.mean(1, keepdim=True)
    norm = rows.norm(dim=1, keepdim=True)
    return rows / norm.clamp(min=torch.finfo(rows.dtype).tiny), norm
