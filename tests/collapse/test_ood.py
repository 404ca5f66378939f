"""OOD scores against their formulas in numpy, detection rates against counts over all pairs and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from ncdd.collapse import ShiftedSums, auroc, fpr95, measure, ood


def test_auroc_and_fpr95_by_counting():
    generator = torch.Generator().manual_seed(0)
    inside = torch.randint(8, (40,), generator=generator).double()  # many ties
    outside = torch.randint(8, (30,), generator=generator).double() - 2
    wins = sum(float(a > b) + 0.5 * float(a == b) for a in inside for b in outside)
    assert float(auroc(inside, outside)) == pytest.approx(wins / 1200, rel=1e-14)
    thresholds = [t for t in inside if float((inside >= t).double().mean()) >= 0.95]
    rates = [float((outside >= t).double().mean()) for t in thresholds]
    assert float(fpr95(inside, outside)) == min(rates)


torch.manual_seed(0)
K, D, N = 3, 7, 120
WEIGHT, BIAS = torch.randn(K, D), torch.randn(K)
LABELS = torch.arange(N) % K
TRAIN = 2 * torch.randn(K, D)[LABELS] + torch.randn(N, D) * torch.tensor([3.0, 1, 1, 0.5, 0.1, 1, 0])
OTHER = torch.randn(40, D) * 2 - 1


def logits(x):
    return x.double() @ WEIGHT.double().T + BIAS.double()


def moments():
    sums = ShiftedSums.zeros(K, D)
    sums.update(TRAIN, LABELS)
    return sums.moments()


def test_scores_of_logits_are_their_formulas():
    z = logits(OTHER).numpy()
    probability = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_allclose(ood.max_softmax(logits(OTHER)).exp(), probability.max(1), rtol=1e-12)
    np.testing.assert_allclose(ood.max_logit(logits(OTHER)), z.max(1))
    np.testing.assert_allclose(ood.energy(logits(OTHER)), np.log(np.exp(z).sum(1)), rtol=1e-12)
    np.testing.assert_allclose(ood.energy(logits(OTHER), 2.0), 2 * np.log(np.exp(z / 2).sum(1)), rtol=1e-12)


def test_msp_keeps_confident_samples_apart():
    sure = ood.max_softmax(torch.tensor([[60.0, 0.0], [61.0, 0.0], [0.0, 800.0]]))
    assert sure[0] < sure[1] < sure[2]


def test_mahalanobis_is_the_formula_with_a_pseudo_inverse():
    x, y = TRAIN.double().numpy(), LABELS.numpy()
    means = np.stack([x[y == k].mean(0) for k in range(K)])
    precision = np.linalg.pinv(np.cov((x - means[y]).T, ddof=0), rcond=1e-12, hermitian=True)
    z = OTHER.double().numpy()[:, None] - means
    expected = -np.einsum("nkd,de,nke->nk", z, precision, z).min(1)
    np.testing.assert_allclose(ood.mahalanobis(OTHER, ood.mahalanobis_basis(moments())), expected, rtol=1e-9)


def test_vim_is_the_authors_code_in_numpy():
    w, b, x, z = (t.double().numpy() for t in (WEIGHT, BIAS, TRAIN, OTHER))
    u = -np.linalg.pinv(w) @ b
    eigenvalues, vectors = np.linalg.eigh((x - u).T @ (x - u) / len(x))
    null = vectors[:, np.argsort(-eigenvalues)[4:]]
    alpha = (x @ w.T + b).max(1).mean() / np.linalg.norm((x - u) @ null, axis=1).mean()
    expected = np.log(np.exp(z @ w.T + b).sum(1)) - alpha * np.linalg.norm((z - u) @ null, axis=1)
    basis = ood.vim_basis(TRAIN, logits(TRAIN), WEIGHT, BIAS, dimension=4)
    np.testing.assert_allclose(ood.vim(OTHER, logits(OTHER), basis), expected, rtol=1e-9)
    assert float(basis.alpha) == pytest.approx(alpha, rel=1e-9)


def test_vims_dimension_is_published_or_leaves_a_residual():
    assert [ood.vim_dimension(d, d) for d in (4096, 2048, 768, 600)] == [1000, 1000, 512, 512]
    assert [ood.vim_dimension(d, r) for d, r in ((512, 512), (512, 9), (2048, 1000))] == [256, 4, 500]
    assert ood.vim_basis(TRAIN, logits(TRAIN), WEIGHT, None).residual.shape == (D, D - 3)
    with pytest.raises(ValueError, match="dimension=7: choose from 1 to 6, of 7 features"):
        ood.vim_basis(TRAIN, logits(TRAIN), WEIGHT, BIAS, dimension=7)


def test_auroc_is_scikit_learns():
    inside, outside = ood.energy(logits(TRAIN)), ood.energy(logits(OTHER))
    truth = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    assert float(auroc(inside, outside)) == pytest.approx(roc_auc_score(truth, torch.cat([inside, outside])), rel=1e-12)


@pytest.mark.parametrize(("classes", "dim"), [(4, 4), (5, 3)])
def test_neco_is_left_out_where_the_principal_space_is_all(classes, dim):
    x, y, outside = torch.randn(60, dim), torch.arange(60) % classes, torch.randn(9, dim)
    values = measure(x, y, features_ood=outside).values
    assert "neco_auroc" not in values and "nc5_ood_orth" in values
    with pytest.raises(ValueError, match=f"neco_components={classes}: choose from 1 to {dim - 1} for features"):
        sums = ShiftedSums.zeros(classes, dim)
        sums.update(x, y)
        ood.neco_basis(sums.moments(), classes)
