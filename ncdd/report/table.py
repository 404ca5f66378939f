"""Tables of a run and of a sweep, for a terminal (rich) and as CSV.

Only ASCII and no colour is needed to read them: piped into a file they are plain text.
"""

import csv
import math
import os
import re
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ncdd.report.folder import Summary, error_line, job_overrides, job_status, read_summary
from ncdd.report.style import AT_TRAIN_MEANS

ROWS = (
    ("accuracy", "accuracy"),
    ("loss", "loss"),
    ("NC1  tr(Sw Sb^+)/K", "nc1_pinv"),
    ("NC2  ETF error of M", "nc2_etf_M"),
    ("NC2  ETF error of W", "nc2_etf_W"),
    ("NC3  self-duality", "nc3_dual_etf"),
    ("NC4  agreement", "nc4_agree_bias"),
)
SPLITS = (  # and the beginnings of what has to be logged of them
    ("train", "/"), ("val", "/nc1_"), ("test", "/"), ("real", "/nc1_"), ("real_test", "/nc1_"), ("distilled", "/nc1_"),
)  # fmt: skip
RESULTS = (
    ("acc %", "test/accuracy"),
    ("aug %", "test/accuracy_augmented"),
    ("krr %", "test/krr_accuracy"),
    ("val %", "val/accuracy"),
    ("NC1", "train/nc1_pinv"),
    ("NC2", "train/nc2_etf_M"),
    ("NC3", "train/nc3_dual_etf"),
)
OF_TRAINING = ("test/accuracy", "train/nc1_pinv", "train/nc2_etf_M", "train/nc3_dual_etf")
STATUS_STYLE = {"done": "green", "failed": "bold red", "unfinished": "yellow"}
PIPED_WIDTH = 120  # columns where the output is no terminal and COLUMNS is not set
WIDEST = 28  # characters of an override's value
MOST_RESULTS = 6  # columns for what a task found


def wide_console() -> Console:
    """A console for these tables: a file or a pipe is not narrower than they are."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=PIPED_WIDTH if piped else None)


def number(metric: str, value: float | None) -> str:
    """A value for reading: accuracies and agreements in percent, the rest to three digits, '-' where unknown."""
    if value is None:
        return "-"
    if math.isfinite(value) and ("accuracy" in metric or "agree" in metric):
        return f"{100 * value:.2f} %"
    return f"{value:.3g}"


def run_table(summary: Summary) -> RenderableType:
    """Accuracy, loss and NC1 to NC4 before and after training, on train and on test; of a distillation, of its set."""
    if "distilled" not in summary:
        return _training_table(summary, _run_title(summary), ROWS)
    parts: list[RenderableType] = [_set_table(summary)]
    if any("/nc1_" in name for name in summary["final"]):
        title = "the network that learned with it"
        if any(name.startswith("distilled/nc1_") for name in summary["final"]):
            title += " (distilled: NC1 and NC4 at the class means of train)"
        parts += [Text(), _training_table(summary, title, ROWS[1:])]
    return Group(*parts)


def _set_table(summary: Summary) -> Table:
    """What was measured of the set: on the validation split before and after learning, and of the best one on test."""
    table = _table(_run_title(summary), [""])
    for name in ("val: initial", "-> last", "test, of the best"):
        table.add_column(name, justify="right", no_wrap=True, style="bold" if "test" in name else None)
    names = [name for name in summary["distilled"] if not name.endswith("_std")]
    names += [name.removeprefix("val/") for name in summary["final"] if re.fullmatch(r"val/\w*accuracy", name)]
    for name in dict.fromkeys(names):
        places = ((summary["initial"], "val"), (summary["final"], "val"), (summary["final"], "test"))
        table.add_row(name.replace("_", " "), *(_with_deviation(values, f"{split}/{name}") for values, split in places))
    return table


def _with_deviation(values: Mapping[str, float], name: str) -> str:
    """`87.31 +- 0.42 %`, or without what is not known."""
    shown, deviation = number(name, values.get(name)), values.get(f"{name}_std")
    if deviation is None:
        return shown
    return f"{shown.removesuffix(' %')} +- {number(name, deviation)}"


def _training_table(summary: Summary, title: str, rows: Sequence[tuple[str, str]]) -> Table:
    marks = [(s, "/nc1_") for s, _ in SPLITS] if "distilled" in summary else SPLITS  # there, test is of the set
    splits = [s for s, mark in marks if any(name.startswith(s + mark) for name in summary["final"])]
    table = _table(title, [""])
    for split in splits:
        table.add_column(f"{split.replace('_', chr(10))}\ninitial", justify="right", vertical="bottom", no_wrap=True)
        table.add_column("-> final", vertical="bottom", justify="right", no_wrap=True, style="bold")
    for label, metric in rows:
        cells = [_cell(summary[part], split, metric) for split in splits for part in ("initial", "final")]
        if set(cells) - {"-"}:
            table.add_row(label, *cells)
    return table


def _cell(values: Mapping[str, float], split: str, metric: str) -> str:
    own = values.get(f"{split}/{metric}")
    return number(metric, values.get(f"{split}/{metric}{AT_TRAIN_MEANS}", own) if split == "distilled" else own)


def _run_title(summary: Summary) -> str:
    facts = [str(summary.get("name") or "run")]
    if "distilled" in summary:
        facts.append(f"{summary.get('steps', 0):,} iterations")
    elif summary.get("epochs") is not None:
        facts.append(f"{summary['epochs']} epoch{'s' * (summary['epochs'] != 1)}")
    if isinstance(seconds := summary.get("seconds"), int | float):
        evaluating = summary.get("evaluation_seconds")
        facts.append(f"{seconds:.1f} s" + (f" ({evaluating:.1f} evaluating)" if evaluating else ""))
    if isinstance(parameters := summary.get("parameters"), dict) and "total" in parameters:
        facts.append(f"{parameters['total']:,} parameters")
    return escape(", ".join(facts))


@dataclass(frozen=True)
class Job:
    """What a sweep's tables know of one job."""

    folder: Path
    status: str
    overrides: dict[str, str]
    final: dict[str, float]
    seconds: float | None
    error: str


