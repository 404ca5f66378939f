"""The figure and the table of a sweep, against the numbers in its folders."""

import csv
import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from ncdd.report.figures import draw_sweep, redraw_sweep
from ncdd.report.folder import job_folders, read_metrics, read_summary
from ncdd.report.sweep import (
    axis_values,
    default_panels,
    final_table,
    final_value,
    over_seeds,
    panel_label,
    sweep_axes,
    sweep_figure,
    sweep_layout,
    sweep_series,
)
from ncdd.report.table import Job, read_job


def job(status="done", final=None, **overrides) -> Job:
    named = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return Job(Path("nowhere"), status, named, {"test/accuracy": 0.5} if final is None else final, 1.0, "")


@pytest.mark.parametrize(
    ("names", "turned"), [("abc", 0), (["a_long_name", "another_long_name", "the_third_long_name"], 90)]
)
def test_many_letters_stand_upright_below_the_last_panel(names, turned):
    panels = ["test/accuracy", "test/accuracy_augmented"]
    jobs = [job(recipe=name, distill__n=n, final=dict.fromkeys(panels, 0.5)) for name in names for n in (1, 10)]
    axes = sweep_figure(jobs, panels, columns="distill.n").axes
    rotations = [[label.get_rotation() for label in ax.get_xticklabels()] for ax in axes]
    assert rotations == [[] if turned else [0] * 3] * 2 + [[turned] * 3] * 2


@pytest.fixture
def sweep(make_run, tmp_path):
    """Widths 8, 16, 128 x learning rates x two seeds, and one job that failed."""
    n = 0
    for width in (8, 16, 128):
        for lr in (0.1, 0.01):
            for seed in (0, 1):
                overrides = (f"model.width={width}", f"optimizer.lr={lr}", f"seed={seed}", "study.figure=a")
                make_run(f"sweep/{n}", K=3, epochs=5, seed=n, overrides=overrides)
                n += 1
    failed = tmp_path / "sweep" / "model.width=999,optimizer.lr=0.1,seed=0"
    failed.mkdir()
    (failed / "FAILED").write_text("ValueError: no\n")
    return tmp_path / "sweep"


@pytest.fixture
def jobs(sweep):
    return [read_job(folder) for folder in job_folders(sweep)]


def folders_with(sweep, *overrides):
    return [f for f in job_folders(sweep)[:12] if set(overrides) <= set(read_summary(f)["overrides"])]


# ------------------------------------------------------------------------------ axes
def test_axes_are_what_differs_but_for_seeds_and_what_changes_no_number():
    jobs = [job(a=1, b=2, seed=0, name="x", experiment="u", study__figure="p"),
            job(a=2, b=2, seed=1, name="y", experiment="v", study__figure="q")]  # fmt: skip
    assert sweep_axes(jobs) == ["a"]
    assert sweep_axes(jobs[:1]) == []


def test_axis_values_have_a_natural_order():
    assert axis_values([job(a=v) for v in (128, 16, 8, "1e-3")], "a") == ["1e-3", "8", "16", "128"]
    assert axis_values([job(a=v) for v in ("sgd", "10", "adam")], "a") == ["10", "adam", "sgd"]
    assert axis_values([job(a=2), job()], "a") == [None, "2"]


def test_layout_gives_colour_to_numbers_and_further_axes_to_columns():
    jobs = [job(head=h, width=w, opt=o, depth=d, seed=0)
            for h in ("etf", "linear") for w in (1, 2) for o in "abcdefg" for d in (3, 4)]  # fmt: skip
    layout = sweep_layout(jobs)
    assert (layout.colour, layout.dash, layout.columns) == ("width", "head", ("opt", "depth"))
    layout = sweep_layout(jobs, columns="head", x="width")
    assert (layout.columns, layout.x, layout.colour, layout.dash) == (("head", "opt"), "width", "depth", None)
    with pytest.raises(ValueError, match=r"study.x=widht: no job of the sweep sets it; swept: head, width, opt, depth"):
        sweep_layout(jobs, x="widht")


