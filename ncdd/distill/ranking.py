"""DD-Ranking's scores (Li et al. 2025, arXiv 2505.13300): what the images carry, labels and augmentation apart."""

import math
from dataclasses import dataclass, replace

from ncdd.distill.synthetic import SyntheticSet


@dataclass(frozen=True)
class Scores:
    """From accuracies in fractions.

    hlr: hard label recovery, real_hard - synthetic_hard, smaller is better.
    ior: improvement over random, synthetic - random, both by the method's own protocol where it is known.
    lrs: label robust score, `squash(w ior - (1 - w) hlr)`; ars: augmentation robust score.
    """

    hlr: float
    ior: float
    lrs: float
    ars: float | None = None


def squash(alpha: float) -> float:
    """`(e^alpha - e^-1) / (e - e^-1)`: -1 to 0 and 1 to 1."""
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def scores(
    *,
    real_hard: float,
    synthetic_hard: float,
    synthetic: float,
    random: float,
    with_augmentation: tuple[float, float] | None = None,
    without_augmentation: tuple[float, float] | None = None,
    weight: float = 0.5,
    gamma: float = 0.5,
) -> Scores:
    """real_hard, synthetic_hard: accuracies of training on the real and the synthetic set with hard labels.

    synthetic, random: of the synthetic set and of as many random real images, by the method's own protocol.
    with_augmentation, without_augmentation: (synthetic, random) each; both, or ars is None.
    """
    hlr, ior = real_hard - synthetic_hard, synthetic - random
    ars = None
    if with_augmentation is not None and without_augmentation is not None:
        gains = [of_set - of_random for of_set, of_random in (with_augmentation, without_augmentation)]
        ars = squash(gamma * gains[0] + (1 - gamma) * gains[1])
    return Scores(hlr, ior, squash(weight * ior - (1 - weight) * hlr), ars)


def with_hard_labels(synthetic: SyntheticSet) -> SyntheticSet:
    """The same images with each soft label's class, for `synthetic_hard`."""
    return replace(synthetic, labels=synthetic.classes)
