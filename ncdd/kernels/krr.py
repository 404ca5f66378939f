"""Kernel ridge regression on a small support, and the two ways to learn that support: KIP and Label Solve.

Legend: n support images, N targets (or other images), C outputs. Sources: Nguyen, Chen & Lee, "Dataset Meta-Learning
from Kernel Ridge-Regression" (arXiv 2011.00050); Nguyen, Novak, Xiao & Lee (arXiv 2107.13034).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .network import Kernel, Variances

CHUNK = 5000  # images that are predicted at one time
CACHED = 5 * 2**20  # bytes of targets at one time in `kip_loss`, on a CPU


def ridge(K: Tensor, y: Tensor, *, reg: float, relative: bool = True) -> Tensor:
    """``(K + l I)^-1 y`` (n, C) from the support's kernel (n, n) and its labels (n, C), in their dtype.

    ``l = reg tr(K) / n`` where relative, else ``l = reg``. Differentiable once, with K taken as symmetric. Solved by
    Cholesky in float64, whatever K is in: an error of float32 in the factor would be as large as l. Raises ValueError
    where K + l I is not positive definite.
    """
    coefficients: Tensor = _Ridge.apply(K, y, reg, relative)
    return coefficients


class _Ridge(torch.autograd.Function):
    """With ``a = (K + l I)^-1 y`` a gradient g by a is ``u = (K + l I)^-1 g`` by y and ``-u a'`` by K + l I."""

    @staticmethod
    def forward(ctx: Any, K: Tensor, y: Tensor, reg: float, relative: bool) -> Tensor:
        regularised = K.to(torch.float64, copy=True)
        diagonal = regularised.diagonal()
        diagonal += reg * diagonal.mean() if relative else reg
        factor = _cholesky(regularised, reg)
        coefficients = torch.cholesky_solve(y.double(), factor)
        ctx.save_for_backward(factor, coefficients)
        ctx.by_trace, ctx.dtype = reg / len(K) if relative else 0.0, K.dtype
        return coefficients.to(y.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factor, coefficients = ctx.saved_tensors
        by_y = torch.cholesky_solve(grad.double(), factor)
        by_K = None
        if ctx.needs_input_grad[0]:
            by_K = (by_y @ coefficients.T).neg_()
            diagonal = by_K.diagonal()
            diagonal += ctx.by_trace * diagonal.sum()
            by_K = by_K.to(ctx.dtype)
        return by_K, by_y.to(grad.dtype), None, None


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
    wanted = torch.is_grad_enabled() and (support.requires_grad or labels.requires_grad)
    s, t = (z.detach().requires_grad_(wanted and z.requires_grad) for z in (support, labels))
    chunk = chunk or _targets_at_once(kernel, s, x)
    K, of_support = kernel.gram(s)
    of_labels = ridge(K, t, reg=reg, relative=relative)
    known, coefficients = tuple(q.detach() for q in of_support), of_labels.detach()
    by_coefficients = torch.zeros_like(coefficients)
    by_support = [torch.zeros_like(z) for z in (s, *known)] if s.requires_grad else []
    loss, predictions = x.new_zeros(()), []
    for x_part, y_part, *rest in zip(*(z.detach().split(chunk) for z in (x, y, *(variances or ()))), strict=True):
        K_st, pull = kernel.pullback(s, x_part, known, tuple(rest) or None, wanted=s.requires_grad)
        pred = (coefficients.T @ K_st).T
        residual = pred - y_part
        loss += residual.square().sum()
        predictions.append(pred)
        if wanted:
            by_coefficients.addmm_(K_st, residual)
        if by_support:
            for total, part in zip(by_support, pull(coefficients @ residual.T), strict=True):
                total += part
    loss *= 0.5 / y.numel()
    if wanted:
        tracked = [of_labels, *(of_support if by_support else ())]
        torch.autograd.backward(tracked, [by_coefficients, *by_support[1:]])
        if s.grad is not None:
            s.grad.add_(by_support[0]).div_(y.numel())
        if t.grad is not None:
            t.grad.div_(y.numel())
        loss = _Known.apply(loss, s.grad, t.grad, support, labels)
    return loss, torch.cat(predictions)


def _targets_at_once(kernel: Kernel, support: Tensor, x: Tensor) -> int:
    # few enough for a CPU's cache to hold them until the backward pass reads them again; but many beside the support,
    # which is read, and its gradient added up, for each chunk
    held = len(x) if x.is_cuda else max(CACHED // (x[0].numel() * x.element_size()), 25 * len(support))
    return max(1, min(held, kernel.pairs_in_memory(x) // len(support)))


class _Known(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, grad_s: Tensor | None, grad_t: Tensor | None, support: Tensor, labels: Tensor
    ) -> Tensor:
        ctx.save_for_backward(grad_s, grad_t)
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(None if known is None else grad * known for known in ctx.saved_tensors)


@torch.no_grad()
def label_solve(
    kernel: Kernel, support: Tensor, batches: Iterable[tuple[Tensor, Tensor]], *, reg: float = 1e-6
) -> Tensor:
    """The labels (n, C) of the support with which ridge regression fits the targets best, float64.

    ``(K_ss + l I)(K_st K_ts + l I)^-1 K_st y_t`` with ``l = reg / n``, in one pass over batches (x (B, ...), y (B, C))
    of targets, all in float64. Raises ValueError where K_st K_ts + l I is not positive definite.
    """
    support = support.double()
    K, variances = kernel.gram(support)
    gram, moment = support.new_zeros(len(support), len(support)), support.new_zeros(len(support), 1)
    for x, y in batches:
        K_st = kernel(support, x.double(), variances1=variances)
        gram = gram + K_st @ K_st.T
        moment = moment + K_st @ y.double()
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
