"""The folder of a run: claimed once, never half-written, skipped when done."""

import subprocess
import sys

import pytest

from ncdd import runfolder

CONFIG = {"seed": 0, "resume": False, "model": {"width": 4}, "logger": {}}


def checkpoint(path):
    (path / runfolder.LAST).parent.mkdir()
    (path / runfolder.LAST).write_text("")


def test_replacing_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    runfolder.write_text(path, "old")
    with pytest.raises(RuntimeError), runfolder.replacing(path) as temporary:
        temporary.write_text("new, but half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_done_is_skipped_and_unfinished_goes_on(tmp_path):
    first = runfolder.open_run(tmp_path, CONFIG, resume=True)
    assert first.checkpoint is None
    checkpoint(tmp_path)
    first.lock.close()
    second = runfolder.open_run(tmp_path, CONFIG, resume=True)
    assert second.checkpoint == tmp_path / runfolder.LAST
    second.done()
    second.lock.close()
    assert runfolder.open_run(tmp_path, CONFIG, resume=True) is None


def test_another_config_is_refused_but_resume_and_logger_do_not_count(tmp_path):
    runfolder.open_run(tmp_path, CONFIG, resume=False).lock.close()
    runfolder.open_run(tmp_path, CONFIG | {"resume": True, "logger": {"a": 1}}, resume=False).lock.close()
    with pytest.raises(ValueError, match=r"another config \(model.width: 4 there, 8 now\).*choose another name="):
        runfolder.open_run(tmp_path, CONFIG | {"model": {"width": 8}}, resume=False)


def test_a_folder_in_use_is_refused_and_free_after_a_kill(tmp_path):
    code = (
        "import time; from pathlib import Path; from ncdd import runfolder;"
        f"run = runfolder.open_run(Path({str(tmp_path)!r}), {CONFIG!r}, resume=False);"
        "print('open', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline().strip() == "open"
        with pytest.raises(runfolder.AlreadyRunningError, match="in use by another process"):
            runfolder.open_run(tmp_path, CONFIG, resume=False)
        other.kill()
        other.wait()
    assert runfolder.open_run(tmp_path, CONFIG, resume=False)


def test_unfinished_finds_the_newest_of_the_same_config(tmp_path):
    for name, config in (("a", CONFIG), ("b", CONFIG), ("c", CONFIG | {"seed": 1}), ("d", CONFIG)):
        run = runfolder.open_run(tmp_path / name, config, resume=False)
        checkpoint(run.path)
    run.done()
    assert runfolder.unfinished(tmp_path.iterdir(), CONFIG) == tmp_path / "b"
    assert runfolder.unfinished(tmp_path.iterdir(), CONFIG | {"seed": 7}) is None


def test_a_task_goes_on_without_a_checkpoint(tmp_path):
    task = CONFIG | {"task": {"_target_": "ncdd.tasks.continual.continual"}}
    for name, config in (("a", task), ("b", CONFIG)):
        runfolder.open_run(tmp_path / name, config, resume=False)
    assert runfolder.unfinished(tmp_path.iterdir(), task) == tmp_path / "a"
    assert runfolder.unfinished(tmp_path.iterdir(), CONFIG) is None


def test_failed_says_why_in_its_first_line(tmp_path):
    run = runfolder.open_run(tmp_path, CONFIG, resume=False)
    try:
        raise ValueError("too few images\nsecond line")
    except ValueError as error:
        run.failed(error)
    lines = (tmp_path / "FAILED").read_text().splitlines()
    assert lines[0] == "ValueError: too few images"
    assert any("Traceback" in line for line in lines[1:])
