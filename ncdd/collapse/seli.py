"""SELI, simplex-encoded-labels interpolation: what means and classifier collapse to when classes differ in size.

Thrampoulidis, Kini, Vakilian & Behnia 2022, "Imbalance Trouble: Revisiting Neural-Collapse Geometry" (Definition 2,
Theorem 1): the global minimiser of the unconstrained-features SVM, hence the limit of cross-entropy with vanishing
decay. It is the simplex ETF if and only if the classes are of one size.
"""

from __future__ import annotations

import torch
from torch import Tensor

# one eigendecomposition of this size takes a fraction of a second
MOST_CLASSES = 1024


def seli_grams(count_K: Tensor) -> tuple[Tensor, Tensor]:
    """``W W'`` (K, K) and the class means' ``H H'`` (K, K) of the SELI geometry, for classes of ``count_K`` samples.

    Of the simplex-encoded labels ``Z = (I - 11'/K) Y = V S U'`` (K, N), ``W W' = V S V'`` and ``H H' = U S U'``, where
    ``W H'`` is the simplex ``I - 11'/K`` itself. The K x N matrix is never made: its columns repeat, so that
    ``B = (I - 11'/K) diag(n)^(1/2)`` has the same V and S, and one sample's row of U is ``n_k^(-1/2)`` of B's.
    float64, on the device of ``count_K``; means are about the origin of the theory, not about their mean. Scale is that
    of equal decays of W and H; cosines and normalised errors do not depend on it.
    """
    K, root_K = len(count_K), count_K.double().sqrt()
    B_KK = -root_K.expand(K, K) / K
    B_KK = B_KK + root_K.diag()
    square, V_KK = torch.linalg.eigh(B_KK @ B_KK.T)
    # the null direction is the ones vector's; dropped by position, as its eigenvalue is rounding
    singular, V_KK = square[1:].sqrt(), V_KK[:, 1:]
    U_KK = B_KK.T @ V_KK / singular / root_K[:, None]
    return (V_KK * singular) @ V_KK.T, (U_KK * singular) @ U_KK.T


def centred_gram(gram_KK: Tensor, weight_K: Tensor) -> Tensor:
    """``(I - 1p') G (I - p1')``: the Gram matrix of the same vectors about their mean of weights p, (K, K)."""
    mean_K = gram_KK @ weight_K
    return gram_KK - mean_K - mean_K[:, None] + weight_K @ mean_K


def gram_distance(gram_KK: Tensor, reference_KK: Tensor) -> Tensor:
    """``|| G/||G||_F - R/||R||_F ||_F``; with the simplex as R it is :func:`~ncdd.collapse.geometry.etf_error`."""
    return torch.linalg.matrix_norm(
        gram_KK / torch.linalg.matrix_norm(gram_KK) - reference_KK / torch.linalg.matrix_norm(reference_KK)
    )


def seli_errors(
    count_K: Tensor, gram_M_KK: Tensor, gram_W_KK: Tensor | None, centre_weight_K: Tensor
) -> dict[str, Tensor]:
    """Distances of the centred means' and of the classifier's Gram matrix from the SELI geometry.

    ``nc2_seli_M`` compares with the SELI means about their mean of the same weights ``centre_weight_K`` as M's, so that
    an offset common to all features changes nothing. With classes of one size both are ``nc2_etf_*``. The third of the
    family, of ``W M'``, is ``nc3_dual_etf``: under SELI too that product is the simplex.
    """
    reference_W, reference_H = seli_grams(count_K)
    errors = {"nc2_seli_M": gram_distance(gram_M_KK, centred_gram(reference_H, centre_weight_K))}
    if gram_W_KK is not None:
        errors["nc2_seli_W"] = gram_distance(gram_W_KK, reference_W)
    return errors
