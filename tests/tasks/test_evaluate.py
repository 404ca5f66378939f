"""`task=evaluate` against the library called directly, the formulas of the scores, and what does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ncdd.collapse import measure as measure_collapse
from ncdd.data import Normalisation
from ncdd.data.seeding import fold_in
from ncdd.data.sources import digits
from ncdd.distill import SyntheticSet
from ncdd.distill import evaluate as judge
from ncdd.distill.compute import Cost
from ncdd.distill.coresets import coreset
from ncdd.distill.evaluate import Protocol
from ncdd.models import ConvNet, Linear, Network
from ncdd.report.__main__ import main
from ncdd.report.rows import read_rows
from ncdd.tasks.evaluate import REAL, THIS, Result, dd_ranking

NORM = Normalisation((0.3,), (0.4,))
QUICK = [
    "task=evaluate", "task.networks=2", "task.draws=2", "task.cross=[mlp]", "task.baselines=[random,class_mean]",
    "task.protocols.plain.epochs=40", "task.protocols.plain.lr=0.05", "task.protocols.augmented.epochs=15",
    "task.real.steps=15", "task.collapse_samples=300", "model=convnet", "model.width=8", "model.depth=2",
    "dataset.mean=[0.3]", "dataset.std=[0.4]", "logger=none", "hydra.run.dir=out",
]  # fmt: skip
PLAIN = Protocol(epochs=40, lr=0.05)
DIGITS = digits()
X = (DIGITS.train.pixels.float() / 255 - NORM.mean[0]) / NORM.std[0]


def a_set(per_class: int = 1, **changes) -> SyntheticSet:
    images, labels = coreset(
        "kmeans", X, DIGITS.train.labels, num_classes=10, per_class=per_class, generator=torch.Generator()
    )
    names = tuple(DIGITS.class_names)
    given = {"images": images, "labels": labels, "normalisation": NORM, "dataset": "digits", "class_names": names}
    return SyntheticSet(**given | changes)


def new_network() -> Network:
    body = ConvNet(in_channels=1, image_size=8, width=8, depth=2, norm="instance")
    return Network(body, Linear(num_features=body.num_features, num_classes=10, bias=True))


def test_everything_of_a_set_with_soft_labels(command, tmp_path):
    soft = torch.softmax(3 * F.one_hot(torch.arange(10)).float(), 1)
    synthetic = a_set(labels=soft)
    synthetic.save(tmp_path / "set.safetensors")
    code, out, err = command(*QUICK, "distilled=set.safetensors", "seed=3")
    assert code == 0, err
    for name in ("DONE", "evaluate.csv", "collapse.csv", "figures/evaluate.png", "summary.json"):
        assert (tmp_path / "out" / name).exists(), name
    rows = {(row["set"], row["network"], row["protocol"]): row for row in read_rows(tmp_path / "out/evaluate.csv")}
    own = [(name, "convnet", p) for name in ("this_set", "random", "class_mean") for p in ("plain", "augmented")]
    others = [("this_set", "mlp", "plain"), ("real_data", "convnet", "real"), ("hard_labels", "convnet", "plain")]
    assert list(rows) == own + others
    assert all(row["n"] == 2 and row["seconds"] > 0 and row["memory_mb"] > 100 for row in rows.values())

    test = [((DIGITS.test.pixels.float() / 255 - NORM.mean[0]) / NORM.std[0], DIGITS.test.labels)]
    kept = []
    found = judge.evaluate(
        synthetic,
        new_network,
        test,
        seed=fold_in(3, judge.TEST),
        protocol=PLAIN,
        networks=2,
        further=lambda net: kept.append(net) or {},
    )
    row = rows["this_set", "convnet", "plain"]
    assert (row["accuracy"], row["accuracy_std"]) == pytest.approx((found.mean, found.std), abs=3 / len(test[0][1]))
    hard = judge.evaluate(a_set(), new_network, test, seed=fold_in(3, judge.TEST), protocol=PLAIN, networks=2)
    mean = {key: row["accuracy"] for key, row in rows.items()}
    assert mean["hard_labels", "convnet", "plain"] == pytest.approx(hard.mean, abs=3 / len(test[0][1]))

    features = [net.forward_features(test[0][0]).detach() for net in kept]
    expected = [measure_collapse(x, test[0][1], vci=False).values["nc1_pinv"] for x in features]
    collapse = {(row["set"], row["split"]): row for row in read_rows(tmp_path / "out/collapse.csv")}
    assert list(collapse) == [(name, split) for name in ("this_set", "real_data") for split in ("train", "test")]
    assert collapse["this_set", "test"]["nc1_pinv"] == pytest.approx(np.mean(expected), rel=0.02)
    assert collapse["this_set", "test"]["accuracy"] == pytest.approx(row["accuracy"], abs=3 / len(test[0][1]))

    final = json.loads((tmp_path / "out/summary.json").read_text())["final"]
    assert final["test/accuracy"] == row["accuracy"]
    assert final["cross/mlp/accuracy"] == mean["this_set", "mlp", "plain"]
    hlr = mean["real_data", "convnet", "real"] - mean["hard_labels", "convnet", "plain"]
    gains = [mean["this_set", "convnet", p] - mean["random", "convnet", p] for p in ("plain", "augmented")]
    assert final["ranking/hlr"] == pytest.approx(hlr)
    assert final["ranking/ior"] == pytest.approx(gains[0])
    e = np.e
    assert final["ranking/lrs"] == pytest.approx((e ** (gains[0] / 2 - hlr / 2) - 1 / e) / (e - 1 / e))
    assert final["ranking/ars"] == pytest.approx((e ** np.mean(gains) - 1 / e) / (e - 1 / e))
    assert "10 images, tested on digits; CPU" in out
    assert main([str(tmp_path / "out")]) == 0  # python -m ncdd.report draws and prints the same again


LITTLE = ["task.baselines=[]", "task.cross=[]", "task.real=null", "task.networks=1", "task.protocols.augmented=null"]


def test_a_published_npz_needs_to_be_trusted(command, tmp_path):
    """KIP's layout, NHWC with regression targets; these are trained by the squared error."""
    targets = F.one_hot(torch.arange(10)).float() - 0.1
    np.savez(tmp_path / "kip.npz", images=a_set().images.permute(0, 2, 3, 1).numpy(), labels=targets.numpy())
    code, _, err = command(*QUICK, *LITTLE, "distilled=kip.npz")
    assert code == 1
    assert "does not say what its images were normalised with; if it is by dataset.mean=[0.3]" in err
    code, _, err = command(*QUICK, *LITTLE, "distilled=kip.npz", "task.trust=true", "hydra.run.dir=trusted")
    assert code == 0, err
    (row,) = read_rows(tmp_path / "trusted/evaluate.csv")
    test = [((DIGITS.test.pixels.float() / 255 - NORM.mean[0]) / NORM.std[0], DIGITS.test.labels)]
    given = {"seed": fold_in(0, judge.TEST), "protocol": replace(PLAIN, loss="mse"), "networks": 1}
    expected = judge.evaluate(a_set(labels=targets), new_network, test, **given)
    assert row["accuracy"] == pytest.approx(expected.mean, abs=3 / len(test[0][1]))