def test_too_many_columns_are_an_error():
    many = [job(a=a, b=b, c=c, final={"test/accuracy": 1.0}) for a in range(5) for b in range(5) for c in range(6)]
    with pytest.raises(ValueError, match="30 columns of panels for b x c, at most 24"):
        sweep_figure(many, ["test/accuracy"], columns="b")


# ------------------------------------------------------------------------------ lines
def test_mean_and_deviation_at_each_x_of_those_that_have_it():
    rng = np.random.default_rng(0)
    seeds = [rng.normal(size=n) for n in (5, 5, 3)]
    found = over_seeds([(np.arange(float(len(values))), values) for values in seeds])
    for x in range(5):
        there = [float(values[x]) for values in seeds if len(values) > x]
        assert found.mean[x] == pytest.approx(statistics.mean(there), rel=1e-14)
        assert found.deviation[x] == pytest.approx(statistics.stdev(there), rel=1e-12)
    alone = over_seeds([(np.array([0.0, 1.0]), np.array([3.0, 4.0]))])
    assert alone.deviation.tolist() == [0, 0]
    assert over_seeds([]).x.tolist() == []


def test_curves_are_the_means_of_the_files(sweep, jobs):
    layout = sweep_layout(jobs[:12])
    series = sweep_series([(j, read_metrics(j.folder)) for j in jobs[:12]], "1-train/accuracy", layout)
    assert set(series) == {(w, lr) for w in ("8", "16", "128") for lr in ("0.1", "0.01")}
    both = []
    for folder in folders_with(sweep, "model.width=16", "optimizer.lr=0.01"):
        with (folder / "metrics.csv").open() as file:
            both.append([1 - float(row["train/accuracy"]) for row in csv.DictReader(file)])
    assert len(both) == 2
    np.testing.assert_allclose(series["16", "0.01"].mean, np.mean(both, axis=0), rtol=1e-14)
    np.testing.assert_allclose(series["16", "0.01"].deviation, np.std(both, axis=0, ddof=1), atol=1e-15)


def test_final_values_against_a_setting(jobs):
    layout = sweep_layout(jobs[:12], x="model.width")
    series = sweep_series([(j, {}) for j in jobs[:12]], "train/nc1_pinv", layout)
    assert {line: found.x.tolist() for line, found in series.items()} == {
        ("0.1", None): [8, 16, 128],
        ("0.01", None): [8, 16, 128],
    }
    values = [j.final["train/nc1_pinv"] for j in jobs if j.overrides.get("model.width") == "128"
              and j.overrides["optimizer.lr"] == "0.1" and j.final]  # fmt: skip
    assert series["0.1", None].mean[-1] == pytest.approx(statistics.mean(values), rel=1e-14)


def test_a_setting_with_names_is_spaced_evenly():
    jobs = [job(opt=name) for name in ("sgd", "adam", "lbfgs")]
    figure = sweep_figure(jobs, ["test/accuracy"], x="opt")
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["adam", "lbfgs", "sgd"]
    assert ax.get_xticks().tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------ the figure
def test_a_panel_for_each_metric_and_column(jobs):
    panels = ["test/accuracy", "train/nc1_pinv", "train/nowhere"]
    figure = sweep_figure(jobs, panels, columns="optimizer.lr")
    assert len(figure.axes) == 6
    assert [ax.get_title() for ax in figure.axes[:2]] == ["lr = 0.01", "lr = 0.1"]
    assert [len(ax.lines) for ax in figure.axes] == [3, 3, 3, 3, 0, 0]  # a line a width
    assert [ax.get_yscale() for ax in figure.axes[:4]] == ["linear", "linear", "log", "log"]
    assert figure.axes[4].texts[0].get_text() == "not logged"
    assert [len(ax.collections) for ax in figure.axes[2:4]] == [3, 3]  # each with its band
    assert figure.axes[0].get_ylabel() == "accuracy, test"
    assert [ax.get_xlabel() for ax in figure.axes] == [""] * 4 + ["epoch"] * 2


