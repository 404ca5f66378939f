"""Membership attacks on outputs of which is known how much they tell."""

import numpy as np
import pytest

from ncdd.distill.membership import ATTACKS, attack

N = 200
MEMBER = np.arange(2 * N) < N


def outputs(shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of noise, and losses of members that are `shift` standard deviations smaller."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(2 * N, 3)), generator.normal(size=2 * N) - shift * MEMBER


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_to_tell(name):
    found = attack(name, *outputs(0.0), MEMBER, seed=0)
    deviation = ((2 * N + 1) / (12 * N * N)) ** 0.5  # of the AUC of noise
    assert found.auc == pytest.approx(0.5, abs=4 * deviation)
    assert found.accuracy == pytest.approx(0.5, abs=4 * 0.5 / (2 * N) ** 0.5)


@pytest.mark.parametrize("name", ATTACKS)
def test_losses_that_tell_everything(name):
    found = attack(name, *outputs(20.0), MEMBER, seed=0)
    assert found.auc > 0.99
    assert found.accuracy > 0.95


def test_the_loss_threshold_of_two_normals():
    """AUC Phi(d / sqrt 2) and accuracy Phi(d / 2) of two normals d apart."""
    found = [attack("loss_threshold", *outputs(1.0, seed), MEMBER, seed=seed) for seed in range(10)]
    assert np.mean([f.auc for f in found]) == pytest.approx(0.760, abs=0.02)
    assert np.mean([f.accuracy for f in found]) == pytest.approx(0.691, abs=0.03)


def test_logits_tell_too():
    logits, losses = outputs(0.0)
    logits[:, 1] += 3 * MEMBER
    assert attack("logistic_regression", logits, losses, MEMBER, seed=0).auc > 0.95
    assert attack("loss_threshold", logits, losses, MEMBER, seed=0).auc < 0.6


def test_the_same_seed_the_same_attack():
    first, second = (attack("mlp", *outputs(0.5), MEMBER, seed=3) for _ in range(2))
    assert first == second


def test_an_unknown_attack_is_named():
    with pytest.raises(ValueError, match=r"task\.attacks: no 'svm'; choose from loss_threshold, logistic_regression"):
        attack("svm", *outputs(0.0), MEMBER, seed=0)
