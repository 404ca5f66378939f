"""Tables, figures and the page of a distillation's folder, and those of an evaluation."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from ncdd.report.__main__ import main
from ncdd.report.distillation import distillation_figure
from ncdd.report.evaluation import evaluation_figure
from ncdd.report.figures import draw
from ncdd.report.folder import read_metrics, read_summary
from ncdd.report.page import read_run, run_data
from ncdd.report.rows import print_rows, read_rows, write_rows
from ncdd.report.table import run_table, sweep_table

CSV = """\
epoch,step,val/accuracy,val/accuracy_std,val/krr_accuracy,train/outer_loss,test/krr_accuracy,test/accuracy,test/accuracy_std
0,0,0.5,0.1,0.4,,,,
1,50,0.7,0.05,0.8,2.0,,,
2,100,0.6,0.02,0.9,1.0,,,
2,100,,,,,0.85,0.65,0.03
"""


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "figures" / "distilled").mkdir(parents=True)
    (folder / "metrics.csv").write_text(CSV)
    metrics = {name: values for name, (_, values) in read_metrics(folder).items()}
    summary = {
        "status": "done", "name": "dm", "epochs": 2, "steps": 100, "seconds": 20.0, "evaluation_seconds": 12.0,
        "overrides": ["distill.images_per_class=1"], "distilled": ["krr_accuracy", "accuracy", "accuracy_std"],
        "initial": {"val/accuracy": 0.5, "val/accuracy_std": 0.1, "val/krr_accuracy": 0.4},
        "final": {name: float(values[-1]) for name, values in metrics.items()},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "DONE").touch()
    for step in (0, 100):
        (folder / "figures" / "distilled" / f"step_{step:07}.png").write_bytes(b"\x89PNG" + bytes([step]))
    return folder


def text(renderable) -> str:
    file = io.StringIO()
    Console(width=120, file=file).print(renderable)
    return file.getvalue()


def test_metrics_by_step(run):
    by_step = read_metrics(run, "step")
    assert by_step["val/accuracy"][0].tolist() == [0, 50, 100]
    assert by_step["train/outer_loss"][0].tolist() == [50, 100]
    assert "epoch" not in by_step
    assert read_metrics(run)["train/outer_loss"][0].tolist() == [1, 2]


def test_the_table_is_of_the_set(run):
    table = text(run_table(read_summary(run)))
    assert "dm, 100 iterations, 20.0 s (12.0 evaluating)" in table
    rows = [" ".join(line.split()) for line in table.splitlines()]
    assert "krr accuracy 40.00 % 90.00 % 85.00 %" in rows
    assert "accuracy 50.00 +- 10.00 % 60.00 +- 2.00 % 65.00 +- 3.00 %" in rows
    assert "NC1" not in table


def test_the_table_of_jobs_has_their_own_columns(run):
    head = next(line for line in text(sweep_table([run])).splitlines() if "status" in line)
    assert head.split() == ["status", "acc", "%", "krr", "%", "sec"]


def test_the_figure_is_over_iterations(run):
    figure = distillation_figure(read_metrics(run, "step"))
    loss, worth = figure.axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[50, 2], [100, 1]])
    lines = {line.get_label(): line.get_xydata() for line in worth.lines if "val" in str(line.get_label())}
    assert list(lines) == ["accuracy, val  70.0% at best", "krr accuracy, val  90.0% at best"]
    np.testing.assert_array_equal(lines["accuracy, val  70.0% at best"], [[0, 0.5], [50, 0.7], [100, 0.6]])
    band = worth.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == pytest.approx((0.4, 0.75))
    labels = [entry.get_text() for entry in worth.get_legend().get_texts()]
    assert {"accuracy, test  65.0% ± 3.0", "krr accuracy, test  85.0%"} <= set(labels)
    assert [path.name for path in draw(run)] == ["distillation.png"]


def test_the_marks_are_at_the_set_that_was_tested(run):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"kept": 50}))
    (run / "metrics.csv").write_text(CSV.replace(",0.03\n", ",\n"))  # of one network
    figure = distillation_figure(read_metrics(run, "step"), kept=read_summary(run)["kept"])
    marks = {box.get_label(): box for box in figure.axes[1].containers}
    assert list(marks) == ["accuracy, test  65.0%", "krr accuracy, test  85.0%"]
    (mark, caps, bars) = marks["accuracy, test  65.0%"]
    assert (mark.get_xydata().tolist(), caps, bars) == ([[50, 0.65]], (), ())


def test_every_network_has_a_mark(run):
    names = [f"test/accuracy_{n}" for n in range(9)]
    head = ",".join(["epoch,step,val/accuracy,val/accuracy_std", *names])
    (run / "metrics.csv").write_text(f"{head}\n0,0,0.5,0.1{',0.5' * 9}\n")
    labels = {box.get_label() for box in distillation_figure(read_metrics(run, "step")).axes[0].containers}
    assert labels == {f"accuracy {n}, test  50.0%" for n in range(9)}


def test_one_loss_is_no_curve(run):
    (run / "metrics.csv").write_text("epoch,step,val/accuracy,train/outer_loss\n0,0,0.1,\n1,50,0.2,2.0\n")
    assert len(distillation_figure(read_metrics(run, "step")).axes) == 1


def test_without_tests_the_table_is_of_the_validation_split(run):
    summary = json.loads((run / "summary.json").read_text())
    final = {name: value for name, value in summary["final"].items() if not name.startswith("test/")}
    (run / "summary.json").write_text(json.dumps(summary | {"distilled": [], "final": final}))
    rows = [" ".join(line.split()) for line in text(run_table(read_summary(run))).splitlines()]
    assert "accuracy 50.00 +- 10.00 % 60.00 +- 2.00 % -" in rows
    assert "iterations" in run_data(read_run(run))["facts"]


def test_the_figure_of_training_is_not_one_of_a_distillation(make_run):
    assert distillation_figure(read_metrics(make_run(epochs=3), "step")) is None


def test_the_page_shows_the_images_and_the_numbers_of_the_set(run):
    data = run_data(read_run(run))
    assert [picture["title"] for picture in data["pictures"]] == ["Synthetic images"]
    assert data["pictures"][0]["src"] == "data:image/png;base64,iVBOR2Q="  # of the last iteration
    assert ("krr accuracy", "krr_accuracy") in data["rows"]
    assert not any(name.endswith("_std") for _, name in data["rows"])
    assert data["facts"] == {"iterations": "100", "seconds": "20.0", "of them evaluating": "12.0"}


# ---------------------------------------------------------------- of an evaluation

ROWS = [
    {"set": of, "network": network, "protocol": protocol, "n": 5, "accuracy": accuracy, "accuracy_std": 0.02,
     "steps": 1000, "seconds": 1.5, "memory_mb": float("nan")}
    for of, network, protocol, accuracy in (
        ("this_set", "convnet", "plain", 0.8), ("this_set", "convnet", "augmented", 0.9),
        ("random", "convnet", "plain", 0.5), ("random", "convnet", "augmented", 0.6),
        ("this_set", "mlp", "plain", 0.7), ("real_data", "convnet", "real", 0.95),
    )
]  # fmt: skip


def test_an_evaluation_is_drawn_and_printed_from_its_csv(tmp_path, capsys):
    write_rows(tmp_path / "evaluate.csv", ROWS)
    rows = read_rows(tmp_path / "evaluate.csv")
    assert [row["protocol"] for row in rows] == [row["protocol"] for row in ROWS]
    sets, networks = evaluation_figure(rows).axes
    assert [label.get_text() for label in sets.get_yticklabels()] == ["this set", "random", "real data"]
    assert [label.get_text() for label in networks.get_yticklabels()] == ["convnet", "mlp"]
    means = sorted(text.get_text() for text in sets.texts)
    assert means == ["50.0", "60.0", "80.0", "90.0", "95.0"]
    assert main([str(tmp_path)]) == 2  # no run's folder: it has none of its files
    (tmp_path / "DONE").touch()
    capsys.readouterr()
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "this_set" in out
    assert "1,000" in out
    assert (tmp_path / "figures" / "evaluate.png").exists()


def test_an_evaluation_on_one_network_has_one_panel():
    assert len(evaluation_figure(ROWS[:4]).axes) == 1


def test_one_network_has_no_deviation(tmp_path, capsys):
    write_rows(tmp_path / "evaluate.csv", [row | {"accuracy_std": None} for row in ROWS])
    rows = read_rows(tmp_path / "evaluate.csv")
    assert all(np.isnan(row["accuracy_std"]) for row in rows)
    for ax in evaluation_figure(rows).axes:
        assert not any(container.has_xerr for container in ax.containers)
    print_rows(rows, title="t")
    print_rows([ROWS[0] | {"accuracy_std": None}], title="t")
    out = capsys.readouterr().out
    assert "nan" not in out and "0.00" not in out.replace("0.00 %", "")
    assert out.splitlines()[-1].split().count("-") == 2  # the deviation, and the memory of a CPU


def test_counts_are_printed_in_full(capsys):
    print_rows(ROWS[:1], title="t")
    assert "1,000" in capsys.readouterr().out
