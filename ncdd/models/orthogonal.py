"""The non-negative orthogonal classifier, which gives each class dimensions of its own."""

import torch
from torch import Tensor, nn


def nonnegative_frame(num_classes: int, dim: int, *, seed: int) -> Tensor:
    """Orthonormal non-negative rows (K, D): each of the D dimensions belongs to one class (Kim & Kim 2024).

    Non-negative vectors are orthogonal only if no dimension is shared, so a row is constant on its own D/K
    dimensions, drawn at random, and zero elsewhere. Where K does not divide D, D mod K classes get one more.
    Raises ValueError where K > D.
    """
    if not 1 < num_classes <= dim:
        raise ValueError(
            f"num_classes={num_classes}: choose from 2 to dim={dim} (the feature dimension), one or more for each class"
        )
    generator = torch.Generator().manual_seed(seed)
    dims, classes = torch.randperm(dim, generator=generator), torch.randperm(num_classes, generator=generator)
    frame = torch.zeros(num_classes, dim, dtype=torch.float64)
    frame[classes[torch.arange(dim) % num_classes], dims] = 1.0
    return frame / torch.linalg.vector_norm(frame, dim=1, keepdim=True)


class NonNegativeOrthogonal(nn.Linear):
    """A classifier fixed to non-negative orthogonal rows, without bias (Kim & Kim, ICLR 2024: FNO classifier).

    "Fixed Non-negative Orthogonal Classifier: Inducing Zero-mean Neural Collapse with Feature Dimension Separation".
    For non-negative features, as of the networks here that end in a ReLU (of torchvision's some do not).

    At its zero-mean collapse the class means themselves, not centred, are multiples of the rows. Centred, orthogonal
    vectors of one norm are a simplex ETF, so that NC1, NC4 and, for balanced classes, `nc2_*_M` and `nc3_dual_etf`
    are read as usual. What compares the weight, which is not centred, does not go to zero: `nc2_etf_W` stays at
    `sqrt(2 - 2 sqrt((K-1)/K))`.

    scale: norm of each row of `weight`.  seed: of who owns which dimension.
    """

    def __init__(self, *, num_features: int, num_classes: int, scale: float, seed: int) -> None:
        if scale <= 0:
            raise ValueError(f"scale={scale}: must be positive")
        frame_KD = nonnegative_frame(num_classes, num_features, seed=seed)
        super().__init__(num_features, num_classes, bias=False)
        with torch.no_grad():
            self.weight.copy_(scale * frame_KD)
        self.weight.requires_grad_(False)
