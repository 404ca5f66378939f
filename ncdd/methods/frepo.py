"""`method=frepo`: images whose features, under networks of many ages, regress real labels (FRePo, Zhou et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncdd.data.draws import Sampling
from ncdd.distill import SyntheticSet
from ncdd.distill.evaluate import accuracy
from ncdd.distill.frepo import (
    constant_features,
    features,
    first_labels,
    mirrored,
    online_loss,
    online_step,
    ridge_weights,
    set_loss,
)
from ncdd.distill.pool import NetworkPool
from ncdd.distill.regression import centred
from ncdd.methods.distill import Batch, Distillation, NewNetwork
from ncdd.methods.optim import Optimizer, Scheduler
from ncdd.models.frepo_conv import without_batch_norm

Precision = Literal["float32", "bfloat16"]


class FRePo(Distillation):
    """Ridge regression on a pooled network's features, from the set to real images; then the network learns the set.

    One step (arXiv 2206.00719, algorithm 1): a network is drawn from the pool, the set takes the gradient of
    `ncdd.distill.frepo.set_loss`, and the network one step of half the squared error on the set as it then is.

    pool: factory of the `NetworkPool`, given new_network.  batch_size: real images of a step.  reg: of the ridge.
    use_flip: regress from mirror images too; not for digits, nor where twice the images exceed the features.
    online_images: of the set, the most that a network is trained on in one step, drawn at random where it has more.
    chunk: real images at one time, whose features stay in the cache.  precision: of the real images' features.
    compile: features and online training by `torch.compile`, which pays after some hundred steps.
    krr_networks: of the pool, whose ridge regression `measure` tests.
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
        pool: Callable[..., NetworkPool],
        batch_size: int,
        reg: float,
        use_flip: bool,
        online_images: int,
        krr_networks: int,
        chunk: int,
        precision: Precision,
        compile: bool,
    ) -> None:
        super().__init__(
            new_network=new_network,
            optimizer=optimizer,
            scheduler=scheduler,
            images_per_class=images_per_class,
            init=init,
            learn_labels=learn_labels,
            sampling=Sampling(batch_size=batch_size),
        )
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"method.precision={precision!r}: choose from float32, bfloat16")
        if not reg > 0:
            raise ValueError(f"method.reg={reg}: a number > 0 is needed")
        for name, value in (("chunk", chunk), ("online_images", online_images)):
            if value < 1:
                raise ValueError(f"method.{name}={value}: a number >= 1 is needed")
        self.reg, self.use_flip, self.online_images, self.chunk = reg, use_flip, online_images, chunk
        self.pool = pool(new_network=lambda: new_network().to(memory_format=torch.channels_last))
        if not 1 <= krr_networks <= len(self.pool):
            raise ValueError(f"method.krr_networks={krr_networks}: a number from 1 to pool.size={len(self.pool)}")
        self.krr_networks = krr_networks
        self.cast = torch.bfloat16 if precision == "bfloat16" else None
        self.features = torch.compile(features) if compile else features
        self.online_loss = torch.compile(online_loss) if compile else online_loss

    def first_labels(self, classes: Tensor) -> Tensor:
        return first_labels(classes, self.num_classes) if self.learn_labels else classes

    @property
    def targets(self) -> Tensor:
        """(N, K) float: the labels as regression takes them."""
        return centred(self.labels, self.num_classes, self.images.dtype)

    def outer_step(self, batch: Batch) -> Tensor:
        real, classes = batch
        self.drawn = self.pool.draw()
        value = set_loss(
            self.pool.networks[self.drawn],
            (self.images, self.targets),
            (real, centred(classes, self.num_classes, real.dtype)),
            reg=self.reg,
            use_flip=self.use_flip,
            chunk=self.chunk,
            cast=self.cast,
            features=self.features,
        )
        loss = value.kernel + value.label if self.learn_labels else value.kernel
        loss.backward()
        return loss.detach()

    def after_update(self, batch: Batch) -> None:
        set_as_it_is = (self.images, self.targets)
        online_step(self.pool, self.drawn, set_as_it_is, most=self.online_images, loss=self.online_loss)

    def real_features(self, network: nn.Module, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) without a graph."""
        return constant_features(network, images, chunk=self.chunk, cast=self.cast, features=self.features)

    def judges(self) -> NewNetwork:
        """As the paper tests: without batch normalisation."""
        return without_batch_norm(super().judges())

    def measure(self, synthetic: SyntheticSet, loader: Iterable[Batch]) -> dict[str, float]:
        """Ridge regression's accuracy on features of some networks of the pool, a mean over them."""
        labels = centred(synthetic.labels, self.num_classes, synthetic.images.dtype)
        found = [self._krr_accuracy(network, synthetic.images, labels, loader) for network in self._spread_out()]
        return {"krr_accuracy": sum(found) / len(found)}

    def _spread_out(self) -> list[nn.Module]:
        return [self.pool.networks[i * len(self.pool) // self.krr_networks] for i in range(self.krr_networks)]

    @torch.no_grad()
    def _krr_accuracy(self, network: nn.Module, images: Tensor, labels: Tensor, loader: Iterable[Batch]) -> float:
        images, labels = images.to(self.device), labels.to(self.device)
        if self.use_flip:
            images, labels = mirrored(images, labels)
        weights = ridge_weights(features(network, images), labels, self.reg)
        return accuracy(lambda x: F.linear(self.real_features(network, x).float(), weights), loader, self.device)
