"""What a distilled set S is asked to do with the features of real images T: the objectives of `method=joint`.

Neural Collapse says what a trained network keeps of a class: its mean, the means at the vertices of a simplex ETF, and
the decision of the nearest mean (Papyan, Han & Donoho 2020). Each objective asks S to bring about one of these.

Pure functions of features: h_T (B, D) of T, without a graph, and h_S (n, D) of S; K classes. Labels of S are weights
(n, K), one-hot or soft; those of T are classes (B,). Distances are in units of `spread(mu_T)`, so that nothing
depends on the scale of the features, which differs between networks and grows while one trains.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ncdd.kernels import ridge


def weighted_means(features_nD: Tensor, weights_nK: Tensor) -> Tensor:
    """(K, D): the mean of each class, `sum_i w_ic h_i / sum_i w_ic`."""
    return weights_nK.T @ features_nD / weights_nK.sum(0)[:, None]


def spread(means_KD: Tensor) -> Tensor:
    """`mean_c ||mu_c - mu||^2`, the trace of the between-class covariance; the unit of the squared distances here."""
    return (means_KD - means_KD.mean(0)).square().sum(1).mean()


def mean_matching(real_KD: Tensor, synthetic_KD: Tensor) -> Tensor:
    """`1/(K s) sum_c ||mu_T,c - mu_S,c||^2` with s the spread of the real means.

    DM's loss (Zhao & Bilen 2023, arXiv 2110.04181) up to the factor 1/(K s).
    """
    return (real_KD - synthetic_KD).square().sum(1).mean() / spread(real_KD)


def nearest_mean(
    features_BD: Tensor, labels_B: Tensor, means_KD: Tensor, *, unit: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy of `softmax_c(-temperature ||h - mu_c||^2 / unit)`: the nearest class mean as a classifier.

    The decision rule of a collapsed network (NC4). With the means of S and the features of T it asks that S
    classifies T in feature space, as prototypes do (Snell, Swersky & Zemel 2017, arXiv 1703.05175).
    """
    squared_BK = _squared_distances(features_BD, means_KD)
    return F.cross_entropy(-temperature / unit * squared_BK, labels_B)


def _squared_distances(a_BD: Tensor, b_KD: Tensor) -> Tensor:
    """(B, K); by differences of norms around a common point, whose rounding is that of the spread, not of the means."""
    centre = b_KD.detach().mean(0)
    a_BD, b_KD = a_BD - centre, b_KD - centre
    return a_BD.square().sum(1)[:, None] - 2 * a_BD @ b_KD.T + b_KD.square().sum(1)


def etf_alignment(features_nD: Tensor, weights_nK: Tensor, head_KD: Tensor) -> Tensor:
    """`1/2 (cos(h, e_y) - 1)^2`, the mean over S: dot regression onto the head's rows (Yang et al. 2022, eq. 9)."""
    vertices_nD = weights_nK @ F.normalize(head_KD, dim=1)
    return 0.5 * (F.cosine_similarity(features_nD, vertices_nD) - 1).square().mean()


def covariance_matching(real_BD: Tensor, real_nK: Tensor, synthetic_nD: Tensor, weights_nK: Tensor) -> Tensor:
    """`||Sw_T - Sw_S||_F^2 / tr(Sw_T)^2` of the within-class covariances, without a D x D matrix.

    `||A'A/a - B'B/b||^2` of centred features is the sum of three Gram matrices' squares. It needs several images a
    class: one has no covariance.
    """
    real_BD = _centred(real_BD, real_nK)
    synthetic_nD = _centred(synthetic_nD, weights_nK)
    a, b = len(real_BD), len(synthetic_nD)
    square = (
        (real_BD @ real_BD.T).square().sum() / a**2
        - 2 * (real_BD @ synthetic_nD.T).square().sum() / (a * b)
        + (synthetic_nD @ synthetic_nD.T).square().sum() / b**2
    )
    return square / (real_BD.square().sum() / a).square()


def _centred(features_BD: Tensor, weights_BK: Tensor) -> Tensor:
    return features_BD - weights_BK @ weighted_means(features_BD, weights_BK)


def ridge_predictions(features_BD: Tensor, synthetic_nD: Tensor, weights_nK: Tensor, *, reg: float) -> Tensor:
    """(B, K): kernel ridge regression from the features of S to its centred labels `y - 1/K`, evaluated on T.

    The centred labels are the vertices of a simplex ETF in R^K, up to scale: regression onto the rows of any ETF head
    gives the same predictions, rotated. reg is relative to the mean of the kernel's diagonal.
    """
    kernel = synthetic_nD @ synthetic_nD.T
    targets = weights_nK - 1 / weights_nK.shape[1]
    return features_BD @ (synthetic_nD.T @ ridge(kernel, targets, reg=reg))
