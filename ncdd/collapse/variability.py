"""NC1: features collapse to their class means. Functions of statistics, not of samples.

Conventions. ``within`` weights Sw by samples or by classes (each class 1/K), ``centre`` is the global mean Sb is taken
about, ``between`` weights the classes in Sb. The published codes are the suffixes of the keys:

========================  =======  ========  =========  ===========================================================
key                       within   centre    between    reproduced by it
========================  =======  ========  =========  ===========================================================
``nc1_*``                 sample   balanced  balanced   rhubarbwu/neural-collapse (divided by K)
``nc1_*__centre_sample``  sample   sample    balanced   tding1/Neural-Collapse, Zhu et al. 2021 (divided by K)
``nc1_*__all_sample``     sample   sample    sample     textbook covariances; Papyan's and Han's notebooks on
                                                        balanced data, with ``scale_by_K=False``
``nc1_*__all_balanced``   balanced balanced  balanced   class-balanced averages throughout
========================  =======  ========  =========  ===========================================================
"""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import upper
from .statistics import Moments
from .sweep import Frame, row_svd

# suffix of the key: (within, centre, between)
CONVENTIONS = {
    "": ("sample", "balanced", "balanced"),
    "__centre_sample": ("sample", "sample", "balanced"),
    "__all_sample": ("sample", "sample", "sample"),
    "__all_balanced": ("balanced", "balanced", "balanced"),
}


def class_weights(moments: Moments, weighting: str) -> Tensor:
    """Weights of the classes in a mean over classes or over samples, (K,), summing to one."""
    count = moments.count_K.double()
    return count / count.sum() if weighting == "sample" else torch.full_like(count, 1.0 / len(count))


def global_mean(moments: Moments, weighting: str) -> Tensor:
    """The mean of the class means ("balanced") or of the samples ("sample"), (D,)."""
    # about the balanced mean, so that equal counts give equal centres whatever the offset
    balanced = moments.mean_KD.mean(dim=0)
    if weighting == "balanced":
        return balanced
    return balanced + class_weights(moments, "sample") @ (moments.mean_KD - balanced)


def class_variances(moments: Moments) -> Tensor:
    """``v_k``, the mean squared distance to the class mean (ddof 0), (K,)."""
    return moments.square_K / moments.count_K


def variability_quotient(moments: Moments, within: str, centre: str, between: str) -> Tensor:
    """``tr Sw / tr Sb`` (Tirer, Huang & Niles-Weed 2023)."""
    distance2_K = (moments.mean_KD - global_mean(moments, centre)).square().sum(dim=1)
    return class_weights(moments, within) @ class_variances(moments) / (class_weights(moments, between) @ distance2_K)


def variability_traces(
    moments: Moments, frame: Frame, share_K: Tensor | None, whitened_RR: Tensor | None
) -> dict[str, Tensor]:
    """``tr(Sw Sb^+)`` for every suffix of CONVENTIONS, not divided by K (Papyan, Han & Donoho 2020).

    ``sum_r v_r' Sw v_r / s_r^2`` over the singular pairs of the means: no D x D pseudo-inverse. ``share_K`` are the
    per-class sums of ``z' Sb^+ z``, ``whitened_RR`` the sum of whitened ``zz'``; with equal counts either suffices.
    What cannot be told from the one given (class-balanced Sw without shares) is left out; NaN if all means coincide.
    """
    n = moments.total
    if not frame.rank:
        return dict.fromkeys(CONVENTIONS, moments.mean_KD.new_tensor(torch.nan))
    if share_K is not None:
        traces = {"": share_K.sum() / n}
    else:
        assert whitened_RR is not None
        traces = {"": whitened_RR.trace() / n}
    if moments.count_K.min() == moments.count_K.max():
        return dict.fromkeys(CONVENTIONS, traces[""])
    if share_K is not None:
        traces["__all_balanced"] = (share_K / moments.count_K).mean()
    assert whitened_RR is not None
    for suffix in ("__centre_sample", "__all_sample"):
        factor = between_factor(moments, frame, *CONVENTIONS[suffix][1:])
        # Sb^+ = V' R^-1 R^-T V, and V z = s * (whitened z)
        solved = torch.linalg.solve_triangular(factor.T, frame.singular_R.diag(), upper=False)
        traces[suffix] = (solved @ whitened_RR * solved).sum() / n
    return traces


def between_factor(moments: Moments, frame: Frame, centre: str, between: str) -> Tensor:
    """Triangular R (R, R) with ``Sb = V' R'R V`` for any centre and weights, V the frame's orthonormal directions."""
    shift_R = frame.directions @ (global_mean(moments, centre) - frame.mean_KD.mean(dim=0))
    rows_KR = class_weights(moments, between).sqrt()[:, None] * (frame.coords_KR / frame.singular_R - shift_R)
    return torch.linalg.qr(rows_KR, mode="r").R


def cdnv(moments: Moments, distance_KK: Tensor, exponent: int = 1) -> Tensor:
    """Class-distance normalised variance ``(v_i + v_j)/(2 d_ij^(2 exponent))`` for i < j (Galanti et al. 2021).

    Wu & Papyan 2024 (rhubarbwu's ``dist_exp``) also use exponent 2, which is not scale free.
    """
    variance = class_variances(moments)
    return upper(variance[:, None] + variance) / (2 * upper(distance_KK).square() ** exponent)


def directional_cdnv(count_K: Tensor, directional_K: Tensor) -> Tensor:
    """Mean over ordered pairs of ``u' S_i u / d_ij^2`` with u the unit vector from mean i to mean j.

    Only the variance along the line between two classes, which is what few-shot transfer depends on (Luthra, Yang &
    Galanti 2025). ``directional_K`` as in :class:`Sweep`.
    """
    K = len(count_K)
    return (directional_K / count_K).sum() / (K * (K - 1))


def collapse_index(moments: Moments, frame: Frame, centre: str = "balanced") -> Tensor:
    """VCI, ``1 - tr(St^+ Sb)/rank Sb`` with St = Sw + Sb (Xu & Liu 2023), Sb class-balanced.

    Where Sw is regular it is the mean of ``1/(1+l)`` over the nonzero eigenvalues l of ``C Sw^-1 C'``, which keeps all
    digits near collapse. Where it is not (fewer than D + K samples, dead units, dependent features) the definition
    itself is evaluated, the pseudo-inverse cutting eigenvalues of St below ``D eps`` times the largest; near collapse
    that is exact to an absolute 1e-12 only.
    """
    if not frame.rank:
        return frame.mean_KD.new_tensor(torch.nan)
    factor_RD = between_factor(moments, frame, centre, "balanced") @ frame.directions
    assert moments.scatter_DD is not None
    within = moments.scatter_DD / moments.total
    eps = len(within) * torch.finfo(torch.float64).eps
    lower, failed = torch.linalg.cholesky_ex(within)
    # the pivot over the variance is 1 - R^2 of a feature on those before it, at any scale of the features
    independent = (lower.diagonal().square() > eps * within.diagonal()).all()
    if moments.total - len(moments.count_K) >= len(within) and not failed and independent:
        ratio = row_svd(torch.linalg.solve_triangular(lower, factor_RD.T, upper=False).T)[1].square()
        return (1 / (1 + ratio)).mean()
    eigenvalue, vector = torch.linalg.eigh(within + factor_RD.T @ factor_RD)
    kept = eigenvalue > eps * eigenvalue[-1]
    projected = factor_RD @ vector[:, kept]
    return 1 - (projected.square().sum(dim=0) / eigenvalue[kept]).sum() / frame.rank
