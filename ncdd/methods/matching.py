"""`method=matching`: images of which networks make what they make of real ones: features (DM), gradients (DC, DSA)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ncdd.data.draws import Sampling
from ncdd.distill.augment import DiffAugment
from ncdd.distill.matching import gradient_matching, mean_distance
from ncdd.distill.unrolled import Weights, weights_of
from ncdd.methods.distill import Batch, Distillation, NewNetwork
from ncdd.methods.mtt import MTT, Trajectory
from ncdd.methods.optim import Optimizer, Scheduler

OBJECTIVES = ("dm", "dc", "dsa", "mtt")
BATCH_NORM_IMAGES = 16  # of each class, from which frozen statistics come in the published code of DC


@dataclass(frozen=True, kw_only=True)
class Training:
    """How DC trains a network on the set between the set's updates, by plain gradient descent.

    outer_loop: updates of the set with one network, before a fresh one takes its place.
    inner_loop: epochs on the set after each of them but the last.  lr, batch_size: of these epochs.
    """

    outer_loop: int
    inner_loop: int
    lr: float
    batch_size: int

    def __post_init__(self) -> None:
        for name in ("outer_loop", "inner_loop", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"method.training.{name}={getattr(self, name)}: a number >= 1 is needed")


def matching(
    *,
    new_network: NewNetwork,
    optimizer: Optimizer,
    scheduler: Scheduler,
    images_per_class: int,
    init: str,
    learn_labels: bool,
    objective: Literal["dm", "dc", "dsa", "mtt"],
    augment: DiffAugment,
    real_per_class: int,
    training: Training,
    experts: str | None,
    trajectory: Trajectory,
    partition: int = 1,
) -> Distillation:
    """The method of that objective: `DM`, `DC` (dsa: with augmentation) or `MTT`, given what it takes of the rest.

    real_per_class, partition: of dm, dc and dsa.  training: of dc and dsa.  experts, trajectory: of mtt.
    Raises ValueError for another objective, and for labels to be learned, which none of them does.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective}: choose from {', '.join(OBJECTIVES)}")
    if learn_labels:
        raise ValueError(f"distill.learn_labels=true: objective={objective} learns images only; set false")
    if (experts is not None) != (objective == "mtt"):
        needed = "a folder of trained runs" if objective == "mtt" else "none"
        raise ValueError(f"method.experts={experts}: objective={objective} needs {needed}")
    common: dict[str, Any] = {
        "new_network": new_network,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "images_per_class": images_per_class,
        "init": init,
        "augment": augment,
    }
    if objective == "dm":
        return DM(real_per_class=real_per_class, partition=partition, **common)
    if objective == "mtt":
        assert experts is not None
        if partition > 1:
            raise ValueError(f"method.partition={partition}: not for objective=mtt; use 1")
        return MTT(experts=experts, trajectory=trajectory, **common)
    return DC(real_per_class=real_per_class, partition=partition, training=training, **common)


class DM(Distillation):
    """Class means of the features of fresh networks (Zhao & Bilen 2023, arXiv 2110.04181).

    real_per_class: real images of each class in a step.
    augment: one draw a class and step, the same for its real and its synthetic images.
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
        augment: DiffAugment,
        real_per_class: int,
        partition: int,
    ) -> None:
        super().__init__(
            new_network=new_network,
            optimizer=optimizer,
            scheduler=scheduler,
            images_per_class=images_per_class,
            init=init,
            learn_labels=False,
            sampling=Sampling(per_class=real_per_class),
            partition=partition,
        )
        self.augment = augment

    def outer_step(self, batch: Batch) -> Tensor:
        network = self.network().requires_grad_(False)  # its weights need no gradient, which would cost a third more
        pairs = list(siamese_classes(self.augment, self.generator(), batch, (self.enlarged, self.labels)))
        (real, classes), (synthetic, labels) = (
            tuple(torch.cat(parts) for parts in zip(*batches, strict=True)) for batches in zip(*pairs, strict=True)
        )
        loss = mean_distance(
            network.forward_features(real), classes, network.forward_features(synthetic), labels, self.num_classes
        )
        loss.backward()
        return loss.detach()


class DC(Distillation):
    """Gradients of a network that is being trained on the set (Zhao, Mopuri & Bilen 2021, arXiv 2006.05929).

    Under an augmentation it is DSA (Zhao & Bilen 2021, arXiv 2102.08259). An iteration is one update of the set:
    the published ones count networks, each of which serves `training.outer_loop` updates.

    real_per_class: real images of each class in a step.
    augment: one draw a class and step, the same for its real and its synthetic images; and one a batch of training.
    BatchNorm keeps the statistics of a few real images while gradients are taken, as in the published code.
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
        augment: DiffAugment,
        real_per_class: int,
        partition: int,
        training: Training,
    ) -> None:
        super().__init__(
            new_network=new_network,
            optimizer=optimizer,
            scheduler=scheduler,
            images_per_class=images_per_class,
            init=init,
            learn_labels=False,
            sampling=Sampling(per_class=real_per_class),
            partition=partition,
        )
        self.augment, self.training_on_set = augment, training
        self.student: nn.Module = new_network()  # of the moment; here, so that a checkpoint has it

    def outer_step(self, batch: Batch) -> Tensor:
        if self.global_step % self.training_on_set.outer_loop == 0:
            self.student = self.network()
        freeze_batch_norm(self.student, *batch)
        weights, total = weights_of(self.student), torch.zeros((), device=self.images.device)
        seen = self.enlarged.detach().requires_grad_()
        for real, synthetic in siamese_classes(self.augment, self.generator(), batch, (seen, self.labels)):
            loss = gradient_matching(self.student_loss, weights, [real], [synthetic])
            loss.backward()  # one class at a time, whose graph is then freed
            total += loss.detach()
        self.enlarged.backward(seen.grad)
        return total

    def student_loss(self, weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(self.student, weights, (images,)), labels)

    def after_update(self, batch: Batch) -> None:
        if self.global_step % self.training_on_set.outer_loop:  # else a fresh one comes next
            images = self.enlarged.detach()
            train_on(self.student, images, self.labels, self.training_on_set, self.augment, self.generator())


def siamese_classes(
    augment: DiffAugment, generator: torch.Generator, real: Batch, synthetic: Batch
) -> Iterator[tuple[Batch, Batch]]:
    """(real, synthetic) images and labels of each class of the real batch, both under one draw of the augmentation."""
    for c in real[1].unique():
        mine = [(images[labels == c], labels[labels == c]) for images, labels in (real, synthetic)]
        images = augment.siamese(generator, *(images for images, _ in mine))
        yield (images[0], mine[0][1]), (images[1], mine[1][1])


def freeze_batch_norm(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Move the running statistics of each BatchNorm towards some images of each class, and normalise by them.

    One synthetic image a class has no statistics of its own. Until the next `network.train()`; others stay in training.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        rows = torch.cat([(labels == c).nonzero()[:BATCH_NORM_IMAGES, 0] for c in labels.unique()])
        with torch.no_grad():
            network.train()(images[rows])
        for module in norms:
            module.eval()


def train_on(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    training: Training,
    augment: DiffAugment,
    generator: torch.Generator,
) -> None:
    """`training.inner_loop` epochs of plain gradient descent in batches of a new order, augmented."""
    optimizer = torch.optim.SGD([p for p in network.train().parameters() if p.requires_grad], lr=training.lr)
    for _ in range(training.inner_loop):
        for rows in torch.randperm(len(images), generator=generator).to(images.device).split(training.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(network(augment(images[rows], generator)), labels[rows]).backward()
            optimizer.step()
