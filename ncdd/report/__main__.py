"""`python -m ncdd.report FOLDER`: the table, the figures and the page of a run or of a sweep."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ncdd.report.figures import FORMATS, draw, draw_sweep, redraw_sweep
from ncdd.report.folder import is_run, job_folders, read_summary
from ncdd.report.page import write_page
from ncdd.report.rows import TABLES, print_rows, read_rows
from ncdd.report.sweep import PANELS
from ncdd.report.table import run_table, sweep_table, wide_console, write_sweep_csv


def report_run(folder: Path, formats: Sequence[str], console: Console) -> list[Path]:
    """Redraw the figures, print the table and write the page; what was written."""
    figures = draw(folder, formats)
    tables = [folder / name for name in TABLES if (folder / name).exists()]
    for table in tables:  # of a task, which has no training to show
        print_rows(read_rows(table), title=str(table))
    if tables:
        return [*figures, write_page(folder)]
    if (folder / "summary.json").exists():
        console.print(run_table(read_summary(folder)))
    else:
        console.print(f"{folder}: no summary.json yet, so no table", soft_wrap=True, highlight=False)
    return [*figures, write_page(folder)]


def report_sweep(folder: Path, formats: Sequence[str], study: Mapping[str, Any], console: Console) -> list[Path]:
    """Print the sweep's table, write sweep.csv and the page, draw the figures: those there are, or that of `study`."""
    jobs = job_folders(folder)
    if not jobs:
        raise FileNotFoundError(f"{folder}: neither a run folder nor one that holds any")
    console.print(sweep_table(jobs))
    written = [write_sweep_csv(jobs, folder / "sweep.csv"), write_page(folder)]
    figures = draw_sweep(folder, jobs, formats=formats, **study) if study else redraw_sweep(folder, formats)
    return [*written, *figures]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 for a mistake that the message names."""
    parser = argparse.ArgumentParser(prog="python -m ncdd.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run's folder, or a sweep's that holds run folders")
    parser.add_argument("--formats", default="png", help=f"comma-separated, of {', '.join(FORMATS)} (default: png)")
    study = parser.add_argument_group("a sweep's figure (default: each that its folder has, or one of all jobs)")
    study.add_argument("--name", help="file name (default: the folder's)")
    study.add_argument("--panels", help=f"comma-separated metrics, a row each (default: {','.join(PANELS)})")
    study.add_argument("--columns", help="swept setting with a column for each of its values")
    study.add_argument("--x", help="swept setting against which final values are drawn (default: curves over epochs)")
    options = parser.parse_args(arguments)
    console, formats = wide_console(), options.formats.split(",")
    chosen = {key: value for key in ("name", "panels", "columns", "x") if (value := getattr(options, key))}
    if "panels" in chosen:
        chosen["panels"] = chosen["panels"].split(",")
    try:
        if not options.folder.is_dir():
            raise FileNotFoundError(f"{options.folder}: there is no such folder")
        if is_run(options.folder):
            written = report_run(options.folder, formats, console)
        else:
            written = report_sweep(options.folder, formats, chosen, console)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
