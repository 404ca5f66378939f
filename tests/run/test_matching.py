"""Matching and coresets as commands: what an objective brings, experts before their set, and a set that is chosen."""

import json

import pytest

from ncdd.distill import SyntheticSet
from tests.run.conftest import TINY
from tests.test_config import plain

EVALUATION = [
    "callbacks.distilled.networks=1",
    "callbacks.distilled.protocol.epochs=2",
    "callbacks.distilled.final_networks=1",
    "callbacks.distilled.final.accuracy_augmented.epochs=2",
]
SMALL = [
    "model=mlp",
    "model.width=16",
    "model.depth=1",
    "logger=csv",
    "figures=false",
    "hydra.run.dir=run",
    *EVALUATION,
]


@pytest.mark.parametrize(
    ("objective", "lr", "augmented"), [("dm", 1.0, True), ("dc", 0.1, False), ("dsa", 0.1, True), ("mtt", 1000.0, True)]
)
def test_an_objective_brings_its_published_settings_and_gives_way_to_others(objective, lr, augmented):
    config = plain("method=matching", f"objective={objective}")
    assert config["optimizer"]["lr"] == lr
    assert (config["method"]["augment"]["strategy"] != "none") == augmented
    config = plain("method=matching", f"objective={objective}", "optimizer.lr=7", "method.augment.strategy=crop")
    assert config["optimizer"]["lr"] == 7
    assert config["method"]["augment"]["strategy"] == "crop"


def test_an_unknown_objective_is_one_line(command):
    code, _, err = command("method=matching", "objective=dx", *SMALL)
    assert code == 1
    assert "error: objective=dx: choose from dm, dc, dsa, mtt\n" in err


def test_a_set_is_matched_to_experts_that_a_sweep_has_trained(command, tmp_path):
    assert command("-m", *TINY, "name=experts", "callbacks=every_epoch", "trainer.max_epochs=2", "seed=0,1")[0] == 0
    mtt = ["method=matching", "objective=mtt", "method.experts=multirun/experts", "method.trajectory.epochs=2"]
    short = ["distill.iterations=2", "distill.every=1", "trainer.log_every_n_steps=1", "optimizer.lr=1"]
    code, _, err = command(*mtt, *SMALL, *short)
    assert code == 0, err
    assert SyntheticSet.load(tmp_path / "run/distilled.safetensors").images.shape == (10, 1, 8, 8)
    assert "train/step_size" in (tmp_path / "run/metrics.csv").read_text()
    code, _, err = command(*mtt, *SMALL, "model.width=8", "hydra.run.dir=other")
    assert code == 1
    assert "is not of this model, head and dataset" in err


def test_a_coreset_leaves_what_a_distillation_leaves(command, tmp_path):
    code, _, err = command("method=coreset", "objective=nearest", "distill.images_per_class=2", *SMALL, "figures=true")
    assert code == 0, err
    folder = tmp_path / "run"
    assert len(SyntheticSet.load(folder / "distilled.safetensors")) == 20
    assert {"test/accuracy", "test/accuracy_augmented"} <= json.loads((folder / "summary.json").read_text())[
        "final"
    ].keys()
    assert (folder / "figures/distilled/step_0000000.png").is_file()
    assert (folder / "DONE").is_file()
    code, _, err = command("method=coreset", "objective=best", *SMALL, "hydra.run.dir=other")
    assert code == 1
    assert "error: objective=best: choose from random, herding, kmeans, class_mean, nearest" in err
