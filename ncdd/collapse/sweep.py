"""The pass over samples that needs the class means: NC1 shares, directional variance, decisions.

Deviations are projected on the K-1 directions the means span, so it costs n D K and never holds a D x D matrix
(unless the scatter is asked for). One projection feeds everything: whitened coordinates of ``z = x - mu_y`` give NC1,
and their products with the means give ``z.(mu_c - mu_y)``, hence exact nearest-mean decisions at any offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import distance_matrix
from .statistics import PRODUCT_DTYPE, Precision, add_gram, chunks, deviations, row_squares


@dataclass(frozen=True)
class Frame:
    """A set of class means and the whitened basis of the directions they span.

    mean_KD and centred_KD (about the mean of the means) in float64; gram_KK of the centred means; singular_R, the
    singular values s of ``centred/sqrt(K)``; whiten_RD, rows ``v_r/s_r``; coords_KR with
    ``coords @ whiten @ z = centred @ z`` for every z; distance_KK between means. position maps all classes, and a
    trailing -1, to the K of the frame (-1 outside).
    """

    mean_KD: Tensor
    centred_KD: Tensor
    gram_KK: Tensor
    singular_R: Tensor
    whiten_RD: Tensor
    coords_KR: Tensor
    distance_KK: Tensor
    position: Tensor

    @property
    def rank(self) -> int:
        return len(self.singular_R)

    @property
    def directions_RD(self) -> Tensor:
        """The orthonormal v_r."""
        return self.whiten_RD * self.singular_R[:, None]


def mean_frame(mean_KD: Tensor, position: Tensor) -> Frame:
    """Numerical rank as in NumPy's ``matrix_rank`` (s > s_max max(K, D) eps), at most K-1."""
    K, D = mean_KD.shape
    centred = mean_KD - mean_KD.mean(dim=0)
    gram = centred @ centred.T
    singular, right = row_svd(_drop_ones(centred) / K**0.5)
    rank = int((singular > singular[0] * max(K, D) * torch.finfo(torch.float64).eps).sum())
    singular, right = singular[:rank], right[:rank]
    coords = (centred @ right.T) * singular
    distance = distance_matrix(centred, gram)
    return Frame(mean_KD, centred, gram, singular, right / singular[:, None], coords, distance, position)


def _drop_ones(centred_KD: Tensor) -> Tensor:
    """K-1 rows with the Gram matrix of K rows that sum to zero: a Householder reflection of the ones vector to e_1."""
    K = len(centred_KD)
    mirror = centred_KD.new_full((K, 1), K**-0.5)
    mirror[0] += 1.0
    return (centred_KD - mirror @ (mirror.T @ centred_KD) / mirror[0])[1:]


