"""Each loss against a direct computation with loops."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ncdd.distill import matching, unrolled
from ncdd.models import ConvNet, Linear

K = 3


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=draw(seed))


def network() -> nn.Module:
    body = ConvNet(in_channels=2, image_size=8, width=4, depth=2)
    return nn.Sequential(body, Linear(num_features=body.num_features, num_classes=K, bias=True)).double()


def test_dm_is_the_sum_over_classes():
    real, synthetic = randn(20, 7), randn(5, 7, seed=1)
    real_labels, labels = torch.arange(20) % K, torch.tensor([0, 2, 2, 0, 0])
    expected = sum(
        float(((real[real_labels == c].mean(0) - synthetic[labels == c].mean(0)) ** 2).sum()) for c in (0, 2)
    )
    assert matching.mean_distance(real, real_labels, synthetic, labels, K).item() == pytest.approx(expected, rel=1e-12)


def published_distance(gwr: torch.Tensor, gws: torch.Tensor) -> float:
    """DatasetCondensation's `distance_wb`, row by row."""
    if gwr.ndim == 1:
        return 0.0
    total = 0.0
    for row in range(len(gwr)):
        a, b = gwr[row].reshape(-1), gws[row].reshape(-1)
        total += 1 - float(a @ b) / (float(a @ a) ** 0.5 * float(b @ b) ** 0.5 + 0.000001)
    return total


def test_dc_is_the_published_distance_of_torchs_gradients():
    net = network()
    inner = unrolled.inner_loss(unrolled.functional(net))
    real = [(randn(6, 2, 8, 8, seed=c), torch.full((6,), c)) for c in range(K)]
    images = randn(2 * K, 2, 8, 8, seed=9).requires_grad_()
    synthetic = [(images[2 * c : 2 * c + 2], torch.full((2,), c)) for c in range(K)]
    loss = matching.gradient_matching(inner, unrolled.weights_of(net), real, synthetic)
    expected = 0.0
    for (x, y), (s, t) in zip(real, synthetic, strict=True):
        grads = [
            torch.autograd.grad(F.cross_entropy(net(batch), c), list(net.parameters())) for batch, c in ((x, y), (s, t))
        ]
        expected += sum(published_distance(r, g) for r, g in zip(*grads, strict=True))
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    loss.backward()
    # central differences in two pixels
    for index in ((0, 0, 3, 3), (5, 1, 6, 2)):
        ends = []
        for sign in (-1, 1):
            moved = images.detach().clone()
            moved[index] += sign * 1e-5
            pairs = [(moved[2 * c : 2 * c + 2], torch.full((2,), c)) for c in range(K)]
            ends.append(matching.gradient_matching(inner, unrolled.weights_of(net), real, pairs).item())
        assert images.grad[index].item() == pytest.approx((ends[1] - ends[0]) / 2e-5, rel=1e-5)


def test_gradient_distance_is_zero_for_parallel_rows_and_two_a_row_for_opposite_ones():
    rows, vector = randn(4, 3, 2, 2), randn(4)
    scaled = rows * torch.tensor([1.0, 2, 3, 1e3]).view(4, 1, 1, 1)
    assert matching.gradient_distance([scaled, vector], [rows, -vector]).item() == pytest.approx(0, abs=1e-5)
    assert matching.gradient_distance([-scaled, vector], [rows, vector]).item() == pytest.approx(8, abs=1e-5)


def test_mtt_is_the_ratio_of_squared_distances():
    end, target, start = ({"a": randn(3, 2, seed=s), "b": randn(4, seed=s + 1)} for s in (0, 10, 20))
    vectors = [torch.cat([w["a"].flatten(), w["b"]]) for w in (end, target, start)]
    expected = (vectors[0] - vectors[1]).norm() ** 2 / (vectors[2] - vectors[1]).norm() ** 2
    torch.testing.assert_close(matching.trajectory_distance(end, target, start), expected)
    assert matching.trajectory_distance(start, target, start) == 1


def test_mtt_is_an_objective_of_the_unrolled_engine():
    """An expert that took T steps on these very images is matched exactly: loss 0 and gradient 0."""
    net = network()
    inner = unrolled.inner_loss(unrolled.functional(net))
    images, sizes = randn(12, 2, 8, 8).requires_grad_(), torch.full((3,), 0.1, dtype=torch.float64).requires_grad_()
    steps = unrolled.Steps(images, torch.arange(12) % K, unrolled.repeated_order(12, steps=3, epochs=1), sizes)
    start = unrolled.weights_of(net)
    target = unrolled.train(inner, start, steps, differentiable=False)
    losses = unrolled.outer_step(inner, lambda w: matching.trajectory_distance(w, target, start), [start], steps)
    assert losses.item() < 1e-28
    assert images.grad.abs().max() < 1e-12
    other = unrolled.Steps(images.detach().flip(0).requires_grad_(), *steps[1:])
    unrolled.outer_step(inner, lambda w: matching.trajectory_distance(w, target, start), [start], other)
    assert other.images.grad.abs().max() > 1e-6
