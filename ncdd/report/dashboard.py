"""`python -m ncdd.report.dashboard FOLDER`: a W&B workspace and a W&B report of a run or a sweep, as code.

Made from the folder alone: panels, filters and groups name the settings that its jobs sweep and the metrics that they
logged. With a W&B key both are published, each time as new views; in any case they are written as JSON.
"""

import argparse
import json
import netrc
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import yaml

from ncdd.report.folder import is_run, job_folders, read_metrics
from ncdd.report.table import ROWS, SPLITS, Job, read_job, short_names, swept_keys
from ncdd.runfolder import flat, write_json

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

LEARNING = ROWS[:2]
COLLAPSE = ROWS[2:]
LOGGED_TO = ("logger.project", "logger.entity")
OUTCOMES = ("test/accuracy", "train/nc1_pinv", "test/nc1_pinv")  # what the axes of a sweep are drawn against
MOST_LINES = 100  # in a panel; W&B shows 10 unless told
EXTRA = "`uv run --extra dashboard python -m ncdd.report.dashboard ...`, or `pip install ncdd[dashboard]`"


@dataclass(frozen=True)
class Subject:
    """What there is to show, as read from a folder."""

    title: str
    text: str
    entity: str  # "" for the default of the key's owner
    project: str
    attribute: tuple[str, str]  # what W&B tells these runs by from the project's others: an attribute and its value
    axes: dict[str, str]  # config key -> name for reading; one for each swept setting, but seeds are averaged over
    metrics: frozenset[str]  # as logged: split/name
    figures: tuple[str, ...]  # as logged: figures/name
    lines: int  # a panel's most


def read_subject(folder: Path, *, entity: str | None = None, project: str | None = None) -> Subject:
    """The subject in a run's or a sweep's folder; entity and project, if not given, are those its runs logged to.

    Raises FileNotFoundError where there is no run, and ValueError where nothing tells the project.
    """
    sweep = not is_run(folder)
    jobs = [read_job(path) for path in (job_folders(folder) if sweep else [folder])]
    configs = {job.folder: _read_config(job.folder / "config.yaml") for job in jobs}
    if not any(configs.values()):
        raise FileNotFoundError(f"{folder}: neither a run folder nor one that holds any")
    logged = {key: next((c[key] for c in configs.values() if c.get(key)), None) for key in LOGGED_TO}
    if not (project or logged["logger.project"]):
        raise ValueError(
            f"{folder}: no run was logged to W&B (logger=wandb); if they are in a project after all, give --project"
        )
    title = _sweep_name(folder, configs.values()) if sweep else folder.resolve().name
    swept = swept_keys(jobs) if sweep else []
    averaged = ["seed"] if set(swept) > {"seed"} else []
    axes = config_keys([key for key in swept if key not in averaged], jobs, configs)
    return Subject(
        title=title,
        text=_describe(jobs, swept),
        entity=entity or logged["logger.entity"] or "",
        project=project or str(logged["logger.project"]),
        attribute=("Group", title) if sweep else ("ID", _wandb_id(folder)),
        axes=dict(zip(axes.values(), short_names(axes).values(), strict=True)),
        metrics=frozenset(name for f in configs if (f / "metrics.csv").exists() for name in read_metrics(f)),
        figures=tuple(sorted({f"figures/{p.stem}" for job in jobs for p in job.folder.glob("figures/*.png")})),
        lines=min(len(jobs), MOST_LINES),
    )


