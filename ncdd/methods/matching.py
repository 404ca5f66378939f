"""`method=matching`: images that networks see as they see real ones; by class means of features (DM)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ncdd.data.draws import Sampling
from ncdd.distill.augment import DiffAugment
from ncdd.distill.matching import mean_distance
from ncdd.methods.distill import Batch, Distillation, NewNetwork
from ncdd.methods.optim import Optimizer, Scheduler


class Matching(Distillation):
    """Match what a fresh random network makes of real and synthetic images (DM: Zhao & Bilen 2023, arXiv 2110.04181).

    real_per_class: real images of each class in a step.  augment: one draw a class, the same for real and synthetic.
    Other arguments: `Distillation`.
    """

    def __init__(
        self,
        *,
        new_network: NewNetwork,
        optimizer: Optimizer,
        scheduler: Scheduler,
        images_per_class: int,
        init: str,
        learn_labels: bool,
        objective: Literal["dm"],
        real_per_class: int,
        augment: DiffAugment,
    ) -> None:
        super().__init__(
            new_network=new_network,
            optimizer=optimizer,
            scheduler=scheduler,
            images_per_class=images_per_class,
            init=init,
            learn_labels=learn_labels,
            sampling=Sampling(per_class=real_per_class),
        )
        self.objective, self.augment = objective, augment

    def outer_step(self, batch: Batch) -> Tensor:
        real, labels = batch
        network, generator = self.network(), self.generator()
        real, synthetic = self.augment.siamese(generator, real, self.images)
        loss = mean_distance(
            network.forward_features(real).detach(),
            labels,
            network.forward_features(synthetic),
            self.labels,
            self.num_classes,
        )
        loss.backward()
        return loss.detach()
