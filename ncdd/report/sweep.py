"""The figure and the table of a sweep: a metric against epochs or a swept setting, over the sweep's own axes.

The axes are the overrides that differ between the jobs, `seed` apart: jobs that differ in their seed alone are one
group, shown by its mean and standard deviation (n - 1). Only jobs that are done count.
What is measured only once a run, as a distilled set on test, is shown by its final values. A panel is a metric's name;
`1-METRIC` is its complement (`1-train/nc4_agree_bias`: the share of disagreements).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ncdd.report.folder import Array, Metrics, read_metrics
from ncdd.report.style import (
    MEDIUM,
    MUTED,
    OKABE_ITO,
    SMALL,
    by_epoch,
    epoch_axis,
    new_figure,
    plain_axes,
    plot_series,
    value_axis,
)
from ncdd.report.table import Job, job_groups, short_names, swept_keys

PANELS = ("test/accuracy", "train/nc1_pinv", "train/nc2_etf_M", "train/nc3_dual_etf")
OF_SETS = ("val/accuracy", "val/krr_accuracy", "test/accuracy", "test/accuracy_augmented", "test/krr_accuracy")
# Overrides that tell no jobs apart: those of one folder may come from several commands and experiments.
NO_AXIS = {
    "seed", "name", "experiment", "launcher", "logger", "figures", "resume", "dataset.root", "dataset.download",
}  # fmt: skip
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
MOST_COLUMNS = 24
MOST_LETTERS = 40  # beside one another below a panel
LABELS = {
    "accuracy": "accuracy",
    "loss": "loss",
    "nc1_pinv": r"NC1  $\mathrm{tr}(\Sigma_W\Sigma_B^{\dagger})/K$",
    "nc1_quotient": r"NC1  $\mathrm{tr}\,\Sigma_W/\mathrm{tr}\,\Sigma_B$",
    "nc2_etf_M": r"NC2  ETF error of $M$",
    "nc2_etf_W": r"NC2  ETF error of $W$",
    "nc2_equinorm_M": r"NC2  std/mean of norms of $M$",
    "nc2_equinorm_W": r"NC2  std/mean of norms of $W$",
    "nc2_equiangular_std_M": r"NC2  std of cosines of $M$",
    "nc2_equiangular_std_W": r"NC2  std of cosines of $W$",
    "nc2_maxangle_M": r"NC2  mean $|\cos+\frac{1}{K-1}|$ of $M$",
    "nc2_maxangle_W": r"NC2  mean $|\cos+\frac{1}{K-1}|$ of $W$",
    "nc3_dual_etf": "NC3  self-duality error",
    "nc3_papyan": r"NC3  $\Vert W/\Vert W\Vert_F-M/\Vert M\Vert_F\Vert_F^2$",
    "nc4_agree_bias": "NC4  agreement",
    "1-nc4_agree_bias": "NC4  disagreement",
    "1-nc4_agree_bias__train_means": "NC4  disagreement (train means)",
    "ncc_accuracy": "NCC accuracy",
    "1-ncc_accuracy": "NCC error",
    "1-accuracy": "error",
}

Chosen = tuple[str | None, ...]  # a value of each axis, None where a job does not name the override


def sweep_axes(jobs: Sequence[Job]) -> list[str]:
    """The settings that differ between the jobs, without `seed` and what changes no number; of a single job, none."""
    return [key for key in swept_keys(jobs) if key not in NO_AXIS and not key.startswith("study.")]


def independent(jobs: Sequence[Job], axes: Sequence[str]) -> list[str]:
    """The axes without those that follow from another one, such as the epochs that were set for each recipe."""

    def follows(key: str, other: str) -> bool:
        pairs = {(job.overrides.get(other), job.overrides.get(key)) for job in jobs}
        return len(pairs) == len({value for value, _ in pairs})

    def told(place: int, key: str) -> bool:  # of two that tell each other the first one stays
        return any(
            follows(key, other) and (before < place or not follows(other, key))
            for before, other in enumerate(axes)
            if other != key
        )

    return [key for place, key in enumerate(axes) if not told(place, key)]


def finished(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that are done and left final values."""
    return [job for job in jobs if job.status == "done" and job.final]


