"""The ConvNet of the distillation field (Gidaris & Komodakis 2018; DC, Zhao et al. 2021, section 4.1)."""

from typing import Literal

from torch import Tensor, nn

from ncdd.models.checks import at_least_1

NORMS = ("batch", "instance", "group", "none")


def _norm(kind: str, channels: int) -> list[nn.Module]:
    match kind:
        case "batch":
            return [nn.BatchNorm2d(channels)]
        case "instance":  # one group a channel: torch's own instance norm refuses 1 x 1 maps in training
            return [nn.GroupNorm(channels, channels)]
        case "group":
            return [nn.GroupNorm(4 if channels % 4 == 0 else 1, channels)]
        case "none":
            return []
    raise ValueError(f"norm={kind!r}: choose from {', '.join(NORMS)}")


class ConvNet(nn.Sequential):
    """`depth` times [3x3 conv, norm, ReLU, 2x2 average pooling], flattened: (B, C, H, W) -> (B, num_features).

    28 x 28 images with one channel get a padding of 3 in the first convolution, so 28 -> 32, as DC and FRePo do.
    feature_dim: channels of the last block, which is then pooled over all positions, so that features have that
        dimension (d = K); None flattens what is left of the image.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        width: int,
        depth: int,
        norm: Literal["batch", "instance", "group", "none"] = "instance",
        feature_dim: int | None = None,
    ) -> None:
        at_least_1(width=width, feature_dim=feature_dim)
        pad_to_32 = in_channels == 1 and image_size == 28
        size = 32 if pad_to_32 else image_size
        if depth < 1 or size >> depth < 1:
            raise ValueError(f"depth={depth}: choose from 1 to {size.bit_length() - 1} for images of {size} x {size}")
        layers: list[nn.Module] = []
        channels = in_channels
        for block in range(depth):
            last = block == depth - 1
            out = feature_dim if last and feature_dim else width
            layers += [nn.Conv2d(channels, out, 3, padding=3 if block == 0 and pad_to_32 else 1), *_norm(norm, out)]
            layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1) if last and feature_dim else nn.AvgPool2d(2)]
            channels = out
        self.num_features = feature_dim or width * (size >> depth) ** 2
        super().__init__(*layers, nn.Flatten())

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features)."""
        return self(x)
