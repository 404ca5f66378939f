"""Reading a run folder: metrics.csv, summary.json, collapse.npz and the DONE / FAILED markers.

Every error is one line that names the file and what is wrong with it. Shapes: K classes, D features, N samples.
"""

import csv
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Metrics = dict[str, tuple[Array, Array]]
Summary = dict[str, Any]

RUN_FILES = ("config.yaml", "summary.json", "metrics.csv", "collapse.npz", "DONE", "FAILED")


@dataclass(frozen=True)
class Sample:
    """One data split as the network sees it."""

    mean: Array  # (K, D) class means over the whole split
    count: NDArray[np.int64]  # (K,)
    features: Array  # (N, D) a sample of the split
    labels: NDArray[np.int64]  # (N,)

    @property
    def classes(self) -> NDArray[np.int64]:
        """The classes that have samples and a finite mean."""
        return np.flatnonzero((self.count > 0) & np.isfinite(self.mean).all(axis=1))


@dataclass(frozen=True)
class Geometry:
    """The features and the classifier at the end of a run."""

    samples: dict[str, Sample]  # by split, train first
    weight: Array | None  # (K, D)
    bias: Array | None  # (K,)
    class_names: list[str]  # K


@contextmanager
def _blame(path: Path) -> Iterator[None]:
    """Turn what a parser raises into one line that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except (ValueError, KeyError, csv.Error, zipfile.BadZipFile, EOFError, OSError) as error:
        message = str(error.args[0] if error.args else error).splitlines()
        raise ValueError(f"{path}: {message[0] if message else type(error).__name__}") from None


def read_metrics(folder: str | os.PathLike[str], axis: Literal["epoch", "step"] = "epoch") -> Metrics:
    """Each metric of metrics.csv with the epochs (or steps) at which it was logged: name -> (epochs, values), in order.

    Blank cells are left out. A row without an epoch belongs to the last epoch named above it. A last line that was
    cut off (a killed run) is left out.
    """
    path = Path(folder) / "metrics.csv"
    with _blame(path):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        header = next(csv.reader(lines[:1]), [])
        if "epoch" not in header:
            raise ValueError(f"no column 'epoch' in the first line (it has {', '.join(header) or 'nothing'})")
        rows = [row for row in enumerate(csv.reader(lines), start=1) if row[1]][1:]
        if rows and not lines[-1].endswith("\n") and len(rows[-1][1]) < len(header):
            rows.pop()
        return _columns(header, rows, axis)


def _columns(header: list[str], rows: list[tuple[int, list[str]]], axis: str) -> Metrics:
    series: dict[str, list[tuple[float, float]]] = {}
    at = 0.0
    for line, cells in rows:
        if len(cells) != len(header):
            raise ValueError(f"line {line} has {len(cells)} cells where the first line has {len(header)}")
        row = {name: _number(cell, name, line) for name, cell in zip(header, cells, strict=True) if cell.strip()}
        at = row.pop(axis, at)
        for name, value in row.items():
            series.setdefault(name, []).append((at, value))
    for other in ("epoch", "step"):
        series.pop(other, None)
    return {name: (np.array([e for e, _ in s]), np.array([v for _, v in s])) for name, s in series.items()}


def _number(cell: str, name: str, line: int) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"line {line}, column '{name}': {cell[:40]!r} is not a number") from None


def read_summary(folder: str | os.PathLike[str]) -> Summary:
    """summary.json as a dictionary; `initial` and `final` are always there, with floats (null is left out)."""
    path = Path(folder) / "summary.json"
    with _blame(path):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error}") from None
        if not isinstance(summary, dict):
            raise ValueError(f"a JSON object is expected, not a {type(summary).__name__}")
        return summary | {part: _floats(summary.get(part), part) for part in ("initial", "final")}


def _floats(metrics: Any, part: str) -> dict[str, float]:
    if not isinstance(metrics, dict | None):
        raise ValueError(f"'{part}' must map metrics to numbers, not be a {type(metrics).__name__}")
    try:
        return {name: float(value) for name, value in (metrics or {}).items() if value is not None}
    except (TypeError, ValueError):
        raise ValueError(f"'{part}' must map metrics to numbers") from None


def read_geometry(folder: str | os.PathLike[str]) -> Geometry:
    """collapse.npz: class means, counts and a sample of features for each split, and the classifier."""
    path = Path(folder) / "collapse.npz"
    with _blame(path), np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
        splits = sorted((name[:-5] for name in arrays if name.endswith("/mean")), key=lambda split: split != "train")
        if not splits:
            raise ValueError(f"no array '<split>/mean' (it has {', '.join(arrays) or 'nothing'})")
        K, D = _array(arrays, f"{splits[0]}/mean", ndim=2).shape
        names = arrays.get("class_names", np.arange(K))
        if len(names) != K:
            raise ValueError(f"{len(names)} class_names for {K} classes")
        return Geometry(
            samples={split: _sample(arrays, split, K, D) for split in splits},
            weight=_array(arrays, "weight", shape=(K, D)) if "weight" in arrays else None,
            bias=_array(arrays, "bias", shape=(K,)) if "bias" in arrays else None,
            class_names=[str(name) for name in names],
        )


def _sample(arrays: dict[str, NDArray[Any]], split: str, K: int, D: int) -> Sample:
    features = _array(arrays, f"{split}/features", ndim=2)
    labels = _array(arrays, f"{split}/labels", shape=(len(features),)).astype(np.int64)
    if features.shape[1] != D:
        raise ValueError(f"{split}/features has shape {features.shape}, its class means have {D} columns")
    if labels.max(initial=0) >= K:
        raise ValueError(f"{split}/labels go up to {labels.max()}, but there are {K} classes")
    count = _array(arrays, f"{split}/count", shape=(K,)).astype(np.int64)
    known = labels >= 0  # others were ignored in training
    return Sample(_array(arrays, f"{split}/mean", shape=(K, D)), count, features[known], labels[known])


def _array(
    arrays: dict[str, NDArray[Any]], name: str, *, ndim: int | None = None, shape: tuple[int, ...] | None = None
) -> Array:
    """One array as float64, of the number of dimensions or the shape it must have."""
    if name not in arrays:
        raise ValueError(f"no array '{name}' (it has {', '.join(arrays)})")
    array = arrays[name]
    if (ndim is not None and array.ndim != ndim) or (shape is not None and array.shape != shape):
        expected = f"shape {shape}" if shape is not None else f"{ndim} dimensions"
        raise ValueError(f"{name} has shape {array.shape}, expected {expected}")
    return array.astype(np.float64)


def is_run(folder: Path) -> bool:
    """Whether the folder holds any of the files a run leaves."""
    return any((folder / name).is_file() for name in RUN_FILES)


def job_folders(sweep: str | os.PathLike[str]) -> list[Path]:
    """The run folders anywhere below a sweep's folder, 2 before 10 and 0.001 before 0.01."""
    found: list[Path] = []
    for folder, below, _ in os.walk(sweep):
        runs = [name for name in below if is_run(Path(folder, name))]
        found += [Path(folder, name) for name in runs]
        below[:] = [name for name in below if name not in runs]
    pieces = re.compile(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)|(\D+)")
    return sorted(found, key=lambda path: ([(float(n or 0), text) for n, text in pieces.findall(str(path))], path))


def job_status(folder: Path) -> str:
    """`done`, `failed` or `unfinished`, by the newest marker file."""
    markers = [path for path in (folder / "DONE", folder / "FAILED") if path.is_file()]
    return max(markers, key=lambda path: path.stat().st_mtime_ns).name.lower() if markers else "unfinished"


def job_overrides(folder: Path, summary: Summary | None) -> dict[str, str]:
    """The job's overrides, as it recorded them or, where it did not, from its folder's name `a=1,b=2`."""
    recorded = (summary or {}).get("overrides")
    if recorded is None and (folder / "overrides.json").is_file():
        recorded = json.loads((folder / "overrides.json").read_text(encoding="utf-8"))
    parts = recorded if isinstance(recorded, list) else re.split(r",(?=[^,=\[\]{}]+=)", folder.name)
    pairs = (str(part).partition("=") for part in parts)
    return {key.lstrip("+"): value for key, equals, value in pairs if equals}


def error_line(folder: Path) -> str:
    """The first line of the job's FAILED file."""
    lines = (folder / "FAILED").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[0].strip() if lines else "failed, and left no message"
