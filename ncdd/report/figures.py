"""Drawing a folder: what is in a run's files, or in those of a sweep's runs, as figures in its `figures/`."""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ncdd.report.applications import continual_figure, membership_figure
from ncdd.report.curves import collapse_figure, training_figure
from ncdd.report.distillation import distillation_figure
from ncdd.report.evaluation import evaluation_figure
from ncdd.report.features import features_figure
from ncdd.report.folder import job_folders, read_geometry, read_metrics, read_summary
from ncdd.report.gram import gram_figure
from ncdd.report.layers import layers_figure
from ncdd.report.ood import ood_figure, read_scores
from ncdd.report.rows import read_rows
from ncdd.report.style import for_paper
from ncdd.report.sweep import PANELS, default_panels, final_table, sweep_figure
from ncdd.report.table import read_job
from ncdd.runfolder import replacing, write_json, write_text

FORMATS = ("png", "pdf", "svg")
# Text stays text, and the same data give the same bytes.
VECTOR: dict[Any, Any] = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "ncdd"}
NO_DATE = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
_DRAWING = threading.Lock()  # Matplotlib's text layout is shared by all figures and is not safe in threads


def draw(folder: str | os.PathLike[str], formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write the figures that the run folder has data for into its `figures/`, and return their paths.

    `curves`, `collapse` and `distillation` need metrics.csv, `gram` and `features` need collapse.npz. A figure appears
    under its name only when it is complete. pdf and svg are sized for a paper. Safe in threads and without a display.
    """
    folder = Path(folder)
    _check(folder, formats)
    with _DRAWING:
        return _write(_figures(folder), folder / "figures", formats)


def draw_sweep(
    sweep: str | os.PathLike[str],
    jobs: Sequence[str | os.PathLike[str]],
    *,
    name: str | None = None,
    panels: Sequence[str] = PANELS,
    columns: str | None = None,
    x: str | None = None,
    formats: Sequence[str] = ("png",),
) -> list[Path]:
    """Draw jobs of a sweep into its `figures/` as NAME.png (None: named as the folder) and NAME.md, the final values.

    NAME.json keeps what was asked for, so that `redraw_sweep` knows it. No figure where no job is done. The default
    panels stand for those of `ncdd.report.sweep.default_panels`.
    `panels`, `columns` and `x` and what is raised for them: see `ncdd.report.sweep.sweep_figure`.
    """
    sweep = Path(sweep)
    _check(sweep, formats)
    name = name or sweep.resolve().name
    found = [read_job(Path(job)) for job in jobs]
    if tuple(panels) == PANELS:  # nobody chose them
        panels = default_panels(found)
    with _DRAWING:
        paths = _write({name: sweep_figure(found, panels, columns=columns, x=x)}, sweep / "figures", formats)
    if paths:
        study = {"panels": list(panels), "columns": columns, "x": x, "jobs": [os.path.relpath(j, sweep) for j in jobs]}
        write_json(sweep / "figures" / f"{name}.json", study)
        table = sweep / "figures" / f"{name}.md"
        write_text(table, final_table(found, panels))
        paths.append(table)
    return paths


def redraw_sweep(sweep: str | os.PathLike[str], formats: Sequence[str] = ("png",)) -> list[Path]:
    """Draw again each figure that the sweep's folder has; where it has none, one of all its jobs."""
    sweep = Path(sweep)
    studies = sorted((sweep / "figures").glob("*.json"))
    if not studies:
        return draw_sweep(sweep, job_folders(sweep), formats=formats)
    paths = []
    for path in studies:
        study = json.loads(path.read_text(encoding="utf-8"))
        jobs = [sweep / job for job in study.pop("jobs") if (sweep / job).is_dir()]
        paths += draw_sweep(sweep, jobs, name=path.stem, formats=formats, **study)
    return paths


def _check(folder: Path, formats: Sequence[str]) -> None:
    if unknown := set(formats) - set(FORMATS):
        raise ValueError(f"unknown figure format {', '.join(sorted(unknown))}; choose from {', '.join(FORMATS)}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder")


def _figures(folder: Path) -> dict[str, Figure | None]:
    figures: dict[str, Figure | None] = {}
    if (folder / "metrics.csv").exists():
        metrics = read_metrics(folder)
        kept = read_summary(folder).get("kept") if (folder / "summary.json").exists() else None
        figures |= {"distillation": distillation_figure(read_metrics(folder, "step"), kept=kept)}
        if figures["distillation"] is None or "train/accuracy" in metrics:
            figures["curves"] = training_figure(metrics)
        figures["collapse"] = collapse_figure(metrics)
    if (folder / "collapse.npz").exists():
        geometry = read_geometry(folder)
        figures |= {"gram": gram_figure(geometry), "features": features_figure(geometry)}
    if (folder / "layers.csv").exists():
        figures["layers"] = layers_figure(read_rows(folder / "layers.csv"))
    if (folder / "evaluate.csv").exists():
        figures["evaluate"] = evaluation_figure(read_rows(folder / "evaluate.csv"))
    if (folder / "continual.csv").exists():
        figures["continual"] = continual_figure(read_rows(folder / "continual.csv"))
    if (folder / "membership.csv").exists():
        figures["membership"] = membership_figure(read_rows(folder / "membership.csv"))
    if (folder / "ood.npz").exists():
        figures["ood"] = ood_figure(read_scores(folder / "ood.npz"), read_rows(folder / "ood.csv"))
    return figures


def _write(figures: Mapping[str, Figure | None], folder: Path, formats: Sequence[str]) -> list[Path]:
    """Save each figure in each format; it is resized for those that are for print, so pixels come first."""
    paths = []
    for name, figure in figures.items():
        if figure is None:
            continue
        resized = False
        for suffix in [suffix for suffix in FORMATS if suffix in formats]:
            if suffix != "png" and not resized:
                for_paper(figure)
                resized = True
            with replacing(folder / f"{name}.{suffix}") as temporary, matplotlib.rc_context(VECTOR):
                figure.savefig(temporary, format=suffix, metadata=NO_DATE.get(suffix))
            paths.append(folder / f"{name}.{suffix}")
    return paths
