"""What a multirun ends with: one table of all its jobs, a CSV of it, and an exit code that tells of failures."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

JOBS = "NCDD_SWEEP_JOBS"  # environment variable: the file in the sweep's folder where its jobs are noted
LONGEST = 200  # bytes of a folder's name; file systems allow 255


def job_folder(sweep_dir: Path, override_dirname: str) -> Path:
    """Named by the job's overrides; shortened with a digest where a file system would refuse the name."""
    name = override_dirname.replace("/", "_") or "defaults"
    if len(name.encode()) > LONGEST:
        name = f"{name[: LONGEST // 2]}...{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return sweep_dir / name


def note(sweep_dir: Path, job: Path, outcome: str) -> None:
    """Note how a job of the sweep in progress stands; also from a process of a parallel launcher."""
    with (sweep_dir / os.environ[JOBS]).open("a") as file:
        file.write(f"{job.name}\t{outcome}\n")


class SweepSummary(Callback):
    """Hydra callback: the folder may hold jobs of earlier sweeps, so the table is of those noted in this one."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        os.environ[JOBS] = f".jobs-{os.getpid()}"  # its own, as two sweeps may share a folder; processes inherit it

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from ncdd.report.table import sweep_table, wide_console, write_sweep_csv

        sweep_dir = Path(config.hydra.sweep.dir)
        notes = sweep_dir / os.environ[JOBS]
        if not notes.exists():
            sys.exit(f"error: no job of this sweep is in {sweep_dir}: nothing was swept, or name= was, which names it")
        lines = notes.read_text().splitlines()
        notes.unlink()
        outcomes = dict(line.split("\t") for line in lines)  # the last word on each job counts
        jobs = [sweep_dir / name for name in outcomes]
        failed = [str(sweep_dir / name) for name, outcome in outcomes.items() if outcome != "done"]
        try:
            wide_console().print(sweep_table(jobs))
            write_sweep_csv(jobs, sweep_dir / "sweep.csv")
            print(f"{len(jobs) - len(failed)} of {len(jobs)} jobs done; table in {sweep_dir / 'sweep.csv'}")
        finally:  # Hydra turns an exception here into a warning, but not an exit
            if failed:
                print("not done, run the same command again for:", *failed, sep="\n  ", file=sys.stderr)
                sys.exit(1)
