"""NC3: the classifier's rows align with the centred class means. W_KD and M_KD (means about their centre)."""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import unit_rows


def self_duality_distance(W_KD: Tensor, M_KD: Tensor) -> Tensor:
    """``|| W/||W||_F - M/||M||_F ||_F^2`` (Papyan, Han & Donoho 2020, fig. 5)."""
    return (W_KD / torch.linalg.matrix_norm(W_KD) - M_KD / torch.linalg.matrix_norm(M_KD)).square().sum()


def one_minus_cosines(W_KD: Tensor, M_KD: Tensor) -> Tensor:
    """``1 - cos(w_k, m_k)`` of every class as ``||u - v||^2/2``: no cancellation when they align, (K,)."""
    return (unit_rows(W_KD) - unit_rows(M_KD)).square().sum(dim=1) / 2


def alignment(W_KD: Tensor, M_KD: Tensor, ddof: int = 0) -> dict[str, Tensor]:
    """Cosines class by class and their uniformity, UNC3 (Wu & Papyan 2024): std and CV of the cosines, var of dots.

    ``nc3_unit_dist_mean`` and ``nc3u_dot_var__ddof1`` are what rhubarbwu/neural-collapse reports.
    """
    omc = one_minus_cosines(W_KD, M_KD)
    cosine = (unit_rows(W_KD) * unit_rows(M_KD)).sum(dim=1)
    std = omc.std(correction=ddof)  # that of the cosines, with all its digits
    return {
        "nc3_cos_mean": cosine.mean(),
        "nc3_cos_min": cosine.min(),
        "nc3_one_minus_cos_mean": omc.mean(),
        "nc3u_cos_std": std,
        "nc3u_cos_cv": std / cosine.mean(),
        "nc3_unit_dist_mean": (2 * omc).sqrt().mean(),
        "nc3u_dot_var__ddof1": (W_KD * M_KD).sum(dim=1).var(correction=1),
    }


def centre_logits_norm(W_KD: Tensor, b_K: Tensor, centre_D: Tensor) -> Tensor:
    """``||W m + b||_2`` with m the global mean: what tding1/Neural-Collapse (Zhu 2021) calls NC4.

    It says whether the bias cancels the global mean; it is not the agreement of the head with the nearest mean.
    """
    return torch.linalg.vector_norm(W_KD @ centre_D + b_K)
