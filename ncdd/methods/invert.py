"""`method=invert`: from feature space back to images, through a network that is trained and stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncdd.data.draws import Sampling
from ncdd.distill import SyntheticSet
from ncdd.distill.evaluate import accuracy
from ncdd.distill.joint import spread, squared_distances, weighted_means
from ncdd.methods.distill import Batch, Distillation, NewNetwork
from ncdd.methods.optim import Optimizer, Scheduler
from ncdd.models import Network
from ncdd.models.checkpoint import files, put, read


class Invert(Distillation):
    """Images whose features are where Neural Collapse puts their class: `1/(N s) sum_i ||phi(x_i) - t_(y_i)||^2`.

    s is the spread of the real class means mu_c. One image a class at its mean makes the nearest-mean classifier of
    the frozen network as good as the real means do: that is the ceiling of this method, and `measure` tells it. How
    much of it a fresh network learns from the images is another question, and the evaluation tells that.

    model, head: the network.  checkpoint: the file or run folder with its weights, the last where there are several;
        None leaves it untrained, the control.
    target: "means": t_c = mu_c; "etf": `mean_c mu_c + sqrt(s) w_c / ||w_c||`, the vertex that the head's row w_c names.
    total_variation: weight of the mean absolute difference of neighbouring pixels, a prior for smooth images.
    Other arguments: `Distillation`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        head: nn.Linear,
        new_network: NewNetwork,
        optimizer: Optimizer,
        scheduler: Scheduler,
        images_per_class: int,
        init: str,
        learn_labels: bool,
        checkpoint: str | None,
        target: Literal["means", "etf"],
        total_variation: float,
    ) -> None:
        if learn_labels:
            raise ValueError("distill.learn_labels=true: method=invert looks for images of given classes; use false")
        if target not in ("means", "etf"):
            raise ValueError(f"method.target={target!r}: choose from means, etf")
        if not total_variation >= 0:
            raise ValueError(f"method.total_variation={total_variation}: a number >= 0 is needed")
        super().__init__(
            new_network=new_network,
            optimizer=optimizer,
            scheduler=scheduler,
            images_per_class=images_per_class,
            init=init,
            learn_labels=False,
            sampling=Sampling(batch_size=1),  # a step needs no real images: all have been seen, in on_fit_start
        )
        self.frozen = Network(model, head).requires_grad_(False)
        self.checkpoint, self.target, self.total_variation = checkpoint, target, total_variation

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.checkpoint:
            put(read(files(Path(self.checkpoint))[-1]), self.frozen.model, self.frozen.head)

    def train(self, mode: bool = True) -> Invert:
        super().train(mode)
        self.frozen.eval()
        return self

    def on_fit_start(self) -> None:
        self.real_means = self.means_of(self.data.measure_dataloaders()["train"])
        self.unit = spread(self.real_means)
        rows = F.normalize(self.frozen.head.weight, dim=1)
        vertices = self.real_means.mean(0) + self.unit.sqrt() * rows
        self.targets = self.real_means if self.target == "means" else vertices

    @torch.no_grad()
    def means_of(self, batches: Iterable[Batch]) -> Tensor:
        """(K, D) class means of the frozen network's features, summed in float64."""
        sums = torch.zeros(self.num_classes, self.frozen.head.in_features, dtype=torch.float64, device=self.device)
        counts = torch.zeros(self.num_classes, 1, dtype=torch.float64, device=self.device)
        for x, y in batches:
            onehot = F.one_hot(y.to(self.device), self.num_classes).double()
            sums += onehot.T @ self.frozen.forward_features(x.to(self.device)).double()
            counts += onehot.sum(0)[:, None]
        return (sums / counts).float()

    def outer_step(self, batch: Batch) -> Tensor:
        features = self.frozen.forward_features(self.images)
        loss = (features - self.targets[self.labels]).square().sum(1).mean() / self.unit
        loss = loss + self.total_variation * total_variation(self.images)
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def measure(self, synthetic: SyntheticSet, loader: Iterable[Batch]) -> dict[str, float]:
        """Accuracies of the frozen network: nearest mean of the set, nearest real mean (the ceiling), and its own."""
        onehot = F.one_hot(synthetic.labels, self.num_classes).float().to(self.device)
        means = weighted_means(self.frozen.forward_features(synthetic.images.to(self.device)), onehot)
        found: dict[str, Callable[[Tensor], Tensor]] = {
            "ncc_accuracy": lambda x: -squared_distances(self.frozen.forward_features(x), means),
            "ncc_accuracy_real": lambda x: -squared_distances(self.frozen.forward_features(x), self.real_means),
            "frozen_accuracy": self.frozen,
        }
        return {name: accuracy(decide, loader, self.device) for name, decide in found.items()}


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of pixels (B, C, H, W) that are neighbours in a column, plus that in a row."""
    return (images[..., 1:, :] - images[..., :-1, :]).abs().mean() + (images[..., 1:] - images[..., :-1]).abs().mean()
