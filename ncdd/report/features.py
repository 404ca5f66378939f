"""The figure of the features, class means and classifier rows in the span of the class means.

Shapes: K classes, D features, N samples, d dimensions drawn.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ncdd.report.folder import Array, Geometry, Sample
from ncdd.report.style import CLASSIFIER, LARGE, MEDIUM, MUTED, NAMED, PETROFF, SMALL, new_figure, plain_axes, shorten
from ncdd.report.view import View, closest_classes, span_view

OTHERS = "#b8b8b8"  # classes beyond the three in colour, when there are too many to tell apart
OUTLINE = [withStroke(linewidth=2.5, foreground="white")]


def features_figure(geometry: Geometry) -> Figure | None:
    """Features, class means and classifier rows in the span of the class means, the splits side by side.

    Up to three classes: their plane. More: the three leading directions above, and below the plane of the three
    closest classes, where collapse is an equilateral triangle. All axes are found on the first split (train), and
    are in units of the mean norm of its centred class means. None where there are not two classes.
    """
    first, columns = next(iter(geometry.samples.values())), len(geometry.samples)
    kept = first.classes
    if len(kept) < 2:
        return None
    solid = len(kept) > 3
    plane = span_view(first, kept[closest_classes(first.mean[kept])] if solid else kept, 2)
    colours = _class_colours(len(geometry.class_names), plane.classes)
    figure = new_figure(max(5.8 * columns, 7.0), 12.2 if solid else 6.6)
    grid = figure.add_gridspec(1 + solid, columns, height_ratios=[1.1, 1] if solid else [1])
    if solid:
        _spaces(figure, grid, geometry, span_view(first, kept, 3), colours)
    reach = _reach(geometry.samples.values(), plane, seen=0.99)
    for column, (split, sample) in enumerate(geometry.samples.items()):
        ax = figure.add_subplot(grid[-1, column])
        _plane(ax, sample, plane, geometry, colours, reach)
        ax.set_title(f"{split}: {_plane_title(plane, geometry, len(kept))}", fontsize=LARGE)
    _legends(figure, geometry, kept, colours)
    return figure


def _class_colours(K: int, closest: NDArray[np.int64]) -> NDArray[np.str_]:
    """Ten colours, twice up to twenty classes (in two shapes); of more classes only the closest are coloured."""
    if K <= NAMED:
        return np.array([PETROFF[k % len(PETROFF)] for k in range(K)])
    colours = np.full(K, OTHERS)
    colours[closest] = PETROFF[: len(closest)]
    return colours


def _marker(k: int, K: int) -> str:
    return "s" if len(PETROFF) <= k < K <= NAMED else "o"


def _reach(samples: Iterable[Sample], view: View, seen: float) -> float:
    """Half the length of the axes: all class means and this share of the features of every split are within."""
    margin = 1.1 if view.axes.shape[1] == 3 else 1.4  # names go beside the marks of a plane
    reach = margin * max(float(np.abs(view(sample.mean[_shown(sample, view)])).max(initial=0)) for sample in samples)
    reach = reach or 1.0
    for sample in samples:
        points = view(_features(sample, view)[0])
        if len(points):
            reach = max(reach, 1.05 * float(np.quantile(np.abs(points).max(axis=1), seen)))
    return reach


def _shown(sample: Sample, view: View) -> NDArray[np.int64]:
    """The view's classes that the sample has."""
    return view.classes[np.isin(view.classes, sample.classes)]


def _features(sample: Sample, view: View) -> tuple[Array, NDArray[np.int64]]:
    """Finite features of the view's classes, and their labels."""
    shown = np.isin(sample.labels, view.classes) & np.isfinite(sample.features).all(axis=1)
    return sample.features[shown], sample.labels[shown]


def _scatter(
    ax: Any, sample: Sample, view: View, geometry: Geometry, colours: NDArray[np.str_], reach: float, size: float
) -> str:
    """Features as dots, classifier rows as lines and class means as large marks, in two or three dimensions.

    Returns how many features lie outside the reach, in words; they are not drawn.
    """
    flat = {} if view.axes.shape[1] == 2 else {"depthshade": False}
    features, labels = _features(sample, view)
    points = view(features)
    inside = np.flatnonzero((np.abs(points) <= reach).all(axis=1))
    inside = inside[np.argsort(colours[labels[inside]] != OTHERS, kind="stable")]  # the coloured ones on top
    ax.scatter(
        *points[inside].T, c=colours[labels[inside]], s=size, alpha=0.4, linewidths=0, zorder=2, label="features",
        **flat,
    )  # fmt: skip
    if geometry.weight is not None:
        for row in view.classifier(geometry.weight)[colours[view.classes] != OTHERS]:
            line = np.stack([np.zeros_like(row), row])
            ax.plot(*line.T, color=CLASSIFIER, linewidth=1.4, zorder=4, label="classifier")
    shown = _shown(sample, view)
    K, muted = len(geometry.class_names), colours[shown] == OTHERS
    square = np.array([_marker(int(k), K) == "s" for k in shown], dtype=bool)
    for classes, marker, area in (
        (shown[muted], "o", 25),
        (shown[~muted & ~square], "o", 100),
        (shown[square], "s", 85),
    ):
        if len(classes):
            ax.scatter(
                *view(sample.mean[classes]).T, c=colours[classes], s=area, marker=marker, edgecolors="black",
                linewidths=area / 100, zorder=5 if area > 50 else 3, label="class means", **flat,
            )  # fmt: skip
    return "" if len(inside) == len(points) else f"{len(points) - len(inside)} of {len(points)} features lie outside"


