"""What matching methods minimise: distances of features (DM), gradients (DC, DSA) and trajectories (MTT).

Pure functions of tensors; whoever calls them draws networks, batches and augmentations. DSA is DC on batches that
`ncdd.distill.augment.DiffAugment.siamese` has transformed alike.
Shapes: B samples, D features, K classes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ncdd.distill.unrolled import Weights


def class_means(features_BD: Tensor, labels_B: Tensor, num_classes: int) -> Tensor:
    """(K, D); a class without samples has the mean 0."""
    onehot_BK = F.one_hot(labels_B, num_classes).to(features_BD.dtype)
    return onehot_BK.T @ features_BD / onehot_BK.sum(0).clamp(min=1)[:, None]


def mean_distance(
    real_BD: Tensor, real_labels_B: Tensor, synthetic_BD: Tensor, synthetic_labels_B: Tensor, num_classes: int
) -> Tensor:
    """`sum_c ||mean phi(T_c) - mean phi(S_c)||^2` (DM: Zhao & Bilen 2023, arXiv 2110.04181).

    The sum is over classes that both have samples of.
    """
    means = class_means(real_BD, real_labels_B, num_classes), class_means(synthetic_BD, synthetic_labels_B, num_classes)
    counts = (labels.bincount(minlength=num_classes) for labels in (real_labels_B, synthetic_labels_B))
    squared_K = (means[0] - means[1]).square().sum(1)
    return (squared_K * torch.stack([count > 0 for count in counts]).all(0)).sum()


def gradients(
    loss: Callable[[Weights, Tensor, Tensor], Tensor], weights: Weights, images: Tensor, labels: Tensor, *, graph: bool
) -> list[Tensor]:
    """Of `loss(weights, images, labels)` in every weight; `graph=True` where they are to be differentiated again."""
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    return list(torch.autograd.grad(loss(leaves, images, labels), list(leaves.values()), create_graph=graph))


def gradient_distance(synthetic: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """`sum over layers and output rows of 1 - cos` (DC: Zhao, Mopuri & Bilen 2021, arXiv 2006.05929).

    As the published code has it: a row is what leads to one output (out, in * kernel), 1e-6 is added to the product of
    the norms, and vectors (biases, the scales of norms) do not count.
    """
    return sum((_row_distance(s, r) for s, r in zip(synthetic, real, strict=True) if s.ndim > 1), real[0].new_zeros(()))


def _row_distance(synthetic: Tensor, real: Tensor) -> Tensor:
    synthetic, real = synthetic.flatten(1), real.flatten(1)
    cosine = (synthetic * real).sum(1) / (synthetic.norm(dim=1) * real.norm(dim=1) + 1e-6)
    return (1 - cosine).sum()


def gradient_matching(
    loss: Callable[[Weights, Tensor, Tensor], Tensor],
    weights: Weights,
    real: Sequence[tuple[Tensor, Tensor]],
    synthetic: Sequence[tuple[Tensor, Tensor]],
) -> Tensor:
    """DC's loss: the gradient distance of each pair of batches (images, labels), a pair a class, summed."""
    total = torch.zeros((), device=real[0][0].device)
    for (x, y), (images, labels) in zip(real, synthetic, strict=True):
        target = gradients(loss, weights, x, y, graph=False)
        total = total + gradient_distance(gradients(loss, weights, images, labels, graph=True), target)
    return total


def trajectory_distance(end: Weights, target: Weights, start: Weights) -> Tensor:
    """`||theta - theta*_(t+M)||^2 / ||theta*_t - theta*_(t+M)||^2`, all weights as one vector.

    MTT (Cazenavette et al. 2022, arXiv 2203.11932): `end` is where `ncdd.distill.unrolled.train` leads from
    the expert's weights `start` on synthetic data, `target` where the expert is M epochs later.
    """
    return _squared_distance(end, target) / _squared_distance(start, target)


def _squared_distance(a: Weights, b: Weights) -> Tensor:
    return torch.stack([(a[name] - b[name]).square().sum() for name in b]).sum()