def axis_values(jobs: Sequence[Job], key: str) -> list[str | None]:
    """The values of an override in a natural order: numbers by size, names by alphabet, None (not named) first."""
    values = {job.overrides.get(key) for job in jobs}
    order: Callable[[str], Any] = float if _numeric(values) else str
    named = sorted((value for value in values if value is not None), key=order)
    return [*([None] if None in values else []), *named]


def _numeric(values: set[str | None]) -> bool:
    try:
        numbers = [float(value) for value in values if value is not None]
    except ValueError:
        return False
    return bool(np.isfinite(numbers).all())


def final_value(job: Job, panel: str) -> float | None:
    """A panel's value at the end of a job; None where it was not logged."""
    value = job.final.get(panel.removeprefix("1-"))
    return 1 - value if value is not None and panel.startswith("1-") else value


def default_panels(jobs: Sequence[Job]) -> Sequence[str]:
    """Those of training or, of distillations, of what their sets are worth; what no job logged is left out."""
    logged = {metric for job in jobs for metric in job.final}
    wanted = dict.fromkeys((*OF_SETS, *PANELS) if "train/outer_loss" in logged else PANELS)
    return [panel for panel in wanted if panel in logged] or PANELS


def percent(panel: str) -> bool:
    """Whether a panel is a share that is read in percent: accuracies and agreements, not their complements."""
    return bool(re.search("accuracy|agree", panel)) and not panel.startswith("1-")


def panel_label(panel: str) -> str:
    """How a panel's axis is named: `train/nc1_pinv` by its formula and its split."""
    split, _, name = panel.removeprefix("1-").rpartition("/")
    name = f"1-{name}" if panel.startswith("1-") else name
    return f"{LABELS.get(name, name)}{f', {split}' if split else ''}"


@dataclass(frozen=True)
class Layout:
    """Which axis of a sweep is told by what."""

    columns: tuple[str, ...]
    x: str | None  # None for epochs, "" where final values have no axis to be drawn against
    colour: str | None
    dash: str | None

    def line(self, job: Job) -> Chosen:
        """Which line the job is part of: its values of the columns, of the colour and of the line style."""
        return tuple(job.overrides.get(key) if key else None for key in (*self.columns, self.colour, self.dash))


def sweep_layout(jobs: Sequence[Job], *, columns: str | None = None, x: str | None = None) -> Layout:
    """Give each axis of the jobs its place: columns of panels, the x axis, colour, then line style.

    Colour is the first axis with numbers, or the first; line style the next that has no more values than there are
    styles; what is left over makes further columns. Raises ValueError where `columns` or `x` is no override.
    """
    for name, key in (("columns", columns), ("x", x)):
        if key is not None and jobs and not any(key in job.overrides for job in jobs):
            choices = ", ".join(sweep_axes(jobs)) or "nothing"
            raise ValueError(f"study.{name}={key}: no job of the sweep sets it; swept: {choices}")
    left = [key for key in independent(jobs, sweep_axes(jobs)) if key not in (columns, x)]
    values = {key: axis_values(jobs, key) for key in left}
    colour = next((key for key in left if _numeric(set(values[key]))), left[0] if left else None)
    dash = next((key for key in left if key != colour and len(values[key]) <= len(DASHES)), None)
    further = [key for key in left if key not in (colour, dash)]
    return Layout((*([columns] if columns else []), *further), x, colour, dash)


@dataclass(frozen=True)
class Series:
    """One line of a panel: mean and standard deviation (n - 1; 0 where n = 1) over the seeds at each x."""

    x: Array
    mean: Array
    deviation: Array


def over_seeds(points: Sequence[tuple[Array, Array]]) -> Series:
    """Mean and standard deviation, at each x, of all the values there; `points` holds (x, values) of each seed."""
    x = np.concatenate([np.empty(0), *(x for x, _ in points)])
    values = np.concatenate([np.empty(0), *(values for _, values in points)])
    unique, index, count = np.unique(x, return_inverse=True, return_counts=True)
    mean = np.bincount(index, weights=values, minlength=len(unique)) / count
    squares = np.bincount(index, weights=(values - mean[index]) ** 2, minlength=len(unique))
    return Series(unique, mean, np.sqrt(squares / np.maximum(count - 1, 1)))