def test_without_columns_a_grid_with_one_legend(jobs):
    figure = sweep_figure(jobs, ["test/accuracy", "train/loss", "train/nc1_pinv"])
    assert [(ax.get_subplotspec().rowspan.start, ax.get_subplotspec().colspan.start) for ax in figure.axes] == [
        (0, 0), (0, 1), (1, 0),
    ]  # fmt: skip
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "epoch", "epoch"]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["width", "8", "16", "128", "lr", "0.01", "0.1", "± std over seeds"]
    colours = {line.get_color() for line in figure.axes[0].lines}
    assert (len(colours), len(figure.axes[0].lines)) == (3, 6)


def test_what_is_measured_once_is_drawn_by_its_final_values(monkeypatch):
    jobs = [job(n=n, kind=k, seed=s, final={"val/accuracy": 0.1, "test/accuracy": v + 0.1 * s})
            for n, v in ((1, 0.5), (10, 0.7)) for k in "ab" for s in (0, 1)]  # fmt: skip
    at_end = (np.array([2.0]), np.array([0.0]))
    curve = (np.arange(3.0), np.full(3, 0.1))
    monkeypatch.setattr("ncdd.report.sweep._metrics", lambda job: {"val/accuracy": curve, "test/accuracy": at_end})
    over, final = sweep_figure(jobs, ["val/accuracy", "test/accuracy"]).axes
    assert (over.get_xlabel(), final.get_xlabel()) == ("epoch", "n")
    assert final.get_xticks().tolist() == [1, 10]
    a, _ = (line for line in final.lines if line.get_color() == "#666666")  # a line for each kind
    np.testing.assert_allclose(a.get_xydata(), [[1, 0.55], [10, 0.75]])
    bars = np.concatenate([container.lines[2][0].get_segments() for container in final.containers])
    assert len(bars) == 4
    np.testing.assert_allclose(np.diff(bars[..., 1]).ravel(), 2 * statistics.stdev([0, 0.1]))
    for columns in ("kind", None):  # one dot a panel: nothing to draw it against
        alone = [j for j in jobs if j.overrides["n"] == "1" and (columns or j.overrides["kind"] == "a")]
        figure = sweep_figure(alone, ["test/accuracy"], columns=columns)
        assert [ax.lines[0].get_xydata().tolist() for ax in figure.axes] == [[[0, 0.55]]] * len(figure.axes)
        assert [tick.get_text() for ax in figure.axes for tick in ax.get_xticklabels()] == [""] * len(figure.axes)


def test_default_panels_are_of_training_or_of_sets():
    trained = [job(final={"test/accuracy": 1.0, "train/nc1_pinv": 1.0, "val/accuracy": 1.0})]
    distilled = [job(final=dict.fromkeys(("train/outer_loss", "val/accuracy", "test/accuracy_augmented"), 1.0))]
    assert default_panels(trained) == ["test/accuracy", "train/nc1_pinv"]
    assert default_panels(distilled) == ["val/accuracy", "test/accuracy_augmented"]


def test_exact_zeros_stay_in_sight():
    jobs = [job(a=a, final={"train/nc4_agree_bias": 1 - value}) for a, value in ((1, 0.4), (2, 0.01), (3, 0.0))]
    ax = sweep_figure(jobs, ["1-train/nc4_agree_bias"], x="a").axes[0]
    assert ax.get_yscale() == "symlog"
    assert ax.get_ylim()[0] < 0 < 0.4 < ax.get_ylim()[1]
    assert panel_label("1-train/nc4_agree_bias") == "NC4  disagreement, train"


def test_negative_values_and_flat_bands_are_all_on_the_axis():
    jobs = [job(a=a, seed=s, final={"m": v + s}) for a, v in ((1, -5.0), (2, 3.0)) for s in (0, 1)]
    low, high = sweep_figure(jobs, ["m"], x="a").axes[0].get_ylim()
    assert low < -4.5 - 0.7 and high > 3.5 + 0.7


