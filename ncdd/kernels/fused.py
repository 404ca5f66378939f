"""Fully connected relu networks, all layers as one operation, with its derivative.

Layer by layer, Python and autograd take as long around the arithmetic of a chunk of KIP's targets as that by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import pi
from typing import Any

import torch
from torch import Tensor

from .layers import TINY, deviation, relu_backward, relu_forward
from .order import first_order

ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
Layer = tuple[Tensor, Tensor | None, Tensor, Tensor]  # K, T, and what `relu_forward` found from them


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` without a graph; in float32 on a CPU by oneDNN, with few rows up to an eighth faster than MKL."""
    # what inductor calls for the same reason: `linear` with its weights transposed; no public function leads there
    if a.dtype == torch.float32 and a.device.type == "cpu" and ONEDNN and torch.backends.mkldnn.enabled:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
        return result
    return a @ b


@dataclass(frozen=True)
class FullyConnected:
    """[Dense, relu] x depth, Dense on vectors (N, D); gain and offset are w_std^2 and b_std^2."""

    gain: float
    offset: float
    depth: int

    def variance(self, x: Tensor) -> Tensor:
        """(N,) of each x, before the first relu."""
        return torch.linalg.vector_norm(x, dim=1).square() * (self.gain / x.shape[1]) + self.offset

    def own(self, x: Tensor, ntk: bool) -> tuple[Tensor, ...]:
        """The kernel of each x with itself, (N,), and the variances (N,) before each relu, which halves K and T."""
        K = self.variance(x)
        T, met = K, []
        for _ in range(self.depth):
            met.append(K)
            K = K * (self.gain / 2) + self.offset
            if ntk:
                T = T * (self.gain / 2) + K
        return (T if ntk else K, *met)

    def cross(self, x1: Tensor, x2: Tensor, variances: Sequence[Tensor], ntk: bool) -> Tensor:
        """The kernel (N1, N2); variances are those of x1 and then those of x2. Differentiable."""
        K: Tensor = _Cross.apply(self, ntk, x1, x2, *variances)
        return K

    def pullback(
        self, x1: Tensor, x2: Tensor, variances: Sequence[Tensor]
    ) -> tuple[Tensor, Callable[[Tensor], Sequence[Tensor]]]:
        """The tangent kernel without a graph, and the map from a gradient by it to those by x1 and its variances."""
        with torch.no_grad():
            K, kept = self.forward(x1, x2, variances, ntk=True)
        wanted = [True, False] + [True] * self.depth + [False] * self.depth
        return K, lambda grad: [g for g in self.backward(grad, x1, x2, variances, kept, wanted=wanted) if g is not None]

    def forward(self, x1: Tensor, x2: Tensor, variances: Sequence[Tensor], ntk: bool) -> tuple[Tensor, list[Layer]]:
        """The kernel, and what `backward` needs; no graph."""
        K = torch.addmm(x1.new_tensor(self.offset), x1, x2.T, alpha=self.gain / x1.shape[1])
        T = K if ntk else None
        kept: list[Layer] = []
        for q1, q2 in zip(variances[: self.depth], variances[self.depth :], strict=True):
            (new_K, new_T), known = relu_forward(K, T, deviation(q1)[:, None], deviation(q2), None)
            kept.append((K, T, *known))
            K = new_K.mul_(self.gain).add_(self.offset)
            T = None if new_T is None else torch.add(K, new_T, alpha=self.gain, out=new_T)
        return K if T is None else T, kept

    def backward(
        self, grad: Tensor, x1: Tensor, x2: Tensor, variances: Sequence[Tensor], kept: Sequence[Layer], *,
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:  # fmt: skip
        """Gradients by x1, x2 and the variances where wanted, from that by the kernel."""
        found: list[Tensor | None] = [None] * len(wanted)
        grad_K: Tensor = grad
        grad_T: Tensor | None = grad
        scale = 1.0  # dense layers scale K and T alike: enough to scale what is small, at the end
        for layer in reversed(range(self.depth)):
            scale *= self.gain
            K, T, height, active = kept[layer]
            grad_K, grad_T, by_log = relu_backward(K, T, height, active, grad_K, None if T is None else grad_T)
            for i, dim in ((layer, 1), (layer + self.depth, 0)):
                if wanted[2 + i]:
                    found[2 + i] = by_log.sum(dim).mul_(scale / (4 * pi)).div_(variances[i].clamp(min=TINY[K.dtype]))
            if grad_T is not None:
                grad_K.add_(grad_T)  # the dense layer below puts K into T, too
        scale *= self.gain / x1.shape[1]
        if wanted[0]:
            found[0] = product(grad_K, x2).mul_(scale)
        if wanted[1]:
            found[1] = (grad_K.T @ x1).mul_(scale)
        return found


class _Cross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, network: FullyConnected, ntk: bool, x1: Tensor, x2: Tensor, *variances: Tensor) -> Tensor:
        K, kept = network.forward(x1, x2, variances, ntk)
        ctx.network = network
        ctx.save_for_backward(x1, x2, *variances, *(value for layer in kept for value in layer))
        return K

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x1, x2, *rest = ctx.saved_tensors  # once: where tiles are made again, this makes them
        variances, flat = rest[: 2 * ctx.network.depth], rest[2 * ctx.network.depth :]
        kept = [flat[i : i + 4] for i in range(0, len(flat), 4)]
        return None, None, *ctx.network.backward(grad, x1, x2, variances, kept, wanted=ctx.needs_input_grad[2:])
