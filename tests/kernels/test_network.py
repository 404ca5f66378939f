"""Kernels against a second implementation and themselves: odd sizes, tiles, derivatives, errors."""

import numpy as np
import pytest
import torch

from ncdd.kernels import Kernel, conv, convnet, fc, fused, myrtle, named
from ncdd.kernels.fused import product
from tests.kernels import brute
from tests.kernels.conftest import noise, relative

SMALL_NETS = {
    "fc": fc(2),
    "erf": fc(2, "erf"),
    "conv": conv(2),
    "conv erf gap": conv(1, "erf", head="gap"),
    "pooled": convnet(prepend=False, depth=1),
    "pooled gap": convnet(head="gap", depth=1),
}


def net(architecture, **options):
    return Kernel(architecture.split(), **{"w_std": 1.3, "b_std": 0.2, "memory": 2**30} | options)


SIZES = [(1, 5, 7), (2, 7, 5), (3, 6, 6)]


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        *(
            (architecture, shape)
            for architecture in ("conv relu flatten dense", "conv relu conv relu gap dense")
            for shape in [*SIZES, (1, 1, 4)]
        ),
        *(("conv relu avgpool conv relu flatten dense", shape) for shape in SIZES),
        *(("conv relu avgpool avgpool conv relu gap dense relu dense", shape) for shape in SIZES),
    ],
    ids=str,
)
def test_second_implementation_on_any_size(architecture, shape):
    x1, x2 = noise(3, *shape), noise(2, *shape, seed=1)
    values = [[brute.kernel(architecture.split(), a, b, 1.3, 0.2) for b in x2.numpy()] for a in x1.numpy()]
    nngp, ntk = np.moveaxis(np.array(values), 2, 0)
    kernel = net(architecture)
    np.testing.assert_allclose(kernel(x1, x2, "nngp"), nngp, rtol=1e-13)
    np.testing.assert_allclose(kernel(x1, x2), ntk, rtol=1e-13)
    np.testing.assert_allclose(kernel(x2, x1), ntk.T, rtol=1e-13)
    np.testing.assert_allclose(kernel(x1, x1.clone()), kernel(x1), rtol=1e-7)


