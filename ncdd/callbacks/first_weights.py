"""What a training begins with, as a checkpoint."""

from pathlib import Path

import pytorch_lightning as pl
import torch

from ncdd.runfolder import replacing


class FirstWeights(pl.Callback):
    """Save the weights before the first step, as those after zero epochs, in the run's checkpoints/start.ckpt."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "start.ckpt") as temporary:
            torch.save({"state_dict": pl_module.state_dict(), "epoch": 0, "global_step": 0}, temporary)
