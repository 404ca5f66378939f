"""`method=label_solve`: labels of real images, from which kernel ridge regression fits all real ones best."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ncdd.data.draws import Sampling
from ncdd.distill import SyntheticSet
from ncdd.distill.regression import centred, krr_accuracy
from ncdd.kernels import kip_loss, label_solve, named
from ncdd.methods.distill import Batch, Distillation, NewNetwork
from ncdd.methods.optim import Optimizer, Scheduler


class LabelSolve(Distillation):
    """Label Solve (Nguyen, Chen & Lee 2021, arXiv 2011.00050): the closed form, from the whole train split in float64.

    The images stay what they are, and one iteration is all. It counts as a step of the optimizer, which has nothing to
    do.

    kernel: a name of `ncdd.kernels.named`.  reg: the ridge is reg / n, for the labels and for what is predicted from
    them.  memory: bytes for the kernel's intermediate values.  Other arguments: `Distillation`.
    """

    def __init__(
        self,
        *,
        new_network: NewNetwork,
        optimizer: Optimizer,
        scheduler: Scheduler,
        images_per_class: int,
        init: str,
        kernel: str,
        reg: float,
        memory: int,
    ) -> None:
        if not reg >= 0:
            raise ValueError(f"method.reg={reg}: a number >= 0 is needed")
        super().__init__(
            new_network=new_network,
            optimizer=optimizer,
            scheduler=scheduler,
            images_per_class=images_per_class,
            init=init,
            learn_labels=True,
            sampling=Sampling(per_class=100),  # for the loss that is shown
        )
        self.kernel, self.reg = named(kernel, memory=memory), reg

    def first_labels(self, classes: Tensor) -> Tensor:
        return centred(classes, self.num_classes, torch.float32)

    @torch.no_grad()
    def outer_step(self, batch: Batch) -> Tensor:
        real = self.data.measure_dataloaders()["train"]
        targets = ((x, centred(y, self.num_classes, torch.float64)) for x, y in real)
        self.labels.copy_(label_solve(self.kernel, self.images, targets, reg=self.reg))
        x, y = batch
        support, labels = self.images.double(), self.labels.double()
        targets_y = centred(y, self.num_classes, torch.float64)
        return kip_loss(self.kernel, support, labels, x.double(), targets_y, reg=self.ridge, relative=False)[0]

    @property
    def ridge(self) -> float:
        return self.reg / len(self.labels)

    def measure(self, synthetic: SyntheticSet, loader: Iterable[Batch]) -> dict[str, float]:
        """Accuracy of kernel ridge regression from the set."""
        found = krr_accuracy(self.kernel, synthetic, loader, reg=self.ridge, relative=False, device=self.images.device)
        return {"krr_accuracy": found}