def test_an_npz_of_pixels_is_read_as_the_data_are(command, tmp_path):
    pixels, labels = coreset(
        "random", DIGITS.train.pixels, DIGITS.train.labels, num_classes=10, per_class=1, generator=torch.Generator()
    )
    np.savez(tmp_path / "pixels.npz", images=pixels.numpy(), labels=labels.numpy())
    a_set(images=(pixels.float() / 255 - 0.3) / 0.4, labels=labels).save(tmp_path / "floats.safetensors")
    found = []
    for file in ("pixels.npz", "floats.safetensors"):
        code, _, err = command(*QUICK, *LITTLE, f"distilled={file}", f"hydra.run.dir={file}_run")
        assert code == 0, err
        found.append(read_rows(tmp_path / f"{file}_run/evaluate.csv")[0]["accuracy"])
    assert found[0] == pytest.approx(found[1], abs=3 / len(DIGITS.test))


def test_it_tests_as_the_run_did_that_made_the_set(command, tmp_path):
    """The same networks, without BatchNorm as FRePo's are, by the same protocol: the same number."""
    steps = [f"callbacks.distilled.{p}.steps=30" for p in ("protocol", "final.accuracy", "final.accuracy_augmented")]
    made = [
        "method=frepo", "model.width=8", "model.depth=2", "head=etf", "distill.iterations=2", "distill.every=2",
        "method.pool.size=2", "method.krr_networks=1", "callbacks.distilled.networks=1",
        "callbacks.distilled.final_networks=2", "callbacks.distilled.final.accuracy_augmented.warmup=5",
        "callbacks.distilled.final.accuracy.warmup=5", *steps, "logger=none", "figures=false", "seed=4",
    ]  # fmt: skip
    code, _, err = command(*made, "hydra.run.dir=run")
    assert code == 0, err
    code, _, err = command(
        "task=evaluate", "distilled=run/distilled.safetensors", "logger=none", "figures=false", "hydra.run.dir=out",
        "task.networks=2", "task.baselines=[]", "task.cross=[]", "task.real=null", "task.protocols.plain.epochs=2",
        "task.protocols.augmented=null", "task.collapse_samples=100",
    )  # fmt: skip
    assert code == 0, err
    theirs, ours = (json.loads((tmp_path / f"{run}/summary.json").read_text())["final"] for run in ("run", "out"))
    for end in ("", "_std"):
        assert ours[f"test/accuracy_own{end}"] == theirs[f"test/accuracy{end}"]
    assert theirs["test/accuracy_std"] > 0