def sweep_series(runs: Sequence[tuple[Job, Metrics]], panel: str, layout: Layout) -> dict[Chosen, Series]:
    """The lines of one metric, by `layout.line`; a job that did not log the metric is left out of its line."""
    positions = {} if layout.x is None else _positions([job for job, _ in runs], layout.x)
    points: dict[Chosen, list[tuple[Array, Array]]] = {}
    for job, metrics in runs:
        if layout.x is not None:
            final = final_value(job, panel)
            found = None if final is None else (np.array([positions[job.overrides.get(layout.x)]]), np.array([final]))
        elif found := by_epoch(metrics, panel.removeprefix("1-")):
            found = (found[0], 1 - found[1]) if panel.startswith("1-") else found
        if found is not None and np.isfinite(found[1]).all():
            points.setdefault(layout.line(job), []).append(found)
    return {line: over_seeds(of_line) for line, of_line in points.items()}


def measured_once(runs: Sequence[tuple[Job, Metrics]], panel: str) -> bool:
    """Whether there are final values of a metric but no curves."""
    curves = (by_epoch(metrics, panel.removeprefix("1-")) for _, metrics in runs)
    return any(final_value(job, panel) is not None for job, _ in runs) and all(
        found is None or len(found[0]) < 2 for found in curves
    )


def _metrics(job: Job) -> Metrics:
    return read_metrics(job.folder) if (job.folder / "metrics.csv").exists() else {}  # not every task trains


def _positions(jobs: Sequence[Job], key: str) -> dict[str | None, float]:
    """Where each value of an override is on the x axis: numbers where they are, names one after the other."""
    values = axis_values(jobs, key)
    spread_out = None in values or not _numeric(set(values))
    return {value: float(n if spread_out else value) for n, value in enumerate(values)}  # type: ignore[arg-type]


