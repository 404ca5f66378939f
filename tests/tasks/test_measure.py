"""`task=measure`: what training measured, bit for bit, from its checkpoints; weights of others; mistakes by name."""

import csv
import json

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from ncdd.collapse import measure
from ncdd.data import ImageDataModule, sources
from ncdd.models import MLP, Linear, checkpoint
from ncdd.models.torchvision import TorchVision
from tests.tasks.conftest import EPOCHS

QUIET = ["logger=none", "figures=false", "hydra.run.dir=out"]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["train/nc1_pinv"]]


def same(mine: dict, theirs: dict) -> None:
    keys = [key for key in theirs if key.startswith(("train/nc", "test/", "train/loss", "train/accuracy"))]
    assert len(keys) > 80
    assert {key: mine[key] for key in keys} == {key: theirs[key] for key in keys}


def test_a_folder_gives_what_training_measured_bit_for_bit(command, trained, tmp_path):
    code, out, err = command("task=measure", f"checkpoint={trained}", "logger=none")
    assert code == 0, err
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("_measure")
    for name in ("DONE", "collapse.npz", "metrics.csv", "summary.json", "figures/collapse.png", "config.yaml"):
        assert (folder / name).exists(), name
    mine, theirs = rows(folder), rows(trained)
    assert [row["epoch"] for row in mine] == [row["epoch"] for row in theirs] == ["0", "1", "2"]
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for a, b in zip(mine, theirs, strict=True):
        same(a, b)
    same(summary(folder)["final"], summary(trained)["final"])
    assert summary(folder)["epochs"] == EPOCHS
    # training has it in float32
    assert summary(folder)["final"]["val/accuracy"] == pytest.approx(summary(trained)["final"]["val/accuracy"])
    with np.load(folder / "collapse.npz") as a, np.load(trained / "collapse.npz") as b:
        np.testing.assert_array_equal(a["train/mean"], b["train/mean"])
    assert "val " in out


def test_one_file_in_the_run_and_one_elsewhere(command, trained, tmp_path):
    first = trained / "checkpoints/epoch_000.ckpt"
    assert command("task=measure", f"checkpoint={first}", *QUIET)[0] == 0
    same(rows(tmp_path / "out")[0], rows(trained)[1])

    weights = {f"module.{k}": v for k, v in torch.load(first, weights_only=True)["state_dict"].items()}
    renamed = {k.replace("module.model.", "module.").replace("head.", "fc."): v for k, v in weights.items()}
    save_file(renamed, tmp_path / "net.safetensors")
    torch.save({"model": renamed, "epoch": 1}, tmp_path / "net.pt")
    alike = [
        "model=mlp", "model.width=16", "model.depth=1", "dataset.samples_per_class=10", "dataset.val_fraction=0.2",
        "callbacks.collapse.weighting=sample", "seed=3", "dataset.imbalance=2",
    ]  # fmt: skip
    for name in ("net.safetensors", "net.pt"):
        code, _, err = command("task=measure", f"checkpoint={name}", *alike, "logger=none", f"hydra.run.dir={name}-out")
        assert code == 0, err
        assert [row["epoch"] for row in rows(tmp_path / f"{name}-out")] == ["1"]
        same(rows(tmp_path / f"{name}-out")[0], rows(trained)[1])


def test_what_the_command_line_names_is_its_own_and_the_rest_the_runs(command, trained, tmp_path):
    code, _, err = command(
        "task=measure", f"checkpoint={trained}/checkpoints", *QUIET, "callbacks.collapse.weighting=balanced"
    )
    assert code == 0, err
    mine, theirs = summary(tmp_path / "out")["final"], summary(trained)["final"]
    assert mine["train/nc1_quotient"] != theirs["train/nc1_quotient"]
    assert mine["train/nc1_quotient__centre_sample"] == theirs["train/nc1_quotient__centre_sample"]


def test_another_dataset_is_normalised_as_the_runs(command, trained, tmp_path):
    dim = ["dataset=digits", "dataset.source._target_=tests.tasks.conftest.dim_digits", "dataset.val_fraction=0"]
    data = ImageDataModule(source=sources.digits, root=".", batch_size=8, measure_batch_size=8, seed=0)
    data.setup()
    units = [f"dataset.mean={list(data.mean)}", f"dataset.std={list(data.std)}"]
    finals = []
    for name, more in {"as-run": [], "stated": units, "other": ["dataset.mean=[0]", "dataset.std=[1]"]}.items():
        code, out, err = command(
            "task=measure", f"checkpoint={trained}", *QUIET[:2], f"hydra.run.dir={name}", *dim, *more
        )
        assert code == 0, err
        assert ("dim_digits is normalised as digits was in training" in out + err) == (name == "as-run")
        finals.append(summary(tmp_path / name)["final"])
    assert finals[0] == finals[1]
    assert finals[0]["train/loss"] != finals[2]["train/loss"]
    assert finals[0]["train/n"] == 1438


