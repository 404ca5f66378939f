"""The minimum of the unconstrained-features model: against direct minimisation over H, W, b and against its dual."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional as F

from ncdd.collapse.unconstrained import Problem, duality_gap, global_minimiser, minimiser_errors

COUNTS = [[6, 6, 6], [9, 7, 2]]


def problem(counts=(6, 6, 6), loss="cross_entropy", bias=False, head_decay=5e-3, feature_decay=2e-3):
    return Problem(torch.tensor(counts), loss, head_decay, feature_decay, bias)


def labels_of(p):
    return torch.arange(len(p.count_K)).repeat_interleave(p.count_K)


def direct(p, dim, seed):
    """scipy's BFGS on every sample's features, the weight and the bias, from a random start: value, W, b, H."""
    y, K = labels_of(p), len(p.count_K)
    sizes = [K * dim, len(y) * dim, K if p.bias else 0]

    def split(flat):
        W, H, b = flat.split(sizes)
        return W.view(K, dim), H.view(-1, dim), b if p.bias else flat.new_zeros(K)

    def objective(array):
        flat = torch.tensor(array, requires_grad=True)
        W, H, b = split(flat)
        Z = H @ W.T + b
        data = F.cross_entropy(Z, y) if p.loss == "cross_entropy" else F.mse_loss(Z, F.one_hot(y, K).double()) * K / 2
        value = data + p.head_decay / 2 * (W.square().sum() + b.square().sum()) + p.feature_decay / 2 * H.square().sum()
        value.backward()
        return float(value.detach()), flat.grad.numpy()

    start = np.random.default_rng(seed).normal(size=sum(sizes))
    result = minimize(objective, start, jac=True, method="L-BFGS-B",
                      options={"maxiter": 5000, "maxfun": 10000, "ftol": 0, "gtol": 1e-10, "maxcor": 50})  # fmt: skip
    return result.fun, *split(torch.tensor(result.x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_random_starts_reach_it_and_never_go_below(counts, loss, bias):
    p = problem(counts, loss, bias)
    m = global_minimiser(p)
    values = []
    for seed in range(3):
        value, W, H, b = direct(p, dim=4, seed=seed)
        values.append(value)
        assert value >= m.value * (1 - 1e-7), "below the predicted minimum"
    assert min(values) == pytest.approx(m.value, rel=1e-9)
    errors = minimiser_errors(p, m, W, b, H, labels_of(p))
    assert errors.pop("loss") == pytest.approx(value, rel=1e-12)
    assert errors.pop("predicted_loss") == m.value
    assert max(map(abs, errors.values())) < 1e-3, errors


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("counts", [*COUNTS, [100, 50, 25, 12, 6, 3, 1, 1], [40] * 10], ids=str)
@pytest.mark.parametrize("decays", [(5e-3, 5e-4), (1e-3, 1e-4)], ids=str)
def test_the_dual_certifies_it(counts, loss, bias, decays):
    p = problem(counts, loss, bias, *decays)
    m = global_minimiser(p)
    closed = len(set(counts)) == 1 or (loss == "mse" and not bias)
    assert -1e-14 < m.gap < (1e-13 if closed else 1e-6 * m.value)
    assert m.rank == len(counts) - (bias or loss == "cross_entropy")


def test_the_dual_bounds_any_point_from_below():
    generator = torch.Generator().manual_seed(0)
    for loss in ("cross_entropy", "mse"):
        for bias in (False, True):
            p = problem([9, 7, 2], loss, bias)
            minimum = global_minimiser(p).value
            for _ in range(20):
                W, H = torch.randn(2, 3, 3, dtype=torch.float64, generator=generator)
                b = bias * torch.randn(3, dtype=torch.float64, generator=generator)
                assert float(p.objective(W, H, b)) - duality_gap(p, W, H, b) <= minimum + 1e-12


def test_balanced_cross_entropy_is_the_simplex_of_zhu():
    K, n, head_decay, feature_decay = 5, 20, 5e-3, 1e-4
    m = global_minimiser(problem([n] * K, "cross_entropy", True, head_decay, feature_decay))
    W, H = m.weight_KR, m.feature_KR
    simplex = (torch.eye(K) * K - 1) / (K - 1)
    torch.testing.assert_close(W @ W.T / W[0].square().sum(), simplex.double(), rtol=0, atol=1e-13)
    # Theorem 3.1: h_k = sqrt(head_decay/(n feature_decay)) w_k, b = 0
    torch.testing.assert_close(H, (head_decay / (n * feature_decay)) ** 0.5 * W, rtol=0, atol=1e-13)
    assert not m.bias_K.any()

    # stationarity of the scalar problem, by a second route: bisection on the derivative along the ray
    def slope(s):
        return math.sqrt(n * head_decay * feature_decay) * (K - 1) - (K - 1) / (math.exp(s) + K - 1)

    low, high = 0.0, 100.0
    for _ in range(200):
        low, high = (low, (low + high) / 2) if slope((low + high) / 2) > 0 else ((low + high) / 2, high)
    assert float((H @ W.T)[0, 0] - (H @ W.T)[0, 1]) == pytest.approx(low, rel=1e-12)


def test_mse_without_bias_is_orthogonal_and_minorities_vanish():
    p = problem([400, 100, 4], "mse", False, head_decay=1e-2, feature_decay=1e-2 / 16)
    m = global_minimiser(p)  # lambda N = 0.0025 504 = 1.26 < sqrt(4) = 2
    gram = m.weight_KR @ m.weight_KR.T
    assert gram[~torch.eye(3, dtype=torch.bool)].abs().max() < 1e-14
    expected = torch.tensor([20 - 1.26, 10 - 1.26, 2 - 1.26], dtype=torch.float64) / 4
    torch.testing.assert_close(gram.diagonal(), expected, rtol=1e-13, atol=0)
    gone = global_minimiser(problem([400, 100, 1], "mse", False, head_decay=1e-2, feature_decay=1e-2 / 16))
    assert gone.rank == 2 and not gone.weight_KR[2].any() and not gone.feature_KR[2].any()


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_too_much_decay_leaves_nothing(loss):
    p = problem([6, 6, 6], loss, False, 1.0, 1.0)
    m = global_minimiser(p)
    assert m.rank == 0
    assert m.value == pytest.approx(math.log(3) if loss == "cross_entropy" else 0.5)
    assert abs(m.gap) < 1e-14
    zero = torch.zeros(3, 2)
    errors = minimiser_errors(p, m, zero, torch.zeros(3), torch.zeros(18, 2), labels_of(p))
    assert errors["loss_gap"] == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("bias", [False, True])
def test_too_much_decay_leaves_nothing_of_unequal_classes_but_a_bias(loss, bias):
    p = problem([9, 7, 2], loss, bias, 1.0, 1.0)
    m = global_minimiser(p)
    assert m.rank == 0
    assert bool(m.bias_K.any()) == bias
    errors = minimiser_errors(p, m, torch.zeros(3, 2), m.bias_K, torch.zeros(18, 2), labels_of(p))
    assert errors["loss_gap"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "hinge"}, "loss='hinge': choose one of 'cross_entropy', 'mse'"),
        ({"head_decay": 0.0}, "head_decay=0.0: must be positive"),
        ({"feature_decay": -1.0}, "feature_decay=-1.0: must be positive"),
        ({"counts": [3, 0]}, r"count_K=\[3, 0\]: 2 or more classes with a sample each are needed"),
    ],
)
def test_what_has_no_minimum_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        problem(**change)
