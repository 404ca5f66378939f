"""FRePo's objective: ridge regression on a network's features (Zhou, Nezhadarya & Ba 2022, arXiv 2206.00719).

Legend: n synthetic images, B real ones, D features, C classes. Targets are one-hot minus 1/C.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ncdd.distill.regression import centred
from ncdd.kernels import ridge

REG = 1e-6  # of the ridge, times the kernel's mean diagonal


class MetaLoss(NamedTuple):
    """What is minimised is the sum: the regression's error on real images, and minus the margin of the labels."""

    kernel: Tensor
    label: Tensor


def first_labels(classes: Tensor, num_classes: int) -> Tensor:
    """(n,) int64 -> (n, C): what learned labels start from, one-hot minus 1/C over sqrt(C / 10)."""
    return centred(classes, num_classes, torch.float32) / (num_classes / 10) ** 0.5


def ridge_weights(features_nD: Tensor, labels_nC: Tensor, reg: float = REG) -> Tensor:
    """``F' (F F' + reg tr(F F') / n I)^-1 y`` (D, C): the linear map of features that regresses the labels.

    Differentiable in both; the solve is in float64. Raises ValueError where the kernel is singular.
    """
    features_nD = features_nD.to(labels_nC.dtype)
    return features_nD.T @ ridge(features_nD @ features_nD.T, labels_nC, reg=reg)


def label_margin_loss(labels_nC: Tensor) -> Tensor:
    """Minus the mean margin between the two largest labels of an image, no more than 1/C of it."""
    top = labels_nC.topk(2).values
    return -(top[:, 0] - top[:, 1]).clamp(max=1 / labels_nC.shape[1]).mean()


def meta_loss(
    features_nD: Tensor, labels_nC: Tensor, real_BD: Tensor, targets_BC: Tensor, *, reg: float = REG
) -> MetaLoss:
    """Half the squared error per real image of regression from the synthetic set, and the label term."""
    predictions = real_BD.to(labels_nC.dtype) @ ridge_weights(features_nD, labels_nC, reg)
    return MetaLoss(half_squared_error(predictions, targets_BC), label_margin_loss(labels_nC))


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance of outputs and targets (B, C), a mean over the batch."""
    return 0.5 * (outputs - targets).square().sum(1).mean()


def mirrored(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The images (n, C, H, W) and their mirror images, with the labels of both: 2n."""
    return torch.cat([images, images.flip(3)]), torch.cat([labels, labels])
