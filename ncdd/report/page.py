"""The page of a run or of a sweep: one HTML file that needs neither a network nor a file beside it.

page.html holds the frame, page.css the looks and page.js what draws; this module gathers the numbers, as JSON inside
the page. All text goes into the page as JSON or escaped, never as HTML.
"""

import base64
import html
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ncdd.report.folder import (
    Array,
    Geometry,
    Metrics,
    is_run,
    job_folders,
    read_geometry,
    read_metrics,
    read_summary,
)
from ncdd.report.gram import cosine_gram, simplex_etf_gram
from ncdd.report.style import by_epoch
from ncdd.report.sweep import default_panels, sweep_axes
from ncdd.report.table import ROWS, Job, read_job, short_names
from ncdd.report.view import centre
from ncdd.runfolder import write_text

NAME = "report.html"
MOST_POINTS = 300  # of a line
FEWEST_POINTS = 16
POINTS = 450_000  # of all lines together: 3 MB
GRAM_SIDE = {"run": 150, "sweep": 48}  # classes shown
LARGEST_IMAGE = 2_000_000  # bytes
THUMBNAIL = 600  # pixels to a side

Data = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What the pages show of one run."""

    job: Job
    metrics: Metrics  # by epoch, one value each
    cosines: dict[str, Array]  # of the centred class means and of the classifier's rows
    about: Data  # of the cosines: their classes, and how far they are from the ETF's
    images: Path | None = None  # picture of its synthetic images


def write_page(folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a run's folder, or into a sweep's and those of its runs; the path of the outer one.

    What of a run cannot be read is told on its page in its error line; the other runs do not suffer.
    """
    folder = Path(folder)
    if is_run(folder):
        within = {"up": f"../{NAME}"} if (folder.resolve().parent / NAME).exists() else {}
        return _write(folder, run_data(read_run(folder)) | within)
    runs = [read_run(job) for job in job_folders(folder)]
    for run in runs:
        _write(run.job.folder, run_data(run) | {"up": quote(os.path.relpath(folder / NAME, run.job.folder))})
    return _write(folder, sweep_data(folder, runs))


def read_run(folder: Path) -> Run:
    """Read a run's folder; a file that cannot be read leaves its part empty, and is named in the job's `error`."""
    job, metrics = read_job(folder), Metrics()
    cosines, about = dict[str, Array](), Data()
    try:
        if (folder / "metrics.csv").exists():
            found = read_metrics(folder)
            metrics = {name: series for name in found if "/" in name and (series := by_epoch(found, name))}
        if (folder / "collapse.npz").exists():
            cosines, about = _cosines(read_geometry(folder))
    except ValueError as problem:
        job = replace(job, error=job.error or str(problem).removeprefix(f"{folder}{os.sep}"))
    return Run(job, metrics, cosines, about, _images(job))


def _images(job: Job) -> Path | None:
    """The picture of the set that was kept or, while there is no summary to say so, the last one."""
    grids = sorted((job.folder / "figures" / "distilled").glob("step_*.png"))
    kept = read_summary(job.folder).get("kept") if job.final else None
    of_kept = [path for path in grids if kept is not None and path.stem == f"step_{kept:07}"]
    return next(iter(of_kept or grids[-1:]), None)


def _cosines(geometry: Geometry) -> tuple[dict[str, Array], Data]:
    """Of all pairs of classes; of an even choice of classes where they are too many to show."""
    split, sample = next(iter(geometry.samples.items()))
    if len(kept := sample.classes) < 2:
        return {}, {}
    cosines = {"means": cosine_gram(centre(sample.mean[kept]))}
    if geometry.weight is not None:
        cosines["classifier"] = cosine_gram(geometry.weight[kept])
    target = simplex_etf_gram(len(kept))
    worst = {part: float(np.nanmax(np.abs(gram - target), initial=0)) for part, gram in cosines.items()}
    shown = _evenly(len(kept), GRAM_SIDE["run"])
    names = [geometry.class_names[k] for k in kept[shown]]
    about = {"worst": worst, "split": split, "K": len(kept), "names": names}
    return {part: gram[np.ix_(shown, shown)] for part, gram in cosines.items()}, about


