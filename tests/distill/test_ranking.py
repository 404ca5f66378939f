"""The scores against their formulas."""

import math

import pytest
import torch

from ncdd.distill.ranking import scores, squash, with_hard_labels
from ncdd.distill.synthetic import SyntheticSet


def test_dd_ranking_scores():
    found = scores(real_hard=0.85, synthetic_hard=0.45, synthetic=0.6, random=0.3)
    assert (found.hlr, found.ior, found.ars) == (pytest.approx(0.4), pytest.approx(0.3), None)
    alpha = 0.5 * 0.3 - 0.5 * 0.4
    assert found.lrs == pytest.approx((math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert (squash(-1), squash(1)) == (pytest.approx(0), pytest.approx(1))
    both = scores(
        real_hard=0.8,
        synthetic_hard=0.8,
        synthetic=0.8,
        random=0.8,
        with_augmentation=(0.7, 0.5),
        without_augmentation=(0.6, 0.5),
        gamma=0.25,
    )
    assert both.ars == pytest.approx(squash(0.25 * 0.2 + 0.75 * 0.1))
    assert both.lrs == pytest.approx(squash(0))


def test_hard_labels_are_the_largest_soft_ones():
    soft = torch.tensor([[0.2, 0.8], [0.9, 0.1]])
    data = SyntheticSet(images=torch.zeros(2, 1, 4, 4), labels=soft)
    assert with_hard_labels(data).labels.tolist() == [1, 0]
