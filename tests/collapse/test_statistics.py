"""The routes that are taken for speed give what the plain formula gives."""

import pytest
import torch

from ncdd.collapse import ShiftedSums, measure, merge_moments
from ncdd.collapse.geometry import distance_matrix
from ncdd.collapse.statistics import add_gram, measuring, mirrored
from ncdd.collapse.sweep import row_svd


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("D", [3, 130, 300])
def test_products_in_panels_are_the_whole_product(D):
    z, total = normal(50, D), torch.zeros(D, D, dtype=torch.float64)
    add_gram(total, z[:20])
    add_gram(total, z[20:])
    torch.testing.assert_close(mirrored(total), z.T @ z, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-7])
def test_a_large_svd_by_the_gram_matrix_keeps_its_digits(smallest):
    left, right = torch.linalg.qr(normal(300, 300)).Q, torch.linalg.qr(normal(320, 300, seed=1)).Q
    expected = torch.linspace(1, 0, 300, dtype=torch.float64) * (1 - smallest) + smallest
    rows = left * expected @ right.T
    u, s, v = row_svd(rows)
    torch.testing.assert_close(s, expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(u * s @ v, rows, rtol=1e-12, atol=1e-12)


def test_distances_by_the_gram_matrix_are_exact_for_close_pairs():
    A = normal(300, 8)
    A[7] = A[3] + 1e-9 * normal(8, seed=1)
    distance = distance_matrix(A, A @ A.T)
    torch.testing.assert_close(distance[3, 7], (A[3] - A[7]).norm(), rtol=1e-12, atol=0)
    torch.testing.assert_close(distance, torch.cdist(A, A), rtol=1e-10, atol=1e-7)


@pytest.mark.parametrize("cut", [0, 1, 17, 40])
def test_shards_merge_into_their_union(cut):
    x, y = normal(40, 5) + 30, torch.arange(40) % 3 * (torch.arange(40) > 4)  # the first shard may lack classes
    moments = []
    for rows in (slice(0, cut), slice(cut, None), slice(None)):
        sums = ShiftedSums.zeros(4, 5)  # class 3 has no samples anywhere
        if len(x[rows]):
            sums.update(x[rows], y[rows])
        moments.append(sums.moments())
    merged, whole = merge_moments(*moments[:2]), moments[2]
    assert torch.equal(merged.count_K, whole.count_K)
    for name in ("mean_KD", "square_K", "scatter_DD"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), rtol=1e-12, atol=1e-12)


def test_more_than_256_classes():
    """Beyond 256 classes pairs and singular vectors come from the Gram matrix."""
    K, D, n = 300, 310, 900
    y, means = torch.arange(n) % K, normal(K, D)
    x = means[y] + 0.3 * normal(n, D, seed=1)
    got = measure(x, y, weight_KD=means, vci=False).values
    mu = torch.stack([x[y == k].mean(0) for k in range(K)])
    z, M = x - mu[y], mu - mu.mean(0)
    pinv = torch.linalg.pinv(M.T @ M / K, hermitian=True, rtol=1e-10)
    pairs = torch.pdist(mu)
    v = torch.stack([z[y == k].square().sum() / 3 for k in range(K)])
    i, j = torch.triu_indices(K, K, 1)
    assert got["nc1_pinv"] == pytest.approx(float((z @ pinv * z).sum() / n / K), rel=1e-9)
    assert got["nc1_cdnv_mean"] == pytest.approx(float(((v[i] + v[j]) / (2 * pairs**2)).mean()), rel=1e-12)
    assert got["ncc_accuracy"] == float((torch.cdist(x, mu).argmin(1) == y).double().mean())
    unit = torch.pdist(M / M.norm(dim=1, keepdim=True))
    assert got["nc2g_log_mean"] == pytest.approx(float(-unit.log().mean()), rel=1e-12)


def test_minority_classes_have_their_own_cosines():
    means = torch.eye(4, 6, dtype=torch.float64)
    means[3] = means[2] + 0.1 * means[0]  # the two small classes nearly coincide
    y = torch.tensor([0] * 9 + [1] * 9 + [2] * 2 + [3] * 2)
    got = measure(means[y] + 1e-3 * normal(22, 6), y, num_classes=4).per_class
    assert got["minority_cosine"][:2].isnan().all()
    assert (got["minority_cosine"][2:] > 0.95).all()
    assert got["nc1_share"].sum() == pytest.approx(1)
    assert got["count"].tolist() == [9, 9, 2, 2]


def test_the_callers_matmul_precision_is_restored():
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(KeyError), measuring(torch.device("cpu")):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
            raise KeyError
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
