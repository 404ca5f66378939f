"""Monte Carlo: networks of finite width, whose empirical kernels converge to the infinite ones."""

import pytest
import torch
from torch.nn import functional as F

from ncdd.kernels import Kernel, conv, convnet, fc
from tests.kernels.conftest import noise

WIDTH, DRAWS = 256, 40
HEADS = {
    "avgpool": lambda h: F.avg_pool2d(h, 2),
    "flatten": lambda h: h.flatten(1),
    "gap": lambda h: h.mean(dim=(2, 3)),
    "relu": torch.relu,
    "erf": torch.erf,
}


def draw(kernel: Kernel, shape, generator):
    """Standard normal weights and biases of each layer, with one output."""
    weights, channels, height, width = [], *shape
    if kernel.architecture[0] == "dense":
        channels, height, width = channels * height * width, 1, 1
    weighted = [i for i, name in enumerate(kernel.architecture) if name in ("dense", "conv")]
    for i, name in enumerate(kernel.architecture):
        if name == "avgpool":
            height, width = height // 2, width // 2
        elif name == "gap":
            height = width = 1
        elif i in weighted:
            out = 1 if i == weighted[-1] else WIDTH
            size = (out, channels, 3, 3) if name == "conv" else (out, channels * height * width)
            weights.append((torch.randn(size, generator=generator), torch.randn(out, generator=generator)))
            channels = out
    return weights


def forward(weights, x, kernel: Kernel):
    """Output (1,) and the features before the last layer, of one image."""
    w_std, b_std = kernel.weights.values()
    h, features = x[None] if kernel.architecture[0] == "conv" else x.flatten()[None], None
    rest = iter(weights)
    for name in kernel.architecture:
        if name in HEADS:
            h = HEADS[name](h)
            continue
        (W, b), features = next(rest), h
        gain = w_std / W[0].numel() ** 0.5
        h = F.conv2d(h, gain * W, b_std * b, padding=1) if name == "conv" else F.linear(h, gain * W, b_std * b)
    return h.squeeze(), features[0]


def empirical(kernel: Kernel, x, generator):
    """(NNGP, NTK) of one draw: the last layer's covariance given its features, and inner products of gradients."""
    weights = draw(kernel, x.shape[1:], generator)
    gradients, features = torch.func.vmap(
        torch.func.grad(lambda w, image: forward(w, image, kernel), has_aux=True), in_dims=(None, 0)
    )(weights, x)
    flat = torch.cat([g.flatten(1) for layer in gradients for g in layer], dim=1)
    w_std, b_std = kernel.weights.values()
    return w_std**2 * features @ features.T / features.shape[1] + b_std**2, flat @ flat.T


@pytest.mark.parametrize(
    "kernel",
    [
        fc(2, b_std=0.5),
        fc(1, "erf"),
        conv(2, b_std=0.5),
        conv(1, "erf"),
        conv(2, head="gap"),
        convnet(depth=1, prepend=False),
        convnet(depth=1, head="gap", w_std=1.2),
    ],
    ids=str,
)
def test_wide_networks_converge(kernel):
    x = noise(3, 2, 4, 4, dtype=torch.float32)
    x[2] = x[0] + 0.3 * x[1]
    generator = torch.Generator().manual_seed(0)
    found = [empirical(kernel, x, generator) for _ in range(DRAWS)]
    for get, draws in zip(("nngp", "ntk"), zip(*found, strict=True), strict=True):
        expected = kernel(x, None, get)
        scale = expected.diagonal().sqrt()
        samples = (torch.stack(draws) - expected) / (scale[:, None] * scale)
        doubt = samples.std(dim=0) / DRAWS**0.5
        assert doubt.max() < 0.04
        assert (samples.mean(dim=0).abs() < 4 * doubt + 2 / WIDTH).all()
