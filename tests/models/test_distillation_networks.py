"""The networks of the distillation papers: published parameter counts, a second implementation, shapes and errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ncdd.models import VGG11, AlexCifarNet, LeNet, Linear


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


@pytest.mark.parametrize(
    ("model", "channels", "size", "parameters"),
    [
        (LeNet, 1, 28, 61_706),  # Wang et al. 2018
        (AlexCifarNet, 3, 32, 1_756_426),
        # VGG-11's 9,220,480 convolution weights and biases and 2 * 2752 of the norms (DC's code), and the classifier
        (lambda **given: VGG11(**given, width=64), 3, 32, 9_220_480 + 2 * 2752 + 5130),
    ],
)
def test_published_parameter_counts(model, channels, size, parameters):
    body = model(in_channels=channels, image_size=size)
    head = Linear(num_features=body.num_features, num_classes=10, bias=True)
    assert count(body, head) == parameters
    assert head(body.forward_features(torch.randn(2, channels, size, size))).shape == (2, 10)


def test_lenet_is_the_papers():
    """The forward pass of Wang et al.'s code, written out."""
    body = LeNet(in_channels=1, image_size=28)
    weights = [p for name, p in body.named_parameters() if name.endswith("weight")]
    x = torch.randn(3, 1, 28, 28)
    out = F.max_pool2d(F.relu(F.conv2d(x, weights[0], padding=2)), 2)
    out = F.max_pool2d(F.relu(F.conv2d(out, weights[1])), 2).flatten(1)
    out = F.relu(F.relu(out @ weights[2].T) @ weights[3].T)
    torch.testing.assert_close(body(x), out)
    assert all(p.abs().max() == 0 for name, p in body.named_parameters() if name.endswith("bias"))
    fan = 120 + 400
    assert weights[2].var().item() == pytest.approx(2 / fan, rel=0.05)  # Xavier-normal


@pytest.mark.parametrize("model", [LeNet, AlexCifarNet, lambda **given: VGG11(**given, width=4)])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (3, 64)])
def test_shapes(model, channels, size):
    body = model(in_channels=channels, image_size=size)
    assert body.forward_features(torch.randn(2, channels, size, size)).shape == (2, body.num_features)
    if size <= 32:
        narrow = model(in_channels=channels, image_size=size, feature_dim=10)
        assert narrow(torch.randn(2, channels, size, size)).shape == (2, 10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LeNet(in_channels=1, image_size=8), "image_size=8: LeNet's two 5x5 convolutions"),
        (lambda: VGG11(in_channels=1, image_size=16, width=4), "image_size=16: VGG-11 halves its images five times"),
        (lambda: VGG11(in_channels=1, image_size=32, width=4, norm="x"), "norm='x': choose from batch, instance"),
        (lambda: AlexCifarNet(in_channels=3, image_size=32, feature_dim=0), "model.feature_dim=0: a number >= 1"),
        (lambda: LeNet(in_channels=3, image_size=32, feature_dim=0), "model.feature_dim=0: a number >= 1"),
    ],
)
def test_errors_name_the_size(build, message):
    with pytest.raises(ValueError, match=message):
        build()
