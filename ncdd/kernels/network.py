"""Infinitely wide networks as kernels: `fc`, `conv`, `convnet`, `myrtle`.

Inputs are images (N, C, H, W) as they come: no preprocessing. Parameterisation and conventions are those of
neural-tangents (Novak et al. 2020, arXiv 1912.02803): weights are N(0, w_std^2 / fan-in), biases N(0, b_std^2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .fused import FullyConnected
from .layers import ACTIVATIONS, avgpool, conv3x3, dense, spatial_mean
from .pairs import Grid, Whole, plan

Get = Literal["ntk", "nngp"]
Variances = tuple[Tensor, ...]
HEADS = ("flatten", "gap")
MYRTLE = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}  # convolutions in each block, by depth
MEMORY = 2**30
TILE = 2**19  # values of a tile on a CPU, 4 MiB of float64: a layer then works within the cache
KEPT = 10  # values for each entry of a covariance that autograd keeps at an activation, or that a layer holds at once


class Kernel:
    """The NNGP and the tangent kernel of an infinitely wide network; made by `fc`, `conv`, `convnet`, `myrtle`.

    ``kernel(x1, x2=None, get="ntk")`` is (N1, N2), of the dtype (float32 or float64) and on the device of the images.
    Where x2 is None, or x1 itself, the diagonal is exact. Elsewhere rounding hides the angle between two inputs that
    are nearly parallel: below 6e-8 in float64 and 1.4e-3 in float32 the ReLU kernels take it as 0, a relative error of
    a third of it for each layer at most. Differentiable once, never to inf or NaN.

    memory: bytes that intermediate values may take. Larger calls are made tile by tile, and under autograd the tiles
        are made again in the backward pass; a single pair of images is the least that memory has to hold.
    """

    def __init__(self, architecture: Sequence[str], *, w_std: float, b_std: float, memory: int) -> None:
        for name, value, least in (("w_std", w_std, 0), ("b_std", b_std, 0), ("memory", memory, 1)):
            if not value >= least:
                raise ValueError(f"{name} is {value}: it must be at least {least}")
        self.architecture, self.memory = tuple(architecture), memory
        self.weights = {"w_std": w_std, "b_std": b_std}
        depth = len(self.architecture) // 2
        fully_connected = self.architecture == ("dense", "relu") * depth + ("dense",)
        self.fused = FullyConnected(w_std**2, b_std**2, depth) if fully_connected else None

    def __repr__(self) -> str:
        return f"Kernel({' '.join(self.architecture)}, {self.weights})"

    def __call__(
        self,
        x1: Tensor,
        x2: Tensor | None = None,
        get: Get = "ntk",
        *,
        variances1: Variances | None = None,
        variances2: Variances | None = None,
    ) -> Tensor:
        """(N1, N2). ``variances1`` and ``variances2``, from `variances`, spare finding those of x1 and x2 again."""
        if x2 is None or x2 is x1:
            return self.gram(x1, get)[0]
        check_pair(x1, x2)
        first = (x1, *(variances1 or self.variances(x1)))
        second = (x2, *(variances2 or self.variances(x2)))
        # BLAS multiplies a few rows by many columns nearly twice as fast as many rows by a few columns
        return self._tiled(first, second, get) if len(x1) <= len(x2) else self._tiled(second, first, get).T

    def pullback(
        self, x1: Tensor, x2: Tensor, variances1: Variances, variances2: Variances | None = None, *, wanted: bool = True
    ) -> tuple[Tensor, Callable[[Tensor], Sequence[Tensor]]]:
        """``kernel(x1, x2)`` without a graph, and the map from a gradient by it to those by x1 and ``variances1``.

        wanted: whether that map is called, once
        """
        check_pair(x1, x2)
        variances2 = variances2 or self.variances(x2)
        if self.fused:
            known = (*variances1, *variances2)
            K, back = self.fused.pullback(x1.flatten(1), x2.flatten(1), known)
            return K, lambda grad: [g.view_as(z) for g, z in zip(back(grad), (x1, *variances1), strict=True)]
        with torch.set_grad_enabled(wanted):
            leaves = [value.detach().requires_grad_(wanted) for value in (x1, *variances1)]
            K = self(leaves[0], x2, variances1=tuple(leaves[1:]), variances2=variances2)
        return K.detach(), lambda grad: torch.autograd.grad(K, leaves, grad)

    def gram(self, x: Tensor, get: Get = "ntk") -> tuple[Tensor, Variances]:
        """``kernel(x)`` (N, N) and ``kernel.variances(x)``, for the price of the former."""
        diagonal, *variances = self._own(x, get)
        first = (x, *variances)
        return self._tiled(first, first, get).diagonal_scatter(diagonal), tuple(variances)

    def _tiled(self, first: tuple[Tensor, ...], second: tuple[Tensor, ...], get: Get) -> Tensor:
        """(N1, N2) from images and their variances."""
        n1, n2 = len(first[0]), len(second[0])
        tile = self._bounded(partial(self._cross, ntk=_ntk(get)), first[0], n1 * n2, (*first, *second))
        rows, columns = self._tile(first[0], n2)
        seconds = _split(second, columns)
        return _join([_join([tile(a, b) for b in seconds], dim=1) for a in _split(first, rows)])

    def diagonal(self, x: Tensor, get: Get = "ntk") -> Tensor:
        """(N,), the kernel of each image with itself, exact."""
        return self._own(x, get)[0]

    def variances(self, x: Tensor) -> Variances:
        """Before each activation the variance of each image (N,) or, while there are pixels, of each pixel (N, H, W).

        A pair needs nothing else of either image, so these can be kept for images that do not change, and are indexed
        like them: ``tuple(q[chosen] for q in variances)``.
        """
        return self._own(x, "nngp")[1:]

    def pairs_in_memory(self, x: Tensor) -> int:
        """How many pairs of images like those of x autograd can keep in ``memory``, at least 1."""
        places = zip(self.architecture, self._plan(x), strict=True)
        return self._fits(x, sum(place.slots for name, place in places if name in ACTIVATIONS))

    def _own(self, x: Tensor, get: Get) -> tuple[Tensor, ...]:
        """The kernel of each image with itself, and its variances: all from covariances (N, ...) instead of (N, N)."""
        _check(x)
        if self.fused:
            return self.fused.own(x.flatten(1), _ntk(get))
        place = self._plan(x)[0]
        rows = self._tile(x, 1)[0]

        def tile(x: Tensor) -> tuple[Tensor, ...]:
            return self._propagate(place.own_covariance(x), self._plan(x), _ntk(get))

        tile = self._bounded(tile, x, len(x), (x,))
        return tuple(_join(parts) for parts in zip(*(tile(*part) for part in _split((x,), rows)), strict=True))

    def _cross(self, first: tuple[Tensor, ...], second: tuple[Tensor, ...], ntk: bool) -> Tensor:
        """(n1, n2) from images and variances of both sides."""
        if self.fused:
            return self.fused.cross(first[0].flatten(1), second[0].flatten(1), (*first[1:], *second[1:]), ntk)
        places = self._plan(first[0])
        variances = [(q1[:, None], q2) for q1, q2 in zip(first[1:], second[1:], strict=True)]
        return self._propagate(places[0].covariance(first[0], second[0]), places, ntk, variances)[0]

    def _propagate(
        self,
        K: Tensor,
        places: Sequence[Whole],
        ntk: bool,
        variances: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, ...]:
        """From the covariance of inputs to the kernel, and the variances met before each activation.

        Without ``variances``, K is the covariance of images with themselves, and they are its diagonal.
        """
        T: Tensor | None = None
        met: list[Tensor] = []
        for name, place in zip(self.architecture, places, strict=True):
            if name in ACTIVATIONS:
                q1, q2 = variances[len(met)] if variances else (place.diagonal(K),) * 2
                met.append(q1)
                K, T = ACTIVATIONS[name](K, T, q1, q2, place, own=not variances)
            elif name == "dense":
                K, T = dense(K, T, **self.weights, ntk=ntk)
            else:
                assert isinstance(place, Grid)
                if name == "conv":
                    K, T = conv3x3(K, T, place, **self.weights, ntk=ntk)
                else:
                    K, T = avgpool(K, T, place) if name == "avgpool" else spatial_mean(K, T, place)
        return (K if T is None else T, *met)

    def _plan(self, x: Tensor) -> tuple[Whole, ...]:
        return plan(self.architecture, x.shape[-2], x.shape[-1], x.device)

    def _fits(self, x: Tensor, values: int) -> int:
        return max(1, self.memory // (KEPT * x.element_size() * values))

    def _tile(self, x1: Tensor, n2: int) -> tuple[int, int]:
        """Rows and columns of a tile, as square as they can be: the less of the inputs has to be read again."""
        slots = self._plan(x1)[0].slots
        pairs = self._fits(x1, slots) if x1.is_cuda else max(1, min(self._fits(x1, slots), TILE // slots))
        columns = max(1, min(n2, max(isqrt(pairs), pairs // max(1, len(x1)))))
        return max(1, pairs // columns), columns

    def _bounded(self, tile: Callable[..., Any], x: Tensor, pairs: int, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        """``tile``, made again in the backward pass where autograd would keep more than ``memory`` of all tiles."""
        tracked = torch.is_grad_enabled() and any(value.requires_grad for value in inputs)
        if not tracked or pairs <= self.pairs_in_memory(x):
            return tile
        return partial(checkpoint, tile, use_reentrant=False, preserve_rng_state=False)


def fc(
    depth: int, activation: str = "relu", w_std: float = 2**0.5, b_std: float = 0.1, *, memory: int = MEMORY
) -> Kernel:
    """[Dense, activation] x depth, Dense, on the images' pixels as one vector. activation: "relu" or "erf"."""
    _check_depth(depth, activation)
    return Kernel(("dense", activation) * depth + ("dense",), w_std=w_std, b_std=b_std, memory=memory)


