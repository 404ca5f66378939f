"""task=continual and task=membership on digits: what they write, their invariants, and their errors."""

import csv
import json

import pytest
import torch

from ncdd.distill import SyntheticSet
from ncdd.tasks.continual import Seen, class_order, some_of_each
from ncdd.tasks.membership import mean_rows

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


def test_continual(command, tmp_path):
    settings = ["task=continual", "task.images_per_class=2", "task.protocol.steps=60", "task.networks=2"]
    code, _, err = command(*settings, *SMALL)
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


def test_membership(command, tmp_path):
    settings = [
        "task=membership", "task.images_per_class=1", "task.chunks=2", "task.members=100", "task.steps=[1,200]",
        "task.attacks=[loss_threshold,logistic_regression]",
    ]  # fmt: skip
    code, _, err = command(*settings, *SMALL)
    assert code == 0, err
    found = rows(tmp_path / "run/membership.csv")
    assert [(r["set"], r["chunk"], r["steps"]) for r in found[:4]] == [
        ("distilled", "0", "1"),
        ("distilled", "0", "200"),
        ("real", "0", "1"),
        ("real", "0", "200"),
    ]
    auc = {
        name: sum(float(r["loss_threshold_auc"]) for r in found if (r["set"], r["steps"]) == (name, "200")) / 2
        for name in ("distilled", "real")
    }
    assert auc["real"] > 0.9  # a network tells the images that it has seen
    assert auc["distilled"] < 0.75  # but hardly those from which its ten were made; the test split has other writers
    assert len(SyntheticSet.load(tmp_path / "run/distilled_1.safetensors")) == 10
    final = json.loads((tmp_path / "run/summary.json").read_text())["final"]
    assert final["test/real_200_loss_threshold_auc"] == pytest.approx(auc["real"])
    assert (tmp_path / "run/figures/membership.png").exists()


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
        (["task=membership", "task.attacks=[svm]"], "task.attacks: no 'svm'; choose from loss_threshold"),
    ],
)
def test_wrong_settings_are_named(command, settings, message):
    code, _, err = command(*settings, *SMALL)
    assert code == 1
    assert message in err
