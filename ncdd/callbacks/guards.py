"""Guards of a run: a finite loss, checkpoints that are whole, random numbers that do not depend on the past."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ncdd.data.seeding import fold_in
from ncdd.runfolder import replacing


class FiniteLoss(pl.Callback):
    """Stop at a loss that is NaN or infinite, before a checkpoint is overwritten with what it led to.

    The first bad step is remembered on the device and asked for every `check_every` steps, so that a GPU is not made
    to wait for it each step.
    """

    def __init__(self, *, check_every: int) -> None:
        self.check_every = check_every
        self._first_bad: torch.Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if loss is None:
            return
        step = torch.full((), trainer.global_step, device=loss.device)
        first = torch.full_like(step, -1) if self._first_bad is None else self._first_bad
        self._first_bad = torch.where((first < 0) & ~torch.isfinite(loss.detach()), step, first)
        if trainer.global_step % self.check_every == 0:
            self._raise_if_bad(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._raise_if_bad(trainer)
        # the last step's loss was finite, but what it made of the weights shows only in the next
        if not torch.stack([p.detach().isfinite().all() for p in pl_module.parameters()]).all():
            self._first_bad = torch.tensor(trainer.global_step)
            self._raise_if_bad(trainer)

    def _raise_if_bad(self, trainer: pl.Trainer) -> None:
        bad = -1 if self._first_bad is None else int(self._first_bad)
        if bad >= 0:
            module = trainer.lightning_module
            clip = ", or clip gradients by trainer.gradient_clip_val" if module.automatic_optimization else ""
            raise FloatingPointError(
                f"the loss is not finite since step {bad} (epoch {trainer.current_epoch + 1}): lower optimizer.lr"
                f"{clip}; the checkpoints before it are kept"
            )


class StepSeed(pl.Callback):
    """Seed torch from (seed, epoch, step) before each step, so that dropout and the like resume exactly.

    A distillation is one long epoch: how often its set is evaluated must not change it.
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        place = (trainer.current_epoch, batch_idx) if pl_module.automatic_optimization else (0, trainer.global_step)
        torch.manual_seed(fold_in(self.seed, *place, trainer.global_rank))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there at all, and that are read without unpickling code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        try:
            with replacing(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            raise OSError(f"checkpoint {path} could not be written, the one before it is kept: {error}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # torch raises whatever its reader stumbled over
            reason = str(error).splitlines()[0]
            raise ValueError(f"checkpoint {path} is damaged or not a checkpoint ({reason}); remove it") from error