def conv(
    depth: int,
    activation: str = "relu",
    head: str = "flatten",
    w_std: float = 2**0.5,
    b_std: float = 0.1,
    *,
    memory: int = MEMORY,
) -> Kernel:
    """[Conv 3x3, activation] x depth, head ("flatten" or "gap"), Dense."""
    _check_depth(depth, activation)
    return _convolutional(("conv", activation) * depth, head, w_std, b_std, memory)


def convnet(
    prepend: bool = True,
    head: str = "flatten",
    w_std: float = 2**0.5,
    b_std: float = 0.1,
    *,
    depth: int = 3,
    memory: int = MEMORY,
) -> Kernel:
    """Conv 3x3, ReLU, then depth x [Conv 3x3, ReLU, AvgPool 2x2], head, Dense: the ConvNet of KIP.

    Without the prepended Conv and ReLU it is its ConvNet3 (Nguyen et al. 2021, arXiv 2107.13034).
    """
    _check_depth(depth)
    body = ("conv", "relu") * prepend + ("conv", "relu", "avgpool") * depth
    return _convolutional(body, head, w_std, b_std, memory)


def myrtle(depth: int = 5, w_std: float = 2**0.5, b_std: float = 0.1, *, memory: int = MEMORY) -> Kernel:
    """Three blocks of [Conv 3x3, ReLU] x n with AvgPool 2x2 between them, GAP, Dense; depth 5, 7 or 10 in all.

    Shankar et al. 2020, arXiv 2003.02237. Their poolings after the last block are part of GAP here, which is the same
    where sizes are even.
    """
    if depth not in MYRTLE:
        raise ValueError(f"depth is {depth}: choose from {', '.join(map(str, MYRTLE))}")
    first, *rest = (("conv", "relu") * n for n in MYRTLE[depth])
    return _convolutional(first + sum((("avgpool", *block) for block in rest), ()), "gap", w_std, b_std, memory)


