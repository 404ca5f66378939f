"""Out-of-distribution (OOD) data: NC5, NECO and the usual scores beside them, and how well a score detects.

Every score is high for in-distribution data. Features (N, D), logits (N, K); all arithmetic in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .geometry import unit_rows
from .layers import total_covariance
from .statistics import Moments, chunks


def ood_orthogonality(mean_KD: Tensor, mu_ood_D: Tensor) -> Tensor:
    """NC5, the mean of ``|cos(mu_k, mu_ood)|`` with raw, uncentred means (Ammar et al. 2024, NECO)."""
    return (unit_rows(mean_KD) @ (mu_ood_D / torch.linalg.vector_norm(mu_ood_D))).abs().mean()


def neco_defined(moments: Moments) -> bool:
    """Whether there are more dimensions than classes; else the principal space is all, and every score 1."""
    return int((moments.count_K > 0).sum()) < moments.mean_KD.shape[1]


def neco_basis(moments: Moments, components: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), std (D,) and leading PCA directions (D, components) of standardised in-distribution features.

    ``components`` is the number of classes by default. A constant feature keeps its scale, as in scikit-learn.
    ValueError unless 1 <= components < D: in as many directions as there are, every sample lies wholly.
    """
    components = int((moments.count_K > 0).sum()) if components is None else components
    D = moments.mean_KD.shape[1]
    if not 1 <= components < D:
        raise ValueError(f"neco_components={components}: choose from 1 to {D - 1} for features of dimension {D}")
    mean, total = total_covariance(moments)
    std = total.diagonal().sqrt()
    std = torch.where(std > 0, std, 1.0)
    _, directions = torch.linalg.eigh(total / std[:, None] / std)
    return mean, std, directions.flip(1)[:, :components]


def neco_scores(features_ND: Tensor, basis: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """``||P h||/||h||`` of the standardised features h; in-distribution data score high (Ammar et al. 2024)."""
    mean, std, directions = basis
    scores = []
    for (x,) in chunks(features_ND):
        h = (x.double() - mean) / std
        scores.append(torch.linalg.vector_norm(h @ directions, dim=1) / torch.linalg.vector_norm(h, dim=1))
    return torch.cat(scores)


def max_softmax(logits_NK: Tensor) -> Tensor:
    """MSP, the logarithm of the largest softmax probability (Hendrycks & Gimpel 2017), (N,).

    The logarithm ranks the same, and keeps apart the probabilities that round to 1.
    """
    logits = logits_NK.double()
    top = logits.max(dim=1, keepdim=True)
    others = torch.exp(logits - top.values).scatter(1, top.indices, 0.0)
    return -torch.log1p(others.sum(dim=1))


def max_logit(logits_NK: Tensor) -> Tensor:
    """The largest logit (Hendrycks et al. 2022), (N,)."""
    return logits_NK.double().amax(dim=1)


def energy(logits_NK: Tensor, temperature: float = 1.0) -> Tensor:
    """The negative free energy ``T logsumexp(logits / T)`` (Liu et al. 2020), (N,)."""
    return temperature * torch.logsumexp(logits_NK.double() / temperature, dim=1)


def mahalanobis_basis(moments: Moments) -> tuple[Tensor, Tensor]:
    """Whitening W (D, R) of the tied covariance, ``W W'`` its pseudo-inverse, and the whitened class means (K, R).

    The covariance is that of all samples about their class means, divided by N (Lee et al. 2018); eigenvalues below
    ``D eps`` times the largest count as zero, so that directions in which no training sample varies are not looked at.
    """
    assert moments.scatter_DD is not None
    eigenvalue, vector = torch.linalg.eigh(moments.scatter_DD / moments.total)
    kept = eigenvalue > len(vector) * torch.finfo(torch.float64).eps * eigenvalue[-1]
    whiten = vector[:, kept] / eigenvalue[kept].sqrt()
    return whiten, moments.mean_KD[moments.count_K > 0] @ whiten


def mahalanobis(features_ND: Tensor, basis: tuple[Tensor, Tensor]) -> Tensor:
    """``-min_k (x - mu_k)' S^+ (x - mu_k)`` (Lee et al. 2018; last layer only, no input perturbation), (N,)."""
    whiten, mean_KR = basis
    exact = "donot_use_mm_for_euclid_dist"
    nearest = [
        torch.cdist(x.double() @ whiten, mean_KR, compute_mode=exact).amin(dim=1) for (x,) in chunks(features_ND)
    ]
    return -torch.cat(nearest).square()


class Virtual(NamedTuple):
    """ViM's virtual logit is ``alpha ||(x - origin) residual||``: origin (D,), residual (D, D - P), alpha."""

    origin: Tensor
    residual: Tensor
    alpha: Tensor


def vim_dimension(num_features: int, rank: int) -> int:
    """Dimension P of ViM's principal space: 1000 from 2048 features on, else 512, as in the authors' code.

    Where the training features span no more than that, nothing would be left: then half of what they span.
    """
    published = 1000 if num_features >= 2048 else 512
    return published if rank > published else rank // 2


def vim_basis(
    features_ND: Tensor, logits_NK: Tensor, weight_KD: Tensor, bias_K: Tensor | None, dimension: int | None = None
) -> Virtual:
    """ViM fitted on training features and their logits (Wang et al. 2022, section 4).

    origin: ``-W^+ b``, where all logits are 0. residual: orthonormal directions of least second moment about the
    origin, all but the leading ``dimension`` (None: :func:`vim_dimension`). alpha: mean of the largest logits over
    mean of the residual norms, so that the virtual logit is of the size of the others.
    """
    weight = weight_KD.detach().double()
    bias = weight.new_zeros(len(weight)) if bias_K is None else bias_K.detach().double()
    origin = -torch.linalg.pinv(weight) @ bias
    second = weight.new_zeros(weight.shape[1], weight.shape[1])
    for (x,) in chunks(features_ND):
        z = x.double() - origin
        second += z.T @ z
    eigenvalue, vector = torch.linalg.eigh(second)
    if dimension is None:
        rank = int((eigenvalue > len(vector) * torch.finfo(torch.float64).eps * eigenvalue[-1]).sum())
        dimension = vim_dimension(len(vector), rank)
    if not 0 < dimension < len(vector):
        raise ValueError(f"dimension={dimension}: choose from 1 to {len(vector) - 1}, of {len(vector)} features")
    residual = vector[:, : len(vector) - dimension]  # ascending
    size = _residual_norms(features_ND, origin, residual).mean()
    return Virtual(origin, residual, logits_NK.double().amax(dim=1).mean() / size)


def vim(features_ND: Tensor, logits_NK: Tensor, basis: Virtual) -> Tensor:
    """``logsumexp(logits) - virtual logit`` (Wang et al. 2022), (N,); ranks as one minus the virtual probability."""
    return energy(logits_NK) - basis.alpha * _residual_norms(features_ND, basis.origin, basis.residual)


def _residual_norms(features_ND: Tensor, origin_D: Tensor, residual_DR: Tensor) -> Tensor:
    norms = [torch.linalg.vector_norm((x.double() - origin_D) @ residual_DR, dim=1) for (x,) in chunks(features_ND)]
    return torch.cat(norms)


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
