"""The figure that sets the Gram matrices of class means and classifier against the simplex ETF.

Shapes: K classes, D features.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ncdd.report.folder import Array, Geometry
from ncdd.report.style import LARGE, MEDIUM, NAMED, SMALL, new_figure, shorten
from ncdd.report.view import centre

MINUS = "\N{MINUS SIGN}"
NUMBERED = 10  # classes; beyond them the cells carry no numbers


def simplex_etf_gram(K: int) -> Array:
    """Cosines of a simplex ETF, (K, K): 1 on the diagonal, -1/(K-1) off it."""
    return (K * np.eye(K) - 1) / (K - 1)


def cosine_gram(rows: Array) -> Array:
    """Cosines of all pairs of rows, (K, D) -> (K, K); NaN where a row is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(unit @ unit.T)


def gram_figure(geometry: Geometry) -> Figure | None:
    """Cosines of centred class means and of classifier rows, their target, and how far they are from it."""
    sample = next(iter(geometry.samples.values()))
    kept = sample.classes
    if len(kept) < 2:
        return None
    names = [geometry.class_names[k] for k in kept]
    means = cosine_gram(centre(sample.mean[kept]))
    target = simplex_etf_gram(len(kept))
    split = next(iter(geometry.samples))
    panels = [(f"class means, centred ({split})", means)]
    deviation, title = means - target, "class means $-$ ETF"
    if geometry.weight is not None:
        rows = cosine_gram(geometry.weight[kept])
        panels.append(("classifier rows", rows))
        deviation = np.triu(means - target) + np.tril(rows - target)
        title = "deviation from the ETF\nabove the diagonal: means, below: classifier"
    panels.append((f"simplex ETF:  1 and $-1/(K-1)$ = {MINUS}{1 / (len(kept) - 1):.3g}", target))

    figure = new_figure(11.5, 10)
    axes = list(figure.subplots(2, 2).flat)
    for ax, (name, gram) in zip(axes, panels, strict=False):
        image = _matrix(ax, gram, names, name, limit=1.0)
    _colour_bar(figure, image, axes[1], "cosine")
    size = float(np.nanmax(np.abs(deviation), initial=0.0))
    image = _matrix(axes[len(panels)], deviation, names, title, limit=max(size, 1e-12))
    _colour_bar(figure, image, axes[len(panels)], "difference of cosines")
    for ax in axes[len(panels) + 1 :]:
        ax.remove()
    return figure


def _colour_bar(figure: Figure, image: AxesImage, ax: Axes, label: str) -> None:
    bar = figure.colorbar(image, ax=ax, shrink=0.85, pad=0.02)
    bar.set_label(label, fontsize=MEDIUM)
    bar.ax.tick_params(labelsize=SMALL)


def _cosine_text(value: float) -> str:
    """Two decimals, without the zero before the point and with a true minus sign."""
    rounded = round(value, 2) + 0.0  # + 0.0: no negative zero
    text = f"{rounded:g}" if rounded in (-1, 0, 1) else f"{rounded:.2f}".replace("0.", ".", 1)
    return text.replace("-", MINUS)


def _matrix(ax: Axes, matrix: Array, names: list[str], title: str, limit: float) -> AxesImage:
    """A matrix in the colours of [-limit, limit], grey where it is NaN."""
    K = len(names)
    ax.set_facecolor("#bbbbbb")
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set_title(title, fontsize=LARGE)
    ax.tick_params(labelsize=SMALL, length=0 if K <= NAMED else 3)
    if K <= NAMED:
        short = [shorten(name) for name in names]
        upright = max(map(len, short)) * K > 40
        ax.set_xticks(range(K), short, rotation=90 if upright else 0)
        ax.set_yticks(range(K), short)
    if K <= NUMBERED:
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.6 * limit else "#333333"
                text = ax.text(column, row, _cosine_text(value), ha="center", va="center", color=colour, fontsize=SMALL)
                text.set_in_layout(False)  # it is inside its cell: no need to measure it
    return image
