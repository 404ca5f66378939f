"""The parts of the MSE loss against the loss itself and against least squares on the samples."""

import pytest
import torch
from torch.nn import functional as F

from ncdd.collapse import NeuralCollapse, measure

PARTS = ("mse_nc1", "mse_nc23", "mse_perp")


def samples(K=4, D=6, n=150, within=1.0, offset=3.0, seed=0):
    """Unequal classes around random means, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.arange(1.0, K + 1), n, replacement=True, generator=generator)
    y[:K] = torch.arange(K)
    X = torch.randn(K, D, generator=generator, dtype=torch.float64)[y] + offset
    X = X + within * torch.randn(n, D, generator=generator, dtype=torch.float64)
    W, b = torch.randn(K, D, generator=generator).double(), torch.randn(K, generator=generator).double()
    return X, y, W, b


def parts(X, y, W, b):
    values = measure(X, y, weight_KD=W, bias_K=b, vci=False, central_path=True).values
    return [values[name] for name in PARTS]


def mse(X, y, W, b):
    return float(0.5 * (X @ W.T + b - F.one_hot(y, len(W))).square().sum(dim=1).mean())


def least_squares(X, y, K):
    ones = X.new_ones(len(X), 1)
    solution = torch.linalg.lstsq(torch.cat((X, ones), dim=1), F.one_hot(y, K).double(), driver="gelsd").solution
    return solution[:-1].T, solution[-1]


@pytest.mark.parametrize("within", [1.0, 1e-2, 1e-5])
@pytest.mark.parametrize(("D", "n"), [(6, 150), (3, 150), (40, 30), (1, 50)])
def test_they_sum_to_the_loss(within, D, n):
    X, y, W, b = samples(D=D, n=n, within=within)
    assert sum(parts(X, y, W, b)) == pytest.approx(mse(X, y, W, b), rel=1e-12)


def test_they_sum_to_the_loss_with_dead_and_repeated_units():
    X, y, W, b = samples()
    X[:, 2], X[:, 3] = 0, 2 * X[:, 4]
    assert sum(parts(X, y, W, b)) == pytest.approx(mse(X, y, W, b), rel=1e-12)


@pytest.mark.parametrize("D", [6, 3, 40])
def test_each_is_what_least_squares_on_the_samples_says(D):
    X, y, W, b = samples(D=D)
    best, intercept = least_squares(X, y, 4)
    mean = torch.stack([X[y == k].mean(dim=0) for k in range(4)])
    share = y.bincount() / len(y)
    nc1 = 0.5 * ((X - mean[y]) @ best.T).square().sum(dim=1).mean()
    nc23 = 0.5 * share.double() @ (mean @ best.T + intercept - torch.eye(4)).square().sum(dim=1)
    perp = 0.5 * ((X @ (W - best).T) + (b - intercept)).square().sum(dim=1).mean()
    assert parts(X, y, W, b) == pytest.approx([float(nc1), float(nc23), float(perp)], rel=1e-6)
    assert parts(X, y, best, intercept)[2] < 1e-20  # on the central path


def test_collapsed_features_pay_for_their_geometry_only():
    X, y, W, b = samples(within=0.0)
    nc1, nc23, _ = parts(X, y, W, b)
    assert nc1 < 1e-28 and nc23 < 1e-25  # six dimensions hold four affinely independent means
    X, y, W, b = samples(within=0.0, D=2)
    nc1, nc23, _ = parts(X, y, W, b)
    assert nc1 < 1e-25 and nc23 > 1e-3


def test_streaming_and_reparametrisation_change_nothing():
    X, y, W, b = samples()
    before = parts(X, y, W, b)
    metric = NeuralCollapse(4, memory_budget=0, vci=False, central_path=True)
    metric.set_head(W, b)
    for rows in torch.arange(len(y)).split(17):
        metric.update(X[rows], y[rows])
    assert [metric.compute()[name] for name in PARTS] == pytest.approx(before, rel=1e-11)
    Q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    shift = torch.arange(6, dtype=torch.float64)
    assert parts(2 * X @ Q + shift, y, W @ Q / 2, b - (W @ Q / 2) @ shift) == pytest.approx(before, rel=1e-10)


def test_they_are_left_out_unless_asked_for():
    X, y, W, b = samples()
    assert not [key for key in measure(X, y, weight_KD=W, bias_K=b).values if key.startswith("mse_")]
    assert not [key for key in measure(X, y, num_classes=4, central_path=True).values if key.startswith("mse_")]
