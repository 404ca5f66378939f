"""Every head trains by one word, resumes exactly, and is the same in two processes."""

import csv

import pytest
import torch

from tests.run.conftest import TINY, only_run
from tests.run.test_resume import wait_for

HEADS = ["guided", "orthogonal"]


@pytest.mark.parametrize("head", HEADS)
def test_killed_and_resumed_is_as_if_nothing_had_happened(command, process, tmp_path, head):
    options = [*TINY, f"head={head}", "trainer.max_epochs=6", "dataset.samples_per_class=40"]
    assert command(*options, "hydra.run.dir=whole")[0] == 0
    first = process(*options)
    wait_for(tmp_path, 2, first)
    first.kill()
    first.communicate()
    assert command(*options, "resume=true")[0] == 0
    folder = only_run(tmp_path)
    assert (folder / "metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_a_long_tail(command, tmp_path, head):
    code, _, err = command(*TINY, f"head={head}", "dataset.samples_per_class=50", "dataset.imbalance=10")
    assert code == 0, err
    with (only_run(tmp_path) / "metrics.csv").open(newline="") as file:
        measured = [row for row in csv.DictReader(file) if row["train/accuracy"]]
    assert float(measured[-1]["train/accuracy"]) > float(measured[0]["train/accuracy"])


def test_the_guided_frame_is_of_the_means_of_all_processes(process, tmp_path):
    """With one batch an epoch for both processes together, the first step sees the means of all 64 images."""
    options = [*TINY, "head=guided", "trainer.max_epochs=1", "dataset.batch_size=100", "model.norm=none"]
    heads = []
    for trainer in ("cpu", "ddp"):
        run = process(*options, f"trainer={trainer}", f"hydra.run.dir={trainer}")
        output, _ = run.communicate(timeout=120)
        assert run.returncode == 0, output
        state = torch.load(tmp_path / trainer / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        heads.append({name: value.double() for name, value in state.items() if name.startswith("head.")})
    for name, value in heads[0].items():
        torch.testing.assert_close(heads[1][name], value, rtol=0, atol=1e-5, msg=name)
