"""What a hidden layer's features are worth: linear probe, numerical rank, stable rank. Functions of statistics.

Where a deep network only compresses what an earlier layer already separates, the probe's accuracy stays while the
rank falls: the tunnel of Masarczyk et al. 2023 (arXiv 2305.19753).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .statistics import Moments, chunks
from .variability import global_mean

RANK_TOLERANCE = 1e-3  # Masarczyk et al. 2023, section 2


def pooled(features: Tensor) -> Tensor:
    """(B, C, ...) -> (B, C), the mean over positions; of tokens (B, T, C) the mean over T."""
    if features.ndim == 2:
        return features
    return features.mean(dim=1) if features.ndim == 3 else features.flatten(2).mean(dim=2)


def total_covariance(moments: Moments) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of all samples, ddof 0."""
    assert moments.scatter_DD is not None
    mean = global_mean(moments, "sample")
    about = moments.mean_KD - mean
    return mean, (moments.scatter_DD + about.T @ (moments.count_K[:, None] * about)) / moments.total


def numerical_rank(covariance_DD: Tensor, tolerance: float = RANK_TOLERANCE) -> Tensor:
    """Number of singular values of the sample covariance above ``tolerance`` times the largest.

    Masarczyk et al. 2023 take 1e-3 of the covariance's singular values, that is 0.032 of those of the centred features.
    """
    singular = torch.linalg.eigvalsh(covariance_DD)
    return (singular > tolerance * singular[-1]).sum()


def stable_rank(covariance_DD: Tensor) -> Tensor:
    """``||X||_F^2 / ||X||_2^2`` of the centred features (Rudelson & Vershynin 2007): trace over largest eigenvalue."""
    return covariance_DD.trace() / torch.linalg.eigvalsh(covariance_DD)[-1]


def ridge_probe(moments: Moments, ridge: float) -> tuple[Tensor, Tensor]:
    """Linear probe, weight (K, D) and bias (K,), fitted to the samples behind ``moments``.

    Least squares on one-hot labels with ``n ridge ||V||^2`` on the weights V of standardised features (a constant
    feature keeps its scale), the bias free. In closed form from class means and covariance alone: exact, with no
    optimiser whose stopping would differ between layers, and one D x D solve whatever the number of samples.
    """
    mean, covariance = total_covariance(moments)
    std = covariance.diagonal().sqrt()
    std = torch.where(std > 0, std, 1.0)
    share = moments.count_K.double() / moments.total
    cross = (share[:, None] * (moments.mean_KD - mean) / std).T  # X'Y/n, both centred
    correlation = covariance / std[:, None] / std
    correlation.diagonal().add_(ridge)
    weight = torch.linalg.solve(correlation, cross).T / std
    return weight, share - weight @ mean


def linear_accuracy(features_ND: Tensor, labels_N: Tensor, weight_KD: Tensor, bias_K: Tensor) -> float:
    """Share of samples whose largest score ``x W' + b`` is that of their label."""
    hits = sum(
        int(((x.double() @ weight_KD.T + bias_K).argmax(dim=1) == y).sum()) for x, y in chunks(features_ND, labels_N)
    )
    return hits / len(labels_N)