NAMED: dict[str, Callable[..., Kernel]] = {
    "fc1": partial(fc, 1),
    "fc2": partial(fc, 2),
    "fc3": partial(fc, 3),
    "conv3": partial(conv, 3),
    "convnet": convnet,
    "convnet3": partial(convnet, prepend=False),
    "myrtle5": partial(myrtle, 5),
}


def named(name: str, *, memory: int = MEMORY) -> Kernel:
    """The kernel that papers call by that name, with its default weights. ValueError for a name not in NAMED."""
    if name not in NAMED:
        raise ValueError(f"kernel={name!r}: choose from {', '.join(NAMED)}")
    return NAMED[name](memory=memory)


def _convolutional(body: tuple[str, ...], head: str, w_std: float, b_std: float, memory: int) -> Kernel:
    if head not in HEADS:
        raise ValueError(f"head is {head!r}: choose from {', '.join(HEADS)}")
    return Kernel((*body, head, "dense"), w_std=w_std, b_std=b_std, memory=memory)


def _check_depth(depth: int, activation: str = "relu") -> None:
    if depth < 1:
        raise ValueError(f"depth is {depth}: it must be at least 1")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}: choose from {', '.join(ACTIVATIONS)}")


def _ntk(get: str) -> bool:
    if get not in ("ntk", "nngp"):
        raise ValueError(f"get is {get!r}: choose from ntk, nngp")
    return get == "ntk"


def _check(x: Tensor) -> None:
    if x.ndim != 4 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images must be (N, C, H, W) in float32 or float64, not {tuple(x.shape)} in {x.dtype}")


def check_pair(x1: Tensor, x2: Tensor) -> None:
    """ValueError where these are no images, or not of one size and dtype."""
    _check(x1)
    _check(x2)
    if x1.shape[1:] != x2.shape[1:] or x1.dtype != x2.dtype:
        shapes = f"x1 is {tuple(x1.shape)} in {x1.dtype}, x2 {tuple(x2.shape)} in {x2.dtype}"
        raise ValueError(f"{shapes}: only the number of images may differ")


def _split(tensors: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    if size >= len(tensors[0]):  # autograd would copy the gradient of a single part, too
        return [tensors]
    return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))


def _join(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)
