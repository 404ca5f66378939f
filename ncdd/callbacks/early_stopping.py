"""Experimental: stop training when Neural Collapse has come to rest."""

import logging
import math
from typing import Any, Literal

import pytorch_lightning as pl

from ncdd.callbacks.collapse import NeuralCollapseCallback

log = logging.getLogger(__name__)


class CollapseStopping(pl.Callback):
    """Stop once `monitor` has not improved on its best by the fraction `min_delta` for `patience` measurements.

    Experimental: there is no published rule. Papyan et al. 2020 find that training beyond zero error goes on to help;
    this stops where collapse, rather than the loss, no longer moves.

    monitor: a key of `NeuralCollapseCallback`, which must stand before this one, as SPLIT/METRIC.
    min_delta: relative, as these metrics fall over decades; a value is better when it beats the best by
        `min_delta * |best|`.
    mode: whether smaller ("min") or larger ("max") is better.
    accuracy: nothing is counted until train/accuracy has once reached it: NC1 may rest for long before that.

    Lightning's EarlyStopping has an absolute min_delta, no such threshold, and would count a value again in every
    epoch without a measurement. The state is in the checkpoint, so that a resumed run stops at the same epoch.
    """

    def __init__(
        self, *, monitor: str, min_delta: float, patience: int, mode: Literal["min", "max"], accuracy: float
    ) -> None:
        if patience < 1:
            raise ValueError(f"patience={patience}: must be at least 1")
        if not 0 <= min_delta < 1:
            raise ValueError(f"min_delta={min_delta}: a fraction in [0, 1) is needed")
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode!r}: choose from min, max")
        self.monitor, self.min_delta, self.patience = monitor, min_delta, patience
        self.mode, self.accuracy = mode, accuracy
        self.best: float | None = None
        self.waited = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.waited >= self.patience:  # resumed from the checkpoint of the epoch that it stopped after
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not _measured(trainer):
            return
        values = trainer.callback_metrics
        if self.monitor not in values:
            raise ValueError(f"monitor={self.monitor!r} is not measured: choose from {', '.join(sorted(values))}")
        if self.best is None and float(values["train/accuracy"]) < self.accuracy:
            return
        value = float(values[self.monitor])
        if math.isfinite(value) and (self.best is None or self._better(value, self.best)):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.should_stop = True
            log.info(
                "stopping after epoch %d: %s=%.3e, best %s; not improved by %g in %d measurements",
                *(trainer.current_epoch + 1, self.monitor, value, self.best, self.min_delta, self.patience),
            )

    def _better(self, value: float, best: float) -> bool:
        gain = best - value if self.mode == "min" else value - best
        return gain > self.min_delta * abs(best)


def _measured(trainer: pl.Trainer) -> bool:
    """Whether this epoch ended with a measurement; between two, `callback_metrics` holds the one before."""
    measuring = [c for c in trainer.callbacks if isinstance(c, NeuralCollapseCallback)]  # type: ignore[attr-defined]
    if not measuring:
        raise ValueError("callbacks: CollapseStopping needs a NeuralCollapseCallback before it")
    epochs = trainer.current_epoch + 1
    return epochs % measuring[0].every_n_epochs == 0
