"""Sweeps by other launchers give the numbers of the basic one, and a scheduler's signals end a job without a loss."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from ncdd.runfolder import open_run
from tests.run.conftest import TINY, only_run
from tests.run.test_resume import LONG, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and writes scripts for bash")

# What submitit asks of Slurm, played on this machine: an array's tasks all at once, each again when requeued.
SLURM = {
    "sbatch": """
        cp "$1" "$STATE/script"
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
        for task in $(seq 0 "$last"); do task "$task" > /dev/null 2>&1 & done
        echo Submitted batch job 7""",
    "task": """
        export SLURM_JOB_ID=$((100 + $1)) SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$1 SLURM_JOB_NAME=run
        export SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1 SLURM_CPUS_PER_TASK=1
        bash "$STATE/script"
        while rm "$STATE/requeue 7_$1"; do bash "$STATE/script"; done""",
    "srun": """
        while [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] || shift; shift; done
        echo $$ > "$STATE/pid $SLURM_ARRAY_TASK_ID"
        exec "$@" >> "$STATE/log $SLURM_ARRAY_TASK_ID" 2>&1""",
    "scontrol": """touch "$STATE/$1 $2" """,
    "sacct": "echo 'JobID|State'; echo '7|RUNNING'",
}


@pytest.fixture
def slurm(tmp_path):
    """The environment of a login node."""
    for name, script in SLURM.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    return {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "STATE": str(tmp_path)}


def jobs_of(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in folder.glob("*/config.yaml")}


def job_process(tmp_path: Path, launcher: str) -> int:
    """The process of the first job."""
    if launcher == "slurm":
        return int((tmp_path / "pid 0").read_text())
    controller = min(int(p.name) for p in tmp_path.glob("multirun/*/.submitit/[0-9]*"))
    return int(Path(f"/proc/{controller}/task/{controller}/children").read_text().split()[0])


def pre_empt(tmp_path: Path, launcher: str, sweep: subprocess.Popen) -> None:
    """When the first job has had two epochs, what Slurm sends; SIGTERM alone must not end the job."""
    while not any("\n2," in csv.read_text() for csv in tmp_path.glob("multirun/other/*lr=0.1*/metrics.csv")):
        assert sweep.poll() is None, sweep.stdout.read()
        time.sleep(0.02)
    first = job_process(tmp_path, launcher)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        os.kill(first, number)
        time.sleep(0.1)


@pytest.mark.parametrize("launcher", ["joblib", "slurm", pytest.param("slurm_local", marks=pytest.mark.slow)])
def test_a_launcher_changes_no_number(command, process, slurm, tmp_path, launcher):
    """Nor does a job that fails beside, nor that Slurm pre-empts a job: it is queued again, and goes on."""
    sweep = ["-m", *TINY, "trainer.max_epochs=20", "dataset.samples_per_class=100", "optimizer.lr=0.1,1e30"]
    assert command(*sweep, "name=basic")[0] == 1
    environment = slurm | {"WANDB_MODE": "offline"}
    run = process(*sweep, "logger=wandb", "name=other", f"launcher={launcher}", environment=environment)
    if launcher != "joblib":
        pre_empt(tmp_path, launcher, run)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 1, output
    assert "1 of 2 jobs done" in output and "1e+30" in output.split("not done, run the same command again for:")[1]

    basic, other = jobs_of(tmp_path / "multirun/basic"), jobs_of(tmp_path / "multirun/other")
    assert basic.keys() == other.keys()
    for name, job in basic.items():
        assert (other[name] / "metrics.csv").read_text() == (job / "metrics.csv").read_text()
        assert {"DONE", "FAILED"} & {p.name for p in other[name].iterdir()} == {"FAILED" if "1e+30" in name else "DONE"}
        again = (other[name] / "run.log").read_text().count("going on from")
        assert again == (launcher != "joblib" and "1e+30" not in name)
        assert not list(other[name].glob("*.ckpt"))  # Lightning's own for Slurm, from the middle of an epoch
    with (tmp_path / "multirun/other/sweep.csv").open(newline="") as file:
        rows = {row["optimizer.lr"]: row for row in csv.DictReader(file)}
    assert {lr: row["status"] for lr, row in rows.items()} == {"0.1": "done", "1e+30": "failed"}
    assert "not finite" in rows["1e+30"]["error"]
    assert "launcher" not in rows["0.1"]
    assert not list((tmp_path / "multirun/other").glob(".jobs*"))
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2 + (launcher != "joblib")
    if launcher == "slurm":
        script = (tmp_path / "script").read_text()
        assert all(line in script for line in ("--array=0-1%", "--requeue", "--signal=USR2@120", "--time=240"))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_stops_a_run_that_slurm_has_started(command, process, tmp_path, number):
    """With more tasks than trainer.devices, which Lightning would refuse; and it would requeue the job by itself."""
    slurm = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "run", "SLURM_JOB_ID": "7", "SLURM_LOCALID": "0"}
    run = process(*LONG, environment=slurm | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    wait_for(tmp_path, 2, run)
    run.send_signal(number)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 128 + number, output
    assert "resume=true` goes on" in output
    folder = only_run(tmp_path)
    assert not {"DONE", "FAILED"} & {path.name for path in folder.iterdir()}
    assert not list(folder.glob("*.ckpt"))
    code, out, _ = command(*LONG, "resume=true")
    assert code == 0 and "going on from" in out
    assert command(*LONG, "hydra.run.dir=whole")[0] == 0
    assert (folder / "metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()


def test_a_signal_ends_all_processes_of_a_run(process, tmp_path):
    run = process(*LONG, "trainer=ddp", "trainer.max_epochs=1000")
    wait_for(tmp_path, 1, run)
    children = [int(p) for p in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM, output
    assert "resume=true` goes on" in output
    for _ in range(200):
        if not any(Path(f"/proc/{child}").exists() for child in children):
            break
        time.sleep(0.1)
    else:
        raise AssertionError("processes of the run go on")


def test_a_job_that_runs_elsewhere_is_named_and_left_alone(command, tmp_path):
    """As after the death of a sweep whose jobs go on in the queue; what that sweep noted is removed."""
    sweep = ["-m", *TINY, "seed=0,1", "name=both"]
    assert command(*sweep)[0] == 0
    folder = next((tmp_path / "multirun/both").glob("*seed=0*"))
    (folder / "DONE").unlink()
    dead = subprocess.Popen(["true"])
    dead.wait()
    left_over = folder.parent / f".jobs-{os.uname().nodename}-{dead.pid}"
    left_over.write_text("")

    elsewhere = open_run(folder, yaml.safe_load((folder / "config.yaml").read_text()), resume=True)
    code, out, err = command(*sweep)
    elsewhere.lock.close()
    assert code == 1
    assert "1 of 2 jobs done" in out
    assert f"{folder.name} is in use by another process" in err.split("not done, run the same command again for:")[1]
    assert not (folder / "FAILED").exists()
    assert not left_over.exists()
    assert command(*sweep)[0] == 0


@pytest.mark.parametrize(("launcher", "extra"), [("joblib", "joblib"), ("slurm", "slurm"), ("slurm_local", "slurm")])
def test_a_launcher_that_is_not_installed_names_its_extra(command, monkeypatch, launcher, extra):
    Plugins.instance()  # fills the store
    known = ConfigStore.instance().repo["hydra"]["launcher"]
    for name in ("joblib", "submitit_slurm", "submitit_local"):
        monkeypatch.delitem(known, f"{name}.yaml")
    code, _, err = command("-m", *TINY, "seed=0,1", f"launcher={launcher}")
    assert code == 1
    assert err.strip() == f"error: this launcher is not installed: uv sync --extra {extra}"
