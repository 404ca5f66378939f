"""Regularised ZCA whitening of images, the preprocessing of KIP and FRePo for colour images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 4096
CHANNELS = (-1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class ZCA:
    """Standardise each channel, then each image (mean 0, norm 1) or else subtract the mean image, then multiply by W.

    mean_C, std_C: of the channels of the training images
    mean_D: the mean image after standardisation; None where each image is normalised by itself
    eigenvectors_DD, scale_D: ``W = U diag(scale) U'``, for images flattened in the order (C, H, W), D = C H W
    image_mean, image_norm: averages over the training images of what normalising an image takes away
    All float64; results have the dtype of the images that are given.
    """

    mean_C: Tensor
    std_C: Tensor
    mean_D: Tensor | None
    eigenvectors_DD: Tensor
    scale_D: Tensor
    image_mean: float
    image_norm: float

    @property
    def matrix(self) -> Tensor:
        """W (D, D), symmetric."""
        return (self.eigenvectors_DD * self.scale_D) @ self.eigenvectors_DD.T

    def transform(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) of the scale that was fitted, whitened; float32 where they are integers."""
        dtype = images.dtype if images.is_floating_point() else torch.float32
        W = self.matrix
        parts = [self._centred(part) @ W for part in images.split(CHUNK)]
        return torch.cat(parts).to(dtype).reshape(images.shape)

    def inverse(self, whitened: Tensor) -> Tensor:
        """Back to the scale of the images. Exact where the mean image was subtracted.

        Where each image was normalised by itself its own mean and norm are gone, and it gets those of an average image.
        """
        x = ((whitened.double().flatten(1) @ self.eigenvectors_DD) / self.scale_D) @ self.eigenvectors_DD.T
        x = x * self.image_norm + self.image_mean if self.mean_D is None else x + self.mean_D
        x = x.reshape(whitened.shape) * self.std_C.view(CHANNELS) + self.mean_C.view(CHANNELS)
        return x.to(whitened.dtype)

    def _centred(self, images: Tensor) -> Tensor:
        x = _standardised(images, self.mean_C, self.std_C)
        return _normalised(x) if self.mean_D is None else x - self.mean_D


def fit_zca(images: Tensor, *, reg: float = 0.1, per_image: bool = True) -> ZCA:
    """Fit to training images (N, C, H, W), float or uint8, N >= 2.

    W is ``(C + reg tr(C)/D I)^(-1/2)`` of the second moment C = X'X/N. Where N < D, C says nothing about the last D - N
    eigenvectors and their scale is 1. per_image: True as in KIP (arXiv 2107.13034, appendix B); False as in FRePo
    (arXiv 2206.00719). Raises ValueError where a channel is constant.
    """
    count = images[:, 0].numel()
    mean = sum(part.double().sum(dim=(0, 2, 3)) for part in images.split(CHUNK)) / count
    square = sum((part.double() - mean.view(CHANNELS)).square().sum(dim=(0, 2, 3)) for part in images.split(CHUNK))
    std = (square / count).sqrt()
    if not (std > 0).all():
        raise ValueError(f"images have a constant channel (std {std.tolist()}): ZCA needs channels that vary")
    D = images[0].numel()
    sums, second, norm = std.new_zeros(D), std.new_zeros(D, D), 0.0
    for part in images.split(CHUNK):
        x = _standardised(part, mean, std)
        sums += x.sum(dim=0)
        norm += (x - x.mean(dim=1, keepdim=True)).norm(dim=1).sum().item()
        x = _normalised(x) if per_image else x
        second.addmm_(x.T, x)
    N = len(images)
    mean_D = None if per_image else sums / N
    second /= N
    if mean_D is not None:
        second.addr_(mean_D, mean_D, alpha=-1)
    second.diagonal().add_(reg * second.trace() / D)
    values, vectors = torch.linalg.eigh(second)
    scale = values.rsqrt()
    scale[: max(0, D - N)] = 1.0  # eigenvalues ascend
    return ZCA(
        mean_C=mean, std_C=std, mean_D=mean_D, eigenvectors_DD=vectors, scale_D=scale,
        image_mean=sums.mean().item() / N, image_norm=norm / N,
    )  # fmt: skip


def _standardised(images: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """(N, D) in float64."""
    return ((images.double() - mean_C.view(CHANNELS)) / std_C.view(CHANNELS)).flatten(1)


def _normalised(x: Tensor) -> Tensor:
    """Each image with mean 0 and norm 1; a constant one is 0."""
    x = x - x.mean(dim=1, keepdim=True)
    return x / x.norm(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
