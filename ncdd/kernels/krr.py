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

CHUNK = 1700  # images at one time: what Python costs is lost in the products, and on a CPU a cache holds them


def ridge(K: Tensor, y: Tensor, *, reg: float, relative: bool = True) -> Tensor:
    """``(K + l I)^-1 y`` (n, C) from the support's kernel (n, n) and its labels (n, C), in their dtype. Differentiable.

    ``l = reg tr(K) / n`` where relative, else ``l = reg``. Solved by Cholesky in float64, whatever K is in: an error of
    float32 in the factor would be as large as l. Raises ValueError where K + l I is not positive definite.
    """
    K = K.double()
    scale = K.diagonal().mean() if relative else K.new_ones(())
    return torch.cholesky_solve(y.double(), _cholesky(K + reg * scale * _eye(K), reg)).to(y.dtype)


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
    chunk: targets at one time; None: as many as ``kernel.memory`` holds the graph of
    """
    wanted = torch.is_grad_enabled() and (support.requires_grad or labels.requires_grad)
    s, t = (z.detach().requires_grad_(wanted and z.requires_grad) for z in (support, labels))
    chunk = chunk or max(1, min(CHUNK, kernel.pairs_in_memory(x) // len(s)))
    # what the support alone decides, whose gradients the chunks add up
    K, of_support = kernel.gram(s)
    shared = (ridge(K, t, reg=reg, relative=relative), *of_support)
    coefficients, *own = leaves = [value.detach().requires_grad_(value.requires_grad) for value in shared]
    loss, predictions = x.new_zeros(()), []
    for parts in zip(*(z.detach().split(chunk) for z in (x, y, *(variances or ()))), strict=True):
        x_part, y_part, *known = parts
        pred = (coefficients.T @ kernel(s, x_part, variances1=tuple(own), variances2=tuple(known))).T
        part = 0.5 / y.numel() * (pred - y_part).square().sum()
        if wanted:
            part.backward()
        loss += part.detach()
        predictions.append(pred.detach())
    if wanted:
        tracked = [(value, leaf.grad) for value, leaf in zip(shared, leaves, strict=True) if leaf.requires_grad]
        torch.autograd.backward([value for value, _ in tracked], [grad for _, grad in tracked])
        loss = _Known.apply(loss, s.grad, t.grad, support, labels)
    return loss, torch.cat(predictions)


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
