"""A synthetic set judged by kernel ridge regression: targets, and accuracy on real images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ncdd.distill.evaluate import Batches, accuracy
from ncdd.distill.synthetic import SyntheticSet
from ncdd.kernels import Kernel, predict, ridge


def centred(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Regression targets (N, K): one-hot - 1/K of classes (N,), and labels that are such targets as they are."""
    if labels.ndim == 2:
        return labels.to(dtype)
    return F.one_hot(labels, num_classes).to(dtype) - 1 / num_classes


def krr_accuracy(
    kernel: Kernel,
    synthetic: SyntheticSet,
    test: Batches,
    *,
    reg: float,
    relative: bool = True,
    device: torch.device | str = "cpu",
) -> float:
    """The fraction of real images that ridge regression from the set classifies rightly; all in float64.

    reg, relative: as in `ncdd.kernels.ridge`.
    """
    support = synthetic.images.to(device, torch.float64)
    targets = centred(synthetic.labels.to(device), synthetic.num_classes, torch.float64)
    coefficients = ridge(kernel(support), targets, reg=reg, relative=relative)
    return accuracy(lambda x: predict(kernel, x.double(), support, coefficients), test, device)
