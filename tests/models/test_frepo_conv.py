"""FRePo's ConvNet: sizes, first weights and running statistics against their definitions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ncdd.distill.unrolled import functional, weights_of
from ncdd.models import Network
from ncdd.models.frepo_conv import BiasedBatchNorm2d, FRePoConv, LeCunLinear, OneChannelConv2d, lecun_normal_


def made(channels: int = 1, size: int = 28, **settings) -> FRePoConv:
    return FRePoConv(**{"in_channels": channels, "image_size": size, "width": 4, "depth": 3} | settings)


@pytest.mark.parametrize(
    ("channels", "size", "width", "features"), [(1, 28, 128, 8192), (3, 32, 128, 8192), (3, 64, 4, 1024)]
)
def test_num_features(channels, size, width, features):
    body = made(channels, size, width=width)
    assert body.num_features == features
    assert body.forward_features(torch.randn(2, channels, size, size)).shape == (2, features)


def test_forward_written_out():
    """In training, by the batch's statistics."""
    body, x = made().double(), torch.randn(5, 1, 28, 28, dtype=torch.float64)
    convs = [m for m in body if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [4, 8, 16]
    h = x
    for i, conv in enumerate(convs):
        if i:
            mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), unbiased=False, keepdim=True)
            h = (h - mean) / (var + 1e-5).sqrt()
        h = F.avg_pool2d(F.relu(F.conv2d(h, conv.weight, conv.bias, padding=1 if i else 3)), 2)
    torch.testing.assert_close(body(x), h.flatten(1))


def test_without_norm_it_is_only_convolutions():
    assert {type(m) for m in made(norm="none")} == {OneChannelConv2d, nn.Conv2d, nn.ReLU, nn.AvgPool2d, nn.Flatten}


def test_running_statistics_are_of_the_batch_itself():
    norm = BiasedBatchNorm2d(3, momentum=0.9).double()
    x = 2 + 5 * torch.randn(2, 3, 2, 2, dtype=torch.float64)
    x.requires_grad_()
    plain = nn.BatchNorm2d(3).double()
    out = norm(x)
    torch.testing.assert_close(out, plain(x))
    torch.testing.assert_close(norm.running_mean, 0.9 * x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.1 + 0.9 * x.var((0, 2, 3), unbiased=False))
    upstream = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(f(x), x, upstream)[0] for f in (norm, plain))
    torch.testing.assert_close(ours, theirs)
    before = norm.running_var.clone()
    norm.eval()(x)
    assert torch.equal(norm.running_var, before)


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 400, 3), LeCunLinear(num_features=72, num_classes=400, bias=True)])
def test_first_weights(layer):
    lecun_normal_(layer)
    weights = layer.weight.detach() * 72**0.5  # fan-in 72: variance 1
    assert weights.std().item() == pytest.approx(1, rel=0.02)
    assert weights.abs().max().item() <= 2 / 0.8796 + 1e-6
    assert layer.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "instance"}, "norm='instance': choose from batch, none"),
        ({"depth": 6}, "depth=6: choose from 1 to 5 for images of 32 x 32"),
        ({"width": 0}, "model.width=0: a number >= 1"),
    ],
)
def test_errors_name_the_setting(settings, message):
    with pytest.raises(ValueError, match=message):
        made(**settings)


def test_functional_calls_keep_no_statistics():
    """As unrolled training makes them: then it normalises by the batch, as any BatchNorm does."""
    body = made(size=8, depth=2, norm="batch")
    network = Network(body, nn.Linear(body.num_features, 3))
    x = torch.randn(6, 1, 8, 8)
    found = functional(network)(weights_of(network), x)
    torch.testing.assert_close(found, network.train()(x))


def one_channel(dtype=torch.float64):
    torch.manual_seed(0)
    return OneChannelConv2d(5, 3, padding=2).to(dtype, memory_format=torch.channels_last), torch.randn(
        3, 1, 6, 7, dtype=dtype
    )


def test_one_channel_is_a_convolution():
    """Value and gradients of torch's own; in float32 too, and where only some of them are wanted."""
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        conv, x = one_channel(dtype)
        plain = nn.Conv2d(1, 5, 3, padding=2).to(dtype)
        plain.load_state_dict(conv.state_dict())
        found = []
        for layer in (conv, plain):
            images = x.clone().requires_grad_()
            out = layer(images).relu_()
            found.append((out, *torch.autograd.grad(out.square().sum(), (images, *layer.parameters()))))
        torch.testing.assert_close(*found, rtol=rtol, atol=rtol)
    conv(x).sum().backward()  # images without a gradient
    assert x.grad is None
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == plain(x).dtype == torch.bfloat16
    assert not conv.requires_grad_(False)(x).requires_grad


def test_one_channel_to_second_order_and_for_many_networks():
    conv, x = one_channel()
    inputs = x[:2, :, :4, :4].clone().requires_grad_(), *(p.detach().requires_grad_() for p in conv.parameters())

    def call(images, weight, bias):
        return torch.func.functional_call(conv, {"weight": weight, "bias": bias}, (images,)).tanh()

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)
    stacked = [torch.stack([p, 2 * p]).detach() for p in conv.parameters()]
    loss = torch.func.grad(lambda *weights: call(x, *weights).square().sum(), argnums=(0, 1))
    together = torch.vmap(loss)(*stacked)
    apart = [loss(*(p[i] for p in stacked)) for i in range(2)]
    torch.testing.assert_close(together, tuple(torch.stack(pair) for pair in zip(*apart, strict=True)))