def test_nothing_to_draw():
    assert sweep_figure([], ["test/accuracy"]) is None
    assert sweep_figure([job(status="failed", a=1), job(status="unfinished", a=2)], ["test/accuracy"]) is None
    assert sweep_figure([job(a=1), job(a=2)], ["other"], x="a") is None


# ------------------------------------------------------------------------------ the table
def test_table_of_final_values():
    jobs = [job(a=a, seed=s, final={"test/accuracy": v, "train/nc1_pinv": 10 * v})
            for a, s, v in ((10, 0, 0.5), (10, 1, 0.7), (9, 0, 0.25))]  # fmt: skip
    jobs.append(job(status="failed", a="x|y"))
    assert final_table(jobs, ["test/accuracy", "train/nc1_pinv", "1-test/accuracy", "other"]).splitlines() == [
        "| a | n | test/accuracy, % | train/nc1_pinv | 1-test/accuracy | other |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| 9 | 1 | 25.00 | 2.5 | 0.75 | - |",
        "| 10 | 2 | 60.00 ± 14.14 | 6 ± 1.4 | 0.4 ± 0.14 | - |",
    ]
    assert final_value(jobs[0], "1-test/accuracy") == 0.5
    piped = final_table([job(a="x|y"), job(a="z")], ["test/accuracy"])
    assert r"| x\|y |" in piped


# ------------------------------------------------------------------------------ files
def test_each_study_keeps_its_figure_and_is_drawn_again(sweep):
    jobs = job_folders(sweep)
    assert draw_sweep(sweep, jobs) == [sweep / "figures" / "sweep.png", sweep / "figures" / "sweep.md"]
    draw_sweep(sweep, jobs[:4], name="other", panels=["train/loss"], x="optimizer.lr")
    before = {path: path.read_bytes() for path in (sweep / "figures").iterdir()}
    assert sorted(path.name for path in before) == [
        f"{name}.{suffix}" for name in ("other", "sweep") for suffix in ("json", "md", "png")
    ]
    assert json.loads((sweep / "figures" / "other.json").read_text())["x"] == "optimizer.lr"
    for path in (sweep / "figures").glob("*.png"):
        path.unlink()
    redraw_sweep(sweep)
    assert {path: path.read_bytes() for path in (sweep / "figures").iterdir()} == before


def test_figures_for_print_are_the_same_bytes_each_time_and_text_stays_text(sweep):
    def drawn():
        paths = draw_sweep(sweep, job_folders(sweep), panels=["train/nc1_pinv"], formats=("pdf", "svg"))
        return {path.name: path.read_bytes() for path in paths}

    first, second = drawn(), drawn()
    assert first == second
    assert b"accuracy" not in first["sweep.svg"]
    assert b">width</text>" in first["sweep.svg"]
    assert b'width="234pt"' in first["sweep.svg"]  # 3.25 inches, a column
    assert b"/FontFile2" in first["sweep.pdf"] and b"CreationDate" not in first["sweep.pdf"]


@pytest.mark.parametrize(("columns", "points"), [(1, 3.25), (3, 6.75), (6, 21.5 / 2)])
def test_print_has_the_width_of_a_column_a_page_or_half_of_the_screen_in_any_format(
    tmp_path, monkeypatch, columns, points
):
    jobs = [job(a=a, b=b, final={"m": 1.0 + b}) for a in range(columns) for b in (1, 2)]
    monkeypatch.setattr("ncdd.report.figures.read_job", lambda path: jobs[int(path.name)])
    folders = [tmp_path / str(n) for n in range(len(jobs))]
    draw_sweep(tmp_path, folders, name="m", panels=["m"], columns="a", x="b", formats=("svg", "pdf", "png"))
    width = f'width="{72 * points:g}pt"'
    assert width in (tmp_path / "figures" / "m.svg").read_text()
