"""The pass over samples that needs the class means: NC1 shares, directional variance, decisions.

Deviations are projected on the K-1 directions the means span, so it costs n D K and never holds a D x D matrix
(unless the scatter is asked for). One projection feeds everything: whitened coordinates of ``z = x - mu_y`` give NC1,
and their products with the means give ``z.(mu_c - mu_y)``, hence exact nearest-mean decisions at any offset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import distance_matrix
from .statistics import (
    PRODUCT_DTYPE,
    Precision,
    add_gram,
    block_rows,
    chunks,
    class_counts,
    deviation_buffer,
    deviations,
    mirrored,
)


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
    def directions(self) -> Tensor:
        """The orthonormal v_r as rows, (R, D)."""
        return self.whiten_RD * self.singular_R[:, None]


def mean_frame(mean_KD: Tensor, position: Tensor) -> Frame:
    """Numerical rank as in NumPy's ``matrix_rank`` (s > s_max max(K, D) eps), at most K-1."""
    K, D = mean_KD.shape
    centred = mean_KD - mean_KD.mean(dim=0)
    gram = centred @ centred.T
    # K-1 rows with the same Gram matrix: without the known null direction the small singular values keep their digits
    rows, rows_gram = _mirror(centred)[1:], _mirror(_mirror(gram).T)[1:, 1:]
    left, singular, right = row_svd(rows / K**0.5, rows_gram / K)
    rank = int((singular > singular[0] * max(K, D) * torch.finfo(torch.float64).eps).sum())
    left, singular, right = left[:, :rank], singular[:rank], right[:rank]
    coords = K**0.5 * _mirror(torch.cat((left.new_zeros(1, rank), left * singular.square())))
    distance = distance_matrix(centred, gram)
    return Frame(mean_KD, centred, gram, singular, right / singular[:, None], coords, distance, position)


def _mirror(rows_KD: Tensor) -> Tensor:
    """The Householder reflection that swaps the ones vector over sqrt(K) with -e_1, applied to K rows."""
    K = len(rows_KD)
    normal = rows_KD.new_full((K, 1), K**-0.5)
    normal[0] += 1.0
    return rows_KD - normal @ (normal.T @ rows_KD) / normal[0]


