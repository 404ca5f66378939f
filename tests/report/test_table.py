"""The text of the tables, the CSV and the command."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ncdd.report.__main__ import main
from ncdd.report.folder import job_folders, read_summary
from ncdd.report.table import number, run_table, sweep_table, write_sweep_csv

RESULTS = ["acc", "%", "NC1", "NC2", "NC3", "sec"]


def text(renderable, width: int = 100) -> str:
    file = io.StringIO()
    Console(width=width, file=file).print(renderable)
    return file.getvalue()


def row(table: str, start: str) -> list[str]:
    """The cells of the row that starts so."""
    (line,) = [line for line in table.splitlines() if line.strip().startswith(start)]
    return line.replace(" %", "%").strip()[len(start) :].split()


@pytest.fixture
def sweep(make_run, tmp_path) -> Path:
    """Widths 8 and 16 with seeds 0 and 1; one failed, one unfinished, one done whose summary is broken."""
    for n, (width, seed) in enumerate(((8, 0), (8, 1), (16, 0))):
        overrides = (f"model.width={width}", f"seed={seed}", "dataset=digits")
        make_run(f"sweep/model.width={width},seed={seed}", K=3, epochs=5, seed=n, overrides=overrides)
    failed = tmp_path / "sweep" / "model.width=16,seed=1"
    failed.mkdir()
    (failed / "FAILED").write_text("ValueError: width=[16] is too much\nTraceback (most recent call last):\n  boom\n")
    unfinished = tmp_path / "sweep" / "model.width=32,seed=0"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("seed: 0\n")
    broken = tmp_path / "sweep" / "model.width=32,seed=1"
    broken.mkdir()
    (broken / "DONE").touch()
    return tmp_path / "sweep"


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("test/accuracy", 0.98765, "98.77 %"),
        ("train/nc4_agree_bias", 1.0, "100.00 %"),
        ("train/nc1_pinv", 0.000012345, "1.23e-05"),
        ("train/loss", float("nan"), "nan"),
        ("train/accuracy", float("nan"), "nan"),
        ("train/loss", None, "-"),
    ],
)
def test_numbers(metric, value, expected):
    assert number(metric, value) == expected


def test_run_table(make_run):
    summary = read_summary(make_run("a-run"))
    table = text(run_table(summary))
    assert table.startswith("a-run, 60 epochs, 12.5 s, 1,000 parameters")
    assert row(table, "accuracy") == ["10.00%", "100.00%", "10.00%", "93.99%"]
    expected = [f"{summary[part][f'{s}/nc1_pinv']:.3g}" for s in ("train", "test") for part in ("initial", "final")]
    assert row(table, "NC1  tr(Sw Sb^+)/K") == expected
    for start in ("loss", "NC2  ETF error of M", "NC2  ETF error of W", "NC3  self-duality", "NC4  agreement"):
        assert len(row(table, start)) == 4
    assert table.isascii() or set(table) - set("─") <= set(map(chr, range(128)))
    assert max(map(len, text(run_table(summary), width=80).splitlines())) <= 80


def test_the_network_of_a_joint_run_is_shown_on_real_and_on_distilled_images():
    final = {f"{split}/nc1_pinv": n for n, split in enumerate(("train", "real_test", "distilled"), start=1)}
    final |= {"distilled/nc1_pinv__train_means": 5.0, "test/accuracy": 0.5, "val/accuracy": 0.6}
    table = text(run_table({"initial": {}, "final": final, "distilled": ["accuracy"]}), width=80)
    assert row(table, "accuracy") == ["-", "60.00%", "50.00%"]
    assert row(table, "NC1  tr(Sw Sb^+)/K") == ["-", "1", "-", "2", "-", "5"]
    assert "(distilled: NC1 and NC4 at the class means of train)" in " ".join(table.split())


def test_run_table_of_little():
    table = text(run_table({"initial": {}, "final": {"train/loss": 1.5}}))
    assert row(table, "loss") == ["-", "1.5"]
    assert "NC1" not in table and "test" not in table


def test_sweep_table(sweep):
    table = text(sweep_table(job_folders(sweep)))
    assert "6 jobs: 4 done, 1 failed, 1 unfinished" in table
    header = next(line for line in table.splitlines() if line.strip().startswith("status"))
    assert header.split() == ["status", "width", "seed", *RESULTS]
    final = read_summary(sweep / "model.width=8,seed=0")["final"]
    assert row(table, "1  done")[:3] == ["8", "0", f"{100 * final['test/accuracy']:.2f}"]
    assert row(table, "4  failed") == ["16", "1", *"-----"]
    assert row(table, "5  unfinished") == ["32", "0", *"-----"]
    assert "4 failed  model.width=16,seed=1: ValueError: width=[16] is too much" in table
    assert "Traceback" not in table
    assert "6 done  model.width=32,seed=1: summary.json: there is no such file" in table


def test_sweep_table_over_seeds(sweep):
    table = text(sweep_table(job_folders(sweep)), width=120)
    _, over_seeds = table.split("over seeds: mean (standard deviation)")
    values = [read_summary(sweep / f"model.width=8,seed={seed}")["final"]["train/nc1_pinv"] for seed in (0, 1)]
    lines = over_seeds.splitlines()
    at = next(n for n, line in enumerate(lines) if line.split()[:2] == ["8", "2"])
    assert lines[at].split()[3] == f"{np.mean(values):.3g}"
    assert lines[at + 1].split()[1] == f"({np.std(values, ddof=1):.2g})"
    assert lines[at + 2].split()[:2] == ["16", "1"]
    assert "(" not in lines[at + 2]


@pytest.mark.parametrize(
    ("final", "head"),
    [
        ({"val/accuracy": 0.5, "val/accuracy_std": 0.1}, ["status", "width", "val", "%", "sec"]),  # no test was made
        ({"val/accuracy": 0.5, "test/accuracy": 0.4}, ["status", "width", "acc", "%", "sec"]),
        (
            {"test/real_auc": 0.5, "test/real_auc_std": 0.1, "test/new_accuracy": 0.5},  # a task's own
            ["status", "width", "auc", "accuracy", "%", "sec"],
        ),
    ],
)
def test_a_sweep_shows_what_its_jobs_found(make_run, tmp_path, final, head):
    for width in (8, 16):
        folder = make_run(f"sweep/{width}", K=3, epochs=1, overrides=(f"model.width={width}",))
        summary = json.loads((folder / "summary.json").read_text()) | {"final": final}
        (folder / "summary.json").write_text(json.dumps(summary))
    table = text(sweep_table(job_folders(tmp_path / "sweep")))
    assert next(line for line in table.splitlines() if line.strip().startswith("status")).split() == head
    values = [f"{100 * v:.2f}" if "acc" in name else f"{v:.3g}" for name, v in final.items() if "std" not in name]
    shown = values[1:] if "test/accuracy" in final else values
    assert row(table, "2  done") == ["16", *shown, "12"]
    assert ("NC1" in table) == ("auc" not in " ".join(final))


def test_overrides_that_do_not_differ_are_said_once(make_run, tmp_path):
    for width in (8, 16):
        make_run(f"sweep/{width}", K=3, epochs=1, overrides=(f"model.width={width}", f"head.width={width}", "seed=3"))
    table = text(sweep_table(job_folders(tmp_path / "sweep")))
    assert "all with seed=3" in table
    assert [line.split() for line in table.splitlines()[1:3]] == [
        ["model.", "head."],
        ["status", "width", "width", *RESULTS],
    ]
    assert "over seeds" not in table


def test_sweep_table_of_nothing():
    assert "0 jobs" in text(sweep_table([]))


def test_sweep_csv(sweep):
    path = write_sweep_csv(job_folders(sweep), sweep / "sweep.csv")
    with path.open(newline="") as file:
        jobs = list(csv.DictReader(file))
    assert [job["status"] for job in jobs] == ["done", "done", "done", "failed", "unfinished", "done"]
    assert jobs[0]["folder"] == "model.width=8,seed=0"
    assert (jobs[2]["model.width"], jobs[2]["seed"], jobs[2]["dataset"]) == ("16", "0", "digits")
    final = read_summary(sweep / "model.width=8,seed=1")["final"]
    assert {name: float(jobs[1][name]) for name in final} == final
    assert jobs[3]["error"] == "ValueError: width=[16] is too much"
    assert jobs[3]["test/accuracy"] == ""
    assert sorted(sweep.glob("*.csv")) == sorted(p for p in sweep.iterdir() if p.is_file()) == [path]


# ------------------------------------------------------------------------------ the command
def test_command_on_a_run(make_run, capsys):
    folder = make_run(K=3, epochs=2)
    assert main([str(folder), "--formats", "pdf"]) == 0
    out = capsys.readouterr().out
    assert "NC1  tr(Sw Sb^+)/K" in out
    figures = [f"{folder}/figures/{n}.pdf" for n in ("curves", "collapse", "gram", "features")]
    assert out.splitlines()[-5:] == [*figures, f"{folder}/report.html"]
    assert "\x1b" not in out


def test_command_on_a_run_that_is_under_way(make_run, capsys):
    folder = make_run(K=3, epochs=2)
    (folder / "summary.json").unlink()
    (folder / "collapse.npz").unlink()
    assert main([str(folder)]) == 0
    assert f"{folder}: no summary.json yet, so no table" in capsys.readouterr().out


def test_command_on_a_sweep(sweep, capsys):
    assert main([str(sweep)]) == 0
    written = [sweep / name for name in ("sweep.csv", "report.html", "figures/sweep.png", "figures/sweep.md")]
    assert capsys.readouterr().out.splitlines()[-4:] == [str(path) for path in written]
    assert all(path.is_file() for path in written)


def test_command_draws_the_figure_it_is_asked_for(sweep, capsys):
    panels = "train/loss,test/accuracy"
    assert main([str(sweep), "--name", "a", "--panels", panels, "--x", "seed", "--columns", "model.width"]) == 0
    study = json.loads((sweep / "figures" / "a.json").read_text())
    assert (study["panels"], study["x"], study["columns"]) == (["train/loss", "test/accuracy"], "seed", "model.width")
    assert main([str(sweep), "--columns", "model.wide"]) == 2
    assert capsys.readouterr().err == (
        "error: study.columns=model.wide: no job of the sweep sets it; swept: model.width\n"
    )


@pytest.mark.parametrize("what", ["missing", "empty", "broken", "format"])
def test_command_errors(what, tmp_path, make_run, capsys):
    if what == "empty":
        (tmp_path / what).mkdir()
    elif what != "missing":
        make_run(what, K=3, epochs=1)
    if what == "broken":
        (tmp_path / what / "metrics.csv").write_text("epoch,loss\n0,x\n")
    expected = {
        "missing": f"error: {tmp_path}/missing: there is no such folder\n",
        "empty": f"error: {tmp_path}/empty: neither a run folder nor one that holds any\n",
        "broken": f"error: {tmp_path}/broken/metrics.csv: line 2, column 'loss': 'x' is not a number\n",
        "format": "error: unknown figure format gif; choose from png, pdf, svg\n",
    }
    assert main([str(tmp_path / what), "--formats", "gif" if what == "format" else "png"]) == 2
    assert capsys.readouterr().err == expected[what]


def test_the_package_needs_no_torch(sweep):
    code = "import sys, ncdd.report.__main__ as m; m.main([sys.argv[1]]); assert 'torch' not in sys.modules"
    code += "; assert 'matplotlib.pyplot' not in sys.modules"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code, str(sweep)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