def test_a_torchvision_state_dict_gives_the_metrics_of_that_network(command, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.shufflenet_v2_x0_5(num_classes=10).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs-0123ab12.pth")
    code, _, err = command(
        "task=measure", "checkpoint=theirs-0123ab12.pth", *QUIET, "model=torchvision",
        "model.name=shufflenet_v2_x0_5", "dataset.val_fraction=0", "callbacks.collapse.vci=false",
    )  # fmt: skip
    assert code == 0, err
    data = ImageDataModule(source=sources.digits, root=".", batch_size=8, measure_batch_size=359, seed=0)
    ((x, y),) = data.measure_dataloaders()["test"]
    features = []
    theirs.fc.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        logits = theirs(x.expand(-1, 3, -1, -1))
    expected = measure(features[0], y, weight_KD=theirs.fc.weight, bias_K=theirs.fc.bias, logits_NK=logits, vci=False)
    final = summary(tmp_path / "out")["final"]
    of_train = {key for key in expected.values if key.startswith(("nc2_seli", "nc2_minority"))}
    for key in expected.values.keys() - of_train:
        value = expected.values[key]
        assert final[f"test/{key}"] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), key


@pytest.mark.parametrize(
    ("path", "more", "message"),
    [
        ("nowhere.ckpt", [], "checkpoint=nowhere.ckpt: there is no such file or folder"),
        ("none", [], "checkpoint=none: no .ckpt, .pt, .pth, .safetensors file in this folder"),
        ("wide.pt", [], "of another shape 1.weight (8, 64) instead of (16, 64)"),
        ("deep.pt", [], "missing 1.weight, 1.bias, 2.weight and 3 more; unexpected a, b; no linear layer is left over"),
        ("classes.pt", [], "fc.weight has 7 classes, the dataset 10"),
        ("nobias.pt", [], "fc.bias is not there"),
        ("code.pt", [], "code.pt holds more than tensors and plain containers, and reading it would run code"),
        ("cut.pt", [], "cut.pt is damaged or not a checkpoint"),
        ("cut.safetensors", [], "cut.safetensors is damaged or not a safetensors file"),
        ("list.pt", [], "list.pt holds a list, no state_dict"),
        ("empty.pt", [], "empty.pt holds no weights, only note"),
        ("classes.pt", ["task=train"], "checkpoint=classes.pt: name a task, task=..."),
        (None, [], "checkpoint=None: needed by this task"),
        ("classes.pt", ["~callbacks.collapse"], "task=measure needs the callback that measures"),
        ("classes.pt", ["+trainer.strategy=ddp_fork", "trainer.devices=2"], "task=measure runs on one, set 1"),
    ],
)
def test_a_mistake_is_one_clear_line(command, tmp_path, path, more, message):
    body = MLP(in_channels=1, image_size=8, width=16, depth=1).state_dict()
    head = {"fc.weight": torch.zeros(10, 16), "fc.bias": torch.zeros(10)}
    torch.save({**MLP(in_channels=1, image_size=8, width=8, depth=1).state_dict(), **head}, "wide.pt")
    torch.save({"a": torch.zeros(3), "b": torch.zeros(3)}, "deep.pt")
    torch.save({**body, "fc.weight": torch.zeros(7, 16), "fc.bias": torch.zeros(7)}, "classes.pt")
    torch.save({**body, "fc.weight": torch.zeros(10, 16)}, "nobias.pt")
    torch.save(nn.Linear(2, 2), "code.pt")
    torch.save([body], "list.pt")
    torch.save({"note": "none"}, "empty.pt")
    for name in ("cut.pt", "cut.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / "wide.pt").read_bytes()[:500])
    (tmp_path / "none").mkdir()
    given = [] if path is None else [f"checkpoint={path}"]
    tiny = ["model=mlp", "model.width=16", "model.depth=1"]
    code, _, err = command(*([] if "task=train" in more else ["task=measure"]), *given, *tiny, *QUIET, *more)
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_a_path_with_an_equals_sign_needs_no_quotes(command, trained, tmp_path):
    (tmp_path / "model.width=16,seed=3").symlink_to(trained)
    code, _, err = command("task=measure", "checkpoint=model.width=16,seed=3", *QUIET)
    assert code == 0, err


def test_files_are_in_the_order_of_training_and_each_epoch_once(tmp_path):
    weights = {"weight": torch.zeros(2, 2)}
    torch.save({"state_dict": weights, "epoch": 9, "pytorch-lightning_version": "2"}, tmp_path / "last.ckpt")
    for name in ("epoch_2.pt", "epoch_10.pt", "net-5.pth"):
        torch.save(weights, tmp_path / name)
    assert [(n, f.name) for n, f in checkpoint.series(tmp_path)] == [
        (2, "epoch_2.pt"), (5, "net-5.pth"), (10, "epoch_10.pt"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "densenet121", "mobilenet_v3_small", "vit_b_32"])
def test_torchvisions_own_weights_go_in_and_its_features_and_logits_come_out(name):
    theirs = torchvision.models.get_model(name, num_classes=5, **({"image_size": 64} if "vit" in name else {})).eval()
    body = TorchVision(in_channels=3, image_size=64, name=name).eval()
    head = Linear(num_features=body.num_features, num_classes=5, bias=True)
    checkpoint.put(checkpoint.Checkpoint(None, theirs.state_dict(), None, None), body, head)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(head(body.forward_features(x)), theirs(x))


def test_an_unknown_network_of_torchvision_is_named():
    with pytest.raises(ValueError, match=r"name='resnet19': did you mean resnet"):
        TorchVision(in_channels=3, image_size=32, name="resnet19")
    with pytest.raises(ValueError, match="in_channels=2"):
        TorchVision(in_channels=2, image_size=32, name="resnet18")