def _read_config(path: Path) -> dict[str, Any]:
    """A run's settings by their dotted keys; none where the file is not there."""
    try:
        return flat(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None


def _sweep_name(folder: Path, configs: Iterable[Mapping[str, Any]]) -> str:
    """The `name` of the jobs, which is their group in W&B."""
    names = sorted({str(config["name"]) for config in configs if config.get("name")})
    if len(names) != 1:
        raise ValueError(f"{folder}: give the folder of one sweep; its runs are of {', '.join(names) or 'none'}")
    if unfit := set(names[0]) & set("'\\=<>"):  # wandb-workspaces rewrites them, even inside a filter's quotes
        raise ValueError(
            f"{folder}: the name '{names[0]}' cannot be in a W&B filter, for its {' '.join(sorted(unfit))}"
        )
    return names[0]


def _wandb_id(folder: Path) -> str:
    path = folder / "wandb_id"
    if not path.exists():
        raise ValueError(f"{folder}: this run was not logged to W&B (logger=wandb), which knows runs by their wandb_id")
    return path.read_text(encoding="utf-8").strip()


def config_keys(
    overrides: Sequence[str], jobs: Sequence[Job], configs: Mapping[Path, Mapping[str, Any]]
) -> dict[str, str]:
    """For each override the config key that tells its values apart.

    `model.width` is one itself. A choice like `optimizer=sgd,adam` is none: of the keys with one value for each choice,
    the one with most different values stands for it, those of the group itself first (`optimizer._target_`).
    """
    begun = [(job.overrides, configs[job.folder]) for job in jobs if configs[job.folder]]
    keys = list(dict.fromkeys(key for _, config in begun for key in config))
    found: dict[str, str] = {}
    for override in overrides:
        standing: dict[str, int] = {}  # key -> how many values it has, if each choice has one
        for key in keys:
            pairs = {(chosen.get(override), json.dumps(config.get(key))) for chosen, config in begun}
            choices, values = ({pair[n] for pair in pairs} for n in (0, 1))
            if len(pairs) == len(choices) and len(values) > 1:
                standing[key] = len(values)
        best = max(standing, key=lambda k: (standing[k], k.startswith(f"{override}.")), default=None)
        if override in keys or best:
            found[override] = override if override in keys else str(best)
    return found


def _describe(jobs: Sequence[Job], swept: Sequence[str]) -> str:
    """How many runs, in which state, what is swept and what they share."""
    state = ", ".join(f"{n} {status}" for status, n in sorted(Counter(job.status for job in jobs).items()))
    values = {key: dict.fromkeys(job.overrides[key] for job in jobs if key in job.overrides) for key in swept}
    shared = {key: value for key, value in jobs[0].overrides.items() if key not in {*values, "name", "logger"}}
    sentences = [f"{len(jobs)} run{'s' * (len(jobs) > 1)} ({state})."]
    sentences += ["Swept: " + "; ".join(f"{k} = {', '.join(v)}" for k, v in values.items()) + "."] * bool(values)
    sentences += ["With " + ", ".join(f"{k}={v}" for k, v in shared.items()) + "."] * bool(shared)
    return " ".join(sentences)


def workspace(subject: Subject) -> "ws.Workspace":
    """Sections: the axes against the outcome, curves and Neural Collapse by each axis, figures, runs."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    sections = [ws.Section(name="Settings to results", panels=_overview(subject), is_open=True)]
    for n, (axis, name) in enumerate(subject.axes.items() or [(None, "")]):
        for title, rows in (("Learning curves", LEARNING), ("Neural Collapse", COLLAPSE)):
            panels = _curves(subject, rows, axis)
            layout = ws.SectionLayoutSettings(columns=2, rows=max(1, -(-len(panels) // 2)))
            heading = f"{title} by {name}" if axis else title
            sections.append(ws.Section(name=heading, panels=panels, is_open=not n, layout_settings=layout))
    sections += [
        ws.Section(name="Figures", panels=_figures(subject)),
        ws.Section(name="Runs", panels=[wr.RunComparer(diff_only="split")]),
    ]
    name, value = subject.attribute
    best_first = [expr.Ordering(expr.Summary(OUTCOMES[0]), ascending=False)]
    return ws.Workspace(
        entity=subject.entity,
        project=subject.project,
        name=re.sub(r"[^\w.,:/ -]", " ", subject.title),  # W&B refuses names with symbols
        sections=[section for section in sections if section.panels],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=subject.lines),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric(name) == value), order=best_first, pinned_columns=_columns(subject)
        ),
    )


def report(subject: Subject) -> "wr.Report":
    """The text, then for each axis a grid of curves whose runs it groups; then overview, figures and run table."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    name, value = subject.attribute

    def grid(panels: Sequence[Any], *groups: str) -> wr.PanelGrid:
        # without entity and project a run set is of the report's own; naming them would ask the server
        runs = wr.Runset(
            name=subject.title,
            filters=expr.And(expr.Metric(name) == value),
            groupby=[f"config.{key}" for key in groups],
            order=[wr.OrderBy(wr.SummaryMetric(OUTCOMES[0]), ascending=False)],
            pinned_columns=["run:displayName", *_columns(subject)],
        )
        return wr.PanelGrid(runsets=[runs], panels=list(panels))

    blocks: list[Any] = [wr.P(subject.text), wr.TableOfContents()]
    for axis, label in subject.axes.items():
        blocks += [wr.H2(f"By {label}"), grid(_curves(subject, ROWS), axis)]
    if not subject.axes:
        blocks += [wr.H2("Curves"), grid(_curves(subject, ROWS))]
    blocks += [wr.H2("Settings to results"), grid(_overview(subject))] * bool(_overview(subject))
    blocks += [wr.H2("Figures"), grid(_figures(subject))] * bool(subject.figures)
    blocks += [wr.H2("Runs"), grid([wr.RunComparer(diff_only="split", layout=wr.Layout(w=24, h=12))])]
    return wr.Report(
        entity=subject.entity, project=subject.project, title=subject.title[:128], blocks=blocks, width="fluid"
    )


def _curves(subject: Subject, rows: Sequence[tuple[str, str]], axis: str | None = None) -> list[Any]:
    """A panel a metric and split; by `axis`, a line a value: the mean of its runs and their range."""
    import wandb_workspaces.reports.v2 as wr

    splits = [s for s, measured in SPLITS if any(name.startswith(s + measured) for name in subject.metrics)]
    return [
        wr.LinePlot(
            title=f"{split}: {label}",
            x="epoch",
            y=[f"{split}/{metric}"],
            log_y=not ("accuracy" in metric or "agree" in metric),
            groupby=wr.Config(axis) if axis else None,
            groupby_aggfunc="mean" if axis else None,
            groupby_rangefunc="minmax" if axis else None,
            max_runs_to_show=subject.lines,
            layout=wr.Layout(w=12, h=8),
        )
        for label, metric in rows
        for split in splits
        if f"{split}/{metric}" in subject.metrics
    ]


def _overview(subject: Subject) -> list[Any]:
    """Of a sweep: parallel coordinates of axes and outcomes, and accuracy over collapse."""
    import wandb_workspaces.reports.v2 as wr

    outcomes = [name for name in OUTCOMES if name in subject.metrics]
    if not (subject.axes and outcomes):
        return []
    accuracy, collapse = OUTCOMES[:2]
    axes = [wr.ParallelCoordinatesPlotColumn(wr.Config(key), display_name=name) for key, name in subject.axes.items()]
    axes += [wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(name), log="nc1" in name) for name in outcomes]
    panels: list[Any] = [wr.ParallelCoordinatesPlot(columns=axes, layout=wr.Layout(w=24, h=10))]
    if {accuracy, collapse} <= set(outcomes):
        x, y = wr.SummaryMetric(collapse), wr.SummaryMetric(accuracy)
        panels.append(wr.ScatterPlot(title="accuracy over NC1", x=x, y=y, log_x=True, layout=wr.Layout(w=12, h=8)))
    return panels


