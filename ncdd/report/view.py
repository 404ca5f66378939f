"""Where the features are looked at from: projections on the span of the class means.

Shapes: K classes, D features, N samples, d dimensions drawn.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ncdd.report.folder import Array, Sample

ALL_TRIPLES = 40  # classes up to which every triple is tried


def centre(rows: Array) -> Array:
    """Rows less their mean."""
    return np.asarray(rows - rows.mean(axis=0))


@dataclass(frozen=True)
class View:
    """An affine map from features to what is drawn, (h - origin) @ axes / scale, made for some of the classes."""

    origin: Array  # (D,)
    axes: Array  # (D, d)
    scale: float  # mean norm of the centred class means
    classes: NDArray[np.int64]
    share: float  # of the variance between these classes that is seen

    def __call__(self, rows: Array) -> Array:
        """Features (N, D) as drawn, (N, d)."""
        return np.asarray((rows - self.origin) @ self.axes / self.scale)

    def classifier(self, weight: Array) -> Array:
        """The classes' rows of weight (K, D), centred and scaled to a mean norm of 1, as drawn."""
        rows = centre(weight[self.classes])
        return np.asarray(rows @ self.axes / (np.linalg.norm(rows, axis=1).mean() or 1.0))


def span_view(sample: Sample, classes: NDArray[np.int64], d: int) -> View:
    """The leading d principal directions of the classes' centred means, the origin at the mean of the means.

    Where the means span fewer than d directions (two classes in a plane), the widest directions of the features
    about their class means, at right angles to the others, take the places that are left.
    """
    means = sample.mean[classes]
    centred = centre(means)
    rank = min(d, len(classes) - 1, means.shape[1])
    axes = np.linalg.svd(centred, full_matrices=False)[2][:rank]
    if rank < d:
        residual = _residual(sample, classes)
        residual = residual - residual @ axes.T @ axes
        axes = np.concatenate([axes, np.linalg.svd(residual, full_matrices=False)[2][: d - rank]])
    axes = np.pad(axes, ((0, d - len(axes)), (0, 0))).T
    seen, total = float(((centred @ axes) ** 2).sum()), float((centred**2).sum())
    scale = float(np.linalg.norm(centred, axis=1).mean()) or 1.0
    return View(means.mean(axis=0), axes @ _turn(centred @ axes), scale, classes, seen / total if total else 1.0)


def _residual(sample: Sample, classes: NDArray[np.int64], most: int = 500) -> Array:
    """Features less their class means, of at most 500 samples of the classes."""
    inside = np.isin(sample.labels, classes) & np.isfinite(sample.features).all(axis=1)
    return sample.features[inside][:most] - sample.mean[sample.labels[inside]][:most]


def _turn(points: Array) -> Array:
    """An orthogonal (d, d) that puts points in a known place, whatever the signs and order of the directions.

    In a plane the first point goes up and the second to its right, two points to left and right; in space the
    point farthest along each axis is on its positive side.
    """
    d = points.shape[1]
    if d != 2 or len(points) == 2:
        farthest = points[1] if len(points) == 2 else points[np.abs(points).argmax(axis=0), range(d)]
        return np.diag(np.where(farthest < 0, -1.0, 1.0))
    x, y = points[0] / (np.linalg.norm(points[0]) or 1.0)
    turn = np.array([[y, x], [-x, y]]) if x or y else np.eye(2)
    return turn @ np.diag([-1.0 if (points[1] @ turn)[0] < 0 else 1.0, 1.0])


def closest_classes(means: Array) -> NDArray[np.int64]:
    """The three rows of means (K, D) with the least summed distance; beyond 40 the closest pair and its nearest."""
    K = len(means)
    centred = centre(means)
    square = (centred**2).sum(axis=1)
    distance = np.sqrt(np.maximum(square[:, None] + square - 2 * centred @ centred.T, 0))
    if K <= ALL_TRIPLES:
        return np.array(min(combinations(range(K), 3), key=lambda c: distance[np.ix_(c, c)].sum()))
    np.fill_diagonal(distance, np.inf)
    i, j = np.unravel_index(np.argmin(distance), distance.shape)
    return np.sort([i, j, np.argmin(distance[i] + distance[j])])
