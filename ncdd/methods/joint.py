"""`method=joint`: networks learn real and distilled images in one go, and the distilled ones learn from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncdd.data.draws import Sampling
from ncdd.distill import SyntheticSet, joint
from ncdd.distill.augment import DiffAugment
from ncdd.distill.evaluate import accuracy
from ncdd.distill.pool import NetworkPool
from ncdd.methods.distill import Batch, Distillation, NewNetwork
from ncdd.methods.optim import Optimizer, Scheduler
from ncdd.models import Network
from ncdd.models.blocks import blocks

OBJECTIVES = ("ncc", "means", "krr_etf", "unroll", "literal")


class Joint(Distillation):
    """Train-and-distil under a fixed simplex ETF head, the shape that Neural Collapse would give it anyway.

    In each step one network of the pool sees a class-balanced real batch T and the set S under one random transform,
    once. Of these features S takes the gradient of its objective, where those of T are constants; the network takes
    one step of cross-entropy through its head. With `pool.size=1 pool.max_age=null` this is the training of one
    network, by the way of which a set is distilled.

    objective: "ncc", "means", "krr_etf", "unroll" of `ncdd.distill.joint`; "literal": the set's own cross-entropy
        through the head, in which nothing tells of the real data, the control.
    pool: factory of the `NetworkPool`, given new_network.
    pool_data: what the networks are trained on, "S", "T" or "S+T".
    match_blocks: what each block of the model puts out is matched as the features are, a loss added for each.
    real_per_class: images of each class in T.  augment: one draw for all images of a step.
    temperature: of ncc.  reg: of krr_etf.  inner_steps, inner_lr: of unroll.
    etf_weight, covariance_weight: of `etf_alignment` and `covariance_matching`, which are added to any objective.
    Other arguments: `Distillation`. Labels that are learned are logits: the set's are their softmax.
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
        objective: str,
        pool: Callable[..., NetworkPool],
        pool_data: Literal["S", "T", "S+T"],
        match_blocks: bool,
        real_per_class: int,
        augment: DiffAugment,
        temperature: float,
        reg: float,
        inner_steps: int,
        inner_lr: float,
        etf_weight: float,
        covariance_weight: float,
        partition: int = 1,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(f"objective={objective!r}: choose from {', '.join(OBJECTIVES)}")
        if pool_data not in ("S", "T", "S+T"):
            raise ValueError(f"method.pool_data={pool_data!r}: choose from S, T, S+T")
        if not temperature > 0:
            raise ValueError(f"method.temperature={temperature}: a number above 0 is needed")
        if covariance_weight and images_per_class * partition == 1:
            raise ValueError(
                f"method.covariance_weight={covariance_weight}: one image a class has no covariance; use 0"
            )
        super().__init__(
            new_network=new_network,
            optimizer=optimizer,
            scheduler=scheduler,
            images_per_class=images_per_class,
            init=init,
            learn_labels=learn_labels,
            sampling=Sampling(per_class=real_per_class),
            partition=partition,
        )
        self.pool = pool(new_network=new_network)
        self.objective, self.pool_data, self.match_blocks, self.augment = objective, pool_data, match_blocks, augment
        of_features: dict[str, Callable[..., Tensor]] = {
            "ncc": partial(joint.ncc, temperature=temperature),
            "means": joint.means,
            "krr_etf": partial(joint.krr_etf, reg=reg),
        }
        self.of_features = of_features.get(objective)
        self.unroll = partial(joint.unroll, steps=inner_steps, step_size=inner_lr)
        self.etf_weight, self.covariance_weight = etf_weight, covariance_weight

    def first_labels(self, classes: Tensor) -> Tensor:
        """Logits of 0.9 for the class, where they are learned."""
        if not self.learn_labels:
            return classes
        return (0.9 * F.one_hot(classes, self.num_classes) + 0.1 / self.num_classes).log()

    @property
    def weights(self) -> Tensor:
        """(N, K): how much of each class an image is."""
        return self.labels.softmax(1) if self.learn_labels else F.one_hot(self.labels, self.num_classes).float()

    def synthetic_set(self) -> SyntheticSet:
        found = super().synthetic_set()
        return replace(found, labels=found.labels.softmax(1)) if self.learn_labels else found

    def outer_step(self, batch: Batch) -> Tensor:
        real, classes = batch
        real, images = self.augment.siamese(self.generator(), real, self.enlarged)
        go = partial(self.one_go, real=real, classes=classes, images=images)
        drawn = self.pool.draw()
        if self.pool.advance(drawn, go) is None:  # it was too old, and has fresh weights now
            self.pool.advance(drawn, go)
        return self.set_loss

    def one_go(self, network: nn.Module, *, real: Tensor, classes: Tensor, images: Tensor) -> Tensor:
        """Give the set its gradient, and return the loss of the network."""
        assert isinstance(network, Network)
        weights = self.weights
        with torch.set_grad_enabled("T" in self.pool_data):
            of_real = self.seen(network, real)
        of_set = self.seen(network, images)
        loss = self.matched(network, [h.detach() for h in of_real], classes, of_set, weights)
        if self.objective == "literal":
            loss = loss + F.cross_entropy(network.head(of_set[-1]), weights)
        if self.objective == "unroll":
            loss = loss + self.unroll(network, real, classes, images, weights)
        learned = list(self.learned())
        for p, gradient in zip(learned, torch.autograd.grad(loss, learned, retain_graph=True), strict=True):
            p.grad = gradient
        self.set_loss = loss.detach()
        trained_on = {
            "S": (of_set[-1], weights),
            "T": (of_real[-1], F.one_hot(classes, self.num_classes).float()),
        }
        features, targets = zip(*(trained_on[part] for part in self.pool_data.split("+")), strict=True)
        return F.cross_entropy(network.head(torch.cat(features)), torch.cat(targets).detach())

    def matched(
        self, network: Network, of_real: list[Tensor], classes: Tensor, of_set: list[Tensor], weights: Tensor
    ) -> Tensor:
        """The objective of the features, the sum over layers, and the further terms of the last."""
        loss = weights.new_zeros(())
        if self.of_features:
            for h_T, h_S in zip(of_real, of_set, strict=True):
                loss = loss + self.of_features(h_T, classes, h_S, weights)
        if self.etf_weight:
            loss = loss + self.etf_weight * joint.etf_alignment(of_set[-1], weights, network.head.weight)
        if self.covariance_weight:
            covariances = joint.covariance_matching(of_real[-1], classes, of_set[-1], weights)
            loss = loss + self.covariance_weight * covariances
        return loss

    def seen(self, network: Network, images: Tensor) -> list[Tensor]:
        """What the blocks before the last put out, where they are matched, (B, D) each, and last the features."""
        found: list[Tensor] = []
        names = blocks(network.model)[:-1] if self.match_blocks else []
        hooks = [
            network.model.get_submodule(name).register_forward_hook(lambda *call: found.append(coarse(call[-1])))
            for name in names
        ]
        try:
            features = network.forward_features(images)
        finally:
            for hook in hooks:
                hook.remove()
        return [*found, features]

    # ------------------------------------------------------------ what is measured: the first network of the pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool.networks[0](x)

    def on_train_epoch_end(self) -> None:
        self.log("pool/age", float(self.pool.ages[0]))

    def measure_dataloaders(self) -> dict[str, Iterable[Batch]]:
        """Where Neural Collapse is measured: the real splits, and the set. What is `test/accuracy` is the set's."""
        of_data = self.data.measure_dataloaders()
        return {"train": of_data["train"], "real_test": of_data["test"], "distilled": _Now(self)}

    @torch.no_grad()
    def measure(self, synthetic: SyntheticSet, loader: Iterable[Batch]) -> dict[str, float]:
        """`ncc_accuracy`: of the nearest class mean of the set in the features of the oldest network, which is not
        trained for it. It may be near perfect where fresh networks learn little from the set."""
        oldest: Any = self.pool.networks[max(range(len(self.pool)), key=self.pool.ages.__getitem__)]
        labels = synthetic.labels.to(self.device)
        weights = labels if labels.ndim == 2 else F.one_hot(labels, self.num_classes).float()
        means = joint.weighted_means(oldest.forward_features(synthetic.images.to(self.device)), weights)
        nearest = accuracy(lambda x: -joint.squared_distances(oldest.forward_features(x), means), loader, self.device)
        return {"ncc_accuracy": nearest}


def coarse(features: Tensor) -> Tensor:
    """(B, ...) -> (B, D); maps (B, C, H, W) are averaged over 2 x 2 positions, as a ConvNet goes on with them."""
    return (F.avg_pool2d(features, 2, ceil_mode=True) if features.ndim == 4 else features).flatten(1)


class _Now:
    """The set as it is whenever it is iterated, in one batch."""

    def __init__(self, method: Joint) -> None:
        self.method = method

    def __iter__(self) -> Iterator[Batch]:
        yield self.method.enlarged.detach(), self.method.weights.argmax(1)
