"""What the figures share: colours that stay apart for the colour-blind, sizes, and the ways of an axis.

Everything is set on the artists themselves: no pyplot, and no rcParams but for how a file is written.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from ncdd.report.folder import Array, Metrics

# Okabe & Ito (2008); the same split has the same colour in every figure.
SPLIT_COLOURS = {
    "train": "#0072B2", "val": "#009E73", "test": "#D55E00", "real": "#CC79A7",
    "real_test": "#882D00", "distilled": "#E69F00",  # where `test` is what a distilled set teaches
}  # fmt: skip
AT_TRAIN_MEANS = "__train_means"  # of distilled images, where logged: a single image a class is its own mean
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
CLASSIFIER = "#222222"
MUTED = "#666666"
# Petroff (2021), ten colours found by a search under colour-vision-deficiency constraints.
PETROFF = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip

NAMED = 20  # classes; beyond them neither ticks nor marks are told apart

SMALL, MEDIUM, LARGE = 8.5, 10.0, 12.0  # points
DPI = 150
PAPER_WIDTHS = (3.25, 6.75)  # inches: a column and a page of the usual two-column styles
ZERO_AT = 1e-4  # below this a symlog axis is linear, so that exact zeros are seen


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own, in inches, laid out so that nothing overlaps."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.03, hspace=0.03)
    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


def for_paper(figure: Figure) -> None:
    """Shrink a figure to the width of a column or of a page of text, and its text and lines to fit.

    Text goes to 70 % of its size, 6 to 8.4 points, so that nothing need be scaled when it is included. What would be
    less than half its size on a page becomes just that half, and is too wide for it.
    """
    width, height = figure.get_size_inches()
    paper = next((paper for paper in PAPER_WIDTHS if width <= 2 * paper), width / 2)
    if width <= paper:
        return
    figure.set_size_inches(paper, 1.15 * height * paper / width)  # taller, as the text shrinks less than the panels
    for text in figure.findobj(Text):
        text.set_fontsize(0.7 * float(text.get_fontsize()))
    for line in figure.findobj(Line2D):
        line.set_linewidth(0.6 * float(line.get_linewidth()))
        line.set_markersize(0.6 * float(line.get_markersize()))


def shorten(name: str, length: int = 14) -> str:
    """A class name that fits beside a mark."""
    return name if len(name) <= length else name[: length - 1] + "…"


def plain_axes(ax: Axes) -> None:
    """Light grid, two spines, small tick labels."""
    ax.grid(True, which="major", color="#e3e3e3", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SMALL, colors="#333333")


def epoch_axis(ax: Axes) -> None:
    """Whole epochs only."""
    ax.set_xlabel("epoch", fontsize=MEDIUM)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    ax.margins(x=0.02)


def log_axis(ax: Axes) -> None:
    """A logarithmic value axis: powers of ten, or where few of them are in sight 0.1, 0.2, 0.5, ..."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_minor_formatter(NullFormatter())
    if high < 100 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def value_axis(ax: Axes, values: list[Array], zero: bool) -> None:
    """Symlog where exact zeros are expected, log where the values span a decade, else linear from zero."""
    above = positive(values)
    if zero:
        ax.set_yscale("symlog", linthresh=ZERO_AT, linscale=0.4)
        ax.set_ylim(-0.3 * ZERO_AT, max(1.6 * above.max(initial=0), 20 * ZERO_AT))
        ax.set_yticks([tick for tick in (0, 1e-4, 1e-3, 1e-2, 1e-1, 1) if tick <= ax.get_ylim()[1]])
    elif len(above) and above.max() > 5 * above.min():
        log_axis(ax)
    else:
        ax.set_ylim(0, 1.1 * above.max(initial=0) or 1)


def by_epoch(metrics: Metrics, name: str, *, mean: bool = False) -> tuple[Array, Array] | None:
    """A metric with one value an epoch, the last one logged or their mean; None where no finite value was logged."""
    epochs, values = metrics.get(name, (np.empty(0), np.empty(0)))
    finite = np.isfinite(values) & np.isfinite(epochs)
    epochs, values = epochs[finite], values[finite]
    if not len(values):
        return None
    unique, index, count = np.unique(epochs, return_inverse=True, return_counts=True)
    if mean:
        return unique, np.bincount(index, weights=values) / count
    last = np.zeros(len(unique), dtype=np.int64)
    np.maximum.at(last, index, np.arange(len(values)))
    return unique, values[last]


def plot_series(ax: Axes, series: tuple[Array, Array], **style: Any) -> None:
    """A line, with a mark at each value while there are few."""
    few = len(series[0]) <= 30
    ax.plot(*series, marker="o" if few else "", markersize=1.5 + 1.5 * style.get("linewidth", 1.5), **style)


def positive(arrays: Iterable[NDArray[np.float64]]) -> Array:
    """All positive values of the arrays, in one array."""
    values = np.concatenate([np.empty(0), *arrays])
    return values[values > 0]
