"""`task=ood` against scikit-learn and scores computed by hand; images of one data set as another's."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score
from torch import nn

from ncdd.data import ImageDataModule, sources
from ncdd.data.adapt import AdaptedLoader, adapt
from ncdd.data.images import Images, Normalisation
from ncdd.models import MLP
from ncdd.models.checkpoint import put, read
from ncdd.report.__main__ import main
from ncdd.report.rows import read_rows

SCORES = ["neco", "msp", "max_logit", "energy", "mahalanobis", "vim"]


@pytest.fixture
def colour(tmp_path):
    """An image folder of two classes, 12 x 12 pixels, in colour."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / "noise" / split / name).mkdir(parents=True)
            for i in range(6):
                image = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
                image.save(tmp_path / "noise" / split / name / f"{i}.png")
    return ["dataset@ood=image_folder", f"ood.root={tmp_path / 'noise'}"]


def test_scores_and_rates_are_those_of_other_implementations(command, trained, tmp_path, colour):
    code, out, err = command("task=ood", f"checkpoint={trained}", "logger=none", "hydra.run.dir=out", *colour)
    assert code == 0, err
    for name in ("DONE", "ood.csv", "ood.npz", "figures/ood.png", "summary.json"):
        assert (tmp_path / "out" / name).exists(), name
    rows = {row["score"]: row for row in read_rows(tmp_path / "out/ood.csv")}
    assert list(rows) == SCORES
    with np.load(tmp_path / "out/ood.npz") as file:
        found = dict(file)
    for name in SCORES:
        inside, outside = found[f"{name}/inside"], found[f"{name}/outside"]
        assert (len(inside), len(outside)) == (359, 12)
        truth = np.r_[np.ones(359), np.zeros(12)]
        assert rows[name]["auroc"] == pytest.approx(roc_auc_score(truth, np.r_[inside, outside]))
        threshold = np.quantile(inside, 0.05, method="lower")
        assert rows[name]["fpr95"] == pytest.approx((outside >= threshold).mean())
    assert main([str(tmp_path / "out")]) == 0  # python -m ncdd.report draws and prints the same again
    final = json.loads((tmp_path / "out/summary.json").read_text())["final"]
    assert final["ood/neco_auroc"] == rows["neco"]["auroc"]
    assert 0 <= final["ood/nc5_ood_orth"] <= 1
    assert "colour images of" in out + err and "as grey ones of 8 x 8, normalised as digits" in out + err


def test_the_same_data_set_is_not_told_apart(command, trained, tmp_path):
    code, _, err = command(
        "task=ood", f"checkpoint={trained}", "logger=none", "hydra.run.dir=out", "dataset@ood=digits"
    )
    assert code == 0, err
    assert [row["auroc"] for row in read_rows(tmp_path / "out/ood.csv")] == [0.5] * 6
    body, head = MLP(in_channels=1, image_size=8, width=16, depth=1).eval(), nn.Linear(16, 10)
    put(read(trained / "checkpoints/last.ckpt"), body, head)
    data = ImageDataModule(
        source=sources.digits, root=".", batch_size=8, measure_batch_size=999, seed=3,
        val_fraction=0.2, samples_per_class=10, imbalance=2,
    )  # fmt: skip
    ((x, y),), ((x_test, _),) = (data.measure_dataloaders()[split] for split in ("train", "test"))
    with torch.no_grad():
        train, test, logits = (
            body(x).double().numpy(),
            body(x_test).double().numpy(),
            head(body(x_test)).double().numpy(),
        )
    means = np.stack([train[y.numpy() == k].mean(0) for k in range(10)])
    tied = EmpiricalCovariance(assume_centered=True).fit(train - means[y.numpy()])
    with np.load(tmp_path / "out/ood.npz") as file:
        np.testing.assert_allclose(file["energy/outside"], np.log(np.exp(logits).sum(1)), rtol=1e-6)
        expected = -np.min([tied.mahalanobis(test - mean) for mean in means], axis=0)
        np.testing.assert_allclose(file["mahalanobis/inside"], expected, rtol=1e-4)


def test_without_a_second_data_set_it_says_how_to_name_one(command, trained):
    code, _, err = command("task=ood", f"checkpoint={trained}", "logger=none")
    assert code == 1
    assert "error: task=ood needs a second data set: dataset@ood=NAME" in err


def test_adapting_grey_and_colour_and_size():
    grey, colour = torch.rand(2, 1, 6, 6), torch.rand(2, 3, 6, 6)
    assert torch.equal(adapt(grey, channels=3, image_size=6), grey.repeat(1, 3, 1, 1))
    luma = adapt(colour, channels=1, image_size=6)
    for image, own in zip(colour, luma, strict=True):
        theirs = Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).convert("L")
        np.testing.assert_allclose(own[0] * 255, np.asarray(theirs), atol=1.0)
    theirs = Image.fromarray(grey[0, 0].numpy()).resize((4, 4), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(adapt(grey, channels=1, image_size=4)[0, 0], np.asarray(theirs), atol=1e-6)
    assert torch.equal(adapt(colour, channels=3, image_size=6), colour)
    with pytest.raises(ValueError, match="images of 4 channels cannot become 3"):
        adapt(torch.rand(1, 4, 2, 2), channels=3, image_size=2)


def test_an_adapted_image_is_normalised_as_the_networks_own():
    pixels = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
    loader = AdaptedLoader(
        images=Images(pixels, torch.arange(5)), channels=1, image_size=4,
        normalisation=Normalisation((0.25,), (0.5,)), batch_size=2,
    )  # fmt: skip
    assert len(loader) == 3
    torch.testing.assert_close(torch.cat([x for x, _ in loader]), (pixels / 255 - 0.25) / 0.5)
