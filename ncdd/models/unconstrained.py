"""The unconstrained-features model: no network, one free feature vector for every sample (Mixon et al. 2022)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class UnconstrainedFeatures(nn.Module):
    """Looks a sample's features up in the parameter `features` (N, feature_dim), by its number.

    counts: samples of each class, those of the dataset, N in all.  init_std: of the features before training.
    Decay them by `method.feature_decay`, with `method.body_decay=0`. Raises ValueError for images that are no numbers.
    """

    def __init__(
        self, *, in_channels: int, image_size: int, counts: Sequence[int], feature_dim: int, init_std: float
    ) -> None:
        if (in_channels, image_size) != (1, 1):
            raise ValueError(
                f"images of {in_channels} x {image_size} x {image_size}: the unconstrained-features model needs the "
                "1 x 1 x 1 sample numbers of dataset=ufm"
            )
        super().__init__()
        self.num_features = feature_dim
        self.features = nn.Parameter(init_std * torch.randn(sum(counts), feature_dim))

    def forward_features(self, x: Tensor) -> Tensor:
        """Sample numbers (B, 1, 1, 1) -> (B, num_features); ValueError in half precision, which cannot count them."""
        if x.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(f"trainer.precision: {x.dtype} rounds sample numbers; use 32-true or 64-true")
        return self.features[x.flatten().long()]
