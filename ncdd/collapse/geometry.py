"""NC2: the class means (or the classifier's rows) form a simplex ETF; GNC2: they are spread uniformly on the sphere.

``A_KD`` holds one vector a row: class means about their centre, or the weight. A Gram matrix ``A A'`` that is already
there can be passed instead of being computed again.
"""

from __future__ import annotations

import torch
from torch import Tensor

# up to here pairs are compared by explicit differences; beyond it by the Gram matrix wherever that does not cancel
EXPLICIT_PAIRS = 256


def etf_error(gram_KK: Tensor) -> Tensor:
    """``|| G/||G||_F - (I - 11'/K)/sqrt(K-1) ||_F`` of a Gram matrix G.

    ``A A'`` for NC2 (Zhu et al. 2021, "A Geometric Analysis of Neural Collapse"; Kothapalli 2023) and
    ``W M'`` for NC3. tding1/Neural-Collapse computes it of W; rhubarbwu/neural-collapse of M and W.
    """
    K = len(gram_KK)
    difference = gram_KK / torch.linalg.matrix_norm(gram_KK) + (K * (K - 1) ** 0.5) ** -1
    difference.diagonal().sub_((K - 1) ** -0.5)
    return torch.linalg.matrix_norm(difference)


def equinorm(A_KD: Tensor, ddof: int = 0) -> Tensor:
    """Coefficient of variation of the norms, std/mean (Papyan, Han & Donoho 2020, fig. 2)."""
    norms = torch.linalg.vector_norm(A_KD, dim=1)
    return norms.std(correction=ddof) / norms.mean()


def cosines(A_KD: Tensor, gram_KK: Tensor | None = None) -> Tensor:
    """All pairwise cosines, (K, K)."""
    if gram_KK is None:
        unit = unit_rows(A_KD)
        return unit @ unit.T
    inverse = torch.linalg.vector_norm(A_KD, dim=1).reciprocal()
    return gram_KK * inverse[:, None] * inverse


def equiangularity(cosine_KK: Tensor, ddof: int = 0) -> tuple[Tensor, Tensor]:
    """Std of the cosines and mean ``|cos + 1/(K-1)|`` over c != c' (Papyan 2020, figs. 3 and 4)."""
    K = len(cosine_KK)
    off = off_diagonal(cosine_KK)
    return off.std(correction=ddof), (off + 1.0 / (K - 1)).abs().mean()


def off_diagonal(matrix_KK: Tensor) -> Tensor:
    """The K(K-1) entries off the diagonal: each run of K+1 after the first entry holds K of them."""
    K = len(matrix_KK)
    return matrix_KK.flatten()[1:].view(K - 1, K + 1)[:, :-1].flatten()


def unit_rows(A_KD: Tensor) -> Tensor:
    return A_KD / torch.linalg.vector_norm(A_KD, dim=1, keepdim=True)


def upper(matrix_KK: Tensor) -> Tensor:
    """Entries i < j, (K(K-1)/2,)."""
    i, j = _pairs(matrix_KK)
    return matrix_KK[i, j]


def _pairs(matrix_KK: Tensor) -> Tensor:
    return torch.triu_indices(len(matrix_KK), len(matrix_KK), offset=1, device=matrix_KK.device)


def distance_matrix(A_KD: Tensor, gram_KK: Tensor | None = None) -> Tensor:
    """Euclidean distances between rows, (K, K)."""
    if gram_KK is None or len(A_KD) <= EXPLICIT_PAIRS:
        distance = A_KD.new_zeros(len(A_KD), len(A_KD))
        i, j = _pairs(distance)
        distance[i, j] = distance[j, i] = torch.pdist(A_KD)
        return distance
    square = gram_KK.diagonal()
    sums = square[:, None] + square
    distance2 = sums - 2 * gram_KK
    # where a pair is close for its norms the subtraction above loses digits: those few by explicit differences
    i, j = (distance2 < 1e-3 * sums).nonzero(as_tuple=True)
    for a, b in zip(i.split(4096), j.split(4096), strict=True):
        distance2[a, b] = (A_KD[a] - A_KD[b]).square().sum(dim=1)
    return distance2.sqrt()


def uniformity(distance_P: Tensor, exponent: float, ddof: int = 0) -> dict[str, Tensor]:
    """Hyperspherical uniformity from the distances of unit vectors over i < j.

    Mean and variance of the distance, of its energy ``-log d`` (with its coefficient of variation), and of the Riesz
    energy ``d^-s`` (Liu et al. 2023, "Generalizing and Decoupling Hyperspherical Uniformity"; Wu & Papyan
    2024, GNC2). s = D-2 in the papers, far beyond the range of a float, so its mean is also given as a logarithm.
    """
    log = -distance_P.log()
    log_mean = torch.logsumexp(exponent * log, dim=0) - torch.log(torch.tensor(len(log), dtype=log.dtype))
    return {
        "nc2g_dist_mean": distance_P.mean(),
        "nc2g_dist_var": distance_P.var(correction=ddof),
        "nc2g_log_mean": log.mean(),
        "nc2g_log_var": log.var(correction=ddof),
        "nc2g_log_cv": log.std(correction=ddof) / log.mean().abs(),
        "nc2g_riesz_logmean": log_mean,
        "nc2g_riesz_mean": log_mean.exp(),
        "nc2g_riesz_var": (exponent * log).exp().var(correction=ddof),
        "nc2g_riesz_s1_mean": distance_P.reciprocal().mean(),
    }
