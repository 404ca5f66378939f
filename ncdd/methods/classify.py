"""`method=classify`: standard training of a network and its head, with the decays of Papyan 2020 and Zhu 2021."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from ncdd.methods.losses import accuracy, feature_penalty
from ncdd.methods.optim import Optimizer, Scheduler, configure, parameter_groups

Loss = Callable[..., Tensor]
Batch = tuple[Tensor, Tensor]


class Classify(pl.LightningModule):
    """Minimise `loss + feature_decay * 1/2 sum_i ||h_i||^2` by one optimizer, with weight decay by group.

    model: body with `forward_features(x)` (B, D).  head: last linear layer with `weight` (K, D).
    loss: function of `ncdd.methods.losses`.  optimizer, scheduler: factories (`_partial_` in the YAML).
    body_decay, norm_decay, head_decay: weight decay of the three groups of `parameter_groups`; None takes the
        optimizer's. Zhu et al. 2021's separate decay is body 0, norm 0, head 5e-4, feature_decay 1e-5.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        head: nn.Linear,
        loss: Loss,
        optimizer: Optimizer,
        scheduler: Scheduler,
        feature_decay: float,
        body_decay: float | None,
        norm_decay: float | None,
        head_decay: float | None,
    ) -> None:
        super().__init__()
        self.model, self.head, self.loss = model, head, loss
        self.optimizer, self.scheduler = optimizer, scheduler
        self.feature_decay = feature_decay
        self.decays = {"body_decay": body_decay, "norm_decay": norm_decay, "head_decay": head_decay}

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D): what the head sees."""
        return self.model.forward_features(x)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def objective(self, logits: Tensor, features: Tensor, targets: Tensor) -> Tensor:
        """The loss without its decays; the Neural Collapse callback reports it on every split."""
        return self.loss(logits=logits, features=features, weight=self.head.weight, targets=targets)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, targets = batch
        return self.training_loss(self.features(x), targets)

    def training_loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """What is minimised: the objective of a batch, and the feature decay."""
        loss = self.objective(self.head(features), features, targets)
        self.log("train/batch_loss", loss, prog_bar=True)
        if not self.feature_decay:
            return loss
        # a sum over the global batch; DDP averages gradients over the ranks
        return loss + self.trainer.world_size * self.feature_decay * feature_penalty(features)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        x, targets = batch
        features = self.features(x)
        logits = self.head(features)
        values = {"val/loss": self.objective(logits, features, targets), "val/accuracy": accuracy(logits, targets)}
        self.log_dict(values, prog_bar=True, batch_size=len(x), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return configure(parameter_groups(self.model, self.head, **self.decays), self.optimizer, self.scheduler)
