"""Figures and tables of runs and sweeps, made from their folders alone.

`python -m ncdd.report FOLDER` draws the figures of a run or of a sweep, prints the table (of a sweep also into
`sweep.csv`), and writes `report.html`, a page to look through it all. Nothing here needs torch or the code that made
the run.
"""

from ncdd.report.figures import draw, draw_sweep, redraw_sweep
from ncdd.report.folder import job_folders, read_geometry, read_metrics, read_summary
from ncdd.report.page import write_page
from ncdd.report.table import run_table, sweep_table, write_sweep_csv

__all__ = [
    "draw",
    "draw_sweep",
    "job_folders",
    "read_geometry",
    "read_metrics",
    "read_summary",
    "redraw_sweep",
    "run_table",
    "sweep_table",
    "write_page",
    "write_sweep_csv",
]