def row_svd(rows_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, descending, and right singular vectors as rows.

    Large well-conditioned sets go through the Gram matrix, four times faster; normalising the rotated rows takes back
    what squaring loses. Anything else gets the true decomposition: a Gram matrix has no digits of a direction 1e-8 as
    long as the largest.
    """
    R, D = rows_RD.shape
    if 256 < R <= D:
        _, left = torch.linalg.eigh(rows_RD @ rows_RD.T)
        rotated = left.T.flip(0) @ rows_RD
        singular = torch.linalg.vector_norm(rotated, dim=1)
        if singular.min() > 1e-3 * singular.max():
            return singular, rotated / singular[:, None]
    _, singular, right = torch.linalg.svd(rows_RD, full_matrices=False)
    return singular, right


@dataclass
class Sweep:
    """Per-class sums over samples, which add over shards. All (K,), float64 unless said otherwise.

    square ``||z||^2``; share ``z' Sb^+ z`` (Sb balanced); directional ``sum_c (z.(mu_c - mu_y))^2 / d_yc^4``;
    hits_4K int64, how often the nearest mean is right, the linear head is right, and the two agree (with bias,
    without); decided, whether a linear head took part. Sums over all samples where asked for: scatter_DD of ``zz'``,
    gram_RR of the whitened z.
    """

    count_K: Tensor
    square_K: Tensor
    share_K: Tensor
    directional_K: Tensor
    hits_4K: Tensor
    decided: bool = True
    scatter_DD: Tensor | None = None
    gram_RR: Tensor | None = None


def sweep(
    features_ND: Tensor,
    labels_N: Tensor,
    frame: Frame,
    decisions_N2: Tensor | None,
    *,
    precision: Precision = "exact",
    scatter: bool = False,
    gram: bool = False,
) -> Sweep:
    """``labels_N`` (all inside the frame) and the head's ``decisions_N2`` (with and without bias) count all classes."""
    total = _empty_sweep(frame, decisions_N2 is not None, scatter, gram)
    dtype = PRODUCT_DTYPE[precision]
    labels = frame.position[labels_N]
    # outside the frame is -1, which no nearest mean agrees with
    decisions = labels_N.new_full((len(labels), 2), -1) if decisions_N2 is None else frame.position[decisions_N2]
    squared, weight = frame.distance_KK.square().to(dtype), _inverse_squares(frame.distance_KK).to(dtype)
    whiten, coords = frame.whiten_RD.to(dtype), frame.coords_KR.to(dtype)
    for x, y, linear in chunks(features_ND, labels, decisions, products=scatter):
        z = deviations(x, y, frame.mean_KD).to(dtype)
        white = (whiten @ z.T).T.contiguous()
        toward = white @ coords.T  # z.mu_c up to a constant of the sample, removed next: z.(mu_c - mu_y)
        toward -= toward.gather(1, y[:, None])
        # ||x - mu_c||^2 - ||x - mu_y||^2
        nearest = squared.index_select(0, y).sub_(toward, alpha=2).argmin(dim=1)
        toward *= weight.index_select(0, y)
        total.count_K.index_add_(0, y, torch.ones_like(y))
        for sums, rows in ((total.square_K, z), (total.share_K, white), (total.directional_K, toward)):
            sums.index_add_(0, y, row_squares(rows))
        hits = torch.stack((nearest == y, linear[:, 0] == y, linear[:, 0] == nearest, linear[:, 1] == nearest))
        total.hits_4K.index_add_(1, y, hits.long())
        if total.scatter_DD is not None:
            add_gram(total.scatter_DD, z, precision)
        if total.gram_RR is not None:
            add_gram(total.gram_RR, white, precision)
    return total


def _empty_sweep(frame: Frame, decided: bool, scatter: bool, gram: bool) -> Sweep:
    K, D = frame.mean_KD.shape
    R, new = frame.rank, frame.mean_KD.new_zeros
    scatter_DD, gram_RR = new(D, D) if scatter else None, new(R, R) if gram else None
    return Sweep(new(K).long(), new(K), new(K), new(K), new(4, K).long(), decided, scatter_DD, gram_RR)


def _inverse_squares(distance_KK: Tensor) -> Tensor:
    inverse = distance_KK.square().reciprocal()
    return inverse.fill_diagonal_(0.0)


def linear_decisions(
    features_ND: Tensor, logits_NK: Tensor | None, weight_KD: Tensor | None, bias_K: Tensor | None
) -> Tensor | None:
    """The linear head's class for every sample (N, 2), with its bias and without; None without head and logits.

    Given logits decide as they are; otherwise they are ``x W' + b`` in float64.
    """
    if logits_NK is None and weight_KD is None:
        return None
    outputs = features_ND if logits_NK is None else logits_NK
    out = []
    for o, _ in chunks(outputs, outputs):
        if logits_NK is None:
            plain = o.double() @ weight_KD.T
            full = plain + bias_K
        else:
            full = o
            plain = o if bias_K is None else o - bias_K
        out.append(torch.stack((full.argmax(dim=1), plain.argmax(dim=1)), dim=1))
    return torch.cat(out)