def read_job(folder: Path) -> Job:
    """One job's state; a summary that cannot be read is that job's error, not the sweep's."""
    summary: Summary | None = None
    status, error = job_status(folder), ""
    try:
        if status == "done" or (folder / "summary.json").exists():
            summary = read_summary(folder)
    except (ValueError, FileNotFoundError) as problem:
        error = str(problem).removeprefix(f"{folder}{os.sep}")
    if status == "failed":
        error = error_line(folder)
    final, seconds = (summary["final"], summary.get("seconds")) if summary else ({}, None)
    return Job(folder, status, job_overrides(folder, summary), final, seconds, error)


def _keys(jobs: Sequence[Job]) -> list[str]:
    return list(dict.fromkeys(key for job in jobs for key in job.overrides))


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """The overrides that differ between the jobs; of a single job none.

    That a job without a summary does not name an override, tells nothing.
    """
    values = {key: {job.overrides.get(key) for job in jobs if job.final or key in job.overrides} for key in _keys(jobs)}
    return [key for key in values if len(values[key]) > 1]


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """`model.width` as `width`, where no other key ends the same way."""
    keys = list(keys)
    last = [key.rpartition(".")[2] for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}


def job_groups(jobs: Iterable[Job], keys: Sequence[str]) -> dict[tuple[str | None, ...], list[Job]]:
    """The jobs by their values of the overrides `keys`, None where a job does not name one."""
    groups: dict[tuple[str | None, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.overrides.get(key) for key in keys), []).append(job)
    return groups


def sweep_table(folders: Sequence[str | os.PathLike[str]]) -> RenderableType:
    """One row a job, then mean and standard deviation over seeds if seeds were swept, then the errors in full."""
    jobs = [read_job(Path(folder)) for folder in folders]
    swept = swept_keys(jobs)
    parts: list[RenderableType] = [_jobs_table(jobs, swept)]
    if {metric for _, metric in _results(jobs)} <= {metric for _, metric in RESULTS}:
        legend = "acc, aug (networks trained with augmentation), krr: on test; NC1, NC2 (of M), NC3: on train"
        legend += "; val: on the validation split" * any(metric == "val/accuracy" for _, metric in _results(jobs))
        parts.append(Text(f"\n{legend}"))
    if same := [f"{key}={jobs[0].overrides[key]}" for key in _keys(jobs[:1]) if key not in swept]:
        parts.append(Text(f"all with {' '.join(same)}"))
    if "seed" in swept and any(job.final for job in jobs):
        parts += [Text(), _seeds_table(jobs, [key for key in swept if key != "seed"])]
    parts += [Text()] * any(job.error for job in jobs)
    parts += [
        Text.assemble((f"{n} {job.status}", STATUS_STYLE[job.status]), f"  {job.folder.name}: {job.error}")
        for n, job in enumerate(jobs, start=1)
        if job.error
    ]
    return Group(*parts)


