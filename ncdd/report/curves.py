"""Figures of what changes during training: loss and accuracy, and the four Neural Collapse quantities."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ncdd.report.distillation import LOSS
from ncdd.report.folder import Array, Metrics
from ncdd.report.style import (
    AT_TRAIN_MEANS,
    CLASSIFIER,
    LARGE,
    MEDIUM,
    MUTED,
    SMALL,
    SPLIT_COLOURS,
    by_epoch,
    epoch_axis,
    log_axis,
    new_figure,
    plain_axes,
    plot_series,
    positive,
    value_axis,
)

TERMINAL_ACCURACY = 0.999  # Papyan, Han & Donoho (2020): the terminal phase starts where the train error vanishes
TERMINAL_COLOUR = "#efefef"
FIXED_BELOW = 1e-6  # an error that is rounding from the first epoch on, of a head fixed to the ETF, is told, not drawn


@dataclass(frozen=True)
class Line:
    """One quantity of a panel, drawn for each split or, of the classifier alone, once."""

    metric: str
    label: str
    width: float = 2.0
    dashes: tuple[int, tuple[float, ...]] | None = None
    complement: bool = False  # draw 1 - value
    classifier: bool = False


@dataclass(frozen=True)
class Panel:
    """One of the four properties."""

    title: str
    formula: str
    lines: tuple[Line, ...]
    zero: bool = False  # exact zeros are expected: symlog


_ETF = r"(K-1)^{-1/2}\left(I_K-\frac{1}{K}\mathbf{1}\mathbf{1}^{\!\top}\right)"
PANELS = (
    Panel(
        "NC1: variability within classes vanishes",
        r"$\frac{1}{K}\,\mathrm{tr}\left(\Sigma_W\,\Sigma_B^{\dagger}\right)$",
        (
            Line("nc1_pinv", r"$\mathrm{tr}(\Sigma_W\Sigma_B^{\dagger})\,/\,K$"),
            Line("nc1_quotient", r"$\mathrm{tr}\,\Sigma_W\,/\,\mathrm{tr}\,\Sigma_B$", 1.0, (0, (5, 2))),
        ),
    ),
    Panel(
        "NC2: class means become a simplex ETF",
        rf"$\left\Vert\frac{{MM^{{\top}}}}{{\Vert MM^{{\top}}\Vert_F}}-{_ETF}\right\Vert_F$",
        (
            Line("nc2_etf_M", r"ETF error of means $M$"),
            Line("nc2_etf_W", r"ETF error of classifier $W$", classifier=True),
            Line("nc2_equinorm_M", r"$\mathrm{std}/\mathrm{mean}$ of norms of $M$", 1.0, (0, (5, 2))),
            Line("nc2_equiangular_std_M", r"$\mathrm{std}$ of cosines of $M$", 1.0, (0, (1, 1.5))),
        ),
    ),
    Panel(
        "NC3: classifier and class means align",
        rf"$\left\Vert\frac{{WM^{{\top}}}}{{\Vert WM^{{\top}}\Vert_F}}-{_ETF}\right\Vert_F$",
        (Line("nc3_dual_etf", "self-duality error"),),
    ),
    Panel(
        "NC4: classifier becomes nearest class mean",
        r"$1-\mathrm{P}\left[\mathrm{argmax}_k\,(Wh+b)_k=\mathrm{argmin}_k\,\Vert h-\mu_k\Vert\right]$",
        (
            Line("nc4_agree_bias", "disagreement", complement=True),
            Line("ncc_accuracy", "error of nearest class mean", 1.0, (0, (5, 2)), complement=True),
        ),
        zero=True,
    ),
)


def training_figure(metrics: Metrics) -> Figure | None:
    """Loss (log axis) and accuracy over epochs for every split; None where neither was logged."""
    found = {
        name: series
        for split in _splits(metrics)
        for name in (f"{split}/loss", f"{split}/accuracy")
        if (series := by_epoch(metrics, name)) is not None
    }
    batch = by_epoch(metrics, "train/batch_loss", mean=True)
    if "train/loss" not in found and batch is not None:
        found["train/loss"] = batch
    if not found:
        return None
    figure = new_figure(11, 4.2)
    loss, accuracy = figure.subplots(1, 2)
    _curves(loss, found, "loss", "{:.3g}")
    if len(positive(values for name, (_, values) in found.items() if name.endswith("/loss"))):
        log_axis(loss)
    _curves(accuracy, found, "accuracy", "{:.1%}")
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    low, high = accuracy.get_ylim()
    accuracy.set_ylim(max(low, -0.03), min(high, 1.03))
    if _shade_terminal_phase((loss, accuracy), metrics):
        figure.legend(handles=[_terminal_key()], loc="outside upper right", fontsize=MEDIUM, frameon=False)
    return figure


def _curves(ax: Axes, found: Metrics, kind: str, number: str) -> None:
    plain_axes(ax)
    epoch_axis(ax)
    ax.set_title(kind, fontsize=LARGE, loc="left")
    for split, colour in SPLIT_COLOURS.items():
        if series := found.get(f"{split}/{kind}"):
            plot_series(ax, series, color=colour, linewidth=2.0, label=f"{split}  {number.format(series[1][-1])}")
    if ax.lines:
        ax.legend(fontsize=MEDIUM, frameon=False, title="at the end", title_fontsize=SMALL, alignment="left")


def collapse_figure(metrics: Metrics) -> Figure | None:
    """NC1 to NC4 over epochs in four panels, each of them zero at collapse; None where none was logged."""
    drawn = [series for panel in PANELS for line in panel.lines for _, series in _line_series(metrics, line)]
    if not drawn:
        return None
    figure = new_figure(12, 9)
    axes = figure.subplots(2, 2)
    for ax, panel in zip(axes.flat, PANELS, strict=True):
        _panel(ax, metrics, panel)
    terminal = _shade_terminal_phase(list(axes.flat), metrics)
    _split_legend(figure, metrics, terminal)
    return figure


def _splits(metrics: Metrics) -> dict[str, str]:
    """Colours of the splits that the trained network is measured on: val and test of a distillation are its set's."""
    of_set = ("val", "test") if LOSS in metrics else ()
    return {split: colour for split, colour in SPLIT_COLOURS.items() if split not in of_set}


