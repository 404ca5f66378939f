"""metrics.csv, always written; and, at the end, summary.json and the figures."""

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from ncdd.callbacks.collapse import NeuralCollapseCallback
from ncdd.callbacks.distilled import DistilledSet
from ncdd.callbacks.wandb import WandbLogger
from ncdd.report.figures import draw
from ncdd.report.folder import read_metrics
from ncdd.runfolder import write_json, write_text


class CSVLogger(Logger):
    """One row a call of `log_metrics`, blank where not logged; `epoch` counts epochs from 1, 0 being before training.

    Lightning's own rewrites the file each time and starts anew when a run is resumed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.columns: list[str] = ["epoch", "step"]

    # Lightning puts checkpoints into save_dir/name/version/checkpoints of the first logger
    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        return None

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass  # config.yaml has them

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics, "epoch": int(metrics.get("epoch", -1)) + 1}
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        if new or len(self.rows) == 1:
            self.columns += new
            write_text(self.path, self._text(self.rows, header=True))
        else:
            with self.path.open("a") as file:
                file.write(self._text([row], header=False))

    def rewind(self, rows: int) -> None:
        """Take up the first `rows` rows of the file, dropping what came after the checkpoint that is resumed."""
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            self.columns = list(reader.fieldnames or self.columns)
            found = [{k: v for k, v in row.items() if v} for row in reader]
        # Lightning logs the means of an epoch after the checkpoint of its end, at a step before it
        last = found[rows - 1] if rows else {}
        late = [r for r in found[rows:] if r["epoch"] == last.get("epoch") and int(r["step"]) < int(last["step"])]
        self.rows = found[:rows] + late
        write_text(self.path, self._text(self.rows, header=True))

    def _text(self, rows: list[dict[str, Any]], *, header: bool) -> str:
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()


class Record(pl.Callback):
    """Keeps metrics.csv in step with the checkpoints, and closes a run's folder with its summary and its figures.

    facts: what summary.json holds besides the numbers (name, overrides, seed).  figures: whether to draw them.
    """

    def __init__(self, folder: Path, *, facts: Mapping[str, Any], figures: bool) -> None:
        self.folder, self.facts, self.figures = folder, facts, figures
        self.logger = CSVLogger(folder / "metrics.csv")
        self._began = time.monotonic()
        self._seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its resumptions."""
        return self._seconds_before + time.monotonic() - self._began

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, DistilledSet):
                callback.figures = self.figures

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self.logger.rows), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = state_dict["seconds"]
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self.logger.rewind(state_dict["rows"])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.close(trainer, pl_module)

    @rank_zero_only
    def close(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, epochs: int | None = None, steps: int | None = None
    ) -> None:
        """Write collapse.npz, summary.json and the figures; also for a run that was stopped when only these lacked.

        epochs, steps: of training behind the weights, where the Trainer did not do it.
        """
        epochs = trainer.current_epoch if epochs is None else epochs
        steps = trainer.global_step if steps is None else steps
        of_set: dict[str, Any] = {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, DistilledSet):
                of_set = callback.finish(trainer, pl_module)
            if isinstance(callback, NeuralCollapseCallback):
                if not callback.geometry:
                    callback.measure(trainer, pl_module)
                if trainer.datamodule is not None:  # type: ignore[attr-defined]
                    names = trainer.datamodule.class_names  # type: ignore[attr-defined]
                    callback.geometry[""]["class_names"] = names
                callback.save_geometry(self.folder / "collapse.npz")
        write_json(self.folder / "summary.json", self._summary(pl_module, epochs, steps) | of_set)
        figures = draw(self.folder) if self.figures else []
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_figures(figures, epoch=epochs)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # in a forked process nobody else closes it, and an unclosed run is empty
        if trainer.world_size > 1 and trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.close()

    def _summary(self, pl_module: pl.LightningModule, epochs: int, steps: int) -> dict[str, Any]:
        curves = read_metrics(self.folder)
        measured = {k: v for k, v in curves.items() if k.split("/")[0] not in ("lr", "epoch", "step")}
        best = None
        if "val/accuracy" in curves:
            at, accuracy = curves["val/accuracy"]
            best = {"epoch": int(at[accuracy.argmax()]), "val/accuracy": float(accuracy.max())}
        parameters = list(pl_module.parameters())
        return {
            "status": "done",
            **self.facts,
            "epochs": epochs,
            "steps": steps,
            "seconds": round(self.seconds, 3),
            "hardware": torch.cuda.get_device_name() if pl_module.device.type == "cuda" else "cpu",
            "parameters": {
                "total": sum(p.numel() for p in parameters),
                "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            },
            "initial": {k: float(v[0]) for k, (e, v) in measured.items() if e[0] == 0},
            "final": {k: float(v[-1]) for k, (_, v) in measured.items()},
            "best": best,
        }
