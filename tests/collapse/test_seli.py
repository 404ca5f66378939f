"""SELI against the optimality conditions of the SVM it solves, the simplex when balanced, and trained minimisers."""

from itertools import pairwise

import pytest
import torch

from ncdd.collapse import measure, simplex_etf
from ncdd.collapse.seli import centred_gram, gram_distance, seli_errors, seli_grams
from ncdd.collapse.unconstrained import Problem, global_minimiser

COUNTS = [[7, 7, 7], [50, 50, 5, 5], [100, 37, 12, 5, 1], [1, 400]]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_it_is_the_svd_of_the_simplex_encoded_labels(counts):
    count = torch.tensor(counts)
    K = len(counts)
    Y = torch.nn.functional.one_hot(torch.arange(K).repeat_interleave(count), K).double().T
    V, S, U = torch.linalg.svd(Y - Y.mean(dim=0), full_matrices=False)
    V, S, U = V[:, : K - 1], S[: K - 1], U[: K - 1]
    first = count.cumsum(0) - count  # one sample of each class
    gram_W, gram_H = seli_grams(count)
    torch.testing.assert_close(gram_W, (V * S) @ V.T, rtol=0, atol=1e-13 * float(S[0]))
    torch.testing.assert_close(gram_H, ((U.T * S) @ U)[first][:, first], rtol=0, atol=1e-13)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_it_solves_the_svm_of_unconstrained_features(counts):
    """min ||Z||_* with margins z_y - z_j >= 1: Z has margin 1 everywhere, and a subgradient VU' of admissible signs."""
    count = torch.tensor(counts)
    K, root = len(counts), count.double().sqrt()
    Z = torch.eye(K, dtype=torch.float64) - 1 / K
    V, _, U = torch.linalg.svd(Z * root)
    multiplier = V[:, : K - 1] @ U[: K - 1] / root  # of one sample, column by column
    assert (Z.diagonal() - Z + torch.eye(K) - 1).abs().max() < 1e-15  # margins
    assert multiplier.sum(dim=0).abs().max() < 1e-14
    assert (multiplier - multiplier.diagonal().diag()).max() < 1e-14
    gram_W, gram_H = seli_grams(count)
    # W H' is Z: the factors' Gram matrices multiply to Z Z' (weighted by the samples)
    torch.testing.assert_close(gram_W @ gram_W, Z * count @ Z.T, rtol=1e-10, atol=1e-12)
    assert float(gram_W.trace()) == pytest.approx(float(count.double() @ gram_H.diagonal()), rel=1e-12)


def test_balanced_it_is_the_simplex_and_its_errors_those_of_the_etf():
    gram_W, gram_H = seli_grams(torch.full((5,), 12))
    etf = simplex_etf(5, 5)
    for gram in (gram_W, gram_H, centred_gram(gram_H, torch.full((5,), 0.2, dtype=torch.float64))):
        assert gram_distance(gram, etf @ etf.T) < 1e-14
    generator = torch.Generator().manual_seed(0)
    X, y = torch.randn(60, 8, generator=generator), torch.arange(60) % 5
    W = torch.randn(5, 8, generator=generator)
    result = measure(X, y, weight_KD=W)
    M = result.mean_KD - result.mean_KD.mean(dim=0)
    share = torch.full((5,), 0.2, dtype=torch.float64)
    errors = seli_errors(result.count_K, M @ M.T, W.double() @ W.double().T, share)
    assert float(errors["nc2_seli_M"]) == pytest.approx(result.values["nc2_etf_M"], rel=1e-12)
    assert float(errors["nc2_seli_W"]) == pytest.approx(result.values["nc2_etf_W"], rel=1e-12)
    assert not [key for key in result.values if "seli" in key or "minority" in key]


def test_cross_entropy_of_unequal_classes_tends_to_it_as_decay_vanishes():
    count = torch.tensor([90, 90, 9, 9])
    reference = seli_grams(count)
    distances = []
    for decay in (1e-4, 1e-6, 1e-8):
        m = global_minimiser(Problem(count, "cross_entropy", decay, decay, bias=False))
        grams = (m.weight_KR @ m.weight_KR.T, m.feature_KR @ m.feature_KR.T)
        distances.append([float(gram_distance(*pair)) for pair in zip(grams, reference, strict=True)])
    for before, after in pairwise(distances):
        assert after[0] < 0.8 * before[0] and after[1] < 0.8 * before[1], distances


@pytest.mark.parametrize("weighting", ["balanced", "sample"])
def test_features_in_seli_position_measure_zero_whatever_their_offset(weighting):
    count = torch.tensor([40, 20, 6, 4])
    gram_W, gram_H = seli_grams(count)
    rows = []
    for gram in (gram_W, gram_H):
        value, vector = torch.linalg.eigh(gram)
        rows.append(vector * value.clamp(min=0).sqrt())
    y = torch.arange(4).repeat_interleave(count)
    X = 3 * rows[1][y] + torch.arange(4)
    values = measure(X, y, weight_KD=rows[0], weighting=weighting, vci=False).values
    assert values["nc2_seli_M"] < 1e-12 and values["nc2_seli_W"] < 1e-12
    assert values["nc2_etf_M"] > 0.1 and values["nc2_etf_W"] > 0.1


def test_minority_cosines_are_means_over_pairs():
    generator = torch.Generator().manual_seed(1)
    count = torch.tensor([50, 50, 5, 4, 3])
    y = torch.arange(5).repeat_interleave(count)
    X, W = torch.randn(len(y), 6, generator=generator), torch.randn(5, 6, generator=generator)
    result = measure(X, y, weight_KD=W)
    M = result.mean_KD - result.mean_KD.mean(dim=0)
    pairs = [(2, 3), (2, 4), (3, 4)]
    for key, rows in (("nc2_minority_cos_M", M), ("nc2_minority_cos_W", W.double())):
        expected = sum(float(torch.cosine_similarity(rows[i], rows[j], dim=0)) for i, j in pairs) / 3
        assert result.values[key] == pytest.approx(expected, rel=1e-12)


def test_sizes_of_a_test_set_shape_nothing():
    """Beside the train means neither SELI nor a minority is measured: both are of the classes as trained on."""
    labels = torch.arange(3).repeat_interleave(torch.tensor([8, 4, 2]))
    features, weight = torch.randn(14, 5), torch.randn(3, 5)
    train = measure(features, labels, weight_KD=weight)
    test = measure(features, labels, weight_KD=weight, reference_means_KD=train.mean_KD)
    keys = {"nc2_seli_M", "nc2_seli_W", "nc2_minority_cos_M", "nc2_minority_cos_W"}
    assert keys <= train.values.keys()
    assert not keys & test.values.keys()
