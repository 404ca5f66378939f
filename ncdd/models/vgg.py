"""VGG-11 for small images as the distillation field trains it (Simonyan & Zisserman 2015; DC, Zhao et al. 2021)."""

from typing import Literal

from torch import Tensor, nn

from ncdd.models.checks import at_least_1

STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # channels of VGG-11's convolutions, in multiples of the width


class VGG11(nn.Sequential):
    """Five stages of [3x3 conv, norm, ReLU], each ended by 2x2 max pooling, flattened: (B, C, H, W) -> (B, D).

    width: channels of the first stage (64 in the paper); the last has 8 times it.
    Images below 32 pixels get a padding of 3 in the first convolution, so that 28 -> 32, as DC does.
    feature_dim: channels of the last convolution, where it differs from 8 * width (d = K at 32 pixels or fewer).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        width: int,
        norm: Literal["batch", "instance"] = "instance",
        feature_dim: int | None = None,
    ) -> None:
        at_least_1(width=width, feature_dim=feature_dim)
        if norm not in ("batch", "instance"):
            raise ValueError(f"norm={norm!r}: choose from batch, instance")
        size = image_size + 4 if image_size < 32 else image_size
        if size < 32:
            raise ValueError(
                f"image_size={image_size}: VGG-11 halves its images five times, 28 pixels or more are needed"
            )
        widths = [[width * multiple for multiple in stage] for stage in STAGES]
        widths[-1][-1] = feature_dim or widths[-1][-1]
        layers: list[nn.Module] = []
        channels, padding = in_channels, 3 if image_size < 32 else 1
        for stage in widths:
            for out in stage:
                normalise = nn.GroupNorm(out, out) if norm == "instance" else nn.BatchNorm2d(out)
                layers += [nn.Conv2d(channels, out, 3, padding=padding), normalise, nn.ReLU()]
                channels, padding = out, 1
            layers.append(nn.MaxPool2d(2))
        self.num_features = channels * (size // 32) ** 2
        super().__init__(*layers, nn.Flatten())

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features)."""
        return self(x)
