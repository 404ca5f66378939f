"""task=continual and task=membership on digits: what they write, their invariants, and their errors."""

import csv
import json
import math
import shutil
import time
from dataclasses import replace

import pytest
import torch

from ncdd.distill import SyntheticSet
from ncdd.report.rows import write_rows
from ncdd.tasks.continual import Seen, class_order, some_of_each
from ncdd.tasks.kept import kept_rows
from ncdd.tasks.membership import mean_rows
from tests.run.conftest import only_run, process  # noqa: F401  the fixture

SMALL = [
    "dataset=digits",
    "model.width=8",
    "model.depth=2",
    "task.distil.iterations=30",
    "task.distil.batch_size=64",
    "task.distil.lr=1e-2",
    "task.distil.pool.size=2",
    "task.protocol.lr=1e-2",
    "task.protocol.warmup=0",
    "logger=none",
    "hydra.run.dir=run",
]
CONTINUAL = ["task=continual", "task.images_per_class=2", "task.protocol.steps=60", "task.networks=2"]
MEMBERSHIP = [
    "task=membership", "task.images_per_class=1", "task.chunks=2", "task.members=100", "task.steps=[1,200]",
    "task.attacks=[loss_threshold,logistic_regression]",
]  # fmt: skip


def rows(path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_class_order():
    order = class_order(100, 5, 3)
    assert [len(group) for group in order] == [20] * 5
    assert sorted(c for group in order for c in group) == list(range(100))
    assert class_order(10, 5, 0)[0] == [2, 8]  # of numpy's RandomState(0).permutation(10)


def test_only_seen_classes_are_tested():
    loader = [(torch.arange(4.0), torch.tensor([0, 1, 2, 1])), (torch.arange(2.0), torch.tensor([0, 0]))]
    assert [(x.tolist(), y.tolist()) for x, y in Seen(loader, [1, 2])] == [([1, 2, 3], [1, 2, 1])]


def test_some_of_each():
    labels = torch.arange(30) % 3
    images, classes = some_of_each(torch.arange(30.0), labels, [2, 0], 4, seed=0)
    assert classes.tolist() == [2] * 4 + [0] * 4
    assert (images % 3 == classes).all()
    assert len(images.unique()) == 8


def same(folder, whole, *patterns) -> None:
    """These files byte for byte, and the numbers of the summary."""
    for path in (path for pattern in patterns for path in whole.glob(pattern)):
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
    ours, expected = (json.loads((f / "summary.json").read_text())["final"] for f in (folder, whole))
    assert ours == expected


def test_continual(command, process, tmp_path):  # noqa: F811
    code, _, err = command(*CONTINUAL, *SMALL)
    assert code == 0, err
    found = rows(tmp_path / "run/continual.csv")
    assert [(r["set"], r["step"], r["classes"], r["images"]) for r in found[-2:]] == [
        ("distilled", "4", "10", "20"),
        ("random", "4", "10", "20"),
    ]
    assert len(found) == 10
    memory = SyntheticSet.load(tmp_path / "run/memory_0.safetensors")
    assert set(memory.classes.tolist()) == set(class_order(10, 5, 0)[0])
    assert memory.labels.shape == (4, 10)
    assert all(float(r["accuracy"]) > 0.6 for r in found[:2])  # one of two classes
    final = json.loads((tmp_path / "run/summary.json").read_text())["final"]
    assert final["test/distilled_accuracy"] == pytest.approx(float(found[-2]["accuracy"]))
    mean = sum(float(r["accuracy"]) for r in found if r["set"] == "random") / 5
    assert final["test/random_mean_accuracy"] == pytest.approx(mean)
    assert (tmp_path / "run/figures/continual.png").exists()

    # killed and resumed: what is there is not made again, and the end is as if nothing had happened
    killed = process(*CONTINUAL, *SMALL[:-1], "figures=false")
    while not list(tmp_path.glob("runs/*/memory_1.safetensors")):
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    folder = only_run(tmp_path)
    first = folder / "memory_0.safetensors"
    learned = first.stat().st_mtime_ns
    assert len(kept_rows(folder / "continual.csv")) < 10
    code, out, err = command(*CONTINUAL, *SMALL[:-1], "figures=false", "resume=true")
    assert code == 0, err
    assert "memory_0.safetensors was learned before" in out
    assert only_run(tmp_path) == folder
    assert first.stat().st_mtime_ns == learned
    same(folder, tmp_path / "run", "continual.csv", "memory_*.safetensors")


SETS = ("distilled", "control", "real")


def test_membership(command, tmp_path):
    code, _, err = command(*MEMBERSHIP, *SMALL)
    assert code == 0, err
    found = rows(tmp_path / "run/membership.csv")
    groups = [("distilled", "control"), ("real",)]  # those of one network
    expected = [(name, n, steps) for n in "01" for group in groups for steps in ("1", "200") for name in group]
    assert [(r["set"], r["chunk"], r["steps"]) for r in found] == expected
    auc = {
        name: sum(float(r["loss_threshold_auc"]) for r in found if (r["set"], r["steps"]) == (name, "200")) / 2
        for name in SETS
    }
    for mine, others in (found[:2], found[2:4]):  # the same network, attacked on other images
        assert mine["accuracy"] == others["accuracy"]
        assert mine["loss_threshold_auc"] != others["loss_threshold_auc"]
    assert auc["real"] > 0.9  # a network tells the images that it has seen
    assert (
        max(auc["distilled"], auc["control"]) < 0.75
    )  # but hardly those from which its ten were made; the test split has other writers
    assert len(SyntheticSet.load(tmp_path / "run/distilled_1.safetensors")) == 10
    final = json.loads((tmp_path / "run/summary.json").read_text())["final"]
    assert final["test/real_200_loss_threshold_auc"] == pytest.approx(auc["real"])
    assert (tmp_path / "run/figures/membership.png").exists()

    # stopped behind the first network of the second chunk; another set in the place of one is told apart
    folder = tmp_path / "runs/stopped"
    shutil.copytree(tmp_path / "run", folder)
    for name in ("DONE", "summary.json"):
        (folder / name).unlink()
    write_rows(folder / "membership.csv", kept_rows(folder / "membership.csv")[:8])
    kept = SyntheticSet.load(folder / "distilled_0.safetensors")
    replace(kept, images=kept.images[:4], labels=kept.labels[:4]).save(folder / "distilled_0.safetensors")
    resumed = [*MEMBERSHIP, *SMALL[:-1], "figures=false", "resume=true"]
    code, _, err = command(*resumed)
    assert code == 1
    assert "distilled_0.safetensors: images (4, 1, 8, 8) with labels (4, 10) of digits are not what is asked for" in err
    shutil.copy(tmp_path / "run/distilled_0.safetensors", folder)
    code, out, err = command(*resumed)
    assert code == 0, err
    assert "distilled_1.safetensors was learned before" in out
    same(folder, tmp_path / "run", "membership.csv", "distilled_*.safetensors")


def test_rows_are_read_back_as_they_were(tmp_path):
    given = [{"set": "real", "step": 3, "n": 1, "accuracy": 1 / 3, "accuracy_std": None}]
    assert kept_rows(tmp_path / "rows.csv") == []
    write_rows(tmp_path / "rows.csv", given)
    (found,) = read = kept_rows(tmp_path / "rows.csv")
    assert math.isnan(found.pop("accuracy_std")) and found == {k: v for k, v in given[0].items() if v is not None}
    assert (type(found["step"]), type(found["accuracy"])) == (int, float)
    found["accuracy_std"] = math.nan
    before = (tmp_path / "rows.csv").read_bytes()
    write_rows(tmp_path / "rows.csv", read)
    assert (tmp_path / "rows.csv").read_bytes() == before


def test_means_over_chunks():
    given = [{"set": "real", "chunk": c, "steps": s, "x_auc": 0.5 + c} for c in (0, 1) for s in (1, 9)]
    assert mean_rows(given) == [{"set": "real", "steps": 1, "x_auc": 1.0}, {"set": "real", "steps": 9, "x_auc": 1.0}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["task=continual", "task.steps=3"], "task.steps=3: a divisor of the 10 classes is needed"),
        (["task=continual", "task.images_per_class=1000"], "images_per_class=1000: class"),
        (["task=membership", "task.members=10000"], "task.chunks=5, task.members=10000: digits has"),
        (["task=membership", "task.members=50"], "task.members=50: at least 100 are needed"),
        (["task=membership", "task.chunks=0"], "task.chunks=0: a number >= 1 is needed"),
        (["task=membership", "task.steps=[]"], "task.steps=[]: at least one is needed, and none twice"),
        (["task=membership", "task.steps=[10,10]"], "task.steps=[10,10]: at least one is needed, and none twice"),
        (["task=membership", "task.steps=[5,-1]"], "task.steps=[5, -1]: numbers >= 1 are needed"),
        (["task=membership", "task.attacks=[]"], "task.attacks=[]: at least one is needed, and none twice"),
        (["task=membership", "task.attacks=[svm]"], "task.attacks: no 'svm'; choose from loss_threshold"),
    ],
)
def test_wrong_settings_are_named(command, settings, message):
    code, _, err = command(*settings, *SMALL)
    assert code == 1
    assert message in err
