"""The unconstrained-features model against its theory: how far a run still is from the global minimum."""

from typing import Any

import pytorch_lightning as pl
import torch

from ncdd.collapse.unconstrained import Minimiser, Problem, global_minimiser, minimiser_errors


class UnconstrainedTheory(pl.Callback):
    """Logs `theory/...` (`ncdd.collapse.unconstrained.minimiser_errors`) before training, every `every_n_epochs` and
    after the last epoch.

    loss: dotted name of the loss, cross_entropy or mse.  head_decay, feature_decay: those of the method.
    With full batches and no other decay, the run minimises exactly what the theory is of.
    """

    def __init__(self, *, loss: str, head_decay: float, feature_decay: float, every_n_epochs: int) -> None:
        self.loss: Any = loss.rpartition(".")[2]
        self.head_decay, self.feature_decay = head_decay, feature_decay
        self.every_n_epochs = every_n_epochs
        self._theory: tuple[Problem, Minimiser] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises ValueError where the theory does not hold: a fixed head, too small a dimension, batches of a part."""
        head: Any = pl_module.head
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        count = data.counts.cpu()
        if not head.weight.requires_grad:
            raise ValueError(f"head={type(head).__name__}: the theory is of a learned classifier, head=linear")
        smoothing = getattr(pl_module.loss, "keywords", {}).get("label_smoothing", 0)
        if smoothing:
            raise ValueError(f"loss.label_smoothing={smoothing}: the theory is of hard labels")
        if pl_module.decays["body_decay"] != 0:  # type: ignore[index]
            raise ValueError(
                f"method.body_decay={pl_module.decays['body_decay']}: it would decay the features beside "  # type: ignore[index]
                "method.feature_decay; set 0"
            )
        if data.batch_size < int(count.sum()):
            raise ValueError(
                f"dataset.batch_size={data.batch_size}: all {int(count.sum())} samples belong in one batch"
            )
        problem = Problem(count, self.loss, self.head_decay, self.feature_decay, bias=head.bias is not None)
        minimiser = global_minimiser(problem)
        if head.in_features < minimiser.rank:
            raise ValueError(f"model.feature_dim={head.in_features}: the minimum needs {minimiser.rank} or more")
        self._theory = problem, minimiser
        if trainer.global_step == 0:
            self._log(trainer, pl_module, epoch=-1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if epochs % self.every_n_epochs == 0 or epochs == trainer.max_epochs:
            self._log(trainer, pl_module, epoch=trainer.current_epoch)

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, epoch: int) -> None:
        assert self._theory is not None
        head: Any = pl_module.head
        images = trainer.datamodule.splits["train"]  # type: ignore[attr-defined]
        with torch.no_grad():
            features = pl_module.features(images.pixels.to(pl_module.device)).cpu()  # type: ignore[operator]
            weight = head.weight.cpu()
            bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.cpu()
            errors = minimiser_errors(*self._theory, weight, bias, features, images.labels.cpu())
        for logger in trainer.loggers:
            logger.log_metrics(
                {**{f"theory/{name}": value for name, value in errors.items()}, "epoch": epoch},
                step=trainer.global_step,
            )
            logger.save()