def _line_series(metrics: Metrics, line: Line) -> list[tuple[str, tuple[Array, Array]]]:
    """(colour, series) of a line for each split that has it; the classifier's own value is the same for all.

    Of distilled images the value at the class means of train, where there is one.
    """
    found = []
    for split, colour in _splits(metrics).items():
        around = by_epoch(metrics, f"{split}/{line.metric}{AT_TRAIN_MEANS}") if split == "distilled" else None
        if series := around or by_epoch(metrics, f"{split}/{line.metric}"):
            epochs, values = series
            found.append(
                (CLASSIFIER if line.classifier else colour, (epochs, 1 - values if line.complement else values))
            )
    return found[:1] if line.classifier else found


def _panel(ax: Axes, metrics: Metrics, panel: Panel) -> None:
    plain_axes(ax)
    epoch_axis(ax)
    ax.set_title(f"{panel.title}\n{panel.formula}", fontsize=LARGE, loc="left", linespacing=1.7, pad=12)
    found = [(line, colour, series) for line in panel.lines for colour, series in _line_series(metrics, line)]
    fixed = {line for line, _, (_, values) in found if line.classifier and np.nanmax(values) < FIXED_BELOW}
    drawn = [(line, colour, series) for line, colour, series in found if line not in fixed]
    for line, colour, series in drawn:
        plot_series(ax, series, color=colour, linewidth=line.width, linestyle=line.dashes or "-")
    value_axis(ax, [values for _, _, (_, values) in drawn], panel.zero)
    _arrow_to_zero(ax)
    keys = [
        Line2D(
            [], [], color=CLASSIFIER if line.classifier else MUTED, linewidth=line.width, linestyle=line.dashes or "-"
        )
        for line in panel.lines
        if any(line is present for present, _, _ in found)
    ]
    labels = [
        f"{line.label}: fixed, 0" if line in fixed else line.label
        for line in panel.lines
        if any(line is present for present, _, _ in found)
    ]
    if len(labels) > 1:
        ax.legend(keys, labels, fontsize=SMALL, framealpha=0.85, edgecolor="none", handlelength=2.6)
    if not labels:
        ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", color=MUTED, fontsize=MEDIUM)


def _arrow_to_zero(ax: Axes) -> None:
    """An arrow beside the panel that points to where collapse is."""
    ax.annotate(
        "",
        xy=(1.03, 0.02),
        xytext=(1.03, 0.98),
        xycoords="axes fraction",
        arrowprops={"arrowstyle": "-|>,head_width=0.3,head_length=0.6", "color": "#999999", "linewidth": 1.2},
    )
    ax.text(1.045, 0.5, "collapse", transform=ax.transAxes, rotation=270, va="center", fontsize=SMALL, color=MUTED)


def _shade_terminal_phase(axes: list[Axes] | tuple[Axes, ...], metrics: Metrics) -> bool:
    """Shade the epochs from the first one at which the train error has vanished; whether there are any."""
    accuracy = by_epoch(metrics, "train/accuracy")
    if accuracy is None or not (accuracy[1] >= TERMINAL_ACCURACY).any():
        return False
    start = accuracy[0][int(np.argmax(accuracy[1] >= TERMINAL_ACCURACY))]
    if start == accuracy[0][-1]:
        return False
    for ax in axes:
        limits = ax.get_xlim()
        ax.axvspan(start, max(limits[1], start), color=TERMINAL_COLOUR, zorder=-2, linewidth=0)
        ax.set_xlim(limits)
    return True


def _terminal_key() -> Patch:
    return Patch(color=TERMINAL_COLOUR, label=f"terminal phase: train accuracy ≥ {TERMINAL_ACCURACY:.1%}")


def _split_legend(figure: Figure, metrics: Metrics, terminal: bool) -> None:
    """One legend for all panels: the colours of the splits, and the shade."""
    splits = {name.partition("/")[0] for name in metrics if "/nc" in name}
    notes = {"distilled": " (NC1, NC4: at the train means)"} if f"distilled/nc1_pinv{AT_TRAIN_MEANS}" in metrics else {}
    keys: list[Line2D | Patch] = [
        Line2D([], [], color=colour, linewidth=3, label=f"{split} features{notes.get(split, '')}")
        for split, colour in _splits(metrics).items()
        if split in splits
    ]
    if any(name.endswith("/nc2_etf_W") for name in metrics):
        keys.append(Line2D([], [], color=CLASSIFIER, linewidth=3, label="classifier"))
    if terminal:
        keys.append(_terminal_key())
    figure.legend(handles=keys, loc="outside upper center", ncols=len(keys), fontsize=MEDIUM, frameon=False)
