"""FRePo's network (Zhou et al. 2022, arXiv 2206.00719): a ConvNet that doubles its width, and its first weights."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from ncdd.models.checks import at_least_1
from ncdd.models.heads import Linear

Net = TypeVar("Net", bound=nn.Module)
NORMS = ("batch", "none")
TRUNCATED_STD = 0.87962566103423978  # of a standard normal cut off at 2


class FRePoConv(nn.Sequential):
    """`depth` times [norm, 3x3 conv, ReLU, 2x2 average pooling], flattened: (B, C, H, W) -> (B, num_features).

    Block i has `width 2^i` channels, the first block no norm. 28 x 28 images with one channel get a padding of 3 in the
    first convolution, so 28 -> 32. First weights are LeCun-normal, cut off at two standard deviations; biases are 0.
    norm: "batch", or "none", which FRePo's evaluation takes.
    """

    def __init__(
        self, *, in_channels: int, image_size: int, width: int, depth: int, norm: Literal["batch", "none"] = "batch"
    ) -> None:
        at_least_1(width=width)
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r}: choose from {', '.join(NORMS)}")
        pad_to_32 = in_channels == 1 and image_size == 28
        size = 32 if pad_to_32 else image_size
        if depth < 1 or size >> depth < 1:
            raise ValueError(f"depth={depth}: choose from 1 to {size.bit_length() - 1} for images of {size} x {size}")
        layers: list[nn.Module] = []
        channels = in_channels
        for block in range(depth):
            if block > 0 and norm == "batch":
                layers.append(BiasedBatchNorm2d(channels, eps=1e-5, momentum=0.9))
            out = width << block
            padding = 3 if block == 0 and pad_to_32 else 1
            conv = OneChannelConv2d(out, 3, padding) if channels == 1 else nn.Conv2d(channels, out, 3, padding=padding)
            lecun_normal_(conv)
            layers += [conv, nn.ReLU(inplace=True), nn.AvgPool2d(2)]  # the convolution needs its output no more
            channels = out
        self.num_features = channels * (size >> depth) ** 2
        super().__init__(*layers, nn.Flatten())

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features)."""
        return self(x)


class OneChannelConv2d(nn.Conv2d):
    """A convolution of one channel whose weights' gradient, on a CPU, is a product.

    Of one channel, channels last, oneDNN takes four to nine times as long for it: a tenth of a network's step. There is
    no derivative in forward mode.
    """

    def __init__(self, out_channels: int, kernel_size: int, padding: int) -> None:
        super().__init__(1, out_channels, kernel_size, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        if learns and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            out: Tensor = _ByProduct.apply(x, self.weight, self.bias, self.padding)
            return out
        return super().forward(x)


class _ByProduct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> Tensor:
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = conv2d_input(x.shape, weight, grad, padding=ctx.padding)
        patches = F.unfold(x, weight.shape[2:], padding=ctx.padding)
        patches = torch.cat([patches, torch.ones_like(patches[:, :1])], dim=1)  # the bias sees ones
        found = torch.bmm(patches, grad.flatten(2).transpose(1, 2)).sum(0)
        return by_x, found[:-1].T.view_as(weight), found[-1], None


class LeCunLinear(Linear):
    """The learned classifier with LeCun-normal first weights and no bias at first."""

    def __init__(self, *, num_features: int, num_classes: int, bias: bool) -> None:
        super().__init__(num_features=num_features, num_classes=num_classes, bias=bias)
        lecun_normal_(self)


class BiasedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm with the batch's own variance, divisor n, in its running statistics, as in flax; torch has n - 1."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.running_mean is None:  # None: functional calls keep no statistics
            return super().forward(x)
        assert self.running_var is not None and self.momentum is not None
        updated = self.running_var.clone()  # backward keeps what batch_norm is given
        out = F.batch_norm(
            x, self.running_mean, updated, self.weight, self.bias, training=True, momentum=self.momentum, eps=self.eps
        )
        samples = x.numel() // x.shape[1]
        with torch.no_grad():
            kept = (1 - self.momentum) * self.running_var
            self.running_var.copy_(kept + (updated - kept) * (samples - 1) / samples)
        return out


@torch.no_grad()
def lecun_normal_(layer: nn.Conv2d | nn.Linear) -> None:
    """Weights of variance 1 / fan-in, normal cut off at two standard deviations; bias 0 (LeCun et al. 1998)."""
    std = layer.weight[0].numel() ** -0.5 / TRUNCATED_STD
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        layer.bias.zero_()


def without_batch_norm(new_network: Callable[[], Net]) -> Callable[[], Net]:
    """Networks of the same kind with identities for their BatchNorms: FRePo tests without."""

    def bare() -> Net:
        network = new_network()
        _drop_batch_norm(network)
        return network

    return bare


def _drop_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, nn.Identity())
        else:
            _drop_batch_norm(child)
