"""What each layer of an infinitely wide network does to covariances, in NTK parameterisation.

A state is ``(K, T)``: the covariance K of what the layer puts out (NNGP) and the tangent kernel T, which is None where
only the former is wanted. Shapes: (N1, N2) of whole images, (N1, N2, Y, X) of pixel pairs (`pairs.Grid`). Activations
also take the variances q1 (N1, 1, ...) and q2 (N2, ...) of images or pixels, and the place that pairs them. Where
``own`` is true K is the covariance (N, ...) of images with themselves, and q1 and q2 are both (N, ...).

Sources: Cho & Saul (2009) for ReLU, Williams (1997) for erf, Jacot et al. (2018) for the tangent kernel, Novak et al.
(2019, 2020) and Arora et al. (2019) for convolutions and pooling.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, pi
from typing import Any

import torch
from torch import Tensor

from .order import first_order
from .pairs import Grid, Whole

State = tuple[Tensor, Tensor | None]
TINY = {dtype: torch.finfo(dtype).tiny for dtype in (torch.float32, torch.float64)}
TIP = {dtype: 16 * torch.finfo(dtype).eps for dtype in TINY}


def dense(K: Tensor, T: Tensor | None, *, w_std: float, b_std: float, ntk: bool) -> State:
    """``K = w_std^2 K + b_std^2``, ``T = w_std^2 T + K``; T is K itself at the first layer that has weights."""
    return _affine(K, T, w_std**2, b_std**2, ntk)


def conv3x3(K: Tensor, T: Tensor | None, grid: Grid, *, w_std: float, b_std: float, ntk: bool) -> State:
    """Dense on the mean over nine offsets of ``K[p + d, q + d]``: zero-padded (SAME), always divided by nine."""
    return _affine(grid.box(K), None if T is None else grid.box(T), w_std**2 / 9, b_std**2, ntk)


def _affine(K: Tensor, T: Tensor | None, gain: float, offset: float, ntk: bool) -> State:
    K = torch.add(K.new_tensor(offset), K, alpha=gain)
    if T is None:
        return K, K if ntk else None
    return K, torch.add(K, T, alpha=gain)


def avgpool(K: Tensor, T: Tensor | None, grid: Grid) -> State:
    """2x2 average pooling with stride 2; an odd last row or column is dropped (VALID)."""
    return grid.pool(K), None if T is None else grid.pool(T)


def spatial_mean(K: Tensor, T: Tensor | None, grid: Grid) -> State:
    """Flatten, where the grid has the pairs p = q only; global average pooling (GAP), where it has all pairs."""
    return grid.mean(K), None if T is None else grid.mean(T)


def relu(K: Tensor, T: Tensor | None, q1: Tensor, q2: Tensor, place: Whole, own: bool) -> State:
    """``K' = (s sin t + (pi - t) K) / 2 pi``, ``T' = T (pi - t) / 2 pi``; ``s = sqrt(q1 q2)``, ``cos t = K / s``.

    Angles with ``sin^2 t <= 16 eps``, which rounding cannot tell from 0 or pi, are taken as 0 or pi; there T' has no
    derivative by the angle (it is the tip of a cone: zero is one of its subgradients). So is the angle of a place with
    itself, whatever K / s rounds to.
    """
    state: State = _ReLU.apply(
        K, T, place.first(deviation(q1)), place.second(deviation(q2)), place.same if own else None
    )
    return state


def deviation(q: Tensor) -> Tensor:
    """The square root of a variance; one of 0 would have an infinite derivative."""
    return q.clamp(min=TINY[q.dtype]).sqrt()


class _ReLU(torch.autograd.Function):
    """Fused, because autograd through arccos is infinite at t = 0 and keeps three times as much."""

    @staticmethod
    def forward(ctx: Any, K: Tensor, T: Tensor | None, r1: Tensor, r2: Tensor, same: Tensor | None) -> State:
        state, known = relu_forward(K, T, r1, r2, same)
        ctx.save_for_backward(K, T, *known, r1, r2)
        ctx.set_materialize_grads(False)
        return state

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_K: Tensor | None, grad_T: Tensor | None) -> tuple[Tensor | None, ...]:
        K, T, height, active, r1, r2 = ctx.saved_tensors
        if grad_K is None and grad_T is None:
            return (None,) * 5
        dK, dT, turned = relu_backward(K, T, height, active, grad_K, grad_T)
        dr1, dr2 = (
            turned.sum_to_size(r.shape) / (2 * pi * r) if needed else None
            for r, needed in zip((r1, r2), ctx.needs_input_grad[2:4], strict=True)
        )
        return dK, dT, dr1, dr2, None


def relu_forward(
    K: Tensor, T: Tensor | None, r1: Tensor, r2: Tensor, same: Tensor | None
) -> tuple[State, tuple[Tensor, Tensor]]:
    """`relu` from the deviations r1 and r2, and ``s sin t`` and ``(pi - t) / 2 pi`` for `relu_backward`; no graph.

    Few passes over few arrays: between two products that is what a layer costs.
    """
    s = r1 * r2
    cosine = K / s
    sine = torch.addcmul(K.new_ones(()), cosine, cosine, value=-1)
    torch.threshold_(sine, TIP[K.dtype], 0.0)  # also where rounding took |cosine| above 1
    if same is not None:
        sine.masked_fill_(same, 0.0)
    sine.sqrt_()
    active = torch.atan2(sine, cosine, out=cosine).mul_(-0.5 / pi).add_(0.5)  # how often both are positive
    height = s.mul_(sine)
    new_K = torch.mul(K, active, out=sine)
    new_T = None if T is None else new_K.clone() if T is K else T * active
    return (new_K.add_(height, alpha=0.5 / pi), new_T), (height, active)


def relu_backward(
    K: Tensor, T: Tensor | None, height: Tensor, active: Tensor, grad_K: Tensor | None, grad_T: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """From the gradients by K' and T', of which one may be None: those by K and T, and 2 pi times that by log s."""
    if grad_T is None:
        assert grad_K is not None
        return grad_K * active, None, grad_K * height
    assert T is not None
    dT = grad_T * active
    # d active / dK = 1 / (2 pi s sin t), or 0 at the tip; and by log s it is -K times that
    turn = (grad_T * T).div_(torch.threshold(height, 0.0, inf))
    if grad_K is None:
        return turn * (0.5 / pi), dT, (turn * K).neg_()
    dK = torch.add(dT if grad_K is grad_T else grad_K * active, turn, alpha=0.5 / pi)
    return dK, dT, (grad_K * height).addcmul_(turn, K, value=-1)


def erf(K: Tensor, T: Tensor | None, q1: Tensor, q2: Tensor, place: Whole, own: bool) -> State:
    """``K' = 2/pi asin(2 K / sqrt D)``, ``T' = 4/pi T / sqrt(D - 4 K^2)``; ``D = (1 + 2 q1)(1 + 2 q2)``.

    Smooth: ``D - 4 K^2 = 1 + 2 (q1 + q2) + 4 (q1 q2 - K^2)``, whose last term is not negative, and 0 of a place with
    itself.
    """
    q1, q2 = place.first(q1), place.second(q2)
    rest = torch.addcmul(q1 * q2, K, K, value=-1).clamp(min=0)
    if own:
        rest = rest.masked_fill(place.same, 0.0)
    root = (1 + 2 * (q1 + q2) + 4 * rest).sqrt()
    return torch.atan2(2 * K, root) * (2 / pi), None if T is None else T / root * (4 / pi)


ACTIVATIONS: dict[str, Callable[..., State]] = {"relu": relu, "erf": erf}
