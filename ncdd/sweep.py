"""What a multirun ends with: one table of all its jobs, a CSV of it, and an exit code that tells of failures."""

import hashlib
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ncdd.config import suggest

JOBS = "NCDD_SWEEP_JOBS"  # environment variable: the file in the sweep's folder where its jobs are noted
OF_THIS_MACHINE = f".jobs-{socket.gethostname()}-"  # how its name begins; then the process id of the sweep
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


@cache
def end_with_sweep() -> None:
    """In a worker process of joblib: end it when the sweep is killed, or it would go on, and then idle for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    if os.environ[JOBS] == f"{OF_THIS_MACHINE}{parent}":  # not the sweep itself, nor a job in Slurm's queue
        threading.Thread(target=watch, daemon=True).start()


def remove_left_over(sweep_dir: Path) -> None:
    """Remove the notes of sweeps that were killed on this machine."""
    for notes in sweep_dir.glob(f"{OF_THIS_MACHINE}*"):
        process = notes.name.removeprefix(OF_THIS_MACHINE)
        if not process.isdecimal():  # of a machine whose name begins like this one's
            continue
        with suppress(PermissionError):  # somebody else's, alive
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                notes.unlink(missing_ok=True)


def unknown_axes(config: DictConfig) -> list[str]:
    """A line for each of study.columns and study.x that no override of the sweep sets."""
    given = [override.lstrip("+~").partition("=")[0] for override in config.hydra.overrides.task]
    known = sorted({*given, *(config.hydra.sweeper.get("params") or {})})
    asked = {name: config.study[name] for name in ("columns", "x")} if config.get("study") else {}
    return [
        f"study.{name}={key}: the sweep does not set it; {suggest(key, known)}"
        for name, key in asked.items()
        if key is not None and key not in known
    ]


class SweepSummary(Callback):
    """Hydra callback: the folder may hold jobs of earlier sweeps, so the table is of those noted in this one."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if wrong := unknown_axes(config):  # found after the last job, it would have cost the whole sweep
            sys.exit("\n".join(f"error: {line}" for line in wrong))
        # its own, as two sweeps may share a folder; the jobs' processes inherit it, on other machines too
        os.environ[JOBS] = f"{OF_THIS_MACHINE}{os.getpid()}"

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from ncdd.report.figures import draw_sweep
        from ncdd.report.folder import job_folders
        from ncdd.report.page import write_page
        from ncdd.report.table import sweep_table, wide_console, write_sweep_csv

        sweep_dir = Path(config.hydra.sweep.dir)
        notes = sweep_dir / os.environ[JOBS]
        if not notes.exists():
            sys.exit(f"error: no job of this sweep is in {sweep_dir}: nothing was swept, or name= was, which names it")
        lines = notes.read_text().splitlines()
        notes.unlink()
        remove_left_over(sweep_dir)
        outcomes = dict(line.split("\t", maxsplit=1) for line in lines)  # the last word on each job counts
        jobs = [sweep_dir / name for name in outcomes]
        failed = [  # with the reason, where it is not in the table: in use by another process, say
            str(sweep_dir / name) if outcome == "begun" else outcome
            for name, outcome in outcomes.items()
            if outcome != "done"
        ]
        try:
            wide_console().print(sweep_table(jobs))
            # these, as the page, hold what `python -m ncdd.report` would write: earlier sweeps' jobs too
            write_sweep_csv(job_folders(sweep_dir), sweep_dir / "sweep.csv")
            print(
                f"{len(jobs) - len(failed)} of {len(jobs)} jobs done; the folder's table in {sweep_dir / 'sweep.csv'}"
            )
            if config.get("figures"):
                study: Any = OmegaConf.to_container(config.study) if "study" in config else {}
                print(write_page(sweep_dir))
                print(*draw_sweep(sweep_dir, jobs, name=study.pop("figure", None), **study), sep="\n")
        except ValueError as error:  # about the figure; Hydra would make a warning of many lines of it
            failed.append(f"the figure: {error}")
        finally:  # Hydra turns an exception here into a warning, but not an exit
            if failed:
                print("not done, run the same command again for:", *failed, sep="\n  ", file=sys.stderr)
                sys.exit(1)
