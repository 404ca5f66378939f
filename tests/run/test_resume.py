"""A run that is killed and resumed gives the same curve, bit for bit."""

import signal
import time

import pytest
import torch

from tests.run.conftest import TINY, only_run

LONG = [
    *TINY,
    "trainer.max_epochs=20",  # long enough to be stopped in the middle on a busy machine
    "dataset.samples_per_class=40",
    "dataset.augment.crop=1",
    "scheduler=step",
    "scheduler.step_size=2",
    "trainer.log_every_n_steps=1",
    "dataset.val_fraction=0.1",
]


def wait_for(folder, epochs: int, process) -> None:
    """Until metrics.csv has the measurement of that epoch."""
    for _ in range(6000):
        if process.poll() is not None:
            raise AssertionError(process.stdout.read())
        for path in folder.glob("runs/*/checkpoints/last.ckpt"):
            csv = (path.parents[1] / "metrics.csv").read_text()
            if any(line.startswith(f"{epochs},") for line in csv.splitlines()):
                return
        time.sleep(0.02)
    raise AssertionError("no progress in 2 minutes")


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_resumed_is_as_if_nothing_had_happened(command, process, tmp_path, blow):
    assert command(*LONG, "hydra.run.dir=whole")[0] == 0

    first = process(*LONG)
    wait_for(tmp_path, 2, first)
    first.send_signal(blow)
    output, _ = first.communicate()
    assert first.returncode != 0, output
    if blow == signal.SIGINT:
        assert "resume=true` goes on" in output
    folder = only_run(tmp_path)
    assert not (folder / "DONE").exists()

    code, out, _ = command(*LONG, "resume=true")
    assert code == 0
    assert "going on from" in out
    assert only_run(tmp_path) == folder
    assert (folder / "metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()
    for file in ("checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        ours, whole = (torch.load(f / file, weights_only=True) for f in (folder, tmp_path / "whole"))
        assert ours["epoch"] == whole["epoch"]
        for name, weight in whole["state_dict"].items():
            assert torch.equal(weight, ours["state_dict"][name]), (file, name)
