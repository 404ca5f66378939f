"""Run the command as a user does: in a folder of its own, in this process or, where it must be killed, in another."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import run

ROOT = Path(__file__).parents[2]
# a second of training: 100 digits, a small MLP
TINY = [
    "model=mlp",
    "model.width=16",
    "model.depth=1",
    "dataset.samples_per_class=10",
    "dataset.batch_size=32",
    "trainer.max_epochs=2",
    "logger=csv",
    "figures=false",
]


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """command(*overrides) -> (exit code, stdout, stderr), in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def call(*overrides: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "run.py"), *overrides])
        capfd.readouterr()
        try:
            run.main()
            code = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def process(tmp_path):
    """process(*overrides) -> a started Popen of the same command, in tmp_path."""
    started = []

    def start(*overrides: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        environment = os.environ | {"WANDB_MODE": "disabled", "COLUMNS": "120"} | (environment or {})
        started.append(
            subprocess.Popen(
                [sys.executable, str(ROOT / "run.py"), *overrides],
                cwd=tmp_path,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                # a suite that was started in the background ignores Ctrl-C, and so would its children
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        )
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()
        one.stdout.close()


def only_run(folder: Path) -> Path:
    (found,) = (folder / "runs").iterdir()
    return found
