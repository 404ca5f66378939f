"""Where covariances live: between whole images, or between pixels p and q of two images.

All layers of a convolutional network but its last (Flatten or GAP) keep the displacement q - p or, where they pool,
halve it. So only displacements up to a radius matter: 0 under Flatten, ``2 r + 1`` before each 2x2 pooling, all of
them under GAP (Novak et al. 2019, arXiv 1810.05148, section 3). Along one axis the pairs (p, q) with
``|q - p| <= radius`` stand in a row, by displacement and then by p, with one dead slot between two displacements; the
pairs of two images are the (Y, X) array of both axes. The sum of ``K[p + d, q + d]`` over the nine offsets of a 3x3
convolution is then a 3x3 box filter, and dead slots are its zero padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .order import first_order


class Whole:
    """No pixels: covariances (N1, N2) of images as vectors."""

    slots = 1

    def __init__(self, device: torch.device) -> None:
        self.same = torch.ones((), dtype=torch.bool, device=device)  # which slots pair a place with itself

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """``<x, x'> / (C H W)`` of (N1, C, H, W) and (N2, C, H, W): (N1, N2)."""
        a, b = x1.flatten(1), x2.flatten(1)
        return torch.addmm(a.new_zeros(()), a, b.T, beta=0, alpha=1 / a.shape[1])

    def own_covariance(self, x: Tensor) -> Tensor:
        """The same of each image with itself: (N,)."""
        return torch.linalg.vector_norm(x.flatten(1), dim=1).square() / x.shape[1:].numel()

    def first(self, q: Tensor) -> Tensor:
        return q

    def second(self, q: Tensor) -> Tensor:
        return q

    def diagonal(self, K: Tensor) -> Tensor:
        return K


class Axis:
    """The slots of one axis of ``size`` pixels. A dead slot reads the pair (0, 0), so what stands there is finite."""

    def __init__(self, size: int, radius: int, device: torch.device) -> None:
        radius = min(radius, size - 1)
        slots: list[tuple[int, int] | None] = []
        for d in range(-radius, radius + 1):
            slots += [None] if slots else []
            slots += [(p, p + d) for p in range(max(0, -d), min(size, size - d))]
        self.position = {pair: i for i, pair in enumerate(slots) if pair}
        self.pairs = [pair or (0, 0) for pair in slots]
        self.first, self.second = torch.tensor(self.pairs, device=device).T.contiguous()
        self.live = torch.tensor([pair is not None for pair in slots], device=device)
        self.diagonal = slice(self.position[0, 0], self.position[0, 0] + size)

    def under(self, coarse: Axis) -> Tensor:
        """(4 * slots of ``coarse``,) the four pairs of this axis that a pair of the pooled axis stands for."""
        fine = [(2 * p + a, 2 * q + b) for p, q in coarse.pairs for a in (0, 1) for b in (0, 1)]
        return torch.tensor([self.position[pair] for pair in fine], device=self.live.device)


class Grid(Whole):
    """Pixel pairs of H x W images with displacements up to ``radius``: covariances (N1, N2, Y, X).

    coarse: the grid of the images after 2x2 pooling, where that is what comes next.
    """

    def __init__(self, height: int, width: int, radius: int, device: torch.device, coarse: Whole | None = None) -> None:
        self.rows, self.columns = Axis(height, radius, device), Axis(width, radius, device)
        self.live = self.rows.live[:, None] & self.columns.live
        self.slots = self.live.numel()
        self.same = torch.zeros_like(self.live)
        self.diagonal(self.same).fill_(True)
        if isinstance(coarse, Grid):
            self.under = self.rows.under(coarse.rows), self.columns.under(coarse.columns)

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """``sum_c x[c, p] x'[c, q] / C`` of (N1, C, H, W) and (N2, C, H, W): (N1, N2, Y, X)."""
        return self._products(x1[:, None], x2)

    def own_covariance(self, x: Tensor) -> Tensor:
        """The same of each image with itself: (N, Y, X)."""
        return self._products(x, x)

    def _products(self, x1: Tensor, x2: Tensor) -> Tensor:
        a, b = self.first(x1 / x1.shape[-3]).unbind(-3), self.second(x2).unbind(-3)
        K = a[0] * b[0]
        for a_c, b_c in zip(a[1:], b[1:], strict=True):
            K = torch.addcmul(K, a_c, b_c)
        return K

    def first(self, q: Tensor) -> Tensor:
        """(..., H, W) -> (..., Y, X), the value at p of each pair."""
        return q.index_select(-1, self.columns.first).index_select(-2, self.rows.first)

    def second(self, q: Tensor) -> Tensor:
        """(..., H, W) -> (..., Y, X), the value at q of each pair."""
        return q.index_select(-1, self.columns.second).index_select(-2, self.rows.second)

    def diagonal(self, K: Tensor) -> Tensor:
        """(..., Y, X) -> (..., H, W), the pairs p = q."""
        return K[..., self.rows.diagonal, self.columns.diagonal]

    def box(self, K: Tensor) -> Tensor:
        """(..., Y, X), the sum of ``K[p + d, q + d]`` over nine offsets d, zero outside the images."""
        summed: Tensor = _Box.apply(K, self.live)
        return summed

    def pool(self, K: Tensor) -> Tensor:
        """(..., Y, X) -> (..., Y', X') of the coarse grid: means over the 2x2 blocks of both p and q."""
        rows, columns = self.under
        K = K.index_select(-2, rows).unflatten(-2, (-1, 4)).mean(dim=-2)
        return K.index_select(-1, columns).unflatten(-1, (-1, 4)).mean(dim=-1)

    def mean(self, K: Tensor) -> Tensor:
        """(..., Y, X) -> (...), the mean over all pairs."""
        return K.flatten(-2) @ (self.live.flatten().to(K.dtype) / self.live.sum())


class _Box(torch.autograd.Function):
    """Sums of three neighbours along either axis, after dead slots are set to zero; and its adjoint."""

    @staticmethod
    def forward(ctx: Any, K: Tensor, live: Tensor) -> Tensor:
        ctx.live = live
        return _sum_of_nine(K * live)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum_of_nine(grad).mul_(ctx.live), None


def _sum_of_nine(K: Tensor) -> Tensor:
    # `avg_pool2d` takes five times as long: on a CPU its inner loop is scalar
    for dim in (-1, -2):
        others = K.shape[dim] - 1
        total = K.clone()
        total.narrow(dim, 1, others).add_(K.narrow(dim, 0, others))
        total.narrow(dim, 0, others).add_(K.narrow(dim, 1, others))
        K = total
    return K


@lru_cache(maxsize=32)
def plan(architecture: Sequence[str], height: int, width: int, device: torch.device) -> tuple[Whole, ...]:
    """For each layer the places that it acts on. Raises ValueError where the images are too small to be pooled."""
    sizes = [(height, width)]
    for name in architecture:
        halves = 2 if name == "avgpool" else 1
        sizes.append((sizes[-1][0] // halves, sizes[-1][1] // halves))
    if min(sizes[-1]) == 0:
        halvings = architecture.count("avgpool")
        raise ValueError(f"images of {height} x {width} pixels are too small to be pooled {halvings} times")
    place, places, radius = Whole(device), [], 0
    for name, size in zip(reversed(architecture), reversed(sizes[:-1]), strict=True):
        if name in ("flatten", "gap"):
            radius = 0 if name == "flatten" else max(size) - 1
            place = Grid(*size, radius, device)
        elif name == "avgpool":
            radius = 2 * radius + 1
            place = Grid(*size, radius, device, coarse=place)
        places.append(place)
    return tuple(reversed(places))
