"""Every command and every piece of code in README.md runs as printed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.S)
LINES = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line.strip()]
COMMANDS = [shlex.split(line, comments=True) for line in LINES]
RUNS = [command for command in COMMANDS if command[:2] == ["python", "run.py"]]
# enough to see that a command is valid, in seconds
SMALL = ["trainer.max_epochs=1", "dataset.samples_per_class=4", "model.width=4", "figures=false", "logger=csv"]


def execute(command, folder, *more):
    script = str(ROOT / command[1]) if command[1].endswith(".py") else command[1]
    return subprocess.run([sys.executable, script, *command[2:], *more], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("command", RUNS, ids=" ".join)
def test_commands_are_valid(command, tmp_path):
    given = {part.split("=")[0] for part in command}
    result = execute(command, tmp_path, *(o for o in SMALL if o.split("=")[0] not in given and "--help" not in command))
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNS, ids=" ".join)
def test_commands_run_as_printed(command, tmp_path):
    result = execute(command, tmp_path)
    assert result.returncode == 0, result.stderr


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
