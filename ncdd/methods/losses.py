"""Losses on a batch: logits (B, K), features (B, D), the head's weight (K, D), targets (B,) indices or (B, K) weights.

All share one signature, so that a YAML picks among them; each uses what it needs. All are means over the batch.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def one_hot(targets: Tensor, num_classes: int) -> Tensor:
    """Class indices (B,) or class weights (B, K) -> class weights (B, K), in float32."""
    return (targets if targets.ndim == 2 else F.one_hot(targets, num_classes)).float()


def cross_entropy(
    logits: Tensor, features: Tensor, weight: Tensor, targets: Tensor, *, label_smoothing: float
) -> Tensor:
    """Cross-entropy; label smoothing in [0, 1] as in Szegedy et al. 2016 (0 is none)."""
    if not 0 <= label_smoothing <= 1:  # torch lets NaN through
        raise ValueError(f"loss.label_smoothing={label_smoothing}: a number in [0, 1] is needed")
    if targets.ndim == 2 and (targets < 0).any():
        raise ValueError("loss=cross_entropy: the labels are regression targets, no probabilities; use loss=mse")
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def mse(logits: Tensor, features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`1/2 ||W h + b - y||^2` with one-hot y (Han, Papyan & Donoho 2022, eq. 1)."""
    return 0.5 * (logits - one_hot(targets, logits.shape[1])).square().sum(1).mean()


def dot_regression(logits: Tensor, features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`1/2 (cos(h, w_y) - 1)^2` (Yang et al. 2022, arXiv 2203.09081, eq. 9, at unit norms); only directions count."""
    directions = one_hot(targets, len(weight)).to(weight) @ F.normalize(weight, dim=1)
    return 0.5 * (F.cosine_similarity(features, directions) - 1).square().mean()


def feature_penalty(features: Tensor) -> Tensor:
    """`1/2 sum_i ||h_i||^2` over the batch: the feature decay of Zhu et al. 2021 (eq. 3), as their code sums it.

    Of the features themselves: normalised ones, as in one published code, have a constant norm and no gradient.
    """
    return 0.5 * features.square().sum()


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Fraction right of a batch; of soft targets the largest weight counts as the label."""
    labels = targets.argmax(1) if targets.ndim == 2 else targets
    return (logits.argmax(1) == labels).to(torch.float32).mean()
