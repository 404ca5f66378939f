"""Residual networks (He et al. 2016, arXiv 1512.03385) of any width, with torchvision's parameter names.

torchvision's own class fixes the width at 64 and the feature dimension at 512 or 2048; the rest is the same, so that
a torchvision `state_dict` (less its `fc`) loads.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncdd.models.checks import at_least_1


def _conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(channels: int, out: int, stride: int) -> nn.Module | None:
    """A projection where the residual branch changes the shape, else None (torchvision's convention)."""
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(_conv(channels, out, 1, stride), nn.BatchNorm2d(out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; `out` differs from `planes` only in the last block of a network with a `feature_dim`."""

    expansion = 1

    def __init__(self, channels: int, planes: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = _conv(planes, out, 3), nn.BatchNorm2d(out)
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as torchvision has it) and 1x1 convolutions, four times wider at the end."""

    expansion = 4

    def __init__(self, channels: int, planes: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, planes, 1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = _conv(planes, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = _conv(planes, out, 1), nn.BatchNorm2d(out)
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """(B, C, H, W) -> (B, num_features), the average of the last block over positions.

    depth: 18, 34 or 50.  width: channels of the first stage (64 in the paper); the stages have 1, 2, 4, 8 times it.
    stem: "imagenet" (7x7 stride 2, then 3x3 max pooling), "cifar" (3x3 stride 1, no pooling), or "auto": "cifar" for
        images below 64 pixels, "imagenet" from there on.
    feature_dim: channels that the last block puts out, where it differs from 8 * width (32 * width for depth 50):
        d = K of Zhu et al. 2021, Figure 6, which saves 20.70% of resnet18's parameters at K = 10.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        depth: int,
        width: int,
        stem: Literal["auto", "cifar", "imagenet"],
        feature_dim: int | None = None,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth={depth}: choose from {', '.join(map(str, DEPTHS))}")
        if stem not in ("auto", "cifar", "imagenet"):
            raise ValueError(f"stem={stem!r}: choose from auto, cifar, imagenet")
        at_least_1(width=width, feature_dim=feature_dim)
        block, blocks = DEPTHS[depth]
        imagenet = stem == "imagenet" or (stem == "auto" and image_size >= 64)
        self.conv1 = _conv(in_channels, width, 7, 2) if imagenet else _conv(in_channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if imagenet else nn.Identity()
        self.num_features = feature_dim or 8 * width * block.expansion
        channels = width
        for stage, count in enumerate(blocks):
            planes = width << stage
            layers = []
            for i in range(count):
                last = stage == 3 and i == count - 1
                out = self.num_features if last else planes * block.expansion
                layers.append(block(channels, planes, out, stride=2 if stage > 0 and i == 0 else 1))
                channels = out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        for module in self.modules():  # He initialisation, as torchvision
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)