@pytest.mark.parametrize("name", SMALL_NETS)
@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_derivatives(name, get):
    """Of distinct images, and of images with themselves: where t = 0, and where dead slots could leak."""
    kernel = SMALL_NETS[name]
    x1, x2 = noise(3, 1, 3, 2).requires_grad_(), noise(2, 1, 3, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: kernel(a, b, get), (x1, x2), rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradcheck(lambda a: kernel(a, None, get), (x1,), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", SMALL_NETS)
def test_pullback(name):
    kernel, x1, x2 = SMALL_NETS[name], noise(3, 1, 4, 4), noise(5, 1, 4, 4, seed=1)
    leaves = [value.requires_grad_() for value in (x1, *kernel.variances(x1))]
    K = kernel(leaves[0], x2, variances1=tuple(leaves[1:]))
    gradient = noise(*K.shape, seed=2)
    found, pull = kernel.pullback(leaves[0].detach(), x2, tuple(leaf.detach() for leaf in leaves[1:]))
    torch.testing.assert_close(found, K.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(tuple(pull(gradient)), torch.autograd.grad(K, leaves, gradient), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("get", ["nngp", "ntk"])
@pytest.mark.parametrize("b_std", [0.0, 0.1])
def test_fused_is_layer_by_layer(get, b_std):
    """Also where angles are 0 or pi, and of black images."""
    fused, layered = (fc(3, b_std=b_std) for _ in range(2))
    layered.fused = None
    x = noise(3, 1, 3, 3)
    x = torch.cat([x, 2 * x[:1], -x[:1], torch.zeros_like(x[:1])]).requires_grad_()
    y = torch.cat([x.detach()[1:], noise(4, 1, 3, 3, seed=1)]).requires_grad_()
    for other in (y, None):
        inputs = (x,) if other is None else (x, other)
        values = [kernel(x, other, get) for kernel in (fused, layered)]
        torch.testing.assert_close(*values, rtol=1e-12, atol=0)
        gradients = [torch.autograd.grad((noise(*K.shape) * K).sum(), inputs) for K in values]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("b_std", [0.0, 0.1])
def test_parallel_and_black_images_have_finite_derivatives(dtype, b_std):
    x = noise(2, 1, 4, 4, dtype=dtype)
    x = torch.cat([x, 2 * x, -x, torch.zeros_like(x[:1]), torch.ones_like(x[:1])]).requires_grad_()
    for kernel in (fc(3, b_std=b_std), fc(1, "erf", b_std=b_std), conv(2, b_std=b_std), convnet(depth=1, b_std=b_std)):
        for other in (None, x.detach().clone(), x.detach() * (1 + 1e-7)):
            K = kernel(x, other)
            (gradient,) = torch.autograd.grad(K.square().sum(), x)
            assert K.isfinite().all()
            assert gradient.isfinite().all()
            assert gradient.abs().max() < 1e3


def test_parallel_images_have_exact_kernels():
    """Without bias, k(x, a x) = a k(x, x) for a > 0, and relu networks know k(x, x): depth + 1 layers of <x, x> / D."""
    x = noise(4, 1, 5, 5)
    for depth in (1, 4):
        kernel = fc(depth, b_std=0.0)
        expected = 2 * (depth + 1) * x.square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(kernel.diagonal(x), expected, rtol=1e-13, atol=0)
        torch.testing.assert_close(kernel(x).diagonal(), expected, rtol=1e-13, atol=0)
        torch.testing.assert_close(kernel(x, 3 * x).diagonal(), 3 * expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", SMALL_NETS)
def test_tiles_change_nothing(name):
    x1, x2 = noise(7, 2, 6, 4).requires_grad_(), noise(5, 2, 6, 4, seed=1).requires_grad_()
    kernel = SMALL_NETS[name]
    tiny = Kernel(kernel.architecture, **kernel.weights, memory=1)
    assert tiny.pairs_in_memory(x1) == 1
    for other in (x2, None):
        whole, tiled = kernel(x1, other), tiny(x1, other)
        torch.testing.assert_close(tiled, whole, rtol=1e-13, atol=0)
        inputs = (x1,) if other is None else (x1, x2)
        gradients = [torch.autograd.grad(K.square().sum(), inputs) for K in (whole, tiled)]
        torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", SMALL_NETS)
def test_memory(name):
    """What autograd keeps of N x N pairs is within what `pairs_in_memory` reckons with, beside the images' own part."""
    x1, x2 = noise(20, 1, 8, 8).requires_grad_(), noise(20, 1, 8, 8, seed=1)
    kernel, kept = SMALL_NETS[name], {}

    def keep(value):
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        K = kernel(x1, x2)
    reckoned = K.numel() * kernel.memory / kernel.pairs_in_memory(x1)
    assert sum(kept.values()) < reckoned
    assert sum(kept.values()) > 0.2 * reckoned


@pytest.mark.parametrize("name", SMALL_NETS)
def test_variances_can_be_kept(name):
    kernel, x1, x2 = SMALL_NETS[name], noise(3, 1, 4, 6), noise(8, 1, 4, 6, seed=1)
    chosen = torch.tensor([6, 0, 3])
    kept = tuple(q[chosen] for q in kernel.variances(x2))
    known = kernel(x1, x2[chosen], variances1=kernel.variances(x1), variances2=kept)
    torch.testing.assert_close(known, kernel(x1, x2[chosen]), rtol=1e-13, atol=0)
    K, variances = kernel.gram(x1)
    torch.testing.assert_close((K, variances), (kernel(x1), kernel.variances(x1)), rtol=0, atol=0)


def test_covariances_are_positive_definite():
    x = noise(40, 1, 4, 4)
    for kernel in SMALL_NETS.values():
        for get in ("nngp", "ntk"):
            K = kernel(x, None, get)
            torch.testing.assert_close(K, K.T, rtol=1e-13, atol=1e-15)
            assert torch.linalg.eigvalsh(K).min() > 0


def test_scale():
    """Relu networks without bias are homogeneous."""
    x1, x2 = noise(3, 1, 8, 8), noise(2, 1, 8, 8, seed=1)
    for kernel in (fc(2, b_std=0.0), convnet(b_std=0.0), myrtle(b_std=0.0), myrtle(7, b_std=0.0)):
        torch.testing.assert_close(kernel(3 * x1, 5 * x2), 15 * kernel(x1, x2), rtol=1e-12, atol=0)
        assert relative(kernel(x1, x2, "nngp"), kernel(x1, x2)) > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fc(0), "depth is 0: it must be at least 1"),
        (lambda: conv(1, "gelu"), "activation is 'gelu': choose from relu, erf"),
        (lambda: convnet(head="mean"), "head is 'mean': choose from flatten, gap"),
        (lambda: myrtle(6), "depth is 6: choose from 5, 7, 10"),
        (lambda: fc(1, w_std=-1.0), "w_std is -1.0: it must be at least 0"),
        (lambda: fc(1, memory=0), "memory is 0: it must be at least 1"),
        (lambda: fc(1)(noise(2, 1, 3, 3), get="both"), "get is 'both': choose from ntk, nngp"),
        (lambda: fc(1)(noise(2, 9)), r"images must be \(N, C, H, W\) in float32 or float64, not \(2, 9\)"),
        (lambda: fc(1)(noise(2, 1, 3, 3).int()), "not .* in torch.int32"),
        (lambda: conv(1)(noise(2, 1, 3, 3), noise(2, 1, 3, 4)), "x1 is .* x2 .* only the number of images may differ"),
        (lambda: convnet()(noise(2, 1, 7, 9)), "images of 7 x 9 pixels are too small to be pooled 3 times"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_names_of_papers():
    for name, kernel in (("fc3", fc(3)), ("conv3", conv(3)), ("convnet3", convnet(prepend=False))):
        assert named(name, memory=10).architecture == kernel.architecture
    assert named("convnet", memory=10).memory == 10
    with pytest.raises(ValueError, match="kernel='resnet': choose from fc1, fc2, fc3, conv3, convnet, convnet3, myrt"):
        named("resnet")


@pytest.mark.gpu
@pytest.mark.parametrize("name", SMALL_NETS)
def test_gpu(name):
    x1, x2 = noise(3, 1, 6, 6), noise(2, 1, 6, 6, seed=1)
    for other in (x2, None):
        found = SMALL_NETS[name](x1.cuda(), None if other is None else other.cuda()).cpu()
        torch.testing.assert_close(found, SMALL_NETS[name](x1, other), rtol=1e-10, atol=0)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_product(dtype, onednn, monkeypatch):
    """Against float64, of any strides, of one row, and of rows that are one row expanded; and without oneDNN."""
    if not onednn:
        monkeypatch.setattr(fused, "ONEDNN", False)
    a, b = noise(5, 7).to(dtype), noise(7, 3, seed=1).to(dtype)
    for x, y in ((a, b), (a[:1], b), (a.T, noise(5, 3, seed=2).to(dtype)), (a[:1].expand(4, 7), b.T.contiguous().T)):
        torch.testing.assert_close(product(x, y).double(), x.double() @ y.double(), rtol=1e-5, atol=1e-5)
        assert product(x, y).dtype == dtype
