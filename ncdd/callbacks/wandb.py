"""W&B that never hangs: online where there is a key and a network, else offline with a line on how to look."""

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning.loggers as pl_loggers
import wandb
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from ncdd.report.dashboard import has_key

log = logging.getLogger(__name__)

HOW_TO_LOOK = "look at it with `wandb leet {dir}`, or upload it with `wandb sync {run}`"


class WandbLogger(pl_loggers.WandbLogger):
    """Lightning's, with `epoch` as the axis of every metric, one W&B folder for all runs, and no way to hang.

    settings: flat, with dotted keys; W&B gets them nested, as its groups, columns and filters take a dotted key.
    folder: of the run; keeps its W&B id, so that a resumed run goes on in the same W&B run.
    directory: where W&B puts its files (`directory/wandb`), shared by all runs.
    online: null decides by whether there is a key; WANDB_MODE overrides.
    init_timeout: seconds to wait for the server before going on offline.
    """

    def __init__(
        self,
        *,
        folder: Path,
        name: str,
        group: str | None,
        job_type: str,
        tags: Sequence[str],
        settings: Mapping[str, Any],
        project: str,
        entity: str | None,
        directory: str,
        online: bool | None,
        init_timeout: float,
    ) -> None:
        root = Path(directory).resolve()
        root.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_DATA_DIR", str(root / "wandb"))  # tables are staged here, else in the home folder
        mode = os.environ.get("WANDB_MODE") or ("online" if (has_key() and online is None) or online else "offline")
        super().__init__(
            project=project,
            name=name,
            id=_run_id(folder),
            save_dir=str(root),
            entity=entity,
            group=group,
            job_type=job_type,
            tags=list(tags),
            config=nested(settings),
            mode=mode,
            settings=wandb.Settings(init_timeout=init_timeout, silent=True, console="off"),
        )
        self._wandb_init.pop("anonymous")  # Lightning passes it; W&B warns that it has no effect
        self._folder = folder
        self._axes: set[str] = set()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            try:
                run = super().experiment
            except (wandb.Error, OSError) as error:
                log.warning(
                    "W&B is out of reach (%s): going on offline", (str(error).splitlines() or [type(error).__name__])[0]
                )
                # W&B's service may hold the id of the run that it could not begin: take another
                wandb.teardown()
                self._wandb_init |= {"mode": "offline", "id": _new_id(self._folder)}
                run = super().experiment
            if run.settings.mode == "online":
                log.info("W&B: %s", run.url)
            elif run.settings.mode == "offline":
                where = Path(run.dir).parent
                log.info("W&B is offline: %s", HOW_TO_LOOK.format(dir=where.parent, run=where))
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # a second glob pattern would win at random, so each metric gets its axis by its exact name
        for name in metrics.keys() - self._axes - {"epoch"}:
            self.experiment.define_metric(name, step_metric="epoch")
            self._axes.add(name)
        super().log_metrics({**metrics, "epoch": metrics.get("epoch", -1) + 1}, step)

    @rank_zero_only
    def log_figures(self, paths: Sequence[Path], *, epoch: int, name: str | None = None) -> None:
        """Log picture files under figures/NAME, by default the files' own names."""
        pictures = [path for path in paths if path.suffix == ".png"]
        self.experiment.log({f"figures/{name or p.stem}": wandb.Image(str(p)) for p in pictures} | {"epoch": epoch})

    def close(self, exit_code: int = 0) -> None:
        """End the W&B run: without it, the next job of a sweep would log into this one."""
        if self._experiment is not None and wandb.run is not None:
            wandb.finish(exit_code=exit_code)
        self._experiment = None


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings: what `ncdd.runfolder.flat` has made flat."""
    root: dict[str, Any] = {}
    for key, value in settings.items():
        node = root
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return root


def _run_id(folder: Path) -> str:
    path = folder / "wandb_id"
    return path.read_text() if path.exists() else _new_id(folder)


def _new_id(folder: Path) -> str:
    fresh = secrets.token_hex(4)
    (folder / "wandb_id").write_text(fresh)
    return fresh
