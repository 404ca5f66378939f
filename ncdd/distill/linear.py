"""The linear case of dataset distillation, solved (Wang et al. 2018, section 3.3).

Squared error `1/(2M) ||d theta - t||^2` on M synthetic inputs d (M, D) with targets t (M,), one step of gradient
descent of size eta from theta_0 (D,). theta_star (D,) minimises the same error on the N real samples X (N, D), of
covariance C = X'X / N.
"""

import torch
from torch import Tensor


def one_step(start_D: Tensor, inputs_MD: Tensor, targets_M: Tensor, step_size: float) -> Tensor:
    """`theta_1 = (I - eta/M d'd) theta_0 + eta/M d't`, (D,)."""
    residual_M = inputs_MD @ start_D - targets_M
    return start_D - step_size / len(inputs_MD) * inputs_MD.T @ residual_M


def exact_set(
    theta_star_D: Tensor, num_images: int, step_size: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(d (M, D), t (M,)) that take every theta_0 to theta_star in one step: `d = sqrt(M/eta) Q`, `t = d theta_star`.

    Q has orthonormal columns, so that `d'd = (M/eta) I`. ValueError for M < D, where no such set exists.
    """
    size = len(theta_star_D)
    if num_images < size:
        raise ValueError(
            f"num_images={num_images}: one step from any start needs at least D={size}, so that d'd has full rank"
        )
    noise = torch.randn(num_images, size, dtype=theta_star_D.dtype, generator=generator)
    inputs_MD = (num_images / step_size) ** 0.5 * torch.linalg.qr(noise).Q
    return inputs_MD, inputs_MD @ theta_star_D


def principal_set(
    theta_star_D: Tensor, covariance_DD: Tensor, num_images: int, step_size: float
) -> tuple[Tensor, Tensor]:
    """(d, t) for M <= D that set theta_1 right in the M directions of largest variance and leave the others alone."""
    basis_DM = torch.linalg.eigh(covariance_DD).eigenvectors[:, -num_images:]
    inputs_MD = (num_images / step_size) ** 0.5 * basis_DM.T
    return inputs_MD, inputs_MD @ theta_star_D


def excess_loss(theta_D: Tensor, theta_star_D: Tensor, covariance_DD: Tensor) -> Tensor:
    """`1/2 (theta - theta_star)' C (theta - theta_star)`: the real loss above its minimum; leading axes are kept."""
    difference = theta_D - theta_star_D
    return 0.5 * ((difference @ covariance_DD) * difference).sum(-1)


def lower_bound(covariance_DD: Tensor, num_images: int, sigma: float) -> Tensor:
    """What any M images leave of the excess loss, in the mean over theta_0 of covariance sigma^2 I.

    `sigma^2/2` times the sum of the D - M smallest eigenvalues of C: `I - eta/M d'd` keeps D - M directions of theta_0
    as they are. 0 for M >= D. `principal_set` attains it where theta_star has no part in those directions.
    """
    kept = max(0, len(covariance_DD) - num_images)
    return 0.5 * sigma**2 * torch.linalg.eigvalsh(covariance_DD)[:kept].clamp(min=0).sum()
