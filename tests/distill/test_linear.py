"""The linear case: exactness from every start, the bound by Monte Carlo and in closed form, and autograd's step."""

import pytest
import torch

from ncdd.distill import linear

D, ETA = 6, 0.3


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def real_problem() -> tuple[torch.Tensor, torch.Tensor]:
    """(theta_star, covariance) of a regression whose optimum lstsq gives."""
    x = torch.randn(200, D, dtype=torch.float64, generator=draw(0)) * torch.arange(1, D + 1)
    t = torch.randn(200, dtype=torch.float64, generator=draw(1))
    return torch.linalg.lstsq(x, t[:, None]).solution[:, 0], x.T @ x / 200


def test_one_step_is_autograds():
    start = torch.randn(D, dtype=torch.float64, generator=draw(2)).requires_grad_()
    inputs, targets = torch.randn(4, D, dtype=torch.float64, generator=draw(3)), torch.randn(4, dtype=torch.float64)
    loss = ((inputs @ start - targets) ** 2).sum() / (2 * 4)
    (grad,) = torch.autograd.grad(loss, start)
    torch.testing.assert_close(linear.one_step(start, inputs, targets, ETA), start - ETA * grad)


@pytest.mark.parametrize("num_images", [D, 2 * D])
def test_an_exact_set_is_exact_from_every_start(num_images):
    theta_star, covariance = real_problem()
    inputs, targets = linear.exact_set(theta_star, num_images, ETA, draw(4))
    torch.testing.assert_close(inputs.T @ inputs, num_images / ETA * torch.eye(D, dtype=torch.float64))
    for scale in (1e-3, 1.0, 1e3):
        start = scale * torch.randn(D, dtype=torch.float64, generator=draw(5))
        end = linear.one_step(start, inputs, targets, ETA)
        assert linear.excess_loss(end, theta_star, covariance) < 1e-20 * max(1, scale**2)
    assert linear.lower_bound(covariance, num_images, 1.0) == 0


def test_fewer_images_than_dimensions_cannot_be_exact():
    with pytest.raises(ValueError, match="num_images=5: one step from any start needs at least D=6"):
        linear.exact_set(torch.zeros(D), 5, ETA, draw(0))


@pytest.mark.parametrize("num_images", [1, 3, 5])
def test_no_set_is_below_the_bound(num_images):
    """In closed form: E over theta_0 ~ N(0, sigma^2 I) is sigma^2/2 tr(P C P) and a part that is not negative."""
    theta_star, covariance = real_problem()
    bound = linear.lower_bound(covariance, num_images, 0.7)
    start = 0.7 * torch.randn(4000, D, dtype=torch.float64, generator=draw(6))
    for seed in range(20):
        inputs = torch.randn(num_images, D, dtype=torch.float64, generator=draw(seed)) * (1 + seed)
        keep = torch.eye(D, dtype=torch.float64) - ETA / num_images * inputs.T @ inputs
        assert 0.5 * 0.7**2 * torch.trace(keep @ covariance @ keep) >= bound * (1 - 1e-12)
    inputs, targets = linear.principal_set(theta_star, covariance, num_images, ETA)
    ends = torch.stack([linear.one_step(s, inputs, targets, ETA) for s in start])
    assert linear.excess_loss(ends, theta_star, covariance).mean() >= bound * 0.95


@pytest.mark.parametrize("num_images", [1, 3, 5])
def test_the_principal_set_attains_the_bound(num_images):
    """Where theta_star lies in the directions that it sets right; the mean by Monte Carlo."""
    _, covariance = real_problem()
    basis = torch.linalg.eigh(covariance).eigenvectors[:, -num_images:]
    theta_star = basis @ torch.ones(num_images, dtype=torch.float64)
    inputs, targets = linear.principal_set(theta_star, covariance, num_images, ETA)
    start = 0.7 * torch.randn(20_000, D, dtype=torch.float64, generator=draw(7))
    keep = torch.eye(D, dtype=torch.float64) - ETA / num_images * inputs.T @ inputs
    ends = start @ keep + ETA / num_images * inputs.T @ targets
    mean = linear.excess_loss(ends, theta_star, covariance).mean()
    torch.testing.assert_close(mean, linear.lower_bound(covariance, num_images, 0.7), rtol=0.03, atol=0)
