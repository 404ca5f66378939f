"""NC5 and NECO: collapsed features keep out-of-distribution data orthogonal to the class means."""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import unit_rows
from .statistics import Moments, chunks
from .variability import global_mean


def ood_orthogonality(mean_KD: Tensor, mu_ood_D: Tensor) -> Tensor:
    """NC5, the mean of ``|cos(mu_k, mu_ood)|`` with raw, uncentred means (Ammar et al. 2024, NECO)."""
    return (unit_rows(mean_KD) @ (mu_ood_D / torch.linalg.vector_norm(mu_ood_D))).abs().mean()


def neco_basis(moments: Moments, components: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), std (D,) and leading PCA directions (D, components) of standardised in-distribution features.

    ``components`` is the number of classes by default. A constant feature keeps its scale, as in scikit-learn.
    """
    assert moments.scatter_DD is not None
    mean = global_mean(moments, "sample")
    about = moments.mean_KD - mean
    total = (moments.scatter_DD + about.T @ (moments.count_K[:, None] * about)) / moments.total
    std = total.diagonal().sqrt()
    std = torch.where(std > 0, std, 1.0)
    _, directions = torch.linalg.eigh(total / std[:, None] / std)
    return mean, std, directions.flip(1)[:, : components or int((moments.count_K > 0).sum())]


def neco_scores(features_ND: Tensor, basis: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """``||P h||/||h||`` of the standardised features h; in-distribution data score high (Ammar et al. 2024)."""
    mean, std, directions = basis
    scores = []
    for (x,) in chunks(features_ND):
        h = (x.double() - mean) / std
        scores.append(torch.linalg.vector_norm(h @ directions, dim=1) / torch.linalg.vector_norm(h, dim=1))
    return torch.cat(scores)


def auroc(inside_N: Tensor, outside_M: Tensor) -> Tensor:
    """Probability that an in-distribution score exceeds an out-of-distribution one, ties counting half."""
    ranked = outside_M.sort().values
    below = torch.searchsorted(ranked, inside_N, right=False)
    ties = torch.searchsorted(ranked, inside_N, right=True) - below
    return (below + 0.5 * ties.double()).mean() / len(ranked)


def fpr95(inside_N: Tensor, outside_M: Tensor) -> Tensor:
    """Share of out-of-distribution scores at or above the threshold that accepts 95% of the in-distribution ones."""
    accepted = -(-95 * len(inside_N) // 100)
    threshold = inside_N.sort(descending=True).values[accepted - 1]
    return (outside_M >= threshold).double().mean()


def detection(inside_N: Tensor, outside_M: Tensor) -> dict[str, float]:
    return {"neco_auroc": float(auroc(inside_N, outside_M)), "neco_fpr95": float(fpr95(inside_N, outside_M))}
