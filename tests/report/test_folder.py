"""Reading run folders: what comes back, and the one line that says what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from ncdd.report.folder import (
    error_line,
    job_folders,
    job_overrides,
    job_status,
    read_geometry,
    read_metrics,
    read_summary,
)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path.parent


def test_metrics_leave_blanks_out_and_keep_order(tmp_path):
    text = "epoch,step,train/loss,lr\n0,0,2.5,\n,5,,0.1\n1,10,nan,0.05\n1,12,1.5,\n"
    metrics = read_metrics(write(tmp_path / "metrics.csv", text))
    assert set(metrics) == {"train/loss", "lr"}
    np.testing.assert_array_equal(metrics["train/loss"], [[0, 1, 1], [2.5, np.nan, 1.5]])
    np.testing.assert_array_equal(metrics["lr"], [[0, 1], [0.1, 0.05]])


def test_metrics_of_a_killed_run_lose_only_the_cut_line(tmp_path):
    metrics = read_metrics(write(tmp_path / "metrics.csv", "epoch,step,train/loss\n0,0,2.5\n1,1"))
    np.testing.assert_array_equal(metrics["train/loss"], [[0], [2.5]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'epoch' in the first line (it has nothing)"),
        ("step,loss\n1,2\n", "no column 'epoch' in the first line (it has step, loss)"),
        ("epoch,loss\n0,1\n1,high\n", "line 3, column 'loss': 'high' is not a number"),
        ("epoch,loss\n0,1,2\n", "line 2 has 3 cells where the first line has 2"),
    ],
)
def test_metrics_errors(tmp_path, text, message):
    folder = write(tmp_path / "metrics.csv", text)
    with pytest.raises(ValueError) as error:
        read_metrics(folder)
    assert str(error.value) == f"{folder / 'metrics.csv'}: {message}"


@pytest.mark.parametrize("read", [read_metrics, read_summary, read_geometry])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/[a-z.]+: there is no such file$"):
        read(tmp_path)


def test_summary_values_are_floats(tmp_path):
    write(tmp_path / "summary.json", '{"name": "a", "final": {"test/accuracy": 1, "x": NaN, "y": null}}')
    summary = read_summary(tmp_path)
    assert summary["name"] == "a"
    assert summary["initial"] == {}
    assert summary["final"]["test/accuracy"] == 1.0
    assert np.isnan(summary["final"]["x"])
    assert "y" not in summary["final"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON: Expecting property name"),
        ("[]", "a JSON object is expected, not a list"),
        ('{"final": [1]}', "'final' must map metrics to numbers, not be a list"),
        ('{"initial": {"a": "x"}}', "'initial' must map metrics to numbers"),
    ],
)
def test_summary_errors(tmp_path, text, message):
    write(tmp_path / "summary.json", text)
    with pytest.raises(ValueError) as error:
        read_summary(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'summary.json'}: {message}")
    assert "\n" not in str(error.value)


def test_geometry(make_run, geometry_arrays):
    arrays = geometry_arrays(K=4)
    geometry = read_geometry(make_run(arrays=arrays))
    assert list(geometry.samples) == ["train", "test"]
    assert geometry.class_names == ["0", "1", "2", "3"]
    for split, sample in geometry.samples.items():
        np.testing.assert_array_equal(sample.mean, arrays[f"{split}/mean"])
        np.testing.assert_array_equal(sample.features, arrays[f"{split}/features"].astype(float))
    np.testing.assert_array_equal(geometry.weight, arrays["weight"])


def test_geometry_without_a_head_and_with_ignored_labels(make_run, geometry_arrays):
    arrays = geometry_arrays(K=4)
    for name in ("weight", "bias", "class_names"):
        del arrays[name]
    arrays["train/labels"] = np.where(np.arange(600) < 10, -100, arrays["train/labels"])
    geometry = read_geometry(make_run(arrays=arrays))
    assert geometry.weight is None
    assert geometry.class_names == ["0", "1", "2", "3"]
    assert len(geometry.samples["train"].features) == len(geometry.samples["train"].labels) == 590


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.ones((3, 5))}, r"weight has shape \(3, 5\), expected shape \(4, 32\)"),
        ({"class_names": np.array(["a"])}, "1 class_names for 4 classes"),
        ({"train/labels": np.full(600, 7)}, "train/labels go up to 7, but there are 4 classes"),
        ({"test/features": np.ones((600, 3))}, r"test/features has shape \(600, 3\), its class means have 32 columns"),
        ({"train/mean": np.ones(4)}, r"train/mean has shape \(4,\), expected 2 dimensions"),
        ({"test/count": None}, r"no array 'test/count' \(it has weight, "),
    ],
)
def test_geometry_errors(make_run, geometry_arrays, change, message):
    arrays = {k: v for k, v in (geometry_arrays(K=4) | change).items() if v is not None}
    with pytest.raises(ValueError, match=f"collapse.npz: {message}"):
        read_geometry(make_run(arrays=arrays))


def test_a_file_that_is_no_npz(tmp_path):
    with pytest.raises(ValueError, match=r"collapse\.npz: "):
        read_geometry(write(tmp_path / "collapse.npz", "garbage"))


def test_job_folders_are_found_at_any_depth_in_natural_order(tmp_path):
    names = ["a/b=1", "lr=0.0005,seed=1", "lr=0.005,seed=0", "lr=1e-2", "seed=2", "seed=10"]
    for name in names[::-1]:
        write(tmp_path / name / "config.yaml", "")
        (tmp_path / name / "figures").mkdir()
    (tmp_path / "empty").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in job_folders(tmp_path)] == names


def test_status_and_error_line(tmp_path):
    assert job_status(tmp_path) == "unfinished"
    (tmp_path / "FAILED").write_text("\nValueError: no such thing\nTraceback ...\n")
    assert job_status(tmp_path) == "failed"
    assert error_line(tmp_path) == "ValueError: no such thing"
    (tmp_path / "DONE").touch()
    assert job_status(tmp_path) == "done"
    (tmp_path / "FAILED").write_text("")
    assert error_line(tmp_path) == "failed, and left no message"


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("any", ["+model.width=3", "seed=1"], {"model.width": "3", "seed": "1"}),
        ("model.width=3,layers=[1,2],seed=0", None, {"model.width": "3", "layers": "[1,2]", "seed": "0"}),
        ("7", None, {}),
    ],
)
def test_overrides(tmp_path, name, overrides, expected):
    summary = None if overrides is None else json.loads(json.dumps({"overrides": overrides}))
    assert job_overrides(tmp_path / name, summary) == expected


def test_overrides_of_a_job_that_left_no_summary_are_those_it_recorded(tmp_path):
    (tmp_path / "overrides.json").write_text('["model.name=\'<b>a, b</b>\'", "+seed=1"]')
    assert job_overrides(tmp_path, None) == {"model.name": "'<b>a, b</b>'", "seed": "1"}
