"""The figure of a distillation: its loss, and what its set teaches, over iterations."""

import re
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ncdd.report.folder import Metrics
from ncdd.report.style import LARGE, MEDIUM, MUTED, OKABE_ITO, by_epoch, log_axis, new_figure, plain_axes, plot_series

LOSS = "train/outer_loss"


def distillation_figure(metrics: Metrics, *, kept: float | None = None) -> Figure | None:
    """metrics: by step.  kept: the iteration of the set that was tested; None: the last.

    To the right, what the set is worth on the validation split, with a band of a standard deviation over networks, and,
    as marks at `kept`, the best set on the test split. None where the metrics are not those of a distillation.
    """
    validated = [name.removeprefix("val/") for name in metrics if re.fullmatch(r"val/\w*(accuracy|rate)", name)]
    tested = [
        name.removeprefix("test/")
        for name in metrics
        if name.startswith("test/accuracy") or f"{name}_std" in metrics or name.replace("test/", "val/") in metrics
        if re.fullmatch(r"test/\w*(accuracy\w*|rate)", name) and not name.endswith("_std")
    ]
    if LOSS not in metrics and not any(name.endswith("/accuracy_std") for name in metrics):
        return None
    losses = by_epoch(metrics, LOSS)
    if losses and len(losses[0]) < 2:
        losses = None  # a dot is no curve
    figure = new_figure(11 if losses else 6, 4.4)
    *left, worth = figure.subplots(1, 2 if losses else 1, squeeze=False)[0]
    if losses:
        _axis(left[0], "outer loss")
        plot_series(left[0], losses, color=MUTED, linewidth=1.4)
        if (losses[1] > 0).all():
            log_axis(left[0])
    _axis(worth, "what is learned from the set")
    for n, (name, colour) in enumerate(zip(dict.fromkeys(validated + tested), cycle(OKABE_ITO), strict=False)):
        _worth(worth, metrics, name, colour, kept, shift=0.012 * n)
    worth.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    if worth.has_data():
        worth.legend(fontsize=MEDIUM, frameon=False)
    return figure


def _axis(ax: Axes, title: str) -> None:
    plain_axes(ax)
    ax.set_title(title, fontsize=LARGE, loc="left")
    ax.set_xlabel("iteration", fontsize=MEDIUM)


def _worth(ax: Axes, metrics: Metrics, name: str, colour: str, kept: float | None, shift: float) -> None:
    """A line for the validation split, and a mark for the test split, moved so that it hides no other."""
    shown = name.replace("_", " ")
    if found := by_epoch(metrics, f"val/{name}"):
        plot_series(ax, found, color=colour, linewidth=1.8, label=f"{shown}, val  {found[1].max():.1%} at best")
        deviation = by_epoch(metrics, f"val/{name}_std")
        if deviation is not None and len(deviation[1]) == len(found[1]):
            ax.fill_between(
                found[0], found[1] - deviation[1], found[1] + deviation[1], color=colour, alpha=0.18, linewidth=0
            )
    if at_end := by_epoch(metrics, f"test/{name}"):
        deviation = by_epoch(metrics, f"test/{name}_std")
        std = None if deviation is None else float(deviation[1][-1])
        last = at_end[0][-1]
        label = f"{shown}, test  {at_end[1][-1]:.1%}" + ("" if std is None else f" ± {100 * std:.1f}")
        looks: dict[str, Any] = {"markersize": 7, "capsize": 3, "color": colour}
        ax.errorbar(
            (last if kept is None else kept) + shift * last,
            at_end[1][-1],
            yerr=std,
            fmt="D",
            markerfacecolor="white",
            label=label,
            **looks,
        )
