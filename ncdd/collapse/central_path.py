"""The MSE loss split along the central path (Han, Papyan & Donoho 2022, "Neural Collapse Under MSE Loss")."""

from __future__ import annotations

import torch
from torch import Tensor

from .statistics import Moments
from .variability import class_weights, global_mean


def central_path(moments: Moments, weight_KD: Tensor, bias_K: Tensor) -> dict[str, Tensor]:
    """Three parts of ``1/(2N) sum_i ||W h_i + b - y_i||^2``, y one-hot, from class statistics alone.

    With (W*, b*) the least-squares classifier of these features (Han et al., Proposition 1 and Theorems 2 and 3, at
    weight decay 0, the features extended by a constant 1, so that a head without bias is one with b = 0):

    - ``mse_nc1``   ``1/2 tr(W* Sw W*')``, what within-class variation costs even the best classifier;
    - ``mse_nc23``  ``1/2 sum_k (n_k/N) ||W* mu_k + b* - e_k||^2``, what the geometry of the class means costs it;
    - ``mse_perp``  ``1/(2N) sum_i ||(W - W*) h_i + (b - b*)||^2``, the distance from the central path, where W = W*.

    They sum to the loss (of the classes that have samples). Han et al. average over classes of one size; here classes
    count by their samples. W* is taken from a factor of the total scatter, never from its inverse, so that it exists
    for any rank and keeps its digits at collapse. Needs ``moments.scatter_DD``.
    O(D^3 + K D^2) work and O((D + K) D) memory.
    """
    assert moments.scatter_DD is not None
    share_K = class_weights(moments, "sample")
    root_K = share_K.sqrt()
    # the optimal intercept, b* = p - W* m, centres both sides
    centre_D = global_mean(moments, "sample")
    target_KK = torch.diag(root_K) - root_K[:, None] * share_K
    offset_K = weight_KD @ centre_D + bias_K - share_K
    eigenvalue_D, basis_DD = torch.linalg.eigh(moments.scatter_DD / moments.total)
    # what rounding left of exact zeros (dead units, fewer samples than dimensions) is not variation
    noise = len(eigenvalue_D) * torch.finfo(torch.float64).eps * eigenvalue_D[-1]
    spread_D = torch.where(eigenvalue_D > noise, eigenvalue_D, 0.0).sqrt()
    means_KD = root_K[:, None] * ((moments.mean_KD - centre_D) @ basis_DD)
    # ||factor v||^2 is the mean of (v.h)^2: samples within their classes, then class means
    factor = torch.cat((spread_D.diag(), means_KD))
    best_DK = torch.linalg.pinv(factor)[:, len(spread_D) :] @ target_KK
    perp = (factor @ ((weight_KD @ basis_DD).T - best_DK)).square().sum()
    return {
        "mse_nc1": 0.5 * (spread_D[:, None] * best_DK).square().sum(),
        "mse_nc23": 0.5 * (means_KD @ best_DK - target_KK).square().sum(),
        "mse_perp": 0.5 * (perp + offset_K.square().sum()),
    }
