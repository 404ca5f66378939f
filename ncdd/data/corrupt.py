"""Which samples to train on and with which labels: pure functions of (labels, seed).

Shapes: N samples, K classes. Labels are int64 (N,); indices come back sorted, so that the images' order is kept.
"""

import torch
from torch import Tensor

from ncdd.data import seeding


def rank_in_class(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """(N,) each sample's place, from 0, in a random order of its own class: `rank < m` picks m samples a class."""
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount(minlength=num_classes)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(labels)
    rank[by_class] = torch.arange(len(labels)) - first[labels[by_class]]
    return rank


def split(labels: Tensor, num_classes: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Stratified (train indices, held-out indices): round(fraction n_k) of each class, never its last sample."""
    if not 0 <= fraction < 1:
        raise ValueError(f"val_fraction={fraction}: a fraction in [0, 1) is needed; 0 means no validation split")
    counts = labels.bincount(minlength=num_classes)
    held = torch.minimum((counts * fraction).round().long(), (counts - 1).clamp(min=0))
    mask = rank_in_class(labels, num_classes, seeding.generator(seed, seeding.SPLIT)) < held[labels]
    return (~mask).nonzero().squeeze(1), mask.nonzero().squeeze(1)


def samples_per_class(labels: Tensor, num_classes: int, count: int, seed: int) -> Tensor:
    """Indices of `count` samples of each class. For one seed, a smaller count gives a subset of a larger one's."""
    have = labels.bincount(minlength=num_classes)
    if count < 1 or bool((have < count).any()):
        fewest = int(have.argmin())
        raise ValueError(
            f"samples_per_class={count}: the smallest class, {fewest}, has {int(have[fewest])} samples; "
            f"choose 1 to {int(have[fewest])}, or null for all"
        )
    rank = rank_in_class(labels, num_classes, seeding.generator(seed, seeding.SUBSET))
    return (rank < count).nonzero().squeeze(1)


def long_tail_counts(largest: int, num_classes: int, factor: float) -> Tensor:
    """(K,) n_k = largest * factor^(-k / (K - 1)), rounded down: Cui et al. 2019, with factor = n_0 / n_(K-1)."""
    if factor < 1:
        raise ValueError(f"imbalance={factor}: a factor >= 1 is needed (largest over smallest class); 1 means balanced")
    exponent = -torch.arange(num_classes, dtype=torch.float64) / max(num_classes - 1, 1)
    # 5000 * 100^-1 is 50 and must not become 49 by rounding error.
    return (largest * factor**exponent + 1e-6).long()


def imbalance(labels: Tensor, num_classes: int, factor: float, seed: int) -> Tensor:
    """Indices of a long-tailed subset; a class that has fewer samples than its share keeps what it has."""
    counts = labels.bincount(minlength=num_classes)
    keep = torch.minimum(counts, long_tail_counts(int(counts.max()), num_classes, factor))
    if bool((keep == 0).any()):
        raise ValueError(
            f"imbalance={factor}: class {int((keep == 0).nonzero()[0])} would have no sample left; "
            f"the largest class has {int(counts.max())}, so choose a factor of at most that"
        )
    rank = rank_in_class(labels, num_classes, seeding.generator(seed, seeding.IMBALANCE))
    return (rank < keep[labels]).nonzero().squeeze(1)


def random_labels(labels: Tensor, num_classes: int, seed: int) -> Tensor:
    """All labels replaced by uniform ones, independent of the images (Zhang et al. 2017; Zhu et al. 2021)."""
    generator = seeding.generator(seed, seeding.RANDOM_LABELS)
    return torch.randint(num_classes, labels.shape, generator=generator)


def label_noise(labels: Tensor, num_classes: int, fraction: float, seed: int) -> Tensor:
    """round(fraction N) of the labels replaced by a class drawn uniformly from all K (Zhang et al. 2017).

    The draw may hit the true class, so about fraction (K - 1) / K of the labels end up wrong, and fraction = 1 is
    the same law as `random_labels`.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"label_noise={fraction}: a fraction in [0, 1] is needed; 0 means none")
    generator = seeding.generator(seed, seeding.LABEL_NOISE)
    chosen = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    noisy = labels.clone()
    noisy[chosen] = torch.randint(num_classes, chosen.shape, generator=generator)
    return noisy
