"""A sweep that is killed with -9 again and again, and started again, ends as if nothing had happened.

The long form, 100 jobs: pytest -m slow -n 0 tests/run/test_sweep_kill.py
"""

import csv
import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.run.conftest import ROOT, TINY

HUNDRED = ["seed=range(25)", "model.width=8,16", "optimizer.lr=0.1,0.05"]
JOBLIB = ["launcher=joblib", "hydra.launcher.n_jobs=2"]


def workers_of(pid: int) -> list[int]:
    """The processes that joblib runs jobs in."""
    with suppress(FileNotFoundError):
        children = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [p for p in children if b"popen_loky" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return []


def runs(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def under_way(folder: Path, since: float) -> bool:
    """Whether a job has said something since then (seconds of the clock) and is not done."""
    logs = (log for log in folder.glob("*/run.log") if not log.with_name("DONE").exists())
    return any(log.stat().st_mtime > since for log in logs)


def kill_at_random(sweep: subprocess.Popen, folder: Path, chance: random.Random) -> bool:
    """Kill -9 a worker, or the sweep, or everything, at some moment while a job runs; False if it ended before."""
    began = time.time()
    while not under_way(folder, began):
        if sweep.poll() is not None:
            return False
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 5))
    workers = workers_of(sweep.pid)
    victims = chance.choice([[sweep.pid], [sweep.pid, *workers], [chance.choice(workers or [sweep.pid])]])
    if sweep.poll() is not None:
        return False
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    sweep.wait()
    for _ in range(600):
        if not any(runs(pid) for pid in workers):
            return True
        time.sleep(0.1)
    raise AssertionError("workers outlive their sweep")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("axes", "jobs", "kills", "launcher"),
    [
        pytest.param(["seed=0,1,2,3", "optimizer.lr=0.1,0.05"], 8, 2, JOBLIB, id="8-joblib"),
        pytest.param(HUNDRED, 100, 10, JOBLIB, id="100-joblib", marks=pytest.mark.slow),
        pytest.param(HUNDRED, 100, 10, [], id="100-basic", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_lost_or_doubled(command, tmp_path, axes, jobs, kills, launcher):
    tiny = [o for o in TINY if not o.startswith("trainer")] + ["trainer.max_epochs=4", "callbacks.collapse.vci=false"]
    sweep = [sys.executable, str(ROOT / "run.py"), "-m", *tiny, *axes, *launcher, "name=killed"]
    chance, killed, starts = random.Random(20240611), 0, 0
    folder = tmp_path / "multirun/killed"
    with (tmp_path / "output").open("w") as output:
        while True:
            starts += 1
            assert starts < 10 * (kills + 1), (tmp_path / "output").read_text()[-3000:]
            with subprocess.Popen(sweep, cwd=tmp_path, stdout=output, stderr=output) as process:
                if killed < kills:
                    killed += kill_at_random(process, folder, chance)
            if process.returncode == 0:
                break
    assert killed == kills

    assert command("-m", *tiny, *axes, "name=whole")[0] == 0
    whole = sorted(path.parent for path in (tmp_path / "multirun/whole").glob("*/DONE"))
    assert len(whole) == jobs
    for expected in whole:
        job = folder / expected.name
        assert (job / "DONE").exists() and not (job / "FAILED").exists()
        assert (job / "metrics.csv").read_text() == (expected / "metrics.csv").read_text()
        with (job / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (folder / "sweep.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert sorted(line["folder"] for line in lines) == [job.name for job in whole]
    assert {line["status"] for line in lines} == {"done"}
    left = {path.name for path in folder.iterdir()} - {job.name for job in whole}
    assert left == {"sweep.csv", "multirun.yaml"}
    assert not [*folder.rglob("*.tmp")]
