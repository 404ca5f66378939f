"""FRePo's step: ridge regression on a network's features (Zhou, Nezhadarya & Ba 2022, arXiv 2206.00719, algorithm 1).

Legend: n synthetic images, B real ones, D features, C classes. Targets are one-hot minus 1/C.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncdd.data.seeding import fold_in
from ncdd.distill.coresets import coreset
from ncdd.distill.lamb import Lamb, cosine_to
from ncdd.distill.pool import NetworkPool
from ncdd.distill.regression import centred
from ncdd.kernels import ridge

Labelled = tuple[Tensor, Tensor]  # images (N, C, H, W), labels (N, K)
DISTIL = 221  # stream of random numbers
REG = 1e-6  # of the ridge, times the kernel's mean diagonal


class MetaLoss(NamedTuple):
    """What is minimised is the sum: the regression's error on real images, and minus the margin of the labels."""

    kernel: Tensor
    label: Tensor


def first_labels(classes: Tensor, num_classes: int) -> Tensor:
    """(n,) int64 -> (n, C): what learned labels start from, one-hot minus 1/C over sqrt(C / 10)."""
    return centred(classes, num_classes, torch.float32) / (num_classes / 10) ** 0.5


def ridge_weights(features_nD: Tensor, labels_nC: Tensor, reg: float = REG) -> Tensor:
    """``y' (F F' + reg tr(F F') / n I)^-1 F`` (C, D): the linear map of features that regresses the labels.

    As a linear layer has its weights: a product with few rows costs a fraction of one with few columns, forward and
    backward.
    Differentiable in both; the solve is in float64. Raises ValueError where the kernel is singular.
    """
    features_nD = features_nD.to(labels_nC.dtype)
    return ridge(features_nD @ features_nD.T, labels_nC, reg=reg).T @ features_nD


def label_margin_loss(labels_nC: Tensor) -> Tensor:
    """Minus the mean margin between the two largest labels of an image, no more than 1/C of it."""
    top = labels_nC.topk(2).values
    return -(top[:, 0] - top[:, 1]).clamp(max=1 / labels_nC.shape[1]).mean()


def meta_loss(
    features_nD: Tensor, labels_nC: Tensor, real_BD: Tensor, targets_BC: Tensor, *, reg: float = REG
) -> MetaLoss:
    """Half the squared error per real image of regression from the synthetic set, and the label term."""
    predictions = F.linear(real_BD.to(labels_nC.dtype), ridge_weights(features_nD, labels_nC, reg))
    return MetaLoss(half_squared_error(predictions, targets_BC), label_margin_loss(labels_nC))


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance of outputs and targets (B, C), a mean over the batch."""
    return 0.5 * (outputs - targets).square().sum(1).mean()


def mirrored(images: Tensor, labels: Tensor) -> Labelled:
    """The images (n, C, H, W) and their mirror images, with the labels of both: 2n."""
    return torch.cat([images, images.flip(3)]), torch.cat([labels, labels])


# ---------------------------------------------------------------- networks


def features(network: nn.Module, images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, D); channels last in memory, which convolutions prefer."""
    return network.forward_features(images.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]


@torch.no_grad()
def constant_features(
    network: nn.Module,
    images: Tensor,
    *,
    chunk: int,
    cast: torch.dtype | None = None,
    features: Callable[[nn.Module, Tensor], Tensor] = features,
) -> Tensor:
    """The same without a graph; on a CPU `chunk` images at one time, whose intermediate values stay in its cache.

    cast: arithmetic of the convolutions; None for that of the weights.
    """
    parts = images.split(chunk) if images.device.type == "cpu" else [images]
    with torch.autocast(images.device.type, cast, enabled=cast is not None):
        return torch.cat([features(network, part) for part in parts])


def online_loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """What a network of the pool is trained on: half the squared error on the set."""
    return half_squared_error(network(images.contiguous(memory_format=torch.channels_last)), labels)


# ---------------------------------------------------------------- a step: the set takes a gradient, the network learns


