"""Dashboards name what runs log: checked against a real offline W&B run, and published through stubs of `save`."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
import yaml

from ncdd.report.dashboard import build, main, read_subject, write

ROOT = Path(__file__).parents[2]
SGD, ADAM = {"_target_": "SGD", "lr": 0.1}, {"_target_": "Adam", "lr": 0.1}
CONFIG = {"name": "widths", "model": {"width": 4}, "optimizer": SGD, "logger": {"project": "ncdd", "entity": None}}


@pytest.fixture
def make_job(make_run):
    """make_job("model.width=4", ..., **settings): a finished job of the sweep `widths`, logged to W&B."""

    def make(*overrides, **settings):
        folder = make_run(f"widths/{','.join(overrides)}", K=3, epochs=3, overrides=overrides)
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | settings))
        (folder / "figures").mkdir()
        (folder / "figures" / "gram.png").touch()
        return folder

    return make


@pytest.fixture
def sweep(make_job):
    """Two widths with two optimizers and two seeds."""
    for width in (4, 8):
        for name, optimizer in (("sgd", SGD), ("adam", ADAM)):
            for seed in (0, 1):
                overrides = (f"model.width={width}", f"optimizer={name}", f"seed={seed}")
                folder = make_job(*overrides, model={"width": width}, optimizer=optimizer, seed=seed)
    return folder.parent


@pytest.fixture
def saved(monkeypatch):
    """A key, and the views that would have gone to W&B."""
    views = []

    def save(view):
        views.append(view)
        return view

    for kind in (ws.Workspace, wr.Report):
        monkeypatch.setattr(kind, "save", save)
        monkeypatch.setattr(kind, "url", "https://wandb.ai/view")
    monkeypatch.setattr(wandb, "Api", lambda: type("Api", (), {"default_entity": "me"}))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "online")
    return views


def specs(folder):
    return [json.loads((folder / f"{name}.json").read_text()) for name in ("workspace", "report")]


def nodes(tree):
    """Every mapping in a spec."""
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from nodes(child)


def named(views):
    """Metrics, settings and pictures that panels, columns, groups and orders name, as W&B stores them."""
    metrics, settings, pictures = set(), set(), set()
    for node in nodes(views):
        metrics |= {node["xAxis"], *node["metrics"]} if "metrics" in node else set()
        settings |= {node["groupBy"]} if "groupBy" in node else set()
        pictures |= set(node.get("mediaKeys", ()))
        keys = [node.get("accessor"), *node.get("columnOrder", ())]
        keys += [node.get(axis) for axis in ("xAxis", "yAxis") if ":" in str(node.get(axis))]
        keys += [f"{node['section']}:{node['name']}"] if "section" in node and "name" in node else []
        for section, _, name in (key.partition(":") for key in keys if key):
            metrics |= {name} if section == "summary" else set()
            settings |= {name} if section == "config" else set()
    return metrics, settings, pictures


def panels(view, kind):
    return [node["config"] for node in nodes(view) if node.get("viewType") == kind]


def stored(config, path):
    """What W&B has at `path`: it keeps each setting as {"value": setting}, and a dot goes one mapping down."""
    node = {key: {"value": value} for key, value in config.items()}
    for part in path.split("."):
        node = node[part]
    return node


def test_everything_named_is_what_a_real_sweep_logs(tmp_path, capsys):
    overrides = ["name=real", "model=mlp", "model.width=4", "model.depth=1", "optimizer=sgd,adam"]
    overrides += ["dataset.samples_per_class=5", "trainer.max_epochs=1", "logger=wandb"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"WANDB_MODE": "offline", "HOME": str(tmp_path)}
    command = [sys.executable, str(ROOT / "run.py"), "-m", *overrides]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert main([str(tmp_path / "multirun" / "real")]) == 0
    views = specs(tmp_path / "multirun" / "real" / "dashboard")
    metrics, settings, pictures = named(views)
    assert {"test/accuracy", "train/loss", "train/nc1_pinv", "test/nc4_agree_bias", "epoch"} <= metrics
    assert pictures == {f"figures/{name}" for name in ("collapse", "curves", "features", "gram")}

    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    optimizers = set()
    for folder in runs:
        inspect = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(folder)]
        lines = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.splitlines()
        entries = [json.loads(line) for line in lines]
        (header,) = (entry["run"] for entry in entries if entry["type"] == "run")
        logged = {key for entry in entries if entry["type"] == "history" for key in entry["history"]["item"]}
        assert metrics | {f"{key}._type" for key in pictures} <= logged  # a picture's parts have keys below its own
        config = header["config"]["update"]
        assert stored(config, "model.value.width") == 4
        optimizers |= {stored(config, path) for path in settings}
        for filters in (node["filters"] for node in nodes(views) if node.get("filterFormat")):
            assert [(f["key"]["name"], f["value"]) for f in filters] == [("group", header["run_group"])]
    assert settings == {"optimizer.value._target_"}
    assert optimizers == {"torch.optim.SGD", "torch.optim.Adam"}


def test_curves_are_grouped_by_each_axis_and_seeds_averaged(sweep):
    workspace, report = (view._to_model().model_dump(by_alias=True) for view in build(read_subject(sweep)))
    curves = panels(workspace, "Run History Line Plot")
    of_width = [c for c in curves if c["groupBy"] == "model.value.width"]
    assert len(of_width) == len(curves) / 2 == 14  # accuracy, loss, five NC metrics on train and on test
    assert {c["groupBy"] for c in curves} == {"model.value.width", "optimizer.value._target_"}
    assert {(c["xAxis"], c["groupAgg"], c["groupArea"]) for c in curves} == {("epoch", "mean", "minmax")}
    assert {c["metrics"][0] for c in of_width if not c["yLogScale"]} == {
        f"{split}/{metric}" for split in ("train", "test") for metric in ("accuracy", "nc4_agree_bias")
    }
    groups = [runs["grouping"] for node in nodes(report) for runs in node.get("runSets", ())]
    assert [[key["name"] for key in keys] for keys in groups if keys] == [
        ["model.value.width"],
        ["optimizer.value._target_"],
    ]
    (parallel,) = panels(workspace, "Parallel Coordinates Plot")
    assert [column["displayName"] for column in parallel["columns"]][:2] == ["width", "optimizer"]


def test_one_run_is_found_by_its_id_and_grouped_by_nothing(make_job, tmp_path):
    folder = make_job("model.width=4")
    (folder / "wandb_id").write_text("1a2b3c4d")
    assert main([str(folder), "--out", str(tmp_path / "out"), "--project", "other"]) == 0
    workspace, report = specs(tmp_path / "out")
    assert (workspace["project"], report["project"]["name"]) == ("other", "other")
    assert workspace["displayName"] == "model.width 4"
    filters = [node["filters"][0] for node in nodes([workspace, report]) if node.get("filterFormat")]
    assert {(f["key"]["name"], f["value"]) for f in filters} == {("name", "1a2b3c4d")}  # W&B calls a run's id its name
    assert {c.get("groupBy") for c in panels([workspace, report], "Run History Line Plot")} == {None}


@pytest.mark.parametrize(
    ("first", "second", "keys"),
    [
        ({"seed": 1, "optimizer": SGD}, {"seed": 2, "optimizer": ADAM}, ["optimizer._target_"]),  # its own key first
        ({"loss": {"weight": 1}}, {"loss": {"weight": 2}}, ["loss.weight"]),  # what it changes elsewhere
        ({}, {}, []),  # nothing tells it
    ],
)
def test_a_choice_is_told_by_the_setting_it_changes(make_job, first, second, keys):
    folders = [make_job(f"optimizer={name}", **config) for name, config in (("sgd", first), ("adam", second))]
    assert list(read_subject(folders[0].parent).axes) == keys


def test_a_choice_among_three_is_told_by_the_setting_that_differs_most(make_job):
    for name, depth, kind in (("mlp", 1, "MLP"), ("resnet18", 18, "ResNet"), ("resnet34", 34, "ResNet")):
        for width in (4, 8):
            model = {"_target_": kind, "depth": depth, "width": width}
            folder = make_job(f"model={name}", f"model.width={width}", model=model)
    assert list(read_subject(folder.parent).axes) == ["model.depth", "model.width"]


def test_views_are_the_same_each_time(sweep, tmp_path):
    state = random.getstate()
    for name in ("one", "two"):
        write(build(read_subject(sweep)), tmp_path / name)
    assert specs(tmp_path / "one") == specs(tmp_path / "two")
    assert random.getstate() == state
    identities = [node["__id__"] for node in nodes(specs(tmp_path / "one")[0]) if "__id__" in node]
    assert len(set(identities)) == len(identities) > 20


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_offline_it_writes_and_says_what_a_key_would_do(sweep, saved, monkeypatch, capsys, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert main([str(sweep), "--entity", "lab"]) == 0
    *paths, line = capsys.readouterr().out.splitlines()
    assert paths == [str(sweep / "dashboard" / f"{name}.json") for name in ("workspace", "report")]
    assert line.startswith("not published: with a key")
    assert "views of lab/ncdd" in line
    assert not saved


@pytest.mark.parametrize("entity", [None, "lab"])
def test_with_a_key_it_publishes(sweep, saved, capsys, entity):
    assert main([str(sweep), *(["--entity", entity] if entity else [])]) == 0
    assert [type(view) for view in saved] == [ws.Workspace, wr.Report]
    assert {(view.entity, view.project) for view in saved} == {(entity or "me", "ncdd")}
    assert capsys.readouterr().out.splitlines()[2:] == ["https://wandb.ai/view"] * 2


@pytest.mark.parametrize("error", [wandb.errors.CommError("no route\nto host"), OSError("no route")])
def test_a_failing_network_is_one_line(sweep, saved, monkeypatch, capsys, error):
    monkeypatch.setattr(wr.Report, "save", lambda view: (_ for _ in ()).throw(error))
    assert main([str(sweep)]) == 2
    assert capsys.readouterr().err == "error: not published: no route\n"


def test_without_the_package_the_extra_is_named(sweep, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    assert main([str(sweep)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install ncdd[dashboard]" in line
    assert not (sweep / "dashboard").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logger": {}}, "no run was logged to W&B"),
        ({"logger": None}, "no run was logged to W&B"),
        ({"name": "other"}, "give the folder of one sweep; its runs are of other, widths"),
        ({"name": "it's"}, "cannot be in a W&B filter, for its '"),
    ],
)
def test_mistakes_are_one_line(make_job, capsys, settings, message):
    folder = make_job("model.width=4", **settings)
    if settings.get("name") == "other":
        make_job("model.width=8")
    assert main([str(folder.parent)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_folders_without_runs(make_job, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder, message in (("gone", "there is no such folder"), ("empty", "neither a run folder nor one that holds")):
        assert main([str(tmp_path / folder)]) == 2
        assert message in capsys.readouterr().err
    assert main([str(make_job("model.width=4"))]) == 2
    assert "which knows runs by their wandb_id" in capsys.readouterr().err
