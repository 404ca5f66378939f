"""`python -m ncdd.report FOLDER`: a run's figures and table, or a sweep's table and CSV."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ncdd.report.figures import FORMATS, draw
from ncdd.report.folder import is_run, job_folders, read_summary
from ncdd.report.table import run_table, sweep_table, wide_console, write_sweep_csv


def report_run(folder: Path, formats: Sequence[str], console: Console) -> None:
    """Redraw the figures, print the table and where the figures are."""
    figures = draw(folder, formats)
    if (folder / "summary.json").exists():
        console.print(run_table(read_summary(folder)))
    else:
        console.print(f"{folder}: no summary.json yet, so no table", soft_wrap=True, highlight=False)
    for path in figures:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def report_sweep(folder: Path, console: Console) -> None:
    """Print the sweep's table and write sweep.csv."""
    jobs = job_folders(folder)
    if not jobs:
        raise FileNotFoundError(f"{folder}: neither a run folder nor one that holds any")
    console.print(sweep_table(jobs))
    console.print(str(write_sweep_csv(jobs, folder / "sweep.csv")), soft_wrap=True, highlight=False, markup=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 for a mistake that the message names."""
    parser = argparse.ArgumentParser(prog="python -m ncdd.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run's folder, or a sweep's that holds run folders")
    parser.add_argument("--formats", default="png", help=f"comma-separated, of {', '.join(FORMATS)} (default: png)")
    options = parser.parse_args(arguments)
    console = wide_console()
    try:
        if not options.folder.is_dir():
            raise FileNotFoundError(f"{options.folder}: there is no such folder")
        if is_run(options.folder):
            report_run(options.folder, options.formats.split(","), console)
        else:
            report_sweep(options.folder, console)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