def sweep_figure(
    jobs: Sequence[Job], panels: Sequence[str], *, columns: str | None = None, x: str | None = None
) -> Figure | None:
    """A row of panels for each metric of `panels`, a column for each value of `columns`; without columns, a grid.

    Lines are the remaining axes: mean over seeds and, of more than one, a band of one standard deviation.
    x: None draws curves over epochs, or final values against the axis of the colours where there are no curves; a
    swept setting draws final values against it. Final values have error bars.
    None where no job is done or none logged any of the metrics. Raises ValueError as `sweep_layout`, and where the
    axes that are left over would make more than 24 columns.
    """
    done = finished(jobs)
    layout = sweep_layout(done, columns=columns, x=x)
    facets = list(product(*(axis_values(done, key) for key in layout.columns)))
    if len(facets) > MOST_COLUMNS:
        raise ValueError(
            f"{len(facets)} columns of panels for {' x '.join(layout.columns)}, at most {MOST_COLUMNS}: "
            "sweep fewer settings at once, or set study.x to one of them"
        )
    runs = [(job, {} if x else _metrics(job)) for job in done]
    at_end = {panel for panel in panels if x or measured_once(runs, panel)}
    against = replace(layout, x=x or layout.colour or "")
    layouts = {panel: against if panel in at_end else layout for panel in panels}
    series = {panel: sweep_series(runs, panel, layouts[panel]) for panel in panels}
    if not any(series.values()):
        return None
    cells = list(product(panels, facets))
    width = len(facets) if layout.columns or len(panels) < 3 else 2
    rows = -(-len(cells) // width)
    figure = new_figure(3.3 * width + 1.7, 2.6 * rows + 0.4)
    axes = list(figure.subplots(rows, width, sharey="row" if layout.columns else False, squeeze=False).flat)
    for ax in axes[len(cells) :]:
        ax.remove()
    colours = _colours(axis_values(done, layout.colour) if layout.colour else [None])
    dashes = dict(zip(axis_values(done, layout.dash) if layout.dash else [None], DASHES, strict=False))
    styles: dict[Chosen, tuple[str, Any]] = {(c, d): (colours[c], dashes[d]) for c, d in product(colours, dashes)}
    for n, (ax, (panel, facet)) in enumerate(zip(axes, cells, strict=False)):
        lines = [(found, *styles[line[-2:]]) for line, found in series[panel].items() if line[:-2] == facet]
        _draw_lines(ax, lines)
        _value_axis(ax, panel, list(series[panel].values()))
        along = layouts[panel].x
        if along is None:
            _draw_bands(ax, lines)
        else:
            _draw_bars(ax, lines)
        if along and not x and (layout.dash or _numeric(set(axis_values(done, along)))):
            _connect(ax, lines)
        mixed = 0 < len(at_end) < len(panels)
        positions = {} if along is None else _positions(done, along)
        _x_axis(ax, along, positions, named=mixed or n + width >= len(cells))
        if not layout.columns or n % width == 0:
            ax.set_ylabel(panel_label(panel), fontsize=MEDIUM)
        if layout.columns and n < width:
            names = short_names(layout.columns).values()
            title = (f"{name} = {_shown(value)}" for name, value in zip(names, facet, strict=True))
            ax.set_title("\n".join(title), fontsize=MEDIUM)
    band = any((line.deviation > 0).any() for lines in series.values() for line in lines.values())
    _legend(figure, layout, colours, dashes, band)
    return figure


def _colours(values: Sequence[str | None]) -> dict[str | None, str]:
    """From dark to light where the values are numbers, else colours that stay apart for the colour-blind."""
    if len(values) <= len(OKABE_ITO) and not _numeric(set(values)):
        return dict(zip(values, OKABE_ITO, strict=False))
    shades = matplotlib.colormaps["viridis"](np.linspace(0.02, 0.82, len(values)))
    return {value: to_hex(shade) for value, shade in zip(values, shades, strict=True)}


def _shown(value: str | None) -> str:
    return "(default)" if value is None else value


def _draw_lines(ax: Axes, lines: Sequence[tuple[Series, str, Any]]) -> None:
    plain_axes(ax)
    for series, colour, dash in lines:
        plot_series(ax, (series.x, series.mean), color=colour, linestyle=dash, linewidth=1.6)
    if not lines:
        ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", color=MUTED, fontsize=MEDIUM)


def _spread(ax: Axes, series: Series) -> tuple[Array, Array]:
    """One standard deviation to both sides; on a log axis by the same factor down as up, as it would pass zero."""
    low, high = series.mean - series.deviation, series.mean + series.deviation
    return (series.mean**2 / np.maximum(high, np.finfo(float).tiny) if ax.get_yscale() == "log" else low), high


def _draw_bands(ax: Axes, lines: Sequence[tuple[Series, str, Any]]) -> None:
    for series, colour, _ in lines:
        if (series.deviation > 0).any():
            ax.fill_between(series.x, *_spread(ax, series), color=colour, alpha=0.18, linewidth=0)


def _draw_bars(ax: Axes, lines: Sequence[tuple[Series, str, Any]]) -> None:
    looks: dict[str, Any] = {"fmt": "none", "elinewidth": 1.2, "capsize": 2.5}
    for series, colour, _ in lines:
        low, high = _spread(ax, series)
        there = series.deviation > 0
        if there.any():
            spread = np.stack([series.mean - low, high - series.mean])[:, there]
            ax.errorbar(series.x[there], series.mean[there], yerr=spread, **looks, ecolor=colour)


def _connect(ax: Axes, lines: Sequence[tuple[Series, str, Any]]) -> None:
    """Points of several colours by a line for each line style."""
    for dash in dict.fromkeys(dash for _, _, dash in lines):
        points = sorted((series.x[0], series.mean[0]) for series, _, other in lines if other == dash)
        ax.plot(*np.transpose(points), color=MUTED, linestyle=dash, linewidth=1, zorder=1)


def _value_axis(ax: Axes, panel: str, series: Sequence[Series]) -> None:
    """Percent for accuracies; log or from zero, as `value_axis` decides, for what is never negative."""
    values = [s.mean for s in series]
    if percent(panel):
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    elif values and all((mean >= 0).all() for mean in values):
        decays = max(mean.max() for mean in values) > 5 * min(mean.min() for mean in values)
        value_axis(ax, values, zero=decays and any((mean == 0).any() for mean in values))
        if not decays:
            ax.set_ylim(0, 1.1 * max((s.mean + s.deviation).max() for s in series) or 1)


def _x_axis(ax: Axes, x: str | None, positions: Mapping[str | None, float], *, named: bool) -> None:
    """Epochs, or the values of the swept setting: on a log axis where they are numbers that span a factor of four."""
    epoch_axis(ax)
    if x is not None:
        at = np.array(list(positions.values()))
        if at.min() > 0 and at.max() >= 4 * at.min():
            ax.set_xscale("log")
        ax.margins(x=0.06)
        names = [_shown(value) for value in positions] if x else [""]
        ax.set_xticks(at, names)
        if sum(map(len, names)) > MOST_LETTERS:  # upright, and below the last panel of a column only
            ax.tick_params("x", labelrotation=90, labelsize=SMALL, labelbottom=named)
        ax.set_xticks([], minor=True)
        ax.set_xlabel(x.rpartition(".")[2], fontsize=MEDIUM)
    if not named:
        ax.set_xlabel("")


def _legend(
    figure: Figure,
    layout: Layout,
    colours: Mapping[str | None, str],
    dashes: Mapping[str | None, Any],
    band: bool,
) -> None:
    """Colours, then line styles, each under the name of its axis."""
    names = short_names(key for key in (layout.colour, layout.dash) if key)
    keys: list[Line2D | Patch] = []
    if layout.colour:
        keys.append(Line2D([], [], linestyle="", label=names[layout.colour]))
        keys += [Line2D([], [], color=c, linewidth=3, label=_shown(value)) for value, c in colours.items()]
    if layout.dash:
        keys.append(Line2D([], [], linestyle="", label=names[layout.dash]))
        keys += [Line2D([], [], color=MUTED, linestyle=d, label=_shown(value)) for value, d in dashes.items()]
    if band:
        keys.append(Patch(color=MUTED, alpha=0.3, linewidth=0, label="± std over seeds"))
    if keys:
        legend = figure.legend(handles=keys, loc="outside right upper", fontsize=SMALL, frameon=False, handlelength=2.4)
        for key, text in zip(keys, legend.get_texts(), strict=True):
            if isinstance(key, Line2D) and key.get_linestyle() == "None":
                text.set_fontweight("bold")


def final_table(jobs: Sequence[Job], panels: Sequence[str]) -> str:
    """Markdown: a row for each combination of the axes, final values of the metrics as mean ± standard deviation.

    Over the n jobs that are done and differ in their seed alone; accuracies in percent; '-' where not logged.
    """

    def cells(group: Sequence[Job]) -> list[str]:
        means = [_mean_deviation(panel, [final_value(job, panel) for job in group]) for panel in panels]
        return [str(len(group)), *means]

    return axes_table(jobs, ["n", *(f"{panel}, %" if percent(panel) else panel for panel in panels)], cells)


def axes_table(jobs: Sequence[Job], head: Sequence[str], cells: Callable[[Sequence[Job]], list[str]]) -> str:
    """Markdown: a row for each combination of the axes, in their order; `cells` says what of its finished jobs."""
    done = finished(jobs)
    axes = sweep_axes(done)
    groups = job_groups(done, axes)
    orders = [axis_values(done, key) for key in axes]
    rows = [[*short_names(axes).values(), *head], ["---"] * len(axes) + ["---:"] * len(head)]
    ordered = sorted(groups, key=lambda chosen: [o.index(v) for o, v in zip(orders, chosen, strict=True)])
    rows += [[*map(_shown, chosen), *cells(groups[chosen])] for chosen in ordered]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows) + "\n"


def _mean_deviation(panel: str, values: Sequence[float | None]) -> str:
    known = np.array([value for value in values if value is not None]) * (100 if percent(panel) else 1)
    if not len(known):
        return "-"
    mean = f"{known.mean():.2f}" if percent(panel) else f"{known.mean():.3g}"
    if len(known) < 2:
        return mean
    deviation = known.std(ddof=1)
    return f"{mean} ± {deviation:.2f}" if percent(panel) else f"{mean} ± {deviation:.2g}"
