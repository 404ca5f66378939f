"""What a multirun ends with: one table of all its jobs, a CSV of it, and an exit code that tells of failures."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

JOBS = "jobs.txt"


def announce(sweep_dir: Path, job: Path) -> None:
    """Note that `job` belongs to the sweep in progress; also from a process of a parallel launcher."""
    with (sweep_dir / JOBS).open("a") as file:
        file.write(f"{job.relative_to(sweep_dir)}\n")


class SweepSummary(Callback):
    """Hydra callback: the folder may hold jobs of earlier sweeps, so the table is of those announced in this one."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        (Path(config.hydra.sweep.dir) / JOBS).unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from rich.console import Console

        from ncdd.report.table import sweep_table, write_sweep_csv

        sweep_dir = Path(config.hydra.sweep.dir).resolve()
        jobs = [sweep_dir / line for line in (sweep_dir / JOBS).read_text().splitlines()]
        Console().print(sweep_table(jobs))
        write_sweep_csv(jobs, sweep_dir / "sweep.csv")
        failed = [job for job in jobs if not (job / "DONE").exists()]
        print(
            f"{len(jobs) - len(failed)} of {len(jobs)} jobs done; table in {Path(config.hydra.sweep.dir) / 'sweep.csv'}"
        )
        if failed:
            print(
                "failed, see run.log there; run the same command again for those:", *failed, sep="\n  ", file=sys.stderr
            )
            sys.exit(1)
