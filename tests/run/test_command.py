"""The command, whole: what a run leaves, what a sweep does, and what a mistake says."""

import csv
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
import yaml

from tests.run.conftest import TINY, only_run

LEFT = [
    "DONE",
    "checkpoints/last.ckpt",
    "collapse.npz",
    "config.yaml",
    "figures/collapse.png",
    "figures/curves.png",
    "figures/features.png",
    "figures/gram.png",
    "metrics.csv",
    "run.log",
    "summary.json",
]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_everything_a_user_looks_for(command, tmp_path):
    code, out, err = command(*TINY, "head=etf", "dataset.val_fraction=0.2", "figures=true")
    assert code == 0, err
    folder = only_run(tmp_path)
    assert not [name for name in [*LEFT, "checkpoints/best.ckpt"] if not (folder / name).exists()]
    assert not list(folder.rglob("*.tmp"))
    assert "NC1" in out and str(folder.relative_to(tmp_path)) in out

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["epochs"] == 2
    assert summary["parameters"] == {"total": 64 * 16 + 16 + 32 + 16 * 10 + 10, "trainable": 64 * 16 + 16 + 32 + 10}
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["width"] == 16
    measured = [row for row in rows(folder / "metrics.csv") if row["train/nc1_pinv"]]
    assert [row["epoch"] for row in measured] == ["0", "1", "2"]
    assert float(measured[-1]["test/nc1_pinv"]) == summary["final"]["test/nc1_pinv"]
    assert max(
        float(row["val/accuracy"]) for row in rows(folder / "metrics.csv") if row["val/accuracy"]
    ) == pytest.approx(summary["best"]["val/accuracy"])

    with np.load(folder / "collapse.npz") as geometry:
        gram = geometry["weight"] @ geometry["weight"].T
    np.testing.assert_allclose(gram, np.eye(10) * 10 / 9 - 1 / 9, atol=1e-6)


def test_the_same_command_gives_the_same_numbers(command, tmp_path):
    for name in ("a", "b"):
        assert command(*TINY, f"hydra.run.dir={name}")[0] == 0
    assert (tmp_path / "a/metrics.csv").read_text() == (tmp_path / "b/metrics.csv").read_text()


@pytest.mark.parametrize(
    "choice",
    [
        "optimizer=adam",
        "optimizer=adamw",
        "optimizer=lbfgs",
        "scheduler=step",
        "scheduler=multistep",
        "scheduler=constant",
        "loss=mse",
        "loss=label_smoothing",
        "loss=dot_regression",
        "trainer=debug",
        "head=etf",
        "model=convnet model.width=4",
        "model=resnet18 model.width=4",
        "model=resnet34 model.width=2",
        "model=resnet50 model.width=2",
        "model=mlp model.feature_dim=K",
        "head=etf method.normalize_features=true",
        "callbacks.collapse.memory_budget=0",
        "logger=tensorboard",
        "method.feature_decay=1e-4 method.body_decay=0",
    ],
)
def test_every_choice_trains(command, choice):
    replaced = ("model", "trainer", choice.split("=")[0])
    overrides = [o for o in TINY if not o.startswith(replaced)] + ["trainer.max_epochs=1"]
    model = [] if choice.startswith("model") else ["model=mlp", "model.width=16", "model.depth=1"]
    code, _, err = command(*overrides, *model, *choice.split())
    assert code == 0, err


def test_a_figure_that_cannot_be_drawn_is_found_before_the_sweep(command, tmp_path):
    code, _, err = command("-m", *TINY, "name=w", "seed=0,1", "study.x=model.widht", "study.columns=nonsense")
    assert code == 1
    assert "study.x=model.widht: the sweep does not set it; did you mean model.width?" in err
    assert "study.columns=nonsense: the sweep does not set it" in err
    assert not list((tmp_path / "multirun").glob("w/*/metrics.csv"))


def test_sweeps_in_one_folder_share_one_table(command, tmp_path):
    for seed in (0, 1):
        assert command("-m", *TINY, "name=both", f"seed={seed}", "trainer.max_epochs=1")[0] == 0
    assert len(rows(tmp_path / "multirun/both/sweep.csv")) == 2


