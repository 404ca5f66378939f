"""The figures of `continual.csv` and `membership.csv`: what distilled sets are good for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ncdd.report.style import LARGE, MEDIUM, OKABE_ITO, SMALL, new_figure, plain_axes

Row = dict[str, Any]
CONTROL = "control: the distilled images, attacked on others"


def continual_figure(rows: Sequence[Row]) -> Figure:
    """Test accuracy on the classes seen so far, of networks trained on each kind of memory: mean and deviation."""
    figure = new_figure(6.5, 4.2)
    ax = figure.subplots()
    for name, colour in zip(dict.fromkeys(row["set"] for row in rows), OKABE_ITO, strict=False):
        own = [row for row in rows if row["set"] == name]
        x, mean, std = (np.array([row[key] for row in own]) for key in ("classes", "accuracy", "accuracy_std"))
        ax.errorbar(x, 100 * mean, yerr=100 * std, color=colour, marker="o", capsize=2, label=f"{name} images")
    ax.set_xticks(sorted({row["classes"] for row in rows}))
    ax.set_title("test accuracy on the classes seen so far, %", fontsize=LARGE, loc="left")
    ax.set_xlabel("classes seen", fontsize=MEDIUM)
    plain_axes(ax)
    ax.legend(fontsize=SMALL, frameon=False)
    return figure


def membership_figure(rows: Sequence[Row]) -> Figure:
    """AUC of each attack over training steps, a panel for each kind of training set; means over chunks."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    attacks = [key.removesuffix("_auc") for key in rows[0] if key.endswith("_auc")]
    figure = new_figure(5.5 * len(sets), 4.2)
    axes = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, sets, strict=True):
        own = [row for row in rows if row["set"] == name]
        steps = sorted({row["steps"] for row in own})
        for attack, colour in zip(attacks, OKABE_ITO, strict=False):
            mean = [np.mean([row[f"{attack}_auc"] for row in own if row["steps"] == step]) for step in steps]
            ax.plot(steps, mean, color=colour, marker="o", label=attack.replace("_", " "))
        ax.set_xscale("log")
        ax.set_xticks(steps, [f"{step:g}" for step in steps])
        ax.minorticks_off()
        ax.axhline(0.5, color="#666666", linestyle=":")
        title = CONTROL if name == "control" else f"membership attacks, trained on {name} images"
        ax.set_title(title, fontsize=LARGE, loc="left")
        ax.set_xlabel("training steps of the attacked network", fontsize=MEDIUM)
        plain_axes(ax)
    axes[0].set_ylabel("AUC", fontsize=MEDIUM)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=SMALL, frameon=False)
    return figure
