"""A distillation as users run it: its files, going on after a kill, what stops it, and training on what it leaves."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ncdd.data.distilled import read
from ncdd.distill import SyntheticSet
from tests.run.conftest import only_run
from tests.run.test_resume import wait_for

# a second or two: 10 digits, a small ConvNet, two epochs of 8 iterations
DM = [
    "method=matching", "objective=dm", "model.width=8", "model.depth=1", "distill.iterations=16", "distill.every=8",
    "method.real_per_class=16", "callbacks.distilled.networks=2", "callbacks.distilled.final_networks=2",
    "callbacks.distilled.protocol.epochs=10", "callbacks.distilled.final.accuracy_augmented.epochs=10",
    "logger=none", "figures=false",
]  # fmt: skip


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_set_evaluated_and_drawn(command, tmp_path):
    code, out, err = command(*DM, "figures=true", "hydra.run.dir=run")
    assert code == 0, err
    run = tmp_path / "run"
    rows = metrics(run)
    assert [row["step"] for row in rows if row["val/accuracy"]] == ["0", "8", "16"]
    losses = [row for row in rows if row["train/outer_loss"]]
    assert [row["step"] for row in losses] == ["8", "16"]
    assert all(row["val/accuracy"] for row in losses)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["distilled"] == ["accuracy", "accuracy_std", "accuracy_augmented", "accuracy_augmented_std"]
    assert 0 < summary["evaluation_seconds"] < summary["seconds"]
    assert 0 < summary["training_seconds"] < summary["seconds"] - summary["evaluation_seconds"]
    assert summary["training_cpu_seconds"] > 0
    assert 0 < summary["training_memory_mb"] < 1e5
    assert {"test/accuracy", "test/accuracy_std", "test/accuracy_augmented"} <= summary["final"].keys()
    best = max(float(row["val/accuracy"]) for row in rows if row["val/accuracy"])
    kept = SyntheticSet.load(run / "distilled.safetensors")
    assert (kept.accuracy, kept.dataset, kept.method, len(kept)) == (best, "digits", "dm", 10)
    assert str(summary["kept"]) == next(row["step"] for row in rows if row["val/accuracy"] == str(best))
    modes = {path.stat().st_mode for path in (run / "distilled.safetensors", run / "summary.json")}
    assert len(modes) == 1
    assert kept.config["distill"]["every"] == 8
    grids = sorted((run / "figures" / "distilled").iterdir())
    assert [path.name for path in grids] == [f"step_{step:07}.png" for step in (0, 8, 16)]
    with Image.open(run / "figures" / "distilled.webp") as animation:
        assert (animation.n_frames, animation.size) == (3, Image.open(grids[0]).size)
    assert (run / "figures" / "distillation.png").exists()
    assert not (run / "figures" / "curves.png").exists()
    for words in ("16 iterations", "accuracy augmented", "test, of the best", "evaluating"):
        assert words in out, words


def test_killed_and_resumed_is_as_if_nothing_had_happened(command, process, tmp_path):
    """A checkpoint is of the end of an epoch; the last one is shorter than the others."""
    long = [*DM, "distill.iterations=28"]
    assert command(*long, "hydra.run.dir=whole")[0] == 0
    first = process(*long)
    wait_for(tmp_path, 1, first)
    first.send_signal(signal.SIGKILL)
    output, _ = first.communicate()
    assert first.returncode != 0, output
    folder = only_run(tmp_path)
    assert not (folder / "DONE").exists()
    code, out, err = command(*long, "resume=true")
    assert code == 0, err
    assert "going on from" in out
    assert (folder / "metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()
    ours, whole = (read(run / "distilled.safetensors")[0] for run in (folder, tmp_path / "whole"))
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_a_loss_that_is_not_finite_stops_with_one_line_and_the_last_good_set(command, tmp_path):
    code, _, err = command(*DM, "optimizer.lr=1e38", "hydra.run.dir=run")
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "the loss is not finite since step" in line
    assert "gradient_clip_val" not in line  # refused where the method takes its own steps
    assert "Traceback" not in err
    assert SyntheticSet.load(tmp_path / "run" / "distilled.safetensors").images.isfinite().all()
    assert (tmp_path / "run" / "FAILED").exists()


def test_without_a_validation_split_the_last_set_is_kept(command, tmp_path):
    code, _, err = command(*DM, "dataset.val_fraction=0", "hydra.run.dir=run")
    assert code == 0, err
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    kept = SyntheticSet.load(tmp_path / "run/distilled.safetensors")
    assert torch.equal(kept.images, last["images"])
    assert kept.accuracy is None
    assert not any(name.startswith("val/") for name in metrics(tmp_path / "run")[0])
    assert not (tmp_path / "run/figures").exists()  # figures=false


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.images_per_class=1000"], "images_per_class=1000: the smallest class, "),
        (["distill.images_per_class=0"], "distill.images_per_class=0: a number >= 1 is needed"),
        (["distill.every=0"], "distill.every=0: a number >= 1 is needed"),
        (["distill.init=rael"], "init='rael': choose from noise, real"),
        (["callbacks.distilled.monitor=acuracy"], "callbacks.distilled.monitor=acuracy: not measured; choose from acc"),
        (["+callbacks.distilled.tune.lr=[0.1]", "dataset.val_fraction=0"], "needs a validation split"),
        (["callbacks.distilled.final_networks=-1"], "callbacks.distilled.final_networks=-1: a number >= 0 is needed"),
        (["distill.iterations=0"], "error: distill.iterations=0: a number >= 1 is needed"),
        (["distil.iterations=3"], "error: distil.iterations: no such setting; did you mean distill?"),
        (
            ["method=frepo", "callbacks.distilled.final.accuracy_augmented.augment.strategy=flip"],
            "augment.strategy: it is that of callbacks.distilled.protocol.augment; set it there",
        ),
        (["dataset=distilled", "dataset.path=x.npz"], "a synthetic set is no data to distil by method=matching"),
        (["task=evaluate", "distilled=none.npz"], "distilled=none.npz: no file there"),
        (["distilled=x.safetensors"], "distilled=x.safetensors: name a task, task=..."),
    ],
)
def test_mistakes_are_named_in_one_line(command, overrides, message):
    code, _, err = command(*DM, *overrides)
    assert code == 1
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=coreset", "distill.learn_labels=true"], "distill.learn_labels=true: method=coreset leaves no choice"),
        (["method=label_solve", "distill.learn_labels=false"], "distill.learn_labels=false: method=label_solve leaves"),
        (["method=kip", "objective=dm"], "objective=dm: method=kip has none"),
        (["recipe=vs_dm", "distill.images_per_class=5"], "distill.iterations: distill.budget of this recipe has none"),
        (["method=joint", "head=etf", "method.partition=3"], "method.partition=3: choose from 1, 2, 4, 8 for images"),
        (
            ["method=frepo", "distill.iterations=1", "callbacks.distilled.protocol=null"],
            "callbacks.distilled.protocol.augment, which is not there",
        ),
        pytest.param(
            ["trainer=gpu", "model=mlp"],
            "trainer.accelerator=gpu: torch finds no GPU here; choose trainer=cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(command, overrides, message):
    code, _, err = command("logger=none", "figures=false", *overrides)
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_one_network_has_no_deviation_and_none_is_tested(command, tmp_path):
    alone = ["callbacks.distilled.networks=1", "callbacks.distilled.final_networks=0"]
    code, out, err = command(*DM, *alone, "hydra.run.dir=run")
    assert code == 0, err
    assert not any(name.endswith("_std") or name.startswith("test/") for name in metrics(tmp_path / "run")[0])
    (row,) = [line.split() for line in out.splitlines() if line.split()[:1] == ["accuracy"]]
    assert (row.count("%"), row[-1]) == (2, "-")
    assert "+-" not in out


def test_any_network_trains_on_what_a_run_leaves(command, tmp_path):
    assert command(*DM, "hydra.run.dir=run")[0] == 0
    train = ["method=classify", "dataset=distilled", "dataset.path=run/distilled.safetensors", "model=mlp"]
    small = ["model.width=16", "model.depth=1", "trainer.max_epochs=20", "logger=none", "figures=false"]
    code, _, err = command(*train, *small, "optimizer.lr=0.05", "hydra.run.dir=trained")
    assert code == 0, err
    final = json.loads((tmp_path / "trained/summary.json").read_text())["final"]
    assert final["train/accuracy"] > 0.8
    assert final["test/accuracy"] > 0.3
    assert "real/nc1_pinv" in final


@pytest.mark.parametrize("method", ["matching objective=dm", "matching objective=dsa", "joint head=etf", "frepo"])
def test_how_often_a_set_is_evaluated_does_not_change_it(command, tmp_path, method):
    found = []
    for every in (8, 3):
        code, _, err = command(
            *[f"method={method.split()[0]}", *method.split()[1:], "model.width=4", "model.depth=1", "logger=none"],
            *["distill.iterations=8", f"distill.every={every}", "dataset.samples_per_class=20", "figures=false"],
            *["callbacks.distilled.networks=1", "callbacks.distilled.final_networks=0", "dataset.val_fraction=0.2"],
            *["callbacks.distilled.protocol.epochs=1", f"hydra.run.dir=every{every}"],
        )
        assert code == 0, err
        last = torch.load(tmp_path / f"every{every}" / "checkpoints/last.ckpt", weights_only=True)
        assert last["global_step"] == 8
        found.append(last["state_dict"]["images"])
    assert torch.equal(*found)


def test_a_run_is_named_where_its_set_is_meant(command, tmp_path):
    """`distilled=` takes the folder, and `checkpoint=` says so."""
    assert command(*DM, "callbacks.distilled.final_networks=1", "hydra.run.dir=run")[0] == 0
    quiet = ["logger=none", "figures=false"]
    for task in ("measure", "layers", "ood"):
        code, _, err = command(f"task={task}", "checkpoint=run", *quiet, f"hydra.run.dir=of_{task}")
        assert code == 1
        assert "this run distilled a set: task=evaluate distilled=run/distilled.safetensors" in err
    evaluate = ["task=evaluate", "task.baselines=[]", "task.cross=[]", "task.real=null", "task.own=false", *quiet]
    none = ["task.protocols.plain=null", "task.protocols.augmented=null"]  # found after the set is read
    code, _, err = command(*evaluate, *none, "distilled=run", "hydra.run.dir=out2")
    assert (code, "task.protocols: none is left" in err) == (1, True), err
    assert SyntheticSet.load(tmp_path / "run/distilled.safetensors").export_npz(tmp_path / "set.npz") is None
    small = ["task.networks=1", "task.protocols.plain.epochs=2", "model=mlp", "model.width=8"]
    code, _, err = command(*evaluate, *small, none[1], "distilled=set.npz", "hydra.run.dir=out3")
    assert code == 0, err  # without task.trust


FINAL = ("accuracy", "accuracy_augmented")
MLP = "{_target_: ncdd.models.MLP, _partial_: true, width: 128, depth: 3, norm: none, feature_dim: null}"


@pytest.mark.parametrize(("protocol", "other", "name"), [
    ("plain", "augmented", "accuracy"), ("augmented", "plain", "accuracy_augmented"),
])  # fmt: skip
def test_further_architectures_are_judged_as_task_evaluate_judges_them(command, tmp_path, protocol, other, name):
    mine = [f"+callbacks.distilled.architectures.mlp={MLP}", "callbacks.finite=null"]  # null: left out
    code, _, err = command(*DM, *mine, "hydra.run.dir=run")
    assert code == 0, err
    ours = json.loads((tmp_path / "run/summary.json").read_text())
    names = [f"{of}{network}{std}" for of in FINAL for network in ("", "_mlp") for std in ("", "_std")]
    assert ours["distilled"] == names
    task = ["task=evaluate", "distilled=run", "task.cross=[mlp]", "task.baselines=[]", "task.real=null"]
    same = ["task.own=false", f"task.protocols.{other}=null", f"task.protocols.{protocol}.epochs=10"]
    assert command(*task, *same, "task.networks=2", "logger=none", "figures=false", "hydra.run.dir=out")[0] == 0
    theirs = json.loads((tmp_path / "out/summary.json").read_text())["final"]
    assert ours["final"][f"test/{name}"] == theirs["test/accuracy"]  # of the first protocol that is left
    assert ours["final"][f"test/{name}_mlp"] == theirs["cross/mlp/accuracy"]


def test_an_architecture_that_cannot_read_the_images_stops_before_training(command, tmp_path):
    lenet = "+callbacks.distilled.architectures.lenet={_target_: ncdd.models.LeNet, _partial_: true, feature_dim: null}"
    code, _, err = command(*DM, lenet, "hydra.run.dir=run")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, "image_size=8: LeNet's two 5x5 convolutions need images of at least 12 pixels" in line) == (1, True)
    assert not (tmp_path / "run/distilled.safetensors").exists()


def test_a_step_wise_set_may_be_judged_as_any_other(command, tmp_path):
    unrolled = ["method=unrolled", "model=mlp", "model.width=8", "head=linear", "logger=none", "figures=false"]
    small = ["distill.iterations=2", "distill.every=2", "method.steps=1", "method.sample_nets=1", "method.test_nets=2"]
    mine = ["callbacks.distilled.networks=0", "callbacks.distilled.own_steps=false", "dataset.val_fraction=0"]
    protocol = "callbacks.distilled.protocol.epochs=3"
    code, _, err = command(*unrolled, *small, *mine, protocol, "hydra.run.dir=run")
    assert code == 0, err
    ours = json.loads((tmp_path / "run/summary.json").read_text())["final"]
    task = ["task=evaluate", "distilled=run", "task.cross=[]", "task.baselines=[]", "task.real=null", "task.own=false"]
    same = ["task.protocols.augmented=null", "task.protocols.plain.epochs=3", "task.networks=2"]
    assert command(*task, *same, "logger=none", "figures=false", "hydra.run.dir=out")[0] == 0
    theirs = json.loads((tmp_path / "out/summary.json").read_text())["final"]
    assert ours["test/accuracy"] == theirs["test/accuracy_plain"] != theirs["test/accuracy"]


def test_a_sweep_over_sizes_ends_in_a_table_and_a_figure_of_its_own_numbers(command, tmp_path):
    sweep = ["-m", "name=sizes", "distill.images_per_class=1,2", "study.x=distill.images_per_class", "distill.every=16"]
    code, out, err = command(*sweep, *DM, "figures=true")
    assert code == 0, err
    assert "aug" in out
    assert "NC1 " not in out.split("2 jobs")[1].split("acc,")[0]
    table = (tmp_path / "multirun/sizes/figures/sizes.md").read_text()
    assert "test/accuracy, %" in table
    assert "nc1_pinv" not in table
    assert (tmp_path / "multirun/sizes/figures/sizes.png").exists()


def test_wandb_gets_the_images_as_they_are_learned(command, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc
    code, _, err = command(*DM, "logger=wandb", "figures=true", "hydra.run.dir=run")
    assert code == 0, err
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    inspect = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(folder)]
    found = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout
    for name in ("figures/distilled", "val/accuracy", "val/accuracy_std", "test/accuracy_augmented"):
        assert name in found, name
    images = sorted((folder / "files/media/images/figures").glob("distilled_*.png"))
    assert len(images) == 3
