"""The unconstrained-features model: its dataset, its model, and the command that trains it to the predicted minimum."""

import csv

import pytest
import torch

from ncdd.data.unconstrained import sample_numbers
from ncdd.models import UnconstrainedFeatures
from tests.run.conftest import only_run

SHORT = ["hydra.mode=RUN", "trainer.max_epochs=3", "figures=false", "logger=none"]
LBFGS = ["optimizer=lbfgs", "~optimizer.momentum", "optimizer.lr=1", "optimizer.max_iter=100",
         "optimizer.line_search_fn=strong_wolfe"]  # fmt: skip


def last_row(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["theory/loss_gap"]][-1]


def test_an_image_is_the_number_of_its_sample():
    source = sample_numbers(counts=[2, 1, 3])
    assert source.train.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert source.train.pixels.shape == (6, 1, 1, 1)
    model = UnconstrainedFeatures(in_channels=1, image_size=1, counts=[2, 1, 3], feature_dim=4, init_std=1.0)
    rows = torch.tensor([5, 0, 3])
    torch.testing.assert_close(model.forward_features(source.train.pixels[rows]), model.features[rows])


@pytest.mark.parametrize("counts", [[3], [3, 0], [2**24, 1]])
def test_counts_that_make_no_dataset_are_refused(counts):
    with pytest.raises(ValueError, match="two classes or more, of 1 or more samples"):
        sample_numbers(counts=counts)


def test_images_that_are_no_numbers_are_refused():
    with pytest.raises(
        ValueError, match=r"images of 3 x 32 x 32: .* needs the 1 x 1 x 1 sample numbers of dataset=ufm"
    ):
        UnconstrainedFeatures(in_channels=3, image_size=32, counts=[1, 1], feature_dim=2, init_std=0.1)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_training_reaches_the_predicted_minimum(command, tmp_path, loss):
    code, _, err = command("experiment=ufm", *SHORT, *LBFGS, f"loss={loss}", "dataset.source.counts=[16,8,4]")
    assert code == 0, err
    row = last_row(only_run(tmp_path))
    assert -1e-12 < float(row["theory/loss_gap"]) < 1e-5
    assert float(row["theory/weight_norm_gap"]) < 1e-2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("head=etf", "the theory is of a learned classifier, head=linear"),
        ("dataset.batch_size=10", "all 120 samples belong in one batch"),
        ("model.feature_dim=2", "the minimum needs 3 or more"),
        ("loss=label_smoothing", "loss.label_smoothing=0.1: the theory is of hard labels"),
    ],
)
def test_what_the_theory_does_not_cover_is_said(command, override, message):
    code, _, err = command("experiment=ufm", *SHORT, override)
    assert code == 1
    assert message in err