def test_another_architecture_of_the_same_name_is_told_apart(command, tmp_path):
    a_set().save(tmp_path / "set.safetensors")
    given = [q for q in QUICK if not q.startswith("model")] + ["model=mlp", "model.width=8", "model.depth=1"]
    code, _, err = command(*given, *LITTLE, "task.cross=[mlp]", "distilled=set.safetensors", "figures=true")
    assert code == 0, err
    rows = {row["network"]: row["accuracy"] for row in read_rows(tmp_path / "out/evaluate.csv")}
    assert list(rows) == ["mlp", "cross_mlp"]
    assert rows["mlp"] != rows["cross_mlp"]
    final = json.loads((tmp_path / "out/summary.json").read_text())["final"]
    assert (final["test/accuracy"], final["cross/mlp/accuracy"]) == tuple(rows.values())


def test_improvement_over_random_is_by_the_own_protocol_where_it_is_known():
    def result(trained_on: str, protocol: str, accuracy: float, own: bool = True) -> Result:
        return Result(trained_on, "mlp", protocol, judge.Evaluation((accuracy,), 1, Cost("CPU")), own)

    results = [
        result(THIS, "plain", 0.6), result(THIS, "own", 0.8), result("random", "plain", 0.5),
        result("random", "own", 0.4), result(THIS, "plain", 0.1, own=False), result(REAL, "real", 0.9),
    ]  # fmt: skip
    protocols = {"plain": PLAIN, "own": replace(PLAIN, lr=0.1)}
    assert dd_ranking(results, protocols, "own").ior == pytest.approx(0.4)
    assert dd_ranking(results, protocols, None).ior == pytest.approx(0.1)
    assert dd_ranking(results, protocols, "own").hlr == pytest.approx(0.3)


def test_a_stepwise_set_goes_by_its_own_steps_too(command, tmp_path):
    steps = {"step_sizes": torch.full((20,), 0.1), "order": torch.arange(10).expand(20, 10).contiguous()}
    a_set(**steps).save(tmp_path / "a=1,b=2" / "set.safetensors")  # as in the folder of a sweep's job
    code, out, err = command(*QUICK, *LITTLE, "distilled=a=1,b=2/set.safetensors")
    assert code == 0, err
    assert "the set is a step-wise one: it works only in its own order" in out + err
    rows = read_rows(tmp_path / "out/evaluate.csv")
    assert [(row["protocol"], row["steps"]) for row in rows] == [("own_steps", 20), ("plain", 40)]
    final = json.loads((tmp_path / "out/summary.json").read_text())["final"]
    assert (final["test/accuracy"], final["test/accuracy_plain"]) == tuple(row["accuracy"] for row in rows)
    collapse = read_rows(tmp_path / "out/collapse.csv")
    assert collapse[1]["accuracy"] == pytest.approx(rows[0]["accuracy"], abs=3 / len(DIGITS.test))


def shrunk(path: Path) -> None:
    a_set(images=a_set().images[:, :, :6, :6].contiguous()).save(path)


@pytest.mark.parametrize(
    ("make", "overrides", "message"),
    [
        (shrunk, [], "the set is of images of shape (1, 6, 6), those of digits are (1, 8, 8)"),
        (
            lambda path: a_set(class_names=tuple("abcdefghijk")).save(path),
            [],
            "the set is of 11 classes, digits has 10",
        ),
        (
            lambda path: a_set(normalisation=Normalisation((0.5,), (0.5,))).save(path),
            [],
            "the set was normalised with [0.5], [0.5]",
        ),
        (
            lambda path: a_set().save(path),
            ["dataset.whiten=frepo"],
            "whitened by another transform than the data, here dataset.whiten=frepo",
        ),
        (
            lambda path: replace(a_set(), images=a_set().images[:9], labels=a_set().labels[:9]).save(path),
            ["task.baselines=[random]"],
            "task.baselines: 9 images cannot be shared equally by 10 classes",
        ),
        (lambda path: a_set().save(path), ["task.cross=[lenet]"], "LeNet's two 5x5 convolutions need images of"),
        (lambda path: a_set().save(path), ["task.cross=[lent]"], "task.cross: no 'lent'; choose from mlp, convnet"),
        (lambda path: a_set().save(path), ["task.baselines=[best]"], "task.baselines: no 'best'; choose from random"),
        (lambda path: a_set().save(path), ["task.protocols.plain=null"], "task.protocols: none is left"),
        (lambda path: None, [], "no file"),
        (lambda path: path.write_bytes(b"x"), [], "is damaged or no safetensors file"),
    ],
)
def test_what_does_not_fit_is_named(command, tmp_path, make, overrides, message):
    make(tmp_path / "set.safetensors")
    code, _, err = command(*QUICK, *LITTLE, "distilled=set.safetensors", *overrides)
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_the_file_must_be_given(command):
    code, _, err = command(*QUICK)
    assert code == 1
    assert "distilled=None: needed by this task" in err
