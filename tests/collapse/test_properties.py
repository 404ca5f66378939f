"""Closed forms, invariances, and the places where float32 or a careless formula fails."""

import mpmath
import numpy as np
import pytest
import torch

from ncdd.collapse import NeuralCollapse, measure, simplex_etf
from tests.collapse.conftest import cached, case, streamed


def two_pass(X, y, K):
    """NC1 tr(Sw Sb^+)/K and the NCC decisions in float64, written out (distances from explicit differences)."""
    X, y = X.double().numpy(), y.numpy()
    mu = np.stack([X[y == k].mean(0) for k in range(K)])
    mu += np.stack([(X[y == k] - mu[k]).mean(0) for k in range(K)])
    Z, M = X - mu[y], mu - mu.mean(0)
    _, s, V = np.linalg.svd(M / np.sqrt(K), full_matrices=False)
    nc1 = ((Z @ V[: K - 1].T) ** 2).mean(0) @ (1 / s[: K - 1] ** 2) / K
    return nc1, np.linalg.norm(X[:, None] - mu[None], axis=2).argmin(1)


def clusters(K, D, n, within, offset, seed=0, spread=None):
    """float32 features around a simplex ETF (its k-th direction times spread_k), with an offset of that norm."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randperm(n, generator=generator) % K
    means = simplex_etf(K, D, rotation="random", seed=seed)
    if spread is not None:
        u, s, v = torch.linalg.svd(means, full_matrices=False)
        means = u * (s * spread) @ v
    direction = torch.randn(D, dtype=torch.float64, generator=generator)
    noise = torch.randn(n, D, dtype=torch.float64, generator=generator) * within / D**0.5
    return (means[y] + offset * direction / direction.norm() + noise).float(), y


@pytest.mark.parametrize("offset", [10.0, 100.0])
@pytest.mark.parametrize("within", [1e-2, 1e-4, 1e-6])
def test_nc1_survives_an_offset_and_vanishing_variance(offset, within):
    X, y = clusters(5, 32, 500, within, offset)
    expected, _ = two_pass(X, y, 5)
    W = torch.zeros(5, 32)
    assert measure(X, y, num_classes=5).values["nc1_pinv"] == pytest.approx(expected, rel=1e-8)
    assert streamed({"X": X, "y": y, "W": W, "b": torch.zeros(5)})["nc1_pinv"] == pytest.approx(expected, rel=1e-8)


def test_nc1_with_one_mean_direction_a_millionth_of_the_largest():
    spread = torch.tensor([1, 1, 1, 1e-6, 1], dtype=torch.float64)
    X, y = clusters(5, 16, 400, 1e-3, 1.0, spread=spread)
    expected, _ = two_pass(X, y, 5)
    assert measure(X, y, num_classes=5).values["nc1_pinv"] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_ncc_decisions_are_exact_far_from_the_origin(precision):
    X, y = clusters(10, 64, 2000, 6.0, 1e4, seed=1)
    _, nearest = two_pass(X, y, 10)
    got = measure(X, y, num_classes=10, precision=precision).values["ncc_accuracy"]
    assert got == (nearest == y.numpy()).mean()
    assert 0.1 < got < 0.99


def test_nc1_against_fifty_digits():
    X, y = clusters(3, 4, 30, 1e-5, 50.0)
    with mpmath.workdps(50):
        rows = [[mpmath.mpf(float(v)) for v in x] for x in X]
        mu = [[sum(r[d] for r, c in zip(rows, y, strict=True) if c == k) / 10 for d in range(4)] for k in range(3)]
        M = mpmath.matrix([[mu[k][d] - sum(m[d] for m in mu) / 3 for d in range(4)] for k in range(3)])
        Z = [mpmath.matrix([[r[d] - mu[int(c)][d] for d in range(4)]]) for r, c in zip(rows, y, strict=True)]
        basis = mpmath.matrix([[1, -1, 0], [1, 1, -2]])  # the complement of the ones vector
        B = basis * M  # 2 x 4, of full rank: Sb^+ = M'(..)M through its row space
        gram_inverse = (B * B.T) ** -1
        Sb = M.T * M / 3
        P = B.T * gram_inverse * B
        Sb_pinv = P * ((Sb + mpmath.eye(4) - P) ** -1) * P
        expected = sum((z * Sb_pinv * z.T)[0] for z in Z) / 30 / 3
    assert measure(X, y, num_classes=3).values["nc1_pinv"] == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize(("K", "D"), [(2, 1), (2, 5), (4, 3), (10, 64)])
def test_a_perfect_etf_has_no_error(K, D):
    frame = simplex_etf(K, D, rotation="random")
    y = torch.arange(3 * K) % K
    noise = 1e-3 * torch.randn(3 * K, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for k in range(K):  # noise without a mean
        noise[y == k] -= noise[y == k].mean(0)
    got = measure(frame[y] + noise + 1, y, weight_KD=2 * frame, bias_K=-2 * frame.sum(1)).values
    for key in ("nc2_etf_M", "nc2_etf_W", "nc2_equinorm_M", "nc2_equiangular_std_M", "nc2_maxangle_W", "nc3_dual_etf",
                "nc3_papyan", "nc3_one_minus_cos_mean"):  # fmt: skip
        assert got[key] == pytest.approx(0, abs=1e-7 if key == "nc2_equiangular_std_M" else 1e-12), key
    assert got["nc3_cos_mean"] == pytest.approx(1, abs=1e-12)
    assert got["nc4_agree_bias"] == got["ncc_accuracy"] == 1
    assert got["nc2g_dist_mean"] == pytest.approx((2 * K / (K - 1)) ** 0.5, rel=1e-12)


def test_rotation_scale_translation_and_order_change_nothing():
    arrays, _ = case("imbalanced")
    X, y, W, b = (arrays[k].double() if k != "y" else arrays[k] for k in ("X", "y", "W", "b"))
    before = measure(X, y, weight_KD=W, bias_K=b).values
    Q, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    shift = torch.arange(7, dtype=torch.float64)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    moved = measure((2 * X @ Q + shift)[order], y[order], weight_KD=W @ Q / 2, bias_K=b - (W @ Q / 2) @ shift).values
    changed = {"nc1_cdnv_mean_sq", "nc4_agree_nobias", "nc4_agree_nobias__class_balanced"}  # not invariant by nature
    for key in before.keys() - changed:
        if not key.startswith("nc4_Whb"):
            assert moved[key] == pytest.approx(before[key], rel=1e-9, abs=1e-12), key


def test_classes_renamed_give_the_same_values():
    arrays, expected = case("imbalanced")
    names = torch.tensor([2, 0, 3, 1])
    inverse = names.argsort()
    got = cached(arrays | {"y": names[arrays["y"]], "W": arrays["W"][inverse], "b": arrays["b"][inverse]})
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, rel=1e-10, abs=1e-14), key


@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_batches_and_their_order_change_nothing(batch):
    arrays, _ = case("imbalanced")
    expected = streamed(arrays, batch=7)
    order = torch.randperm(len(arrays["X"]), generator=torch.Generator().manual_seed(batch))
    got = streamed(arrays, batch=batch, order=order)
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, rel=1e-12, abs=1e-14), key


def test_a_budget_crossed_on_the_way_changes_nothing():
    arrays, _ = case("balanced")
    expected = streamed(arrays, memory_budget=2**30)
    got = streamed(arrays, batch=5, memory_budget=200)
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, rel=1e-11, abs=1e-14), key


def test_absent_classes_and_ignored_labels_are_left_out():
    arrays, expected = case("imbalanced")
    X = torch.cat([arrays["X"], torch.full((2, 7), 1e3)])
    y = torch.cat([arrays["y"] * 2, torch.tensor([-1, -1])])  # classes 0 2 4 6 of 8
    W, b = torch.zeros(8, 7), torch.full((8,), -1e9)
    W[::2], b[::2] = arrays["W"], arrays["b"]
    got = measure(X, y, weight_KD=W, bias_K=b, num_classes=8, ignore_index=-1).values
    for key in ("nc1_pinv", "nc1_vci", "nc2_etf_M", "nc2_etf_W", "nc3_dual_etf", "nc4_agree_bias", "ncc_accuracy", "K"):
        assert got[key] == pytest.approx(expected[key], rel=1e-10), key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_promoted(dtype):
    arrays, _ = case("balanced")
    half = arrays["X"].to(dtype)
    got = measure(half, arrays["y"], num_classes=3).values
    assert got == measure(half.double(), arrays["y"], num_classes=3).values


def test_more_classes_than_dimensions():
    X, y = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 6
    got = measure(X, y, weight_KD=torch.randn(6, 2), bias_K=torch.zeros(6)).values
    mu = torch.stack([X[y == k].double().mean(0) for k in range(6)])
    Z, M = X.double() - mu[y], mu - mu.mean(0)
    expected = torch.trace((Z.T @ Z / 60) @ torch.linalg.pinv(M.T @ M / 6)) / 6
    assert got["nc1_pinv"] == pytest.approx(float(expected), rel=1e-10)


def test_vci_of_a_singular_scatter_is_the_definition():
    """More dimensions than samples, and dead units: 1 - tr(St^+ Sb) / rank Sb by numpy's pseudo-inverse."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(12) % 3
    X = torch.randn(12, 20, generator=generator, dtype=torch.float64) + 2 * torch.randn(3, 20, generator=generator)[y]
    X[:, 5:8] = 0
    mu = torch.stack([X[y == k].mean(0) for k in range(3)])
    Z, M = (X - mu[y]).numpy(), (mu - mu.mean(0)).numpy()
    Sw, Sb = Z.T @ Z / 12, M.T @ M / 3
    expected = 1 - np.trace(np.linalg.pinv(Sw + Sb, rcond=1e-10, hermitian=True) @ Sb) / 2
    assert measure(X, y, num_classes=3).values["nc1_vci"] == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_test_features_against_train_means():
    generator = torch.Generator().manual_seed(0)
    X, y = torch.randn(80, 6, generator=generator), torch.arange(80) % 4
    means = torch.randn(4, 6, generator=generator)
    W, b = torch.randn(4, 6, generator=generator), torch.randn(4, generator=generator)
    got = measure(X, y, weight_KD=W, bias_K=b, reference_means_KD=means).values
    nearest = (X[:, None] - means[None]).norm(dim=2).argmin(1)
    assert got["ncc_accuracy__train_means"] == float((nearest == y).double().mean())
    assert got["nc4_agree_bias__train_means"] == float((nearest == (X @ W.T + b).argmax(1)).double().mean())
    metric = NeuralCollapse(4, memory_budget=0)
    metric.set_head(W, b)
    metric.set_reference(means)
    metric.update(X, y)
    assert metric.compute()["ncc_accuracy__train_means"] == got["ncc_accuracy__train_means"]
