"""Two processes measure what one does, and a W&B run is neither empty nor shared."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run.conftest import TINY


def measured(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


@pytest.mark.parametrize("budget", [2**31, 0])
def test_two_processes_give_the_metrics_of_one(process, tmp_path, budget):
    """Of 110 training and 360 test images; before training, as gradients are summed in another order."""
    same = [*TINY, "dataset.samples_per_class=11", "trainer.max_epochs=1", f"callbacks.collapse.memory_budget={budget}"]
    runs = [process(*same, f"trainer={t}", f"hydra.run.dir={t}") for t in ("cpu", "ddp")]
    for run in runs:
        output, _ = run.communicate(timeout=120)
        assert run.returncode == 0, output
    one, two = (measured(tmp_path / t) for t in ("cpu", "ddp"))
    assert [len(one), len(two)] == [len(one)] * 2
    assert one[0].keys() == two[0].keys()
    for name, value in one[0].items():
        assert two[0][name] == pytest.approx(value, rel=1e-6 if "loss" in name else 1e-10, abs=1e-12), name


def test_wandb_offline_is_one_run_a_job_and_says_how_to_look(command, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc
    online = [o for o in TINY if not o.startswith("logger")]
    code, out, err = command("-m", *online, "seed=0,1", "name=both", "figures=true")
    assert code == 0, err
    assert out.count("W&B is offline: look at it with `wandb leet") == 2
    offline = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(offline) == 2
    for folder, seed in zip(offline, "01", strict=True):
        inspected = subprocess.run(
            [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(folder)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "train/nc1_pinv" in inspected
        assert "figures/collapse" in inspected
        header = next(json.loads(line) for line in inspected.splitlines() if '"type":"run"' in line)
        assert header["run"]["config"]["update"]["seed"] == int(seed)
        assert '"step_metric":"epoch"' in inspected or "step_metric" in inspected
