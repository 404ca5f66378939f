"""The images from which kernel ridge regression learns: its outputs for real targets, and the gradient by the images.

`support_of` chooses between two classes of the same methods. Legend: n images, D numbers in each, N targets, C outputs.
"""

from __future__ import annotations

from math import inf, pi

import torch
from torch import Tensor

from .fused import FullyConnected, product
from .layers import TINY, TIP, deviation
from .network import Kernel, Variances

CACHED = 5 * 2**19  # bytes of targets at one time, on a CPU


def support_of(kernel: Kernel, x: Tensor, *, wanted: bool) -> Support | OneHidden:
    """Of images x (n, ...). wanted: whether `gradient` is called, once, after `regress`."""
    if kernel.fused and kernel.fused.depth == 1:
        return OneHidden(kernel, kernel.fused, x, wanted)
    return Support(kernel, x, wanted)


class Support:
    """With any network; K is the tangent kernel (n, n) of the images, without a graph."""

    def __init__(self, kernel: Kernel, x: Tensor, wanted: bool) -> None:
        self.kernel, self.wanted = kernel, wanted
        self.x = x.detach().requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            self._gram, self._variances = kernel.gram(self.x)
        self.K = self._gram.detach()
        self._found = [torch.zeros_like(z) for z in (self.x, *self._variances)]

    @torch.no_grad()
    def regress(
        self, coefficients: Tensor, x: Tensor, y: Tensor, variances: Variances | None = None, chunk: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """``K(x, support) coefficients - y`` (N, C), and the gradient of half its squares' sum by the coefficients.

        coefficients (n, C), targets x (N, ...), y (N, C); variances: ``kernel.variances(x)``.  chunk: targets at one
        time; None: as many as ``kernel.memory`` holds the graph of and, on a CPU, its cache.
        """
        by_coefficients, residuals = torch.zeros_like(coefficients.T), []
        known = tuple(q.detach() for q in self._variances)
        chunk = chunk or targets_at_once(self.kernel, x, support=len(self.x))
        for x_part, y_part, *rest in zip(*(z.split(chunk) for z in (x, y, *(variances or ()))), strict=True):
            K, pull = self.kernel.pullback(self.x.detach(), x_part, known, tuple(rest) or None, wanted=self.wanted)
            residual = (coefficients.T @ K).sub_(y_part.T)
            residuals.append(residual)
            by_coefficients.addmm_(residual, K.T)  # few rows are faster than few columns
            if self.wanted:
                for total, part in zip(self._found, pull(coefficients @ residual), strict=True):
                    total += part
        return torch.cat(residuals, dim=1).T, by_coefficients.T

    def gradient(self, by_K: Tensor) -> Tensor:
        """By the images: through the targets that `regress` was given, and by K (n, n), with its own gradient by it."""
        by_x, *by_variances = self._found
        return by_x + torch.autograd.grad([self._gram, *self._variances], self.x, [by_K, *by_variances])[0]


class OneHidden:
    """With [Dense, relu, Dense], by hand: fewer passes between the two products with the targets, and no graph.

    With variances q and q', ``s = sqrt(q q')`` and ``cos t = K / s``, the tangent kernel of the input's covariance K is
    ``b_std^2 + w_std^2 / 2 pi * s f``, ``f = sin t + 2 (pi - t) cos t``, and the derivative of f by cos t is ``2 (pi -
    t) + cos t / sin t``. As ``s f(K / s)`` has degree 1 in K and s, its derivative by log s is itself less K times that
    by K (Euler), and summed over a row both come from products that are taken anyway.
    """

    def __init__(self, kernel: Kernel, network: FullyConnected, x: Tensor, wanted: bool) -> None:
        self.kernel, self.network, self.wanted, self.shape = kernel, network, wanted, x.shape
        self.x = x.flatten(1)
        self.by_covariance = network.gain / self.x.shape[1]
        self.weight = network.gain / (2 * pi)
        diagonal, self.q = network.own(self.x, ntk=True)
        r = deviation(self.q)[:, None]
        self.rows, self.offsets = self.x * (self.by_covariance / r), network.offset / r  # of K / r
        self.weights = self.weight * r
        cosine = self._cosine(self.x, r[:, 0])
        sine, turned = _angles(cosine)
        self.K = torch.addcmul(sine, cosine, turned).mul_(r[:, 0]).mul_(self.weights).add_(network.offset)
        self.K.diagonal().copy_(diagonal)
        self.slope = _slope(cosine, sine, turned).fill_diagonal_(0.0)  # the covariance of an image with itself is in q
        self.by_x, self.sums, self.homogeneous = torch.zeros_like(self.x), torch.zeros_like(r), torch.zeros_like(r)

    @torch.no_grad()
    def regress(
        self, coefficients: Tensor, x: Tensor, y: Tensor, variances: Variances | None = None, chunk: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `Support.regress`."""
        network = self.network
        chunk = chunk or targets_at_once(self.kernel, x, support=len(self.x))
        x = x.flatten(1)
        scaled = (coefficients * self.weights).T
        y = (y - network.offset * coefficients.sum(0)).T.contiguous()
        by_scaled, residuals = torch.zeros_like(scaled), []
        columns, *rests = y.split(chunk, 1), *(q.split(chunk) for q in variances or ())
        for part, y_part, *rest in zip(x.split(chunk), columns, *rests, strict=True):
            r = deviation(rest[0] if rest else network.variance(part))
            residuals.append(self._meet(part, y_part, r, coefficients, scaled, by_scaled))
        residual = torch.cat(residuals, dim=1).T
        by_homogeneous = by_scaled.T * self.weights
        self.homogeneous += (coefficients * by_homogeneous).sum(1, keepdim=True)
        return residual, by_homogeneous + network.offset * residual.sum(0)

    def _meet(self, x: Tensor, y: Tensor, r: Tensor, coefficients: Tensor, scaled: Tensor, by_scaled: Tensor) -> Tensor:
        """The residual (C, N) of a chunk, whose gradients are added up; a call, so that no chunk outlives it."""
        cosine = self._cosine(x, r)
        sine, turned = _angles(cosine)
        f = torch.addcmul(sine, cosine, turned)
        residual = (scaled @ f).mul_(r).sub_(y)
        by_scaled.addmm_(residual * r, f.T)  # few rows are faster than few columns
        if self.wanted:
            by_K = torch.mm(coefficients, residual, out=f).mul_(_slope(cosine, sine, turned))
            self.by_x += product(by_K, x)
            self.sums += by_K.sum(1, keepdim=True)
        return residual

    def gradient(self, by_K: Tensor) -> Tensor:
        """As `Support.gradient`."""
        network = self.network
        by_K = by_K + by_K.T
        by_cosine = by_K * self.slope
        by_x = (self.by_x + product(by_cosine, self.x)).mul_(self.weight * self.by_covariance)
        by_log = self.homogeneous + (by_K * (self.K - network.offset)).sum(1, keepdim=True)
        by_log -= (self.x * by_x).sum(1, keepdim=True)
        by_log -= (self.sums + by_cosine.sum(1, keepdim=True)).mul_(self.weight * network.offset)
        by_q = by_log.div_(2 * self.q[:, None].clamp(min=TINY[by_K.dtype]))
        return by_x.addcmul_(self.x, by_q, value=2 * self.by_covariance).view(self.shape)

    def _cosine(self, x: Tensor, r: Tensor) -> Tensor:
        return product(self.rows, x.T).add_(self.offsets).div_(r)


def _angles(cosine: Tensor) -> tuple[Tensor, Tensor]:
    """sin t and 2 (pi - t); angles that rounding cannot tell from 0 or pi are (see `layers.relu`)."""
    sine = torch.addcmul(cosine.new_ones(()), cosine, cosine, value=-1)
    torch.threshold_(sine, TIP[cosine.dtype], 0.0).sqrt_()
    angle = torch.atan2(sine, cosine)
    return sine, torch.sub(cosine.new_full((), 2 * pi), angle, alpha=2, out=angle)


def _slope(cosine: Tensor, sine: Tensor, turned: Tensor) -> Tensor:
    """``2 (pi - t) + cos t / sin t``, without the latter at the tip; the arguments are used up."""
    return cosine.div_(torch.threshold_(sine, 0.0, inf)).add_(turned)


def targets_at_once(kernel: Kernel, x: Tensor, *, support: int) -> int:
    """Of targets like those of x beside so many support images: as many as `memory` holds, on a CPU its cache."""
    # few enough for a CPU's cache to hold them until the backward pass reads them again; but many beside the support,
    # which is read, and its gradient added up, for each chunk
    held = len(x) if x.is_cuda else max(CACHED // (x[0].numel() * x.element_size()), 10 * support)
    return max(1, min(held, kernel.pairs_in_memory(x) // support))
