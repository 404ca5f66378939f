"""Probe, ranks and pooling against scikit-learn, singular values and closed forms."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from ncdd.collapse import ShiftedSums, layers

torch.manual_seed(0)
K, D = 4, 6
Y = torch.randint(K, (90,))
X = torch.randn(90, D).double() @ torch.diag(torch.tensor([9.0, 3, 1, 1, 1e-2, 1])).double()
X += 5 * torch.randn(K, D).double()[Y]
X[:, 5] = 7.0  # a dead unit


def moments(x=X, y=Y):
    sums = ShiftedSums.zeros(K, x.shape[1])
    sums.update(x, y)
    return sums.moments()


def test_total_covariance_is_numpys():
    mean, covariance = layers.total_covariance(moments())
    np.testing.assert_allclose(mean, X.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(X.numpy().T, ddof=0), rtol=1e-10, atol=1e-12)


def test_ranks_are_those_of_the_singular_values_of_centred_features():
    _, covariance = layers.total_covariance(moments())
    singular = np.linalg.svd(X.numpy() - X.numpy().mean(0), compute_uv=False)
    for tolerance in (1e-3, 1e-1):
        assert int(layers.numerical_rank(covariance, tolerance)) == (singular**2 > tolerance * singular[0] ** 2).sum()
    assert float(layers.stable_rank(covariance)) == pytest.approx((singular**2).sum() / singular[0] ** 2, rel=1e-12)
    assert int(layers.numerical_rank(torch.eye(5).double())) == 5
    assert float(layers.stable_rank(torch.eye(5).double())) == pytest.approx(5)


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_the_probe_is_scikit_learns_ridge_on_standardised_features(ridge):
    weight, bias = layers.ridge_probe(moments(), ridge)
    std = np.where(X.numpy().std(0) > 1e-12, X.numpy().std(0), 1.0)
    theirs = Ridge(alpha=ridge * len(X)).fit(X.numpy() / std, np.eye(K)[Y.numpy()])
    np.testing.assert_allclose(X @ weight.T + bias, theirs.predict(X.numpy() / std), rtol=1e-9, atol=1e-9)
    hits = (theirs.predict(X.numpy() / std).argmax(1) == Y.numpy()).mean()
    assert layers.linear_accuracy(X, Y, weight, bias) == pytest.approx(hits)


def test_the_probe_does_not_see_scale_and_offset():
    scale, offset = torch.tensor([1.0, 10, 0.1, 3, 50, 1]).double(), 100 * torch.randn(D).double()
    moved = X * scale + offset
    one, other = layers.ridge_probe(moments(), 1e-2), layers.ridge_probe(moments(moved), 1e-2)
    torch.testing.assert_close(X @ one[0].T + one[1], moved @ other[0].T + other[1], rtol=1e-8, atol=1e-8)


def test_pooling_is_over_positions():
    x = torch.randn(3, 5, 2, 4)
    torch.testing.assert_close(layers.pooled(x), x.mean(dim=(2, 3)))
    torch.testing.assert_close(layers.pooled(x.flatten(2).transpose(1, 2)), x.mean(dim=(2, 3)))
    assert layers.pooled(X) is X
