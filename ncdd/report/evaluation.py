"""The figure of `evaluate.csv`: a synthetic set beside baselines of its size, by protocol, and on other networks."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ncdd.report.style import LARGE, MEDIUM, MUTED, OKABE_ITO, SMALL, new_figure, plain_axes

Row = dict[str, Any]
LINE = 0.19  # inches for the mark of a protocol


def evaluation_figure(rows: Sequence[Row]) -> Figure:
    """Mean and standard deviation over networks, of all sets on one network and of the first set on all networks."""
    first, own, protocol = rows[0]["set"], rows[0]["network"], _first_protocol(rows)
    sets = [row for row in rows if row["network"] == own]
    others = [row for row in rows if row["set"] == first and row["protocol"] == protocol]
    names = list(dict.fromkeys(row["protocol"] for row in rows))
    colours = {name: MUTED if name == "real" else colour for name, colour in zip(names, _colours(names), strict=True)}
    cross = len(others) > 1
    height = 1.4 + (LINE * len(names) + 0.15) * max(len({row["set"] for row in sets}), len(others))
    figure = new_figure(11 if cross else 7, height)
    axes = list(figure.subplots(1, 1 + cross, squeeze=False, width_ratios=(3, 2)[: 1 + cross]).flat)
    _marks(axes[0], sets, "set", colours)
    axes[0].set_title(f"test accuracy of a {own} by what it was trained on", fontsize=LARGE, loc="left")
    if cross:
        _marks(axes[1], others, "network", colours)
        axes[1].set_title(f"{_shown(first)} on other networks, {_shown(protocol)}", fontsize=LARGE, loc="left")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=MEDIUM, frameon=False)
    return figure


def _first_protocol(rows: Sequence[Row]) -> str:
    """The one that other networks and baselines share."""
    return next((row["protocol"] for row in rows if row["protocol"] != "own_steps"), rows[0]["protocol"])


def _colours(names: Sequence[str]) -> list[str]:
    return [OKABE_ITO[n % len(OKABE_ITO)] for n in range(len(names))]


def _marks(ax: Axes, rows: Sequence[Row], key: str, colours: dict[str, str]) -> None:
    """A mark with its deviation for each row, those of one `key` on one height."""
    heights = {name: height for height, name in enumerate(dict.fromkeys(row[key] for row in rows))}
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    shared = len(set(protocols) - {"real"})
    for n, protocol in enumerate(protocols):
        found = [row for row in rows if row["protocol"] == protocol]
        shift = 0.6 * ((n + 0.5) / shared - 0.5) if protocol != "real" else 0
        for row, label in zip(found, [_shown(protocol), *[None] * len(found)], strict=False):
            at, mean, std = heights[row[key]] + shift, 100 * row["accuracy"], 100 * row["accuracy_std"]
            std = 0 if math.isnan(std) else std  # of one network
            looks: dict[str, Any] = {"color": colours[protocol], "markersize": 5, "capsize": 2, "linewidth": 1.4}
            ax.errorbar(mean, at, xerr=std or None, fmt="o", label=label, **looks)
            ax.annotate(
                f"{mean:.1f}", (mean + std, at), xytext=(5, 0), textcoords="offset points", va="center", fontsize=SMALL
            )
    plain_axes(ax)
    ax.set_yticks(list(heights.values()), [_shown(name) for name in heights], fontsize=MEDIUM)
    ax.set_ylim(len(heights) - 0.5, -0.5)
    ax.margins(x=0.12)
    ax.set_xlabel("test accuracy, %", fontsize=MEDIUM)


def _shown(name: str) -> str:
    return name.replace("_", " ")
