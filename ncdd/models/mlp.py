"""The multi-layer perceptron of Zhu et al. 2021 (arXiv 2105.02375)."""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from ncdd.models.checks import at_least_1


class MLP(nn.Sequential):
    """Flatten, then `depth` times [Linear, norm, ReLU]: (B, C, H, W) -> (B, num_features).

    depth: number of hidden layers, at least 1; the head on top of them is not counted.
    norm: "batch" as in Zhu's code, or "none".
    feature_dim: width of the last hidden layer where it differs from `width` (d = K in Zhu's Figure 6).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        width: int,
        depth: int,
        norm: Literal["batch", "none"] = "batch",
        feature_dim: int | None = None,
    ) -> None:
        at_least_1(width=width, depth=depth, feature_dim=feature_dim)
        if norm not in ("batch", "none"):
            raise ValueError(f"norm={norm!r}: choose from batch, none")
        self.num_features = feature_dim or width
        sizes = [in_channels * image_size**2, *[width] * (depth - 1), self.num_features]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if norm == "batch" else []), nn.ReLU()]
        super().__init__(*layers)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features)."""
        return self(x)