def test_a_sweep_skips_what_is_done_survives_a_failure_and_tells_of_it(command, tmp_path):
    sweep = ["-m", *TINY, "name=widths", "model.width=8,16", "model.norm=batch,bogus"]
    code, out, err = command(*sweep)
    assert code == 1
    assert "2 of 4 jobs done" in out
    assert "model.norm='bogus': one of batch, none expected" in err
    jobs = {job.name: job for job in (tmp_path / "multirun/widths").iterdir() if job.is_dir()}
    assert len(jobs) == 4
    failed = [job for name, job in jobs.items() if "bogus" in name]
    assert all((job / "FAILED").read_text().startswith("ConfigError: model.norm='bogus'") for job in failed)
    assert all("Traceback" in (job / "run.log").read_text() for job in failed)
    table = rows(tmp_path / "multirun/widths/sweep.csv")
    assert sorted(row["status"] for row in table) == ["done", "done", "failed", "failed"]
    assert {row["model.norm"] for row in table if row["status"] == "failed"} == {"bogus"}

    stamps = {name: (job / "metrics.csv").stat().st_mtime_ns for name, job in jobs.items() if job not in failed}
    code, out, _ = command(*sweep)
    assert code == 1
    assert out.count("done already") == 2
    assert stamps == {name: (jobs[name] / "metrics.csv").stat().st_mtime_ns for name in stamps}
    code, out, _ = command("-m", *TINY, "name=widths", "model.width=8,16", "model.norm=batch")
    assert code == 0
    assert "2 of 2 jobs done" in out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+model.widht=3"], "error: model.widht: ncdd.models.MLP takes no 'widht'; did you mean width?"),
        (["model.width=wide"], "error: model.width='wide': int expected"),
        (["head=etf", "model.feature_dim=5"], "num_classes=10"),
        (["optimizer.lr=1e30", "trainer.max_epochs=9"], "the loss is not finite since step"),
        (["dataset=mnist", "dataset.download=false"], "MNIST"),
        (["dataset=distilled", "dataset.path=none.safetensors"], "none.safetensors"),
        (["head=linear", "method=etf"], "method=etf with a trainable head (Linear): choose head=etf"),
        (
            ["head=etf", "method.normalize_features=true", "method.feature_decay=1e-4"],
            "feature_decay=0.0001 has no gradient with normalize_features=true",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(command, tmp_path, overrides, message):
    dataset = [] if any(o.startswith("dataset=") for o in overrides) else TINY
    base = [
        o
        for o in (dataset or [o for o in TINY if not o.startswith("dataset.samples")])
        if not ("dataset.batch" in o and not dataset)
    ]
    code, _, err = command(*base, *overrides)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1
    assert len(lines) == 1
    assert message in lines[0]
    folder = only_run(tmp_path)
    assert (folder / "FAILED").exists()
    assert "Traceback" in (folder / "run.log").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=resnet19"], "error: model=resnet19: no such choice; did you mean resnet18? choose from alexcifar, "),
        (["task=eval"], "error: task=eval: no such choice; did you mean evaluate? choose from "),
        (["seed=one"], "error: seed=one: Value 'one' of type 'str' could not be converted to Integer"),
        (["modell=resnet18"], "error: modell: no such setting; did you mean model?"),
        (["model.widht=3"], "error: model.widht: no such setting; did you mean width?"),
        (["-m", "model.widht=3,4"], "error: model.widht: no such setting; did you mean width?"),
        (["model.width.x=3"], "model.width"),
        (["sede=3", "optimizer.Lr=3"], "error: optimizer.Lr: no such setting; did you mean lr?"),
        (["sede=3", "optimizer.Lr=3"], "error: sede: no such setting; did you mean seed?"),
    ],
)
def test_what_hydra_does_not_know_is_named(command, overrides, message):
    code, _, err = command(*overrides)
    assert code == 1
    assert message in err
    assert len(err.splitlines()) == len(set(overrides) - {"-m"})


