"""The simplex equiangular tight frame, the shape class means and classifier rows collapse to."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def simplex_etf(
    num_classes: int,
    dim: int,
    *,
    rotation: Literal["identity", "random"] = "identity",
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Vertices of a simplex ETF as rows, (K, D): unit norm, every cosine -1/(K-1), summing to zero.

    ``E = sqrt(K/(K-1)) (I - 11'/K) U'`` with U (D, K) orthonormal (Papyan, Han & Donoho 2020, Definition 1). The
    vertices span only K-1 directions, so D = K-1 suffices: there U' is replaced by a Helmert basis of the complement
    of the ones vector, which gives the same Gram matrix. ``rotation="random"`` draws the orthonormal frame from
    ``seed``; ``"identity"`` uses the first coordinate axes. Worked in float64, returned in ``dtype``.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes}: a simplex ETF needs at least 2 classes")
    if dim < num_classes - 1:
        raise ValueError(
            f"dim={dim} cannot hold a simplex of num_classes={num_classes} vertices: "
            f"use dim >= {num_classes - 1} (for instance a wider feature layer) or fewer classes"
        )
    if rotation not in ("identity", "random"):
        raise ValueError(f'rotation={rotation!r}: choose "identity" or "random"')
    K = num_classes
    vertices = torch.eye(K, dtype=torch.float64) - 1.0 / K if dim >= K else helmert(K).T
    vertices = vertices * (K / (K - 1)) ** 0.5
    return (vertices @ _orthonormal_rows(vertices.shape[1], dim, rotation, seed)).to(dtype)


def helmert(num_classes: int) -> Tensor:
    """Orthonormal basis of the complement of the ones vector as rows, (K-1, K)."""
    j = torch.arange(1, num_classes, dtype=torch.float64)
    rows = torch.tril(torch.ones(num_classes - 1, num_classes, dtype=torch.float64))
    rows[torch.arange(num_classes - 1), torch.arange(1, num_classes)] = -j
    return rows / (j * (j + 1)).sqrt()[:, None]


def _orthonormal_rows(rows: int, dim: int, rotation: str, seed: int) -> Tensor:
    if rotation == "identity":
        return torch.eye(rows, dim, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(dim, rows, generator=generator, dtype=torch.float64))
    # the sign fix makes the distribution uniform (Haar) and the result independent of LAPACK's sign convention
    return (q * r.diagonal().sign()).T