def _evenly(n: int, most: int) -> NDArray[np.int64]:
    """At most so many of the numbers below n, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def run_data(run: Run) -> Data:
    """What the page of a run shows: values before and after training, curves, Gram matrices, features, config."""
    folder = run.job.folder
    data = _gather("run", folder, [run])
    if run.job.final:
        summary = read_summary(folder)
        known = [base for _, base in ROWS]
        of_set = [name for name in summary.get("distilled", ()) if name not in known and not name.endswith("_std")]
        data |= {"initial": _finite(summary["initial"]), "facts": _facts(summary)}
        data["rows"] = [*ROWS, *((name.replace("_", " "), name) for name in of_set)]
    config = folder / "config.yaml"
    data["config"] = config.read_text(encoding="utf-8", errors="replace") if config.exists() else ""
    data["pictures"] = _pictures(folder / "figures", run.images)
    return data


def _pictures(figures: Path, images: Path | None) -> list[Data]:
    """Those that the page cannot draw by itself, each with its heading."""
    named = [("Synthetic images, as they are learned", figures / "distilled.webp")]
    named += [("Synthetic images", images)] if images else []
    named += [("Evaluation", figures / "evaluate.png"), ("Features", figures / "features.png")]
    return [
        {"title": title, "src": _source(path.read_bytes(), path.suffix[1:])}
        for title, path in named
        if path.exists() and path.stat().st_size <= LARGEST_IMAGE
    ]


def _source(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _thumbnail(path: Path) -> str:
    """Small, for a page of many; nothing where the picture is damaged."""
    try:
        with Image.open(path) as image:
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            image.convert("RGB").save(out := io.BytesIO(), "WEBP", quality=60)
    except (OSError, SyntaxError):  # what Pillow says of a broken PNG
        return ""
    return _source(out.getvalue(), "webp")


def sweep_data(folder: Path, runs: Sequence[Run]) -> Data:
    """What the page of a sweep shows: a table of its jobs, curves, scatter, heat maps, Gram matrices."""
    return _gather("sweep", folder, runs)


def _gather(kind: str, folder: Path, runs: Sequence[Run]) -> Data:
    jobs = [run.job for run in runs]
    axes = sweep_axes(jobs) + ["seed"] * (len({job.overrides.get("seed") for job in jobs}) > 1)
    names = short_names(axes)
    points = POINTS // max(1, sum(len(run.metrics) for run in runs))
    points = min(MOST_POINTS, max(FEWEST_POINTS, points))
    epochs: dict[tuple[float, ...], int] = {}  # few are distinct: lines share them
    entries = [
        {
            "name": job.folder.name,
            "label": ", ".join(f"{names[key]}={job.overrides[key]}" for key in axes if key in job.overrides)
            or job.folder.name,
            "href": quote(os.path.relpath(job.folder / NAME, folder)),
            "status": job.status,
            "error": job.error,
            "overrides": job.overrides,
            "final": _finite(job.final),
            "seconds": job.seconds,
            "curves": {name: _line(series, points, epochs) for name, series in run.metrics.items()},
            "gram": _gram(run, GRAM_SIDE[kind]),
            "images": _thumbnail(run.images) if kind == "sweep" and run.images else "",
        }
        for run, job in zip(runs, jobs, strict=True)
    ]
    finals = sorted({name for job in jobs for name in job.final})
    same = {key: value for job in jobs[:1] for key, value in job.overrides.items() if key not in axes}
    return {
        "kind": kind,
        "title": folder.resolve().name,
        "axes": axes,
        "short": names,
        "same": {k: v for k, v in same.items() if all(job.overrides.get(k) == v for job in jobs if job.final)},
        "metrics": finals,
        "panels": [name for name in default_panels(jobs) if name in finals] or finals[:4],
        "rows": ROWS,
        "points": points,
        "epochs": [list(x) for x in epochs],
        "jobs": entries,
    }


def _line(series: tuple[Array, Array], points: int, epochs: dict[tuple[float, ...], int]) -> list[Any]:
    """[number of its list of epochs, values], thinned to `points`."""
    x, y = series
    kept = _evenly(len(x), points)
    return [epochs.setdefault(tuple(x[kept].tolist()), len(epochs)), [float(f"{value:.4g}") for value in y[kept]]]


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Without NaN and infinity, which JSON does not know; the page shows '-' for them."""
    return {name: float(f"{value:.6g}") for name, value in values.items() if math.isfinite(value)}


def _gram(run: Run, side: int) -> Data | None:
    """The cosines of at most `side` classes."""
    if not run.cosines:
        return None
    shown = _evenly(len(run.about["names"]), side)
    pictures = {part: _pixels(cosines[np.ix_(shown, shown)]) for part, cosines in run.cosines.items()}
    return {**run.about, **pictures, "names": [run.about["names"][k] for k in shown]}


def _pixels(cosines: Array) -> str:
    """Cosines as base64 of little-endian int16, 32767 for 1 and -32768 for NaN."""
    scaled = np.where(np.isfinite(cosines), np.rint(np.clip(cosines, -1, 1) * 32767), -32768)
    return base64.b64encode(scaled.astype("<i2").tobytes()).decode()


def _facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """What a run's page says of it in words."""
    facts = {"epochs": summary.get("epochs"), "seconds": summary.get("seconds")}
    if "distilled" in summary:
        facts = {"iterations": summary.get("steps"), "seconds": summary.get("seconds")}
        facts["of them evaluating"] = summary.get("evaluation_seconds")
    parameters = summary.get("parameters")
    if isinstance(parameters, dict):
        facts |= {f"{name} parameters": count for name, count in parameters.items()}
    numbers = {name: value for name, value in facts.items() if isinstance(value, int | float)}
    return {name: f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" for name, value in numbers.items()}


def _write(folder: Path, data: Data) -> Path:
    write_text(folder / NAME, render(data))
    return folder / NAME


def render(data: Data) -> str:
    """The page that shows `data`."""
    parts = files("ncdd.report")
    page, css, js = (parts.joinpath(f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js"))
    # `<` could end the script that holds the JSON, or begin a comment in it
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    contents = {"TITLE": html.escape(data["title"]), "CSS": css, "JS": js, "DATA": text}
    return re.sub(r"{{(TITLE|CSS|JS|DATA)}}", lambda mark: contents[mark[1]], page)