def _spaces(figure: Figure, grid: Any, geometry: Geometry, space: View, colours: NDArray[np.str_]) -> None:
    """The row of views in space."""
    reach = _reach(geometry.samples.values(), space, seen=0.9)
    for column, (split, sample) in enumerate(geometry.samples.items()):
        ax: Any = figure.add_subplot(grid[0, column], projection="3d", computed_zorder=False)
        note = _scatter(ax, sample, space, geometry, colours, reach, size=8)
        ax.text2D(0.5, 0.99, note, transform=ax.transAxes, ha="center", va="top", fontsize=SMALL, color=MUTED)
        ax.set_box_aspect((1, 1, 1), zoom=1.2)
        ax.view_init(elev=18, azim=-58)
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
        for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
            axis.set_pane_color((0.97, 0.97, 0.97, 1.0))
            axis.set_major_locator(MaxNLocator(5))
            axis.set_tick_params(labelsize=SMALL, colors=MUTED)
            axis._axinfo["grid"].update(color="#dddddd", linewidth=0.7)  # there is no public way
        title = (
            f"{split}: three leading directions of the class means\n({space.share:.0%} of the variance between classes)"
        )
        ax.set_title(title, fontsize=LARGE)


def _plane(ax: Axes, sample: Sample, view: View, geometry: Geometry, colours: NDArray[np.str_], reach: float) -> None:
    """One view of a plane, with the names of its classes."""
    plain_axes(ax)
    note = _scatter(ax, sample, view, geometry, colours, reach, size=14)
    ax.text(0.99, 0.01, note, transform=ax.transAxes, ha="right", fontsize=SMALL, color=MUTED)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach))
    ax.set_aspect("equal", adjustable="box")
    ax.set_xlabel(
        f"unit: mean norm of the centred class means ({next(iter(geometry.samples))})", fontsize=SMALL, color=MUTED
    )
    shown = _shown(sample, view)
    for k, mean in zip(shown, view(sample.mean[shown]), strict=True):
        above = mean[1] > 0.5
        ax.annotate(
            shorten(geometry.class_names[k]), mean, xytext=(0, 9 if above else -9), textcoords="offset points",
            ha="center", va="bottom" if above else "top", fontsize=MEDIUM, fontweight="bold", path_effects=OUTLINE,
            zorder=6,
        )  # fmt: skip


def _plane_title(plane: View, geometry: Geometry, K: int) -> str:
    if K == 2:
        return "along the class means, and the widest other direction"
    if K == 3:
        return "the plane of the class means"
    names = ", ".join(shorten(geometry.class_names[k]) for k in plane.classes)
    return f"plane of the three closest classes\n({names})"


def _legends(figure: Figure, geometry: Geometry, kept: NDArray[np.int64], colours: NDArray[np.str_]) -> None:
    """What the marks are, above; four to twenty classes, below."""
    K = len(geometry.class_names)
    marks = [
        _key("class mean", marker="o", markersize=9, markerfacecolor="white", markeredgecolor="black"),
        _key("feature", marker=".", markersize=7, markerfacecolor=MUTED, markeredgecolor="none"),
    ]
    if geometry.weight is not None:
        marks.append(Line2D([], [], color=CLASSIFIER, linewidth=1.4, label="classifier row, scaled"))
    if K > NAMED:
        marks.append(_key(f"other {K - 3} classes", marker="o", markersize=5, markerfacecolor=OTHERS))
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), fontsize=MEDIUM, frameon=False)
    if 3 < K <= NAMED:
        names = [shorten(geometry.class_names[k]) for k in kept]
        classes = [
            _key(name, marker=_marker(int(k), K), markersize=8, markerfacecolor=colours[k], markeredgecolor="none")
            for k, name in zip(kept, names, strict=True)
        ]
        widest = 0.55 + 0.095 * max(map(len, names))  # inches
        columns = min(len(classes), int(figure.get_figwidth() / widest), 10)
        figure.legend(handles=classes, loc="outside lower center", ncols=columns, fontsize=MEDIUM, frameon=False)


def _key(label: str, **mark: Any) -> Line2D:
    return Line2D([], [], color="none", label=label, **mark)
