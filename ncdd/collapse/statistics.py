"""Class means and scatter of features, exact where collapse happens: cached in two passes, or streamed in one.

Legend: N samples, D features, K classes. Sums over samples are float64 totals of deviations, never ``E[xx'] - mm'``,
which loses every digit once the within-class spread is small beside the means. ``precision`` chooses the matrix
products only: "exact" multiplies in float64, "fast" in float32 (TF32 off) with float64 totals.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["exact", "fast"]
BLOCK_ELEMENTS = 2**19  # 4 MiB of float64
PRODUCT_DTYPE = {"exact": torch.float64, "fast": torch.float32}


@dataclass(frozen=True)
class Moments:
    """First and second moments of every class; two disjoint shards merge into those of their union.

    count_K int64; mean_KD float64; square_K, the sum of ``||x - mean||^2`` over a class; scatter_DD, the sum of
    ``(x - mean)(x - mean)'`` over all samples, each about its own class mean, or None where nobody needs it.
    """

    count_K: Tensor
    mean_KD: Tensor
    square_K: Tensor
    scatter_DD: Tensor | None = None

    @property
    def total(self) -> int:
        return int(self.count_K.sum())

    def select(self, classes: Tensor) -> Moments:
        """The same samples with the (empty) classes outside ``classes`` left out."""
        return Moments(self.count_K[classes], self.mean_KD[classes], self.square_K[classes], self.scatter_DD)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Chan, Golub & LeVeque (1983), class by class: exact for shards of any size, empty ones included."""
    count = a.count_K + b.count_K
    fraction = b.count_K.double() / count.clamp(min=1)  # two integers would divide in float32
    # an empty class has no mean: its placeholder must not reach the other shard
    shift = torch.where(((a.count_K > 0) & (b.count_K > 0))[:, None], b.mean_KD - a.mean_KD, 0.0)
    mean = torch.where((a.count_K > 0)[:, None], a.mean_KD + fraction[:, None] * shift, b.mean_KD)
    pull_K = a.count_K * fraction
    scatter = None
    if a.scatter_DD is not None and b.scatter_DD is not None:
        scatter = a.scatter_DD + b.scatter_DD + shift.T @ (pull_K[:, None] * shift)
    return Moments(count, mean, a.square_K + b.square_K + pull_K * shift.square().sum(dim=1), scatter)


