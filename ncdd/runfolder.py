"""The folder of a run: claimed by one process, never half-written, and marked DONE or FAILED at its end.

config.yaml  what was asked for, resolved        checkpoints/last.ckpt, best.ckpt
run.log      every log line, and the traceback   metrics.csv, summary.json, collapse.npz, figures/
"""

import contextlib
import fcntl
import json
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import yaml

LAST = Path("checkpoints") / "last.ckpt"
SET = "distilled.safetensors"  # of a distillation
# What may differ between a run and its resumption: it changes no number.
UNCOMPARED = ("resume", "figures", "study", "logger", "dataset.root", "dataset.download")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed onto it when the block ends well and removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@dataclass(frozen=True)
class RunFolder:
    """A folder that this process holds the lock of; `checkpoint` is where to go on from, None to start.

    resume: whether what a stopped run has left in it counts.
    """

    path: Path
    checkpoint: Path | None
    lock: IO[str]
    resume: bool

    def done(self) -> None:
        """Mark the run as finished: a sweep that is run again will skip it."""
        write_text(self.path / "DONE", datetime.now().isoformat(timespec="seconds") + "\n")

    def failed(self, error: BaseException) -> None:
        """Mark the run as failed: one line that says why, then the traceback."""
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        write_text(self.path / "FAILED", "\n".join([reason, "", *traceback.format_exception(error)]))


class AlreadyRunningError(RuntimeError):
    """Another process holds the folder."""


def open_run(path: Path, config: Mapping[str, Any], *, resume: bool) -> RunFolder | None:
    """Claim `path` for the run of `config`; None when that very run is DONE already.

    resume: go on from the last checkpoint, if there is one.
    Raises ValueError where the folder belongs to a run of another config, and AlreadyRunningError where it is in use.
    """
    path.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as on_failure:
        lock = on_failure.enter_context(_lock(path / ".lock"))
        if (path / "config.yaml").exists():
            _same_config(path, config)
            if (path / "DONE").exists():
                return None
        else:
            write_text(path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
        for left_over in [path / "FAILED", *path.rglob(".*.tmp")]:  # of an attempt that failed or was killed
            left_over.unlink(missing_ok=True)
        on_failure.pop_all()
    checkpoint = path / LAST
    return RunFolder(path, checkpoint if resume and checkpoint.exists() else None, lock, resume)


def unfinished(folders: Iterable[Path], config: Mapping[str, Any]) -> Path | None:
    """The newest of these runs that was begun with `config`, is not DONE and can go on.

    Training goes on from a checkpoint, a task from what it has left in its folder.
    """
    configs = [path for folder in folders if (path := folder / "config.yaml").exists()]
    for path in sorted(configs, key=lambda p: p.stat().st_mtime, reverse=True):
        folder = path.parent
        with contextlib.suppress(OSError, yaml.YAMLError):  # another run's damage is not this one's
            goes_on = config.get("task") or (folder / LAST).exists()
            if goes_on and not (folder / "DONE").exists() and not _differences(folder, config):
                return folder
    return None


def _lock(path: Path) -> IO[str]:
    # flock ends with the process, however it ends, so a killed run leaves nothing to clean up
    handle = path.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise AlreadyRunningError(f"{path.parent} is in use by another process") from None
    return handle


def _same_config(path: Path, config: Mapping[str, Any]) -> None:
    different = _differences(path, config)
    if different:
        raise ValueError(
            f"{path} holds a run of another config ({'; '.join(different[:3])}): "
            "choose another name=..., or remove that folder"
        )


def _differences(path: Path, config: Mapping[str, Any]) -> list[str]:
    stored = flat(yaml.safe_load((path / "config.yaml").read_text()) or {})
    wanted = flat(config)
    return [
        f"{key}: {stored.get(key)} there, {wanted.get(key)} now"
        for key in sorted(stored.keys() | wanted.keys())
        if not key.startswith(UNCOMPARED) and stored.get(key) != wanted.get(key)
    ]


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if isinstance(node, Mapping) and node:
        return {k: v for key, child in node.items() for k, v in flat(child, f"{path}.{key}" if path else key).items()}
    return {path: node}
