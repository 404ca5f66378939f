"""Kernel ridge regression on a small support, and the two ways to learn that support: KIP and Label Solve.

Legend: n support images, N targets (or other images), C outputs. Sources: Nguyen, Chen & Lee, "Dataset Meta-Learning
from Kernel Ridge-Regression" (arXiv 2011.00050); Nguyen, Novak, Xiao & Lee (arXiv 2107.13034).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .network import Kernel, Variances, check_pair
from .order import first_order
from .support import support_of

CHUNK = 5000  # images that are predicted at one time


def ridge(K: Tensor, y: Tensor, *, reg: float, relative: bool = True) -> Tensor:
    """``(K + l I)^-1 y`` (n, C) from the support's kernel (n, n) and its labels (n, C), in their dtype.

    ``l = reg tr(K) / n`` where relative, else ``l = reg``. Differentiable once, with K taken as symmetric. Solved by
    Cholesky in float64, whatever K is in: an error of float32 in the factor would be as large as l. Raises ValueError
    where K + l I is not positive definite, or the labels do not fit K.
    """
    coefficients: Tensor = _Ridge.apply(K, y, reg, relative)
    return coefficients


class Solved:
    """``coefficients`` = (K + l I)^-1 y, and what a gradient by them is by K and y; see `ridge`."""

    def __init__(self, K: Tensor, y: Tensor, *, reg: float, relative: bool) -> None:
        if y.dtype != K.dtype or y.ndim != 2 or len(y) != len(K):
            raise ValueError(
                f"labels are {tuple(y.shape)} in {y.dtype}: ({len(K)}, C) in {K.dtype} is needed, as the kernel is"
            )
        if not reg >= 0:
            raise ValueError(f"reg is {reg}: a number >= 0 is needed")
        regularised = K.to(torch.float64, copy=True)
        diagonal = regularised.diagonal()
        diagonal += reg * diagonal.mean() if relative else reg
        self._factor = _cholesky(regularised, reg)
        self._exact = torch.cholesky_solve(y.double(), self._factor)
        self._by_trace, self._dtype = reg / len(K) if relative else 0.0, K.dtype
        self.coefficients = self._exact.to(y.dtype)

    def pull(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """(n, n) by K, taken as symmetric, and (n, C) by y: ``-u a'`` and ``u = (K + l I)^-1 grad``."""
        by_y = torch.cholesky_solve(grad.double(), self._factor)
        by_K = (by_y @ self._exact.T).neg_()
        diagonal = by_K.diagonal()
        diagonal += self._by_trace * diagonal.sum()
        return by_K.to(self._dtype), by_y.to(grad.dtype)


class _Ridge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, K: Tensor, y: Tensor, reg: float, relative: bool) -> Tensor:
        ctx.solved = Solved(K, y, reg=reg, relative=relative)
        return ctx.solved.coefficients.clone()  # its own would hold the graph that holds it: a cycle

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.solved.pull(grad), None, None


@torch.no_grad()
def predict(kernel: Kernel, x: Tensor, support: Tensor, coefficients: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """(N, C) outputs for images x (N, ...), by chunks, from the coefficients (n, C) that `ridge` gives; no graph."""
    variances = kernel.variances(support)
    return torch.cat([(coefficients.T @ kernel(support, part, variances1=variances)).T for part in x.split(chunk)])


def kip_loss(
    kernel: Kernel,
    support: Tensor,
    labels: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    reg: float = 1e-6,
    relative: bool = True,
    variances: Variances | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The objective of KIP, ``0.5 mean((pred - y)^2)`` over targets and outputs, and pred (N, C) without a graph.

    Targets come by chunks: where gradients are wanted they are found at once, with no more than a chunk's graph in
    memory, and `backward` only hands them to support (n, ...) and labels (n, C); targets x (N, ...), y (N, C) get none.

    variances: ``kernel.variances(x)``, to spare computing them again
    chunk: targets at one time; None: as many as ``kernel.memory`` holds the graph of and, on a CPU, its cache
    """
    by_support, by_labels = (torch.is_grad_enabled() and z.requires_grad for z in (support, labels))
    check_pair(support, x)
    if len(x) == 0 or y.dtype != x.dtype or y.shape != (len(x), *labels.shape[1:]):
        raise ValueError(
            f"y is {tuple(y.shape)} in {y.dtype}: of {len(x)} targets, at least 1, and labels {tuple(labels.shape)} in "
            f"{labels.dtype} it must be as many rows, and of that width and dtype"
        )
    side = support_of(kernel, support.detach(), wanted=by_support)
    solved = Solved(side.K, labels.detach(), reg=reg, relative=relative)
    residual, by_coefficients = side.regress(solved.coefficients, x.detach(), y.detach(), variances, chunk)
    loss, pred = 0.5 * residual.square().mean(), y.detach() + residual
    if by_support or by_labels:
        by_K, by_y = solved.pull(by_coefficients)
        found = (side.gradient(by_K) if by_support else None, by_y if by_labels else None)
        loss = _Known.apply(loss, 1 / y.numel(), *found, support, labels)
    return loss, pred


class _Known(torch.autograd.Function):
    """A value whose gradients are known already but for a factor."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, factor: float, by_s: Tensor | None, by_t: Tensor | None, support: Tensor, labels: Tensor
    ) -> Tensor:
        ctx.save_for_backward(by_s, by_t)
        ctx.factor = factor
        return loss.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad * ctx.factor
        return *(None,) * 4, *(None if known is None else grad * known for known in ctx.saved_tensors)


@torch.no_grad()
def label_solve(
    kernel: Kernel, support: Tensor, batches: Iterable[tuple[Tensor, Tensor]], *, reg: float = 1e-6
) -> Tensor:
    """The labels (n, C) of the support with which ridge regression fits the targets best, float64.

    ``(K_ss + l I)(K_st K_ts + l I)^-1 K_st y_t`` with ``l = reg / n``, in one pass over batches (x (B, ...), y (B, C))
    of targets, all in float64. Raises ValueError where K_st K_ts + l I is not positive definite, or y does not fit.
    """
    support = support.double()
    K, variances = kernel.gram(support)
    gram = support.new_zeros(len(support), len(support))
    moment: Tensor | None = None
    for x, y in batches:
        if y.ndim != 2 or len(y) != len(x) or (moment is not None and y.shape[1] != moment.shape[1]):
            raise ValueError(f"y is {tuple(y.shape)}: ({len(x)}, C) is needed, of the same C in all batches")
        K_st = kernel(support, x.double(), variances1=variances)
        gram = gram + K_st @ K_st.T
        moment = K_st @ y.double() if moment is None else moment + K_st @ y.double()
    if moment is None:
        raise ValueError("batches has no targets: at least one batch is needed")
    ridge_term = reg / len(support) * _eye(gram)
    return (K + ridge_term) @ torch.cholesky_solve(moment, _cholesky(gram + ridge_term, reg))


def _eye(K: Tensor) -> Tensor:
    return torch.eye(len(K), dtype=K.dtype, device=K.device)


def _cholesky(K: Tensor, reg: float) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(K)
    if info.item() == 0:
        return factor
    if not K.isfinite().all():
        raise ValueError(
            f"the {len(K)} x {len(K)} kernel matrix has NaN or infinite entries: so have the images; where these are "
            f"learned, raise reg, which is {reg:g}, or lower the learning rate"
        )
    raise ValueError(f"the {len(K)} x {len(K)} kernel matrix is singular with reg={reg:g}: raise reg")