def _figures(subject: Subject) -> list[Any]:
    """A gallery a figure, with a picture a run."""
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.MediaBrowser(title=key, media_keys=[key], num_columns=3, gallery_axis="run", layout=wr.Layout(w=24, h=12))
        for key in subject.figures
    ]


def _columns(subject: Subject) -> list[str]:
    """Of the run table: axes and outcomes. W&B keeps a setting a.b as b in the value of a."""
    keys = [key.partition(".") for key in subject.axes]
    settings = [f"config:{first}.value{dot}{rest}" for first, dot, rest in keys]
    return settings + [f"summary:{name}" for name in OUTCOMES if name in subject.metrics]


def build(subject: Subject) -> tuple["ws.Workspace", "wr.Report"]:
    """Both, with the same panel ids each time; the library draws them from `random`."""
    state = random.getstate()
    random.seed(0)
    try:
        return workspace(subject), report(subject)
    finally:
        random.setstate(state)


def write(views: Sequence["ws.Workspace | wr.Report"], folder: Path) -> list[Path]:
    """Each view's spec, as `save` would send it, in workspace.json and report.json."""
    paths = [folder / f"{type(view).__name__.lower()}.json" for view in views]
    for view, path in zip(views, paths, strict=True):
        write_json(path, view._to_model().model_dump(mode="json", by_alias=True, exclude_none=True))
    return paths


def has_key() -> bool:
    """Whether W&B would find a key: in the environment, or for its server in the netrc file."""
    import wandb

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def may_publish() -> bool:
    """Whether there is a key, and WANDB_MODE does not forbid its use."""
    return (os.environ.get("WANDB_MODE") or "online") == "online" and has_key()


def publish(subject: Subject) -> list[str]:
    """Save both as new views of W&B's project; their addresses. A failure is a ConnectionError that says why."""
    import wandb

    try:
        owner = subject.entity or wandb.Api().default_entity
        if not owner:
            raise ValueError("the W&B key has no default entity: name one with --entity")
        return [view.save().url for view in build(replace(subject, entity=owner))]
    except (wandb.Error, OSError) as error:
        raise ConnectionError(f"not published: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 for a mistake, or a failure of the network, that the message names."""
    parser = argparse.ArgumentParser(prog="python -m ncdd.report.dashboard", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run's folder, or a sweep's that holds run folders")
    parser.add_argument("--entity", help="user or team in W&B (default: the runs', else the key's own)")
    parser.add_argument("--project", help="in W&B (default: the one that the runs were logged to)")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: FOLDER/dashboard)")
    options = parser.parse_args(arguments)
    try:
        if not options.folder.is_dir():
            raise FileNotFoundError(f"{options.folder}: there is no such folder")
        subject = read_subject(options.folder, entity=options.entity, project=options.project)
        try:
            views = build(subject)
        except ModuleNotFoundError as missing:
            if missing.name != "wandb_workspaces":
                raise
            raise ValueError(f"W&B dashboards need the package wandb-workspaces: {EXTRA}") from None
        print(*write(views, options.out or options.folder / "dashboard"), sep="\n")
        if may_publish():
            print(*publish(subject), sep="\n")
        else:
            where = "/".join(filter(None, (subject.entity, subject.project)))
            print(f"not published: with a key (`wandb login` or WANDB_API_KEY) both would be views of {where} in W&B")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
