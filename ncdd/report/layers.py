"""The figure of `layers.csv`: a network layer by layer, where the tunnel effect shows."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ncdd.report.style import (
    CLASSIFIER,
    LARGE,
    MEDIUM,
    MUTED,
    SMALL,
    SPLIT_COLOURS,
    log_axis,
    new_figure,
    plain_axes,
    shorten,
)

STABLE = "#009E73"  # Okabe & Ito (2008)
TICKS = 20  # layers named below the axis; of more, every second, third, ...
SHARES = (
    ("nearest class mean", {"train": "train/ncc_accuracy", "test": "test/ncc_accuracy__train_means"}),
    ("linear probe", {"train": "train/probe_accuracy", "test": "test/probe_accuracy"}),
)


def layers_figure(rows: list[dict[str, Any]]) -> Figure:
    """NC1, accuracy of the nearest class mean and of a linear probe, and ranks, over depth."""
    figure = new_figure(11, 7.4)
    axes = figure.subplots(2, 2, sharex=True)
    within, *shares, ranks = axes.flat
    for split in ("train", "test"):
        _line(within, rows, f"{split}/nc1_pinv", label=split, color=SPLIT_COLOURS[split])
    within.set_title(r"NC1  $\frac{1}{K}\,\mathrm{tr}\left(\Sigma_W\,\Sigma_B^{\dagger}\right)$", fontsize=LARGE)
    log_axis(within)
    for ax, (title, names) in zip(shares, SHARES, strict=True):
        for split, name in names.items():
            _line(ax, rows, name, label=split, color=SPLIT_COLOURS[split])
        ax.set_title(f"accuracy of {'the' if 'class' in title else 'a'} {title}", fontsize=LARGE)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _line(ranks, rows, "features", label="number of features", color=MUTED, linestyle=":", marker="")
    _line(ranks, rows, "rank", label="numerical rank", color=CLASSIFIER)
    _line(ranks, rows, "stable_rank", label="stable rank", color=STABLE)
    ranks.set_title("rank of the train features", fontsize=LARGE)
    log_axis(ranks)
    for ax in axes.flat:
        plain_axes(ax)
        ax.legend(fontsize=SMALL, frameon=False)
    for ax in axes[1]:
        _layer_axis(ax, [str(row["layer"]) for row in rows])
    return figure


def _line(ax: Axes, rows: list[dict[str, Any]], name: str, **style: Any) -> None:
    values = [row[name] for row in rows]
    looks: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1.8} | style
    ax.plot(range(1, len(rows) + 1), values, **looks)


def _layer_axis(ax: Axes, names: list[str]) -> None:
    every = -(-len(names) // TICKS)
    ticks, shown = range(1, len(names) + 1)[::every], [shorten(name, 24) for name in names[::every]]
    ax.set_xticks(ticks, shown, rotation=45, ha="right")
    ax.set_xlabel("layer", fontsize=MEDIUM)
