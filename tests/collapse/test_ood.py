"""OOD scores against counts over all pairs."""

import pytest
import torch

from ncdd.collapse import auroc, fpr95


def test_auroc_and_fpr95_by_counting():
    generator = torch.Generator().manual_seed(0)
    inside = torch.randint(8, (40,), generator=generator).double()  # many ties
    outside = torch.randint(8, (30,), generator=generator).double() - 2
    wins = sum(float(a > b) + 0.5 * float(a == b) for a in inside for b in outside)
    assert float(auroc(inside, outside)) == pytest.approx(wins / 1200, rel=1e-14)
    thresholds = [t for t in inside if float((inside >= t).double().mean()) >= 0.95]
    rates = [float((outside >= t).double().mean()) for t in thresholds]
    assert float(fpr95(inside, outside)) == min(rates)
