"""What the terminal phase of training is worth: Table 1 of Papyan, Han & Donoho (2020), of any run or sweep.

`python -m ncdd.report.terminal FOLDER` prints it as Markdown: test accuracy where the train error first vanishes, and
at the end of training.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ncdd.report.folder import Metrics, is_run, job_folders, read_metrics
from ncdd.report.style import by_epoch
from ncdd.report.sweep import axes_table
from ncdd.report.table import Job, read_job

HEAD = ("reached", "epoch", "at zero error, %", "at the end, %", "gain")


@dataclass(frozen=True)
class Terminal:
    """Epochs completed, and test accuracy in [0, 1], at the start and at the end of the terminal phase."""

    start: float
    end: float
    accuracy_start: float
    accuracy_end: float


def terminal_phase(metrics: Metrics, *, train_accuracy: float = 1.0) -> Terminal | None:
    """From the first epoch, of those at which train and test were measured, where train accuracy is high enough.

    train_accuracy: 1.0 is zero error; the paper calls 0.999 (ImageNet: 0.996) the effective start of the phase.
    None where training never gets there, or where either accuracy was not logged.
    """
    train, test = by_epoch(metrics, "train/accuracy"), by_epoch(metrics, "test/accuracy")
    if train is None or test is None:
        return None
    epochs, of_train, of_test = np.intersect1d(train[0], test[0], return_indices=True)
    there = np.flatnonzero(train[1][of_train] >= train_accuracy)
    if not len(there):
        return None
    start, accuracy = there[0], test[1][of_test]
    return Terminal(float(epochs[start]), float(epochs[-1]), float(accuracy[start]), float(accuracy[-1]))


def terminal_table(jobs: Sequence[Job], *, train_accuracy: float = 1.0) -> str:
    """Markdown: a row for each combination of the sweep's axes, mean ± standard deviation (n - 1) over its seeds.

    "reached" counts the jobs that enter the phase, of those that are done; the other columns are of these alone.
    The gain, in points, is of each job's own two accuracies.
    """

    def cells(group: Sequence[Job]) -> list[str]:
        phases = [terminal_phase(read_metrics(job.folder), train_accuracy=train_accuracy) for job in group]
        reached = [phase for phase in phases if phase]
        return [
            f"{len(reached)} of {len(group)}",
            _mean_deviation([phase.start for phase in reached], ".0f"),
            _mean_deviation([100 * phase.accuracy_start for phase in reached], ".2f"),
            _mean_deviation([100 * phase.accuracy_end for phase in reached], ".2f"),
            _mean_deviation([100 * (phase.accuracy_end - phase.accuracy_start) for phase in reached], "+.2f"),
        ]

    return axes_table(jobs, HEAD, cells)


def _mean_deviation(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    mean = f"{np.mean(values):{form}}"
    return f"{mean} ± {np.std(values, ddof=1):{form.lstrip('+')}}" if len(values) > 1 else mean


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 for a mistake that the message names."""
    parser = argparse.ArgumentParser(prog="python -m ncdd.report.terminal", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run's folder, or a sweep's that holds run folders")
    parser.add_argument("--train-accuracy", type=float, default=1.0, help="where the phase starts (default: 1.0)")
    options = parser.parse_args(arguments)
    folders = [options.folder] if is_run(options.folder) else job_folders(options.folder)
    try:
        if not folders:
            raise FileNotFoundError(f"{options.folder}: neither a run folder nor one that holds any")
        jobs = [read_job(folder) for folder in folders]
        print(terminal_table(jobs, train_accuracy=options.train_accuracy), end="")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
