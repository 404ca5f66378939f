"""`method=coreset`: real images, or means of them, in place of learned ones; the baseline of every distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from ncdd.data.draws import Sampling
from ncdd.distill.coresets import CORESETS
from ncdd.methods.distill import Batch, Distillation, NewNetwork
from ncdd.methods.optim import Optimizer, Scheduler


class Coreset(Distillation):
    """A set that is chosen from the train split and stays as it is: one step, which changes nothing.

    objective: by which rule, a name of `ncdd.distill.coresets.CORESETS`; those that compare images compare pixels.
    Other arguments: `Distillation`.
    """

    def __init__(
        self,
        *,
        new_network: NewNetwork,
        optimizer: Optimizer,
        scheduler: Scheduler,
        images_per_class: int,
        objective: str,
    ) -> None:
        if objective not in CORESETS:
            raise ValueError(f"objective={objective}: choose from {', '.join(CORESETS)}")
        super().__init__(
            new_network=new_network,
            optimizer=optimizer,
            scheduler=scheduler,
            images_per_class=images_per_class,
            init="real" if objective == "random" else objective,
            learn_labels=False,
            sampling=Sampling(batch_size=1),
        )

    def outer_step(self, batch: Batch) -> Tensor:
        return torch.zeros((), device=self.images.device)  # without gradients an optimizer changes nothing
