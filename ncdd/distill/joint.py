"""What a distilled set S is asked to do with the features of real images T: the objectives of `method=joint`.

Neural Collapse says what a trained network keeps of a class: its mean, the means at the vertices of a simplex ETF, and
the decision of the nearest mean (Papyan, Han & Donoho 2020). Each objective asks S to bring about one of these.

Pure functions of features: h_T (B, D) of T, which are constants, and h_S (n, D) of S; K classes. T has classes (B,), S
has weights of the classes (n, K), one-hot or soft. Squared distances are divided by `spread(mu_T)`, so that nothing
depends on the scale of the features, which differs between networks and grows while one trains.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ncdd.distill import unrolled
from ncdd.distill.frepo import half_squared_error, ridge_weights
from ncdd.distill.matching import class_means
from ncdd.distill.regression import centred

# ---------------------------------------------------------------- objectives: (h_T, classes, h_S, weights) -> loss


def means(real_BD: Tensor, classes_B: Tensor, set_nD: Tensor, weights_nK: Tensor) -> Tensor:
    """`mean_matching` of the class means of T and S."""
    return mean_matching(class_means(real_BD, classes_B, weights_nK.shape[1]), weighted_means(set_nD, weights_nK))


def ncc(real_BD: Tensor, classes_B: Tensor, set_nD: Tensor, weights_nK: Tensor, *, temperature: float) -> Tensor:
    """`mean_matching`, plus `nearest_mean` of T to the class means of S."""
    real_KD = class_means(real_BD, classes_B, weights_nK.shape[1])
    set_KD = weighted_means(set_nD, weights_nK)
    decided = nearest_mean(real_BD, classes_B, set_KD, unit=spread(real_KD), temperature=temperature)
    return mean_matching(real_KD, set_KD) + decided


def krr_etf(real_BD: Tensor, classes_B: Tensor, set_nD: Tensor, weights_nK: Tensor, *, reg: float) -> Tensor:
    """Half the squared error on T of ridge regression from S, with centred labels (reg: as in `ncdd.kernels.ridge`).

    Centred labels `y - 1/K` are the vertices of a simplex ETF in R^K, up to scale: regression onto the rows of an ETF
    head makes the same errors, whatever its rotation. It is FRePo's loss (Zhou et al. 2022) with such labels.
    """
    num_classes = weights_nK.shape[1]
    solution = ridge_weights(set_nD, weights_nK - 1 / num_classes, reg)
    return half_squared_error(F.linear(real_BD, solution), centred(classes_B, num_classes, solution.dtype))


def unroll(
    network: nn.Module,
    real: Tensor,
    classes_B: Tensor,
    images: Tensor,
    weights_nK: Tensor,
    *,
    steps: int,
    step_size: float,
) -> Tensor:
    """Cross-entropy on T of `network` after `steps` of gradient descent on S (Wang et al. 2018), from where it is."""
    apply = unrolled.functional(network)
    order = unrolled.repeated_order(len(images), 1, steps)
    descent = unrolled.Steps(images, weights_nK, order, images.new_full((steps,), step_size))
    trained = unrolled.train(unrolled.inner_loss(apply), unrolled.weights_of(network), descent)
    return F.cross_entropy(apply(trained, real), classes_B)


# ---------------------------------------------------------------- their parts, and further terms


def weighted_means(features_nD: Tensor, weights_nK: Tensor) -> Tensor:
    """(K, D): the mean of each class, `sum_i w_ic h_i / sum_i w_ic`."""
    return weights_nK.T @ features_nD / weights_nK.sum(0)[:, None]


def spread(means_KD: Tensor) -> Tensor:
    """`mean_c ||mu_c - mu||^2`, the trace of the between-class covariance."""
    return (means_KD - means_KD.mean(0)).square().sum(1).mean()


def mean_matching(real_KD: Tensor, set_KD: Tensor) -> Tensor:
    """`1/(K s) sum_c ||mu_T,c - mu_S,c||^2`: DM's loss (Zhao & Bilen 2023, arXiv 2110.04181) up to the factor."""
    return (real_KD - set_KD).square().sum(1).mean() / spread(real_KD)


def nearest_mean(
    features_BD: Tensor, classes_B: Tensor, means_KD: Tensor, *, unit: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy of `softmax_c(-temperature ||h - mu_c||^2 / unit)`, the nearest class mean as a classifier.

    The decision rule of a collapsed network (NC4), as prototypical networks train it (Snell, Swersky & Zemel 2017,
    arXiv 1703.05175). With the means of S and the features of T it asks that S classifies T.
    """
    return F.cross_entropy(-temperature / unit * squared_distances(features_BD, means_KD), classes_B)


def squared_distances(features_BD: Tensor, means_KD: Tensor) -> Tensor:
    """(B, K); taken around a common point, so that rounding is relative to the spread and not to the offset."""
    centre_D = means_KD.detach().mean(0)
    h_BD, mu_KD = features_BD - centre_D, means_KD - centre_D
    return h_BD.square().sum(1)[:, None] - 2 * h_BD @ mu_KD.T + mu_KD.square().sum(1)


def etf_alignment(set_nD: Tensor, weights_nK: Tensor, head_KD: Tensor) -> Tensor:
    """`1/2 (cos(h, e_y) - 1)^2`, a mean over S: dot regression to the head's rows (Yang et al. 2022, eq. 9)."""
    vertices_nD = weights_nK @ F.normalize(head_KD, dim=1)
    return 0.5 * (F.cosine_similarity(set_nD, vertices_nD) - 1).square().mean()


def covariance_matching(real_BD: Tensor, classes_B: Tensor, set_nD: Tensor, weights_nK: Tensor) -> Tensor:
    """`||Sw_T - Sw_S||_F^2 / tr(Sw_T)^2` of the within-class covariances, from Gram matrices: no D x D one is made.

    It needs several images a class: of one there is no covariance to match.
    """
    onehot_BK = F.one_hot(classes_B, weights_nK.shape[1]).to(real_BD.dtype)
    real_BD = (real_BD - onehot_BK @ weighted_means(real_BD, onehot_BK)) / len(real_BD) ** 0.5
    set_nD = (set_nD - weights_nK @ weighted_means(set_nD, weights_nK)) / len(set_nD) ** 0.5
    grams = (real_BD @ real_BD.T, real_BD @ set_nD.T, set_nD @ set_nD.T)
    own, cross, other = (gram.square().sum() for gram in grams)
    return (own - 2 * cross + other) / real_BD.square().sum().square()
