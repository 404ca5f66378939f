"""`task=layers` against features computed by hand, and which layers it takes."""

import pytest
import torch
import torchvision
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid
from torch import nn

from ncdd.collapse import measure
from ncdd.data import ImageDataModule, sources
from ncdd.models import MLP, ConvNet, ResNet
from ncdd.models.blocks import blocks
from ncdd.models.checkpoint import put, read
from ncdd.report.rows import read_rows
from ncdd.tasks.layers import collecting

SHAPE = {"in_channels": 1, "image_size": 8, "width": 16}


def test_values_are_those_of_features_computed_by_hand(command, trained, tmp_path):
    code, out, err = command("task=layers", f"checkpoint={trained}", "logger=none", "hydra.run.dir=out")
    assert code == 0, err
    for name in ("DONE", "layers.csv", "figures/layers.png", "summary.json"):
        assert (tmp_path / "out" / name).exists(), name
    (row,) = read_rows(tmp_path / "out/layers.csv")
    assert (row["layer"], row["features"]) == ("3", 16)

    body, head = MLP(**SHAPE, depth=1), nn.Linear(16, 10)
    put(read(trained / "checkpoints/last.ckpt"), body, head)
    data = ImageDataModule(
        source=sources.digits, root=".", batch_size=8, measure_batch_size=999, seed=3,
        val_fraction=0.2, samples_per_class=10, imbalance=2,
    )  # fmt: skip
    with torch.no_grad():
        (x, y), (x_test, y_test) = (
            (body.eval()(x), y) for ((x, y),) in map(list, map(data.measure_dataloaders().get, ("train", "test")))
        )
    expected = measure(x, y, num_classes=10).values
    assert row["train/nc1_pinv"] == pytest.approx(expected["nc1_pinv"], rel=1e-6)
    assert row["train/ncc_accuracy"] == pytest.approx(expected["ncc_accuracy"])
    assert row["test/nc1_pinv"] == pytest.approx(measure(x_test, y_test).values["nc1_pinv"], rel=1e-6)
    nearest = NearestCentroid().fit(x, y)
    assert row["test/ncc_accuracy__train_means"] == pytest.approx(nearest.score(x_test, y_test))
    std = x.double().std(0, correction=0)
    std[std == 0] = 1
    probe = Ridge(alpha=1e-3 * len(x)).fit(x.double() / std, torch.eye(10)[y].double())
    for split, (features, labels) in {"train": (x, y), "test": (x_test, y_test)}.items():
        right = probe.predict(features.double() / std).argmax(1) == labels.numpy()
        assert row[f"{split}/probe_accuracy"] == pytest.approx(right.mean())
    singular = torch.linalg.svdvals(x.double() - x.double().mean(0))
    assert row["rank"] == int((singular**2 > 1e-3 * singular[0] ** 2).sum())
    assert "probe" in out


def test_layers_can_be_named_and_samples_limited(command, trained, tmp_path):
    some = ["task.layers=['1','2']", "task.max_samples=60"]
    code, _, err = command("task=layers", f"checkpoint={trained}", "logger=none", "hydra.run.dir=out", *some)
    assert code == 0, err
    assert [row["layer"] for row in read_rows(tmp_path / "out/layers.csv")] == ["1", "2"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.layers=[fc]"], "task.layers: no layer 'fc'; did you mean one of "),
        (["task.layers=['2','2']"], "task.layers: 2 is named twice"),
        (["task.max_samples=3"], "no train sample of class"),
        (["+task.layer=1"], "task.layer: ncdd.tasks.layers.layers takes no 'layer'; did you mean layers?"),
    ],
)
def test_a_mistake_is_one_clear_line(command, trained, overrides, message):
    code, _, err = command("task=layers", f"checkpoint={trained}", "logger=none", *overrides)
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in line


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (MLP(**SHAPE, depth=3), ["3", "6", "9"]),
        (MLP(**SHAPE, depth=2, norm="none"), ["2", "4"]),
        (ConvNet(**SHAPE, depth=2), ["2", "6"]),
        (ResNet(**SHAPE, depth=18, stem="auto"), [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]),
        (torchvision.models.vgg11().features, [str(i) for i in (1, 4, 7, 9, 12, 14, 17, 19)]),
        (torchvision.models.vit_b_32(image_size=64), [f"encoder.layers.encoder_layer_{i}" for i in range(12)]),
    ],
    ids=["mlp", "mlp without norm", "convnet", "resnet18", "vgg11", "vit_b_32"],
)  # fmt: skip
def test_blocks_are_residual_blocks_convolution_blocks_and_hidden_layers(body, expected):
    assert blocks(body) == expected


def test_a_network_without_blocks_says_how_to_name_layers():
    with pytest.raises(ValueError, match=r"no blocks in a Linear: name them by task\.layers"):
        blocks(nn.Linear(2, 2))


def test_what_is_collected_is_not_changed_by_a_layer_that_works_in_place():
    body = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    x = torch.randn(5, 3)
    with collecting(body, ["0", "1"]) as found, torch.no_grad():
        body(x)
        torch.testing.assert_close(found["0"][0], body[0](x))
        torch.testing.assert_close(found["1"][0], body[0](x).relu())
    body(x)
    assert len(found["1"]) == 1  # closed: no hook is left