def set_loss(
    network: nn.Module,
    synthetic: Labelled,
    real: Labelled,
    *,
    reg: float,
    use_flip: bool,
    chunk: int,
    cast: torch.dtype | None = None,
    features: Callable[[nn.Module, Tensor], Tensor] = features,
) -> MetaLoss:
    """What the set minimises: the regression, on a network's features, from it to real images.

    synthetic: images (n, C, H, W) and labels (n, K).  real: of a batch, with targets (B, K).
    use_flip: from the mirror images too.  chunk, cast: of the real images' features, see `constant_features`.
    """
    of_real = constant_features(network, real[0], chunk=chunk, cast=cast, features=features)
    images, labels = mirrored(*synthetic) if use_flip else synthetic
    return meta_loss(features(network, images), labels, of_real, real[1], reg=reg)


def online_step(
    pool: NetworkPool,
    index: int,
    synthetic: Labelled,
    *,
    most: int,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] = online_loss,
) -> None:
    """Train network `index` by one step on the set as it is now, or on `most` of its images drawn at random."""
    images, labels = (tensor.detach() for tensor in synthetic)
    if len(images) > most:
        rows = torch.randperm(len(images))[:most].to(images.device)
        images, labels = images[rows], labels[rows]
    pool.advance(index, lambda network: loss(network, images, labels))


# ---------------------------------------------------------------- a set by one call


def distil(
    images: Tensor,
    classes: Tensor,
    *,
    num_classes: int,
    per_class: int,
    new_network: Callable[[], nn.Module],
    pool: Callable[..., NetworkPool],
    iterations: int,
    lr: float,
    batch_size: int,
    reg: float,
    use_flip: bool,
    online_images: int,
    chunk: int,
    seed: int,
) -> Labelled:
    """Learn `per_class` images (n, C, H, W) for each class that occurs, and labels (n, C): FRePo in a plain loop.

    For programs that learn many small sets; `ncdd.methods.frepo.FRePo` learns one set, with all that a run has.
    images (N, C, H, W), classes (N,) int64, of num_classes: real ones, on the device where the work is done.
    pool: factory of the `NetworkPool`, given new_network.  lr: LAMB's, falling to a tenth.
    reg, use_flip, chunk: see `set_loss`.  online_images: the most that a network is trained on in one step.
    All that is drawn is by `seed`. Raises ValueError where a class has fewer images than per_class.
    """
    with torch.random.fork_rng():
        torch.manual_seed(fold_in(seed, DISTIL))
        x, y = _first(images, classes, num_classes, per_class)
        networks = pool(new_network=new_network).to(images.device)
        optimizer = Lamb([x, y], lr=lr)
        schedule = cosine_to(optimizer, steps=iterations, final=0.1)
        rows: list[Tensor] = []
        for _ in range(iterations):
            rows = rows or list(torch.randperm(len(images)).to(images.device).split(batch_size))
            batch = rows.pop()
            index = networks.draw()
            real = images[batch], centred(classes[batch], num_classes, images.dtype)
            value = set_loss(networks.networks[index], (x, y), real, reg=reg, use_flip=use_flip, chunk=chunk)
            optimizer.zero_grad()
            (value.kernel + value.label).backward()
            optimizer.step()
            schedule.step()
            online_step(networks, index, (x, y), most=online_images)
    return x.detach(), y.detach()


def _first(images: Tensor, classes: Tensor, num_classes: int, per_class: int) -> Labelled:
    """Real images of each class that occurs, and their first labels, as leaves."""
    names, order, counts = classes.cpu().unique(return_inverse=True, return_counts=True)
    if counts.min() < per_class:
        fewest = int(counts.argmin())
        raise ValueError(
            f"images_per_class={per_class}: class {int(names[fewest])} has {int(counts[fewest])} real images"
        )
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    everything = torch.arange(len(images))
    chosen, which = coreset(
        "random", everything, order, num_classes=len(names), per_class=per_class, generator=generator
    )
    labels = first_labels(names[which], num_classes).to(images.device)
    return images[chosen.to(images.device)].clone().requires_grad_(), labels.requires_grad_()
