"""Models against torchvision's, against published parameter counts, and by their shapes."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from ncdd.models import MLP, ConvNet, Linear, ResNet, SimplexETF


def resnet(depth=18, **options):
    return ResNet(**{"in_channels": 3, "image_size": 32, "depth": depth, "width": 64, "stem": "imagenet"} | options)


def count(*modules: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_resnet_is_torchvisions(depth):
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=1000).eval()
    theirs.fc = nn.Identity()
    ours = resnet(depth).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_parameter_counts_of_zhu_2021():
    """Figure 6: 11,181,642 parameters at d = 512; 8,867,442 trainable, 20.70% fewer, with d = K and a fixed ETF."""
    full, narrow = resnet(), resnet(feature_dim=10)
    learned = Linear(num_features=full.num_features, num_classes=10, bias=True)
    etf = SimplexETF(
        num_features=narrow.num_features, num_classes=10, bias=True, rotation="identity", scale=1.0, seed=0
    )
    assert count(full, learned, trainable=True) == 11_181_642
    assert count(narrow, etf, trainable=True) == 8_867_442
    assert pytest.approx(0.2070, abs=5e-5) == 1 - 8_867_442 / 11_181_642


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
@pytest.mark.parametrize(
    ("channels", "size", "depth", "features"),
    [(3, 32, 3, 16 * 4 * 4), (1, 28, 3, 16 * 4 * 4), (1, 8, 3, 16), (3, 64, 4, 16 * 4 * 4)],
)
def test_convnet_flattens_what_pooling_leaves(norm, channels, size, depth, features):
    model = ConvNet(in_channels=channels, image_size=size, width=16, depth=depth, norm=norm)
    assert model.num_features == features
    assert model.forward_features(torch.randn(2, channels, size, size)).shape == (2, features)


def test_convnet_parameters_of_dc():
    """ConvNet-3, width 128, InstanceNorm on CIFAR-10 with its classifier has 320,010 parameters (DC's code)."""
    model = ConvNet(in_channels=3, image_size=32, width=128, depth=3, norm="instance")
    assert count(model, Linear(num_features=model.num_features, num_classes=10, bias=True)) == 320_010


def test_convnet_instance_norm_is_torchs():
    model = ConvNet(in_channels=3, image_size=16, width=8, depth=1, norm="instance")
    conv, norm = model[0], model[1]
    x = torch.randn(4, 3, 16, 16)
    expected = nn.functional.instance_norm(conv(x), weight=norm.weight, bias=norm.bias)
    torch.testing.assert_close(norm(conv(x)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        lambda d: resnet(feature_dim=d, width=8, stem="cifar"),
        lambda d: resnet(50, feature_dim=d, width=8),
        lambda d: ConvNet(in_channels=3, image_size=32, width=8, depth=3, norm="batch", feature_dim=d),
        lambda d: MLP(in_channels=3, image_size=32, width=8, depth=2, norm="batch", feature_dim=d),
    ],
)
def test_feature_dim_sets_the_dimension_of_features(build):
    model = build(10)
    assert model.num_features == 10
    assert model.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_stem_auto_goes_by_image_size():
    assert isinstance(resnet(stem="auto", image_size=32, width=4).maxpool, nn.Identity)
    assert isinstance(resnet(stem="auto", image_size=224, width=4).maxpool, nn.MaxPool2d)


def test_etf_head_is_a_simplex_etf_without_gradient():
    head = SimplexETF(num_features=32, num_classes=7, bias=True, rotation="random", scale=5.0, seed=3)
    gram = (head.weight.double() @ head.weight.double().T) / 25
    expected = torch.eye(7, dtype=torch.float64) * (7 / 6) - 1 / 6
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-6)
    head(torch.randn(4, 32)).sum().backward()
    assert head.weight.grad is None
    assert head.bias.grad is not None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: resnet(20), "depth=20: choose from 18, 34, 50"),
        (lambda: resnet(stem="cifr"), "stem='cifr': choose from auto, cifar, imagenet"),
        (lambda: ConvNet(in_channels=1, image_size=8, width=8, depth=5, norm="batch"), "depth=5: choose from 1 to 3"),
        (
            lambda: ConvNet(in_channels=1, image_size=8, width=8, depth=1, norm="layer"),
            "norm='layer': choose from batch",
        ),
        (lambda: MLP(in_channels=1, image_size=8, width=8, depth=0), "model.depth=0: a number >= 1"),
        (lambda: MLP(in_channels=1, image_size=8, width=8, depth=1, norm="x"), "norm='x': choose from batch, none"),
        (
            lambda: SimplexETF(num_features=4, num_classes=10, bias=True, rotation="identity", scale=1.0, seed=0),
            "num_classes=10",
        ),
    ],
)
def test_errors_name_the_choices(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("size", ["width", "feature_dim"])
@pytest.mark.parametrize(
    "model",
    [
        partial(MLP, depth=2),
        partial(ConvNet, depth=3),
        partial(ResNet, depth=18, stem="auto"),
    ],
)
def test_a_size_below_1_is_named(model, size):
    sizes = {"width": 8, "feature_dim": 8} | {size: 0}
    with pytest.raises(ValueError, match=f"model.{size}=0: a number >= 1 is needed"):
        model(in_channels=3, image_size=32, **sizes)
