"""Drawing a run folder: what is in its files, as figures in its `figures/`."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ncdd.report.curves import collapse_figure, training_figure
from ncdd.report.features import features_figure
from ncdd.report.folder import read_geometry, read_metrics
from ncdd.report.gram import gram_figure

FORMATS = ("png", "pdf", "svg")
_DRAWING = threading.Lock()  # Matplotlib's text layout is shared by all figures and is not safe in threads


def draw(folder: str | os.PathLike[str], formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write the figures that the run folder has data for into its `figures/`, and return their paths.

    `curves` and `collapse` need metrics.csv, `gram` and `features` need collapse.npz. A figure appears under its name
    only when it is complete. Safe in threads and without a display.
    """
    folder = Path(folder)
    if unknown := set(formats) - set(FORMATS):
        raise ValueError(f"unknown figure format {', '.join(sorted(unknown))}; choose from {', '.join(FORMATS)}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder")
    with _DRAWING:
        return [
            _write(figure, folder / "figures" / f"{name}.{suffix}")
            for name, figure in _figures(folder).items()
            if figure is not None
            for suffix in dict.fromkeys(formats)
        ]


def _figures(folder: Path) -> dict[str, Figure | None]:
    figures: dict[str, Figure | None] = {}
    if (folder / "metrics.csv").exists():
        metrics = read_metrics(folder)
        figures |= {"curves": training_figure(metrics), "collapse": collapse_figure(metrics)}
    if (folder / "collapse.npz").exists():
        geometry = read_geometry(folder)
        figures |= {"gram": gram_figure(geometry), "features": features_figure(geometry)}
    return figures


def _write(figure: Figure, path: Path) -> Path:
    """Save under a temporary name beside the path, then rename."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        figure.savefig(temporary, format=path.suffix[1:])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
