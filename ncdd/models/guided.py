"""The classifier that follows the features: always the simplex ETF nearest to the current class means."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ncdd.collapse.simplex import helmert
from ncdd.models.heads import SimplexETF


def nearest_simplex_etf(mean_KD: Tensor, previous_KD: Tensor, *, proximal: float) -> Tensor:
    """The simplex ETF (K, D) with unit rows that is nearest to class means (K, D) (Markou et al. 2024).

    ``argmin_U || H - U (I - 11'/K)/sqrt(K-1) ||_F^2 + proximal/2 || U - U_previous ||_F^2`` over rotations U, with H
    the means, centred over the classes and of Frobenius norm 1: position and scale of the means change nothing.

    On orthonormal U both norms are constant but for their cross terms, so this is an orthogonal Procrustes problem
    (Schönemann 1966): U is the polar factor of ``2/sqrt(K-1) H (I - 11'/K) + proximal U_previous``, one SVD at
    O(D K^2) in place of the paper's Riemannian trust region. The paper's U is (D, K), and what it does to the ones
    vector moves no row of the frame; here U is (D, K-1), on a basis of the complement of that vector, which also
    admits D = K-1. Where H lacks rank the proximal term, towards the frame `previous_KD`, decides.
    """
    K = len(mean_KD)
    basis = helmert(K).to(mean_KD)
    centred = mean_KD - mean_KD.mean(dim=0)
    norm = torch.linalg.matrix_norm(centred).clamp_min(torch.finfo(centred.dtype).tiny)
    pull_KD = 2 / (K - 1) ** 0.5 / norm * centred + proximal * ((K - 1) / K) ** 0.5 * previous_KD
    left, _, right = torch.linalg.svd(pull_KD.T @ basis.T, full_matrices=False)
    return (K / (K - 1)) ** 0.5 * basis.T @ (left @ right).T


class NearestETF(SimplexETF):
    """A classifier set at each training step to the simplex ETF nearest to the class means (Markou et al. 2024).

    "Guiding Neural Collapse: Optimising Towards the Nearest Simplex Equiangular Tight Frame", arXiv 2411.01248. The
    method calls `follow` with the features of each batch before the head is used; in eval mode nothing moves. Weight,
    running means and their counts are in the `state_dict`, so that training goes on exactly from a checkpoint.
    The paper also differentiates through the nearest frame; here it is a constant of each step.

    bias: `-W m`, m the mean of the running class means (the paper's is that of the batch); not learned.
    scale: norm of each row of `weight`: the paper's temperature, its features being on the unit sphere.
    proximal: weight of the previous frame; the paper's delta.
    min_step: a class's running mean moves by `max(2/(t+1), min_step)` at the t-th batch that holds it; 1 takes the
        means of each batch. (The authors' code counts all batches, and averages means centred by their batch.)
    seed: of the random frame that stands until the first step.
    Raises ValueError where no such frame exists, K > D + 1.
    """

    mean_KD: Tensor
    updates_K: Tensor

    def __init__(
        self,
        *,
        num_features: int,
        num_classes: int,
        bias: bool,
        scale: float,
        proximal: float,
        min_step: float,
        seed: int,
    ) -> None:
        if proximal < 0:
            raise ValueError(f"proximal={proximal}: must be 0 or more")
        if not 0 <= min_step <= 1:
            raise ValueError(f"min_step={min_step}: choose from 0 to 1")
        super().__init__(
            num_features=num_features, num_classes=num_classes, bias=bias, rotation="random", scale=scale, seed=seed
        )
        if bias:
            self.bias.requires_grad_(False)
        self.scale, self.proximal, self.min_step = scale, proximal, min_step
        self.register_buffer("mean_KD", torch.zeros(num_classes, num_features, dtype=torch.float64))
        self.register_buffer("updates_K", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def follow(self, features: Tensor, targets: Tensor) -> None:
        """Move the running class means by a batch, over all processes, and the frame to them.

        features (B, D); targets (B,) indices, or (B, K) weights, of which the largest counts. A class that is not in
        the batch keeps its mean; one that was never seen stands at the mean of the others, without a say.
        An optimizer that takes the loss several times a step (LBFGS) moves them each time.
        """
        if self.mean_KD.dtype != torch.float64:
            raise ValueError(
                f"trainer.precision: head=guided keeps its class means in float64, not {self.mean_KD.dtype}; use "
                "32-true, 64-true or a mixed precision"
            )
        labels = targets.argmax(1) if targets.ndim == 2 else targets
        members = F.one_hot(labels, self.out_features).double()  # float64, which autocast leaves alone
        sums = torch.cat([members.T @ features.double(), members.sum(0)[:, None]], dim=1)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        count_K1 = sums[:, -1:]
        self.updates_K += (count_K1[:, 0] > 0).long()
        step_K1 = (2 / (self.updates_K + 1).double()).clamp_min(self.min_step)[:, None]
        self.mean_KD += torch.where(count_K1 > 0, step_K1 * (sums[:, :-1] / count_K1 - self.mean_KD), 0.0)

        seen_K1 = (self.updates_K > 0)[:, None]
        centre = (self.mean_KD * seen_K1).sum(0) / seen_K1.sum()
        means = torch.where(seen_K1, self.mean_KD, centre)
        frame = nearest_simplex_etf(means, self.weight.double() / self.scale, proximal=self.proximal)
        self.weight.copy_(self.scale * frame)
        if self.bias is not None:
            self.bias.copy_(-self.scale * frame @ centre)
