"""Two processes measure what one does, and a W&B run is neither empty nor shared."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ncdd.collapse import measure
from ncdd.data import ImageDataModule
from ncdd.data.sources import digits
from ncdd.models import MLP, Linear
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


def test_what_two_processes_log_last_is_what_their_checkpoint_gives(process, command, tmp_path):
    """Batch norm's statistics differ by rank after a step; threads of the parent must not hang the forked ranks."""
    same = [*TINY, "dataset.val_fraction=0", "trainer.max_epochs=2", "trainer.log_every_n_steps=1000"]
    environment = {"OMP_NUM_THREADS": "2"}
    run = process(*same, "trainer=ddp", "hydra.run.dir=ddp", environment=environment)
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 0, output
    logged = measured(tmp_path / "ddp")[-1]
    weights = torch.load(tmp_path / "ddp/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    data = ImageDataModule(source=digits, batch_size=32, measure_batch_size=512, seed=0, samples_per_class=10)
    data.setup()
    body = MLP(in_channels=1, image_size=8, width=16, depth=1, norm="batch")
    head = Linear(num_features=16, num_classes=10, bias=True)
    body.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    head.load_state_dict({k.removeprefix("head."): v for k, v in weights.items() if k.startswith("head.")})
    x, y = next(iter(data.measure_dataloaders()["test"]))
    with torch.no_grad():
        expected = measure(body.eval()(x), y, weight_KD=head.weight, bias_K=head.bias).values
    assert logged["test/nc1_pinv"] == pytest.approx(expected["nc1_pinv"], rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=2"], "set trainer.strategy=ddp_fork"),
        (["trainer=ddp", "optimizer.lr=1e30", "trainer.max_epochs=3", "loss=mse"], "not finite since step"),
    ],
)
def test_mistakes_with_several_processes_are_one_line(process, overrides, message):
    run = process(*TINY, *overrides)
    output, _ = run.communicate(timeout=120)
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert run.returncode == 1
    assert message in line


def test_lbfgs_decides_alike_in_all_processes(process):
    run = process(*TINY, "trainer=ddp", "optimizer=lbfgs", "optimizer.line_search_fn=strong_wolfe", "optimizer.lr=1")
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 0, output


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
        axes = [entry["metric"] for line in inspected.splitlines() if (entry := json.loads(line))["type"] == "metric"]
        assert {"train/nc1_pinv": "epoch"}.items() <= {a.get("name"): a.get("step_metric") for a in axes}.items()


def test_wandb_with_a_key_but_no_server_goes_on_offline(process, tmp_path):
    """In another process: W&B keeps the address of its server for as long as a process lives."""
    key = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    online = [o for o in TINY if not o.startswith("logger")]
    run = process(*online, "logger.init_timeout=3.0", environment=key)
    output, _ = run.communicate(timeout=100)
    assert run.returncode == 0, output
    assert "W&B is out of reach" in output
    assert list((tmp_path / "wandb").glob("offline-run-*"))
