"""Every command and every piece of code in README.md runs as printed."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.S)
LINES = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line.strip()]
COMMANDS = [shlex.split(line, comments=True) for line in LINES]
RUNS = [command for command in COMMANDS if command[:2] == ["python", "run.py"]]
REPORTS = [command for command in COMMANDS if command[:2] == ["python", "-m"] and command[2].startswith("ncdd.report")]
# enough to see that a command is valid, in seconds
SMALL = ["trainer.max_epochs=1", "dataset.samples_per_class=4", "model.width=4", "figures=false", "logger=csv"]
SMALL_SET = [  # of a distillation
    "dataset.samples_per_class=20", "distill.iterations=2", "distill.every=1", "callbacks.distilled.networks=1",
    "callbacks.distilled.final_networks=1", "callbacks.distilled.protocol.epochs=1", "figures=false", "logger=csv",
    "callbacks.distilled.final.accuracy_augmented=null", "callbacks.distilled.tune={}",
]  # fmt: skip
SMALL_EVALUATION = ["task.networks=1", "task.draws=1", "task.real=null", "task.cross=[]", "logger=csv"]
DISTILLATIONS = ("matching", "joint", "kip")
INSTEAD = {"dataset@ood=mnist": "dataset@ood=digits"}  # files that a user's machine need not have


def execute(command, folder, *more):
    script = str(ROOT / command[1]) if command[1].endswith(".py") else command[1]
    return subprocess.run([sys.executable, script, *command[2:], *more], cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with what the commands speak of: a run, a sweep of one, weights, images."""
    folder = tmp_path_factory.mktemp("trained")
    command = ["python", "run.py", "callbacks=every_epoch", "model=mlp", "hydra.run.dir=RUN"]
    result = execute(command, folder, *(o for o in SMALL if not o.startswith("model")))
    assert result.returncode == 0, result.stderr
    result = execute(["python", "run.py", "method=coreset", "hydra.run.dir=SET"], folder, *SMALL_SET, "model.width=4")
    assert result.returncode == 0, result.stderr
    shutil.copy(folder / "SET" / "distilled.safetensors", folder / "RUN")
    shutil.copytree(folder / "RUN", folder / "FOLDER")
    shutil.copytree(folder / "RUN", folder / "multirun" / "widths" / "model.width=4")
    torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), folder / "net.pth")
    for split, kind, n in itertools.product(("train", "test"), ("cat", "dog"), range(4)):
        path = folder / "DIR" / split / kind / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    return folder


def small(command):
    """The options of SMALL that this command can take."""
    given = {part.split("=")[0] for part in command}
    if "--help" in command:
        return []
    if {f"method={name}" for name in DISTILLATIONS} & set(command):
        return SMALL_SET
    if "task=evaluate" in command:
        return SMALL_EVALUATION
    if "dataset=distilled" in command:
        return [option for option in SMALL if "samples_per_class" not in option]
    if "experiment=ufm" in command or "checkpoint=RUN" in command or "checkpoint=net.pth" in command:
        return ["logger=csv", "figures=false", *["trainer.max_epochs=2"] * ("experiment=ufm" in command)]
    return [option for option in SMALL if option.split("=")[0] not in given]


@pytest.mark.parametrize("command", RUNS, ids=" ".join)
def test_commands_are_valid(command, tmp_path, trained):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    result = execute([INSTEAD.get(part, part) for part in command], tmp_path, *small(command))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", REPORTS, ids=" ".join)
def test_reports_run_as_printed(command, tmp_path, trained, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    result = execute(command, tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNS, ids=" ".join)
def test_commands_run_as_printed(command, tmp_path, trained):
    if INSTEAD.keys() & set(command):
        pytest.skip("its files would have to be fetched")
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    result = execute(command, tmp_path)
    assert result.returncode == 0, result.stderr


def test_images_are_taken_out_as_printed(tmp_path, trained):
    (command,) = [c for c in COMMANDS if c[:3] == ["python", "-m", "ncdd.distill"]]
    shutil.copytree(trained / "RUN", tmp_path / "RUN")
    result = execute(command, tmp_path)
    assert result.returncode == 0, result.stderr
    assert np.load(tmp_path / "set.npz")["images"].shape == (10, 1, 8, 8)
    assert len(list((tmp_path / "images").rglob("*.png"))) == 10


def test_metrics_of_saved_features(tmp_path):
    (command,) = [c for c in COMMANDS if c[:3] == ["python", "-m", "ncdd.collapse"]]
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    np.savez(tmp_path / "features.npz", X=rng.normal(size=(60, 4)), y=y, W=rng.normal(size=(3, 4)), b=np.zeros(3))
    result = execute(command, tmp_path)
    assert result.returncode == 0, result.stderr
    assert '"nc1_pinv"' in result.stdout


def test_python_blocks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    loader = DataLoader(TensorDataset(torch.randn(30, 4), torch.arange(30) % 3), batch_size=10)
    names = {"train_loader": loader, "test_loader": loader, "model": Model()}
    for kind, block in BLOCKS:
        if kind == "python":
            exec(block, names)
    direct, streamed = (float(line) for line in capsys.readouterr().out.split()[:2])
    assert direct == pytest.approx(streamed, rel=1e-12)
    assert names["callback"].geometry["train"]["mean"].shape == (3, 8)


def test_the_two_first_commands_are_what_ci_runs():
    ci = (ROOT / ".ci/run").read_text()
    for command in re.findall(r"^    pip install -q uv && (.*)$", README, flags=re.M):
        assert command in ci