@dataclass
class ShiftedSums:
    """One-pass accumulator: sums of ``z = x - pilot_y``, the pilot of a class being the first sample of it.

    The shift takes the means out before anything is squared, so the later correction to the true mean cancels next to
    nothing. Batch size and order only change rounding. All tensors live on one device and are updated in place;
    scatter_DD is summed on and above its diagonal only.
    """

    pilot_KD: Tensor
    count_K: Tensor
    sum_KD: Tensor
    square_K: Tensor
    scatter_DD: Tensor
    buffer: Tensor | None = field(default=None, init=False, repr=False)

    @classmethod
    def zeros(cls, num_classes: int, num_features: int, device: torch.device | str | None = None) -> ShiftedSums:
        def new(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        K, D = num_classes, num_features
        return cls(new(K, D), new(K).long(), new(K, D), new(K), new(D, D))

    @classmethod
    def of(cls, moments: Moments) -> ShiftedSums:
        """An accumulator that goes on from ``moments``, with the means as pilots."""
        assert moments.scatter_DD is not None
        m = moments
        return cls(m.mean_KD.clone(), m.count_K, torch.zeros_like(m.mean_KD), m.square_K, moments.scatter_DD)

    def update(self, features_ND: Tensor, labels_N: Tensor, precision: Precision = "exact") -> None:
        with measuring(features_ND.device):
            self._seed_pilots(features_ND, labels_N)
            self.count_K += class_counts(labels_N, len(self.count_K))
            self.buffer = deviation_buffer(features_ND, PRODUCT_DTYPE[precision], products=True, reuse=self.buffer)
            for z, y in deviations(features_ND, labels_N, self.pilot_KD, buffer=self.buffer):
                self.square_K.index_add_(0, y, torch.linalg.vector_norm(z, dim=1).double().square())
                self.sum_KD.index_add_(0, y, z.double())
                add_gram(self.scatter_DD, z)

    def _seed_pilots(self, features: Tensor, labels: Tensor) -> None:
        position = (self.count_K == 0)[labels].nonzero().squeeze(1)
        if len(position):
            first = torch.full_like(self.count_K, len(labels))
            first.scatter_reduce_(0, labels[position], position, "amin")
            new = (first < len(labels)).nonzero().squeeze(1)
            self.pilot_KD[new] = features[first[new]].double()

    def moments(self) -> Moments:
        with measuring(self.sum_KD.device):
            shift = self.sum_KD / self.count_K.clamp(min=1)[:, None]
            square = self.square_K - self.count_K * shift.square().sum(dim=1)
            scatter = mirrored(self.scatter_DD) - shift.T @ self.sum_KD
            return Moments(self.count_K.clone(), self.pilot_KD + shift, square.clamp(min=0), scatter)


def class_counts(labels_N: Tensor, num_classes: int) -> Tensor:
    """(K,) int64, without the host synchronisation of ``torch.bincount``."""
    return labels_N.new_zeros(num_classes).index_add_(0, labels_N, torch.ones_like(labels_N))


def class_means(features_ND: Tensor, labels_N: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Counts (K,) and class means (K, D) in float64; the mean of an empty class is NaN."""
    count = class_counts(labels_N, num_classes)
    # one common shift takes the offset out of the sums
    shift = features_ND[0].double()
    total = shift.new_zeros(num_classes, len(shift))
    buffer = shift.new_empty(block_rows(features_ND), len(shift))
    for x, y in chunks(features_ND, labels_N):
        total.index_add_(0, y, buffer[: len(x)].copy_(x).sub_(shift))
    return count, total / count[:, None] + shift


def block_rows(features_ND: Tensor, products: bool = False) -> int:
    """Rows of a block: temporaries stay in cache, or are deep enough to pay for adding a D x D product to its total."""
    D = features_ND.shape[1]
    return min(max(D if products else 256, BLOCK_ELEMENTS // D), len(features_ND))


def chunks(features_ND: Tensor, *others: Tensor, rows: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of rows of all tensors."""
    rows = rows or block_rows(features_ND)
    yield from zip(*(t.split(rows) for t in (features_ND, *others)), strict=True)


def deviation_buffer(
    features_ND: Tensor, dtype: torch.dtype, *, products: bool = False, reuse: Tensor | None = None
) -> Tensor:
    """Room for a block of deviations and of their centres, (2, rows, D); ``reuse`` if that is large enough.

    Fresh memory for every block would cost more in page faults than the arithmetic.
    """
    rows = block_rows(features_ND, products)
    if reuse is not None and reuse.shape[1] >= rows:
        return reuse
    dtype = torch.float64 if features_ND.dtype == torch.float64 else dtype
    return torch.empty(2, rows, features_ND.shape[1], dtype=dtype, device=features_ND.device)


def deviations(
    features_ND: Tensor, labels_N: Tensor, centre_KD: Tensor, *others: Tensor, buffer: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of ``z = x - centre_y`` with their labels (and others), each z in the place of the one before.

    At collapse all digits are in this difference: it is taken in float64, or, for a float32 result of no wider
    features, from a centre split in two float32 parts.
    """
    z, gathered = buffer
    high = centre_KD.to(z.dtype)
    low = (centre_KD - high).to(z.dtype)
    parts = (high, low) if low.any() else (high,)
    for x, y, *rest in chunks(features_ND, labels_N, *others, rows=len(z)):
        z[: len(x)].copy_(x)
        for part in parts:
            z[: len(x)].sub_(torch.index_select(part, 0, y, out=gathered[: len(x)]))
        yield z[: len(x)], y, *rest


def add_gram(total_DD: Tensor, z_BD: Tensor) -> None:
    """``total += z'z`` on and above the diagonal: the product in the type of z, the total in float64.

    In panels of columns, each times the columns from its own on: little more than half the work of the whole product.
    """
    D = z_BD.shape[1]
    step = max(128, D // 8) if z_BD.device.type == "cpu" else D
    for start in range(0, D, step):
        panel, rest = z_BD[:, start : start + step].T, z_BD[:, start:]
        total = total_DD[start : start + step, start:]
        if z_BD.dtype == total.dtype:
            total.addmm_(panel, rest)
        else:
            total += panel @ rest


def mirrored(upper_DD: Tensor) -> Tensor:
    """The symmetric matrix of what :func:`add_gram` summed."""
    return upper_DD.triu() + upper_DD.triu(1).T


@contextmanager
def measuring(device: torch.device) -> Iterator[None]:
    """No graph, no autocast, no TF32 or bfloat16 products; what is made inside may be updated in any mode later."""
    matmuls = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [m.fp32_precision for m in matmuls]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        try:
            for m in matmuls:
                m.fp32_precision = "ieee"
            yield
        finally:
            for m, precision in zip(matmuls, before, strict=True):
                m.fp32_precision = precision
