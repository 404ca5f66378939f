"""Each objective against a direct computation, and what must not change it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncdd.collapse import simplex_etf
from ncdd.distill import joint
from ncdd.models import Linear, Network

K, D = 4, 6


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and classes of T, features and weights of S: two images a class."""
    classes = torch.arange(20) % K
    return randn(20, D), classes, randn(2 * K, D, seed=1), F.one_hot(torch.arange(2 * K) // 2, K).double()


def loops(real: Tensor, classes: Tensor, of_set: Tensor) -> tuple[list[Tensor], list[Tensor], float]:
    """Class means of T and of S, and the mean squared distance of the former from their centre."""
    mu_T = [real[classes == c].mean(0) for c in range(K)]
    mu_S = [of_set[2 * c : 2 * c + 2].mean(0) for c in range(K)]
    centre = torch.stack(mu_T).mean(0)
    return mu_T, mu_S, sum(float((mu - centre) @ (mu - centre)) for mu in mu_T) / K


def test_means_is_its_formula(drawn):
    real, classes, of_set, _ = drawn
    mu_T, mu_S, s = loops(real, classes, of_set)
    expected = sum(float((a - b) @ (a - b)) for a, b in zip(mu_T, mu_S, strict=True)) / (K * s)
    assert joint.means(*drawn).item() == pytest.approx(expected, rel=1e-12)


def test_ncc_adds_the_cross_entropy_of_the_nearest_mean(drawn):
    real, classes, of_set, _ = drawn
    _, mu_S, s = loops(real, classes, of_set)
    total = 0.0
    for h, y in zip(real, classes.tolist(), strict=True):
        scores = torch.stack([-3.0 * ((h - mu) @ (h - mu)) / s for mu in mu_S])
        total -= float(scores[y] - scores.logsumexp(0))
    expected = joint.means(*drawn).item() + total / len(real)
    assert joint.ncc(*drawn, temperature=3.0).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("objective", ["means", "ncc", "covariance_matching"])
def test_scale_rotation_and_shift_of_the_features_change_nothing(objective, drawn):
    real, classes, of_set, weights = drawn
    function = getattr(joint, objective)
    settings = {"temperature": 2.0} if objective == "ncc" else {}
    rotation, offset = torch.linalg.qr(randn(D, D, seed=2)).Q, randn(D, seed=3)
    moved = (7.0 * h @ rotation + offset for h in (real, of_set))
    expected = function(real, classes, of_set, weights, **settings)
    assert function(next(moved), classes, next(moved), weights, **settings).item() == pytest.approx(float(expected))


def test_soft_weights_are_a_mixture_of_classes(drawn):
    """An image of weight 1/2 in two classes counts in both means half as much as a whole one."""
    features = randn(3, D)
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    expected = torch.stack([(2 * features[0] + features[1]) / 3, (features[1] + 2 * features[2]) / 3])
    torch.testing.assert_close(joint.weighted_means(features, weights), expected)


def test_squared_distances_survive_a_large_offset():
    """float32 features at 1e4 with a spread of 1: the plain expansion would be wrong by more than the distances."""
    h, mu = randn(50, D), randn(K, D, seed=1)
    exact = torch.cdist(h, mu).square()
    found = joint.squared_distances((h + 1e4).float(), (mu + 1e4).float())
    assert (found.double() - exact).abs().max() < 0.05


@pytest.mark.parametrize("rotation_seed", [0, 1])
def test_krr_onto_centred_labels_is_krr_onto_any_etf(drawn, rotation_seed):
    """The predicted vertex's distance to the true one is that of the predicted label, times K / (K - 1)."""
    real, classes, of_set, weights = drawn
    vertices = simplex_etf(K, D, rotation="random", seed=rotation_seed)
    gram = of_set @ of_set.T
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    predicted = real @ of_set.T @ torch.linalg.solve(gram + ridge, weights @ vertices)
    expected = 0.5 * (predicted - vertices[classes]).square().sum(1).mean() * (K - 1) / K
    assert joint.krr_etf(*drawn, reg=1e-3).item() == pytest.approx(float(expected), rel=1e-9)


def test_alignment_is_zero_at_the_vertices_and_two_opposite_to_them():
    vertices = simplex_etf(K, D)
    assert joint.etf_alignment(3 * vertices, torch.eye(K).double(), vertices).item() == pytest.approx(0, abs=1e-12)
    assert joint.etf_alignment(-vertices, torch.eye(K).double(), vertices).item() == pytest.approx(2)


def test_covariances_are_compared_entry_by_entry(drawn):
    real, classes, of_set, weights = drawn
    mu_T, mu_S, _ = loops(real, classes, of_set)
    a = real - torch.stack(mu_T)[classes]
    b = of_set - weights @ torch.stack(mu_S)
    a, b = a.T @ a / len(a), b.T @ b / len(b)
    expected = (a - b).square().sum() / a.trace() ** 2
    assert joint.covariance_matching(*drawn).item() == pytest.approx(float(expected), rel=1e-10)


class Flat(nn.Flatten):
    num_features = 5

    def forward_features(self, x: Tensor) -> Tensor:
        return self(x)


def test_unroll_is_plain_descent_by_hand():
    """A linear network, whose gradient is known: `W - eta (softmax - y)' x / n`, twice."""
    network = Network(Flat(), Linear(num_features=5, num_classes=K, bias=False)).double()
    images, labels = randn(K, 1, 1, 5).requires_grad_(), torch.eye(K).double()
    real, classes = randn(9, 1, 1, 5, seed=4), torch.arange(9) % K
    W = network.head.weight.detach()
    for _ in range(2):
        x = images.flatten(1)
        W = W - 0.3 * ((x @ W.T).softmax(1) - labels).T @ x / K
    expected = F.cross_entropy(real.flatten(1) @ W.T, classes)
    found = joint.unroll(network, real, classes, images, labels, steps=2, step_size=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    (gradient,), (by_hand,) = torch.autograd.grad(found, images), torch.autograd.grad(expected, images)
    torch.testing.assert_close(gradient, by_hand, rtol=1e-10, atol=1e-14)


def test_a_set_at_the_real_class_means_is_a_minimum_of_mean_matching(drawn):
    """And with the nearest mean the gradient asks for more than the means: NCC is another objective."""
    real, classes, _, _ = drawn
    mu = joint.weighted_means(real, F.one_hot(classes, K).double()).requires_grad_()
    weights = torch.eye(K).double()
    (of_means,) = torch.autograd.grad(joint.means(real, classes, mu, weights), mu)
    (of_ncc,) = torch.autograd.grad(joint.ncc(real, classes, mu, weights, temperature=3.0), mu)
    assert of_means.abs().max() == 0 < of_ncc.abs().max()