def _jobs_table(jobs: Sequence[Job], swept: list[str]) -> Table:
    counts = [f"{n} {status}" for status in STATUS_STYLE if (n := sum(job.status == status for job in jobs))]
    table = _table(": ".join([f"{len(jobs)} jobs", *[", ".join(counts)] * bool(counts)]), ["", "status"])
    _add_overrides(table, swept)
    shown = _results(jobs)
    for name in [name for name, _ in shown] + ["sec"]:
        table.add_column(name, justify="right", no_wrap=True)
    for n, job in enumerate(jobs, start=1):
        results = [number(metric, job.final.get(metric)).removesuffix(" %") for _, metric in shown]
        seconds = "-" if job.seconds is None else f"{job.seconds:.{0 if job.seconds >= 10 else 1}f}"
        status = Text(job.status, style=STATUS_STYLE[job.status])
        table.add_row(str(n), status, *_override_cells(job, swept), *results, seconds)
    return table


def _results(jobs: Sequence[Job]) -> list[tuple[str, str]]:
    """The columns of results that any job has; of tasks with other ones the first of theirs; of none, training's."""
    logged = dict.fromkeys(metric for job in jobs for metric in job.final)
    unwanted = {"val/accuracy"} if "test/accuracy" in logged else set()
    known = [(name, metric) for name, metric in RESULTS if metric in logged.keys() - unwanted]
    own = [metric for metric in logged if metric.startswith("test/") and not metric.endswith("_std")]
    if known or not own:
        return known or [(name, metric) for name, metric in RESULTS if metric in OF_TRAINING]
    return [
        (re.sub("_+", "\n", m.removeprefix("test/")) + " %" * m.endswith("accuracy"), m) for m in own[:MOST_RESULTS]
    ]


def _seeds_table(jobs: Sequence[Job], swept: list[str]) -> Table:
    """Mean and standard deviation (n - 1) of the finished jobs that differ in their seed alone."""
    groups = job_groups((job for job in jobs if job.status == "done" and job.final), swept)
    table = _table("over seeds: mean (standard deviation)", [])
    _add_overrides(table, swept)
    shown = _results(jobs)
    for name in ["n"] + [name for name, _ in shown]:
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups.values():
        values = [(metric, [job.final[metric] for job in group if metric in job.final]) for _, metric in shown]
        results = [_mean_and_deviation(metric, of_group) for metric, of_group in values]
        table.add_row(*_override_cells(group[0], swept), str(len(group)), *results)
    return table


def _mean_and_deviation(metric: str, values: list[float]) -> str:
    mean = number(metric, float(np.mean(values)) if values else None).removesuffix(" %")
    if len(values) < 2:
        return mean
    deviation = float(np.std(values, ddof=1))
    return f"{mean}\n({100 * deviation:.2f})" if "accuracy" in metric else f"{mean}\n({deviation:.2g})"


def _table(title: str, columns: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def _add_overrides(table: Table, swept: list[str]) -> None:
    """A column for each override, narrow: names are broken at their dots and underscores."""
    for name in short_names(swept).values():
        table.add_column(escape(re.sub(r"(?<=[._])(?=.)", "\n", name)), no_wrap=True)


def _override_cells(job: Job, swept: list[str]) -> list[str]:
    values = [job.overrides.get(key, "-") for key in swept]
    return [escape("\n".join(v[at : at + WIDEST] for at in range(0, len(v), WIDEST))) for v in values]


def write_sweep_csv(folders: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str]) -> Path:
    """One line a job: folder, status, every override, every final metric, seconds, error. Replaces the file at once."""
    path = Path(path)
    jobs = [read_job(Path(folder)) for folder in folders]
    overrides = _keys(jobs)
    metrics = sorted({name for job in jobs for name in job.final})
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["folder", "status", *overrides, *metrics, "seconds", "error"])
            for job in jobs:
                results = [job.final.get(name, "") for name in metrics]
                chosen = [job.overrides.get(key, "") for key in overrides]
                seconds = "" if job.seconds is None else job.seconds
                writer.writerow([job.folder.name, job.status, *chosen, *results, seconds, job.error])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
