"""The figure of `ood.npz`: how far each score keeps two data sets apart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ncdd.report.folder import Array
from ncdd.report.style import LARGE, SMALL, new_figure, plain_axes

COLOURS = ("#0072B2", "#D55E00")  # Okabe & Ito (2008)
TITLES = {
    "neco": "NECO",
    "msp": "log of max softmax (MSP)",
    "max_logit": "max logit",
    "energy": "energy",
    "mahalanobis": "Mahalanobis",
    "vim": "ViM",
}
TAIL = 0.005  # of a data set's scores that the axis may leave out at either end


def read_scores(path: Path) -> dict[str, Array]:
    """The arrays of the file: `names` of the two data sets, and `SCORE/inside`, `SCORE/outside`."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def ood_figure(scores: Mapping[str, Array], rows: list[dict[str, Any]]) -> Figure:
    """A histogram of each score, in-distribution data set against the other, with AUROC and FPR95 from `rows`."""
    figure = new_figure(11, 6.4)
    axes = figure.subplots(-(-len(rows) // 3), 3, squeeze=False)
    for ax, row in zip(axes.flat, rows, strict=False):
        pair = [scores[f"{row['score']}/{side}"] for side in ("inside", "outside")]
        lows, highs = zip(*(np.quantile(values, (TAIL, 1 - TAIL)) for values in pair), strict=True)
        low, high = min(lows), max(highs)
        bins = np.linspace(low, high, 60) if high > low else 10
        for values, colour, name in zip(pair, COLOURS, scores["names"], strict=True):
            ax.hist(values, bins=bins, density=True, color=colour, alpha=0.55, label=str(name))
        title = TITLES.get(row["score"], row["score"])
        ax.set_title(f"{title}\nAUROC {row['auroc']:.1%}, FPR95 {row['fpr95']:.1%}", fontsize=LARGE)
        plain_axes(ax)
        ax.set_yticks([])
    for ax in list(axes.flat)[len(rows) :]:
        ax.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    return figure
