"""KIP and Label Solve as a user runs them: whitened digits, learned labels, and a set that can be used elsewhere."""

import csv

import pytest
import torch

from ncdd.distill import SyntheticSet
from tests.run.conftest import only_run

SMALL = [
    "dataset=digits",
    "dataset.whiten=kip",
    "model=mlp",
    "model.width=16",
    "model.depth=1",
    "model.norm=none",
    "logger=csv",
    "figures=false",
    "callbacks.distilled.final_networks=1",
    "callbacks.distilled.protocol.epochs=40",
    "callbacks.distilled.tune={lr: [1e-3, 3e-2], weight_decay: [0.0]}",
]


@pytest.mark.parametrize(
    ("method", "gain"),
    [
        (["method=kip", "distill.learn_labels=true", "distill.iterations=20", "distill.every=10"], 0.15),
        (["method=label_solve"], 0.02),
    ],
    ids=["kip", "label_solve"],
)
def test_a_run_and_the_set_that_it_leaves(command, tmp_path, method, gain):
    code, _, errors = command(*SMALL, *method)
    assert code == 0, errors
    folder = only_run(tmp_path)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    values = [float(row["val/krr_accuracy"]) for row in rows if row["val/krr_accuracy"]]
    tested = float(rows[-1]["test/krr_accuracy"])
    assert max(values) > values[0] + gain
    assert tested > values[0]
    assert float(rows[-1]["test/accuracy"]) > 0.15
    found = SyntheticSet.load(folder / "distilled.safetensors")
    assert found.labels.shape == (10, 10)
    assert found.whitening.norm is not None
    assert found.accuracy == pytest.approx(max(values))
    assert found.pixels().dtype == torch.uint8
    log = (folder / "run.log").read_text()
    assert "lr 0.03, weight_decay 0 on validation" in log


def test_what_cannot_be_chosen_without_a_validation_split(command):
    code, _, errors = command(*SMALL, "method=label_solve", "dataset.val_fraction=0")
    assert code == 1
    assert "callbacks.distilled.tune: needs a validation split, dataset.val_fraction above 0, or {}" in errors
