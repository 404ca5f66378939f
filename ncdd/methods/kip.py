"""`method=kip`: images from which kernel ridge regression learns as from all real ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from ncdd.data.draws import Sampling
from ncdd.data.seeding import fold_in
from ncdd.distill import SyntheticSet
from ncdd.distill.augment import DiffAugment
from ncdd.distill.regression import centred, krr_accuracy
from ncdd.kernels import kip_loss, named
from ncdd.methods.distill import Batch, Distillation, NewNetwork
from ncdd.methods.optim import Optimizer, Scheduler

CORRUPTION = 210  # stream of random numbers
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


class KIP(Distillation):
    """Kernel inducing points (Nguyen, Chen & Lee 2021, arXiv 2011.00050; Nguyen et al. 2021, arXiv 2107.13034).

    The loss is ``0.5 mean((K_ts (K_ss + l I)^-1 y_s - y_t)^2)`` over real targets t and classes; labels are one-hot -
    1/K.

    kernel:     a name of `ncdd.kernels.named`.  reg: ``l = reg tr(K_ss) / n``.
    targets_per_class: real images of each class in a step, drawn anew; all of a class that has fewer.
    precision:  of images, labels and kernels; what is solved is solved in float64.
    augment:    of the targets.
    corruption: this fraction of the numbers of each image is noise, N(0, 1), from first to last.
    memory:     bytes for the kernel's intermediate values, and so how many targets are taken at one time.
    Other arguments: `Distillation`.
    """

    noise: Tensor
    corrupt: Tensor

    def __init__(
        self,
        *,
        new_network: NewNetwork,
        optimizer: Optimizer,
        scheduler: Scheduler,
        images_per_class: int,
        init: str,
        learn_labels: bool,
        kernel: str,
        reg: float,
        targets_per_class: int,
        precision: Literal["float32", "float64"],
        augment: DiffAugment,
        corruption: float,
        memory: int,
    ) -> None:
        if not 0 <= corruption < 1:
            raise ValueError(f"method.corruption={corruption}: a fraction in [0, 1), 0 for none, is needed")
        if not reg >= 0:
            raise ValueError(f"method.reg={reg}: a number >= 0 is needed")
        if precision not in PRECISIONS:
            raise ValueError(f"method.precision={precision!r}: choose from {', '.join(PRECISIONS)}")
        super().__init__(
            new_network=new_network,
            optimizer=optimizer,
            scheduler=scheduler,
            images_per_class=images_per_class,
            init=init,
            learn_labels=learn_labels,
            sampling=Sampling(per_class=targets_per_class),
        )
        self.kernel, self.reg = named(kernel, memory=memory), reg
        self.augment, self.corruption = augment, corruption
        self.working = PRECISIONS[precision]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        images = self.images.detach().to(self.working)
        if self.corruption:
            generator = torch.Generator().manual_seed(fold_in(self.data.seed, CORRUPTION))
            noise, corrupt = corruption_of(images, self.corruption, generator)
            self.register_buffer("noise", noise)
            self.register_buffer("corrupt", corrupt)
            images = torch.where(corrupt, noise, images)
        self.images = nn.Parameter(images)

    def first_labels(self, classes: Tensor) -> Tensor:
        return centred(classes, self.num_classes, self.working) if self.learn_labels else classes

    def outer_step(self, batch: Batch) -> Tensor:
        x, y = batch
        targets = self.augment(x, self.generator()).to(self.working)
        y_s, y_t = (centred(labels, self.num_classes, self.working) for labels in (self.labels, y))
        loss, _ = kip_loss(self.kernel, self.images, y_s, targets, y_t, reg=self.reg)
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def after_update(self, batch: Batch) -> None:
        if self.corruption:
            self.images.copy_(torch.where(self.corrupt, self.noise, self.images))

    def measure(self, synthetic: SyntheticSet, loader: Iterable[Batch]) -> dict[str, float]:
        """Accuracy of kernel ridge regression from the set."""
        found = krr_accuracy(self.kernel, synthetic, loader, reg=self.reg, device=self.images.device)
        return {"krr_accuracy": found}


def corruption_of(images: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Standard normal noise like the images (N, C, H, W), and bool, where it is: as many places, at random, in each."""
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    rank = torch.rand(images.flatten(1).shape, generator=generator).argsort(1).argsort(1)
    return noise, (rank < round(fraction * rank.shape[1])).view(images.shape)