def row_svd(rows_RD: Tensor, gram_RR: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """``rows = left diag(singular) right``, singular values descending.

    Large well-conditioned sets go through the Gram matrix, four times faster; normalising the rotated rows takes back
    what squaring loses. Anything else gets the true decomposition: a Gram matrix has no digits of a direction 1e-8 as
    long as the largest.
    """
    R, D = rows_RD.shape
    if 256 < R <= D:
        left = torch.linalg.eigh(rows_RD @ rows_RD.T if gram_RR is None else gram_RR).eigenvectors.flip(1)
        rotated = left.T @ rows_RD
        singular = torch.linalg.vector_norm(rotated, dim=1)
        if singular.min() > 1e-3 * singular.max():
            return left, singular, rotated / singular[:, None]
    return torch.linalg.svd(rows_RD, full_matrices=False)


@dataclass(frozen=True)
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
    K, D = frame.mean_KD.shape
    labels, new = frame.position[labels_N], frame.mean_KD.new_zeros
    scatter_DD, gram_RR = new(D, D) if scatter else None, new(frame.rank, frame.rank) if gram else None
    norms_3N, nearest_N = _projected(features_ND, labels, frame, precision, scatter_DD, gram_RR)
    sums = new(3, K).index_add_(1, labels, norms_3N.square_())
    # outside the frame is -1, which no nearest mean agrees with
    linear = torch.full_like(labels, -1).expand(2, -1) if decisions_N2 is None else frame.position[decisions_N2.T]
    hits = torch.stack((nearest_N == labels, linear[0] == labels, linear[0] == nearest_N, linear[1] == nearest_N))
    hits_4K = labels.new_zeros(4, K).index_add_(1, labels, hits.long())
    square_K, share_K, directional_K = sums
    products = (None if upper is None else mirrored(upper) for upper in (scatter_DD, gram_RR))
    decided = decisions_N2 is not None
    return Sweep(class_counts(labels, K), square_K, share_K, directional_K, hits_4K, decided, *products)


def _projected(
    features_ND: Tensor,
    labels_N: Tensor,
    frame: Frame,
    precision: Precision,
    scatter_DD: Tensor | None,
    gram_RR: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The square roots of a sample's square, share and directional terms (3, N), and its nearest mean (N,).

    Adds to ``scatter_DD`` and ``gram_RR`` on the way. Every block writes into the same few buffers.
    """
    K, dtype = len(frame.mean_KD), PRODUCT_DTYPE[precision]
    pad = -frame.rank % 4  # a product of 100 rows is faster than one of 99
    whiten = torch.nn.functional.pad(frame.whiten_RD.to(dtype), (0, 0, 0, pad))
    coords = torch.nn.functional.pad(frame.coords_KR.to(dtype), (0, pad))
    square_KK = frame.distance_KK.square()
    inverse_KK = square_KK.reciprocal().fill_diagonal_(0.0).to(dtype)
    square_KK = square_KK.to(dtype)
    norms = frame.mean_KD.new_empty(3, len(labels_N))
    nearest = torch.empty_like(labels_N)
    buffer = deviation_buffer(features_ND, dtype, products=scatter_DD is not None)
    one, two = whiten.new_empty(2, buffer.shape[1] * (K + 3))
    for z, y, square, share, directional, closest in deviations(
        features_ND, labels_N, frame.mean_KD, *norms, nearest, buffer=buffer
    ):
        z = z.to(dtype)
        white = _view(two, len(y), len(whiten))
        white.copy_(torch.mm(whiten, z.T, out=_view(one, len(whiten), len(y))).T)
        # z.mu_c up to a constant of the sample, which the next line removes: z.(mu_c - mu_y)
        toward = torch.mm(white, coords.T, out=_view(one, len(y), K))
        toward -= toward.gather(1, y[:, None])
        square.copy_(torch.linalg.vector_norm(z, dim=1))
        share.copy_(torch.linalg.vector_norm(white, dim=1))
        if scatter_DD is not None:
            add_gram(scatter_DD, z)
        if gram_RR is not None:
            add_gram(gram_RR, white[:, : frame.rank])
        # ||x - mu_c||^2 - ||x - mu_y||^2
        excess = torch.index_select(square_KK, 0, y, out=_view(two, len(y), K)).sub_(toward, alpha=2)
        torch.argmin(excess, dim=1, out=closest)
        toward *= torch.index_select(inverse_KK, 0, y, out=excess)
        directional.copy_(torch.linalg.vector_norm(toward, dim=1))
    return norms, nearest


def _view(buffer: Tensor, *shape: int) -> Tensor:
    return buffer[: math.prod(shape)].view(shape)


def linear_decisions(
    features_ND: Tensor, logits_NK: Tensor | None, weight_KD: Tensor | None, bias_K: Tensor | None
) -> Tensor | None:
    """The linear head's class for every sample (N, 2), with its bias and without; None without head and logits.

    Given logits decide as they are; otherwise they are ``x W' + b`` in float64.
    """
    decisions = features_ND.new_empty(len(features_ND), 2, dtype=torch.int64)
    if logits_NK is not None:
        bias = logits_NK.new_zeros(logits_NK.shape[1]) if bias_K is None else bias_K
        plain = torch.empty_like(logits_NK[: block_rows(logits_NK)], dtype=bias.dtype)
        for logits, out in chunks(logits_NK, decisions):
            torch.argmax(logits, dim=1, out=out[:, 0])
            torch.argmax(torch.sub(logits, bias, out=plain[: len(logits)]), dim=1, out=out[:, 1])
        return decisions
    if weight_KD is None or bias_K is None:
        return None
    for x, out in chunks(features_ND, decisions):
        logits = x.double() @ weight_KD.T
        torch.argmax(logits, dim=1, out=out[:, 1])
        torch.argmax(logits.add_(bias_K), dim=1, out=out[:, 0])
    return decisions