def test_a_nan_keeps_the_last_finite_checkpoint(command, tmp_path):
    """The learning rate is multiplied by 1e30 after the first epoch, whose checkpoint must survive."""
    blow_up = ["scheduler=step", "scheduler.step_size=1", "scheduler.gamma=1e30", "trainer.max_epochs=9"]
    code, _, err = command(*TINY, *blow_up, "loss=mse")
    assert code == 1
    assert "the loss is not finite since step" in err
    checkpoint = torch.load(only_run(tmp_path) / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0
    assert all(bool(torch.isfinite(w).all()) for w in checkpoint["state_dict"].values())


def test_a_run_killed_just_before_its_end_is_finished(command, tmp_path):
    assert command(*TINY, "hydra.run.dir=runs/a")[0] == 0
    left = {name: (tmp_path / "runs/a" / name) for name in ("DONE", "summary.json", "collapse.npz")}
    metrics = (tmp_path / "runs/a/metrics.csv").read_text()
    for path in left.values():
        path.unlink()
    code, _, err = command(*TINY, "hydra.run.dir=runs/a", "resume=true")
    assert code == 0, err
    assert all(path.exists() for path in left.values())
    assert (tmp_path / "runs/a/metrics.csv").read_text() == metrics


def test_a_named_folder_is_gone_on_with_and_no_other(command, tmp_path):
    assert command(*TINY, "hydra.run.dir=runs/a")[0] == 0
    (tmp_path / "runs/a/DONE").unlink()
    shutil.copytree(tmp_path / "runs/a", tmp_path / "runs/newer")
    code, out, err = command(*TINY, "hydra.run.dir=runs/a", "resume=true")
    assert code == 0, err
    assert (tmp_path / "runs/a/DONE").exists() and not (tmp_path / "runs/newer/DONE").exists()
    code, out, err = command(*TINY, "hydra.run.dir=runs/newer", "resume=true", "model.width=8")
    assert (code, "holds a run of another config" in err, "nothing to resume" in out) == (1, True, False)


def test_a_run_outlives_those_who_read_it(process, tmp_path):
    running = process(*TINY, "hydra.run.dir=run", environment={"PYTHONUNBUFFERED": ""})
    running.stdout.close()  # as `| head` does
    assert running.wait() == 0
    assert (tmp_path / "run/DONE").exists()


def test_a_sweep_does_not_pass_off_an_older_result_as_its_own(command, tmp_path):
    sweep = ["-m", *TINY, "name=old", "seed=0"]
    assert command(*sweep)[0] == 0
    (job,) = (path for path in (tmp_path / "multirun/old").iterdir() if path.is_dir())
    config = job / "config.yaml"
    config.write_text(config.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    code, out, err = command(*sweep)
    assert code == 1
    assert "0 of 1 jobs done" in out
    assert "optimizer.momentum: 0.8 there, 0.9 now" in err


def test_a_long_name_is_shortened_and_two_runs_of_one_second_are_apart(command, tmp_path):
    many = [f"+trainer.limit_val_batches={1.0}", "trainer.gradient_clip_val=1000", "optimizer.nesterov=true",
            "model.feature_dim=12", "dataset.val_fraction=0.1", "dataset.label_noise=0.1", "seed=3"]  # fmt: skip
    code, _, err = command("-m", *TINY, *many, "name=long")
    assert code == 0, err
    (job,) = (path for path in (tmp_path / "multirun/long").iterdir() if path.is_dir())
    assert len(job.name) <= 200
    assert command(*TINY, "trainer.max_epochs=1")[0] == command(*TINY, "trainer.max_epochs=1")[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_every_precision_measures(command, precision):
    code, _, err = command(*TINY, f"trainer.precision={precision}", "trainer.max_epochs=1")
    assert code == 0, err


def test_a_damaged_checkpoint_is_named(command, tmp_path):
    assert command(*TINY, "hydra.run.dir=runs/a")[0] == 0
    folder = tmp_path / "runs/a"
    (folder / "DONE").unlink()
    last = folder / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    assert not zipfile.is_zipfile(last)
    code, _, err = command(*TINY, "hydra.run.dir=runs/a", "resume=true")
    assert code == 1
    assert f"checkpoint {last} is damaged or not a checkpoint" in err


def test_a_folder_that_cannot_be_made_is_named(command, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = command(*TINY, "hydra.run.dir=file/run")
    assert code == 1
    assert "file/run" in err
