"""Figures and tables of runs and sweeps, made from their folders alone.

`python -m ncdd.report FOLDER` redraws a run's figures and prints its table, or prints a sweep's table and writes its
`sweep.csv`. Nothing here needs torch or the code that made the run.
"""

from ncdd.report.figures import draw
from ncdd.report.folder import job_folders, read_geometry, read_metrics, read_summary
from ncdd.report.table import run_table, sweep_table, write_sweep_csv

__all__ = [
    "draw",
    "job_folders",
    "read_geometry",
    "read_metrics",
    "read_summary",
    "run_table",
    "sweep_table",
    "write_sweep_csv",
]
