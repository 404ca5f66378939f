"""Ridge regression, KIP and Label Solve against neural-tangents, 40-digit arithmetic and what they are solutions of."""

import gc
import os
import weakref
from functools import partial
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

from ncdd.kernels import conv, convnet, fc, kip_loss, label_solve, predict, ridge
from tests.kernels.conftest import SMALL, every, images, noise, reference, relative

VALUES = SMALL | every("ntk.npz")
KERNELS = {
    "fc_relu_d1": fc(1),
    "fc_relu_d3": fc(3),
    "conv_relu_d2_flatten": conv(2),
    "convnet3": convnet(prepend=False),
}
CASES = [name for name in KERNELS if f"kip/{name}/loss" in VALUES]
MNIST = Path(os.environ.get("NCDD_DATA", "data")) / "MNIST" / "raw"


def problem():
    """Support, its labels, targets, theirs."""
    return [images(VALUES[f"kip/{name}"]) if name[0] == "x" else torch.from_numpy(VALUES[f"kip/{name}"])
            for name in ("xs", "ys", "xt", "yt")]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk", [None, 7])
def test_kip(name, chunk):
    xs, ys, xt, yt = problem()
    xs.requires_grad_(), ys.requires_grad_()
    loss, pred = kip_loss(KERNELS[name], xs, ys, xt, yt, chunk=chunk)
    (3 * loss).backward()
    # the diagonal of K_ss, 1.5e-8 off in neural-tangents, sets these bounds: see `test_kip_gradient_by_40_digits`
    assert relative(loss, VALUES[f"kip/{name}/loss"]) < 1e-9
    assert relative(pred, VALUES[f"kip/{name}/pred"]) < 1e-8
    assert relative(xs.grad / 3, images(VALUES[f"kip/{name}/gx"])) < 1e-7
    assert relative(ys.grad / 3, VALUES[f"kip/{name}/gy"]) < 1e-8


def kip_by_40_digits(depth, xs, ys, xt, yt, reg=1e-6):
    """The objective with a fully connected relu network, entry by entry; images are lists of numbers."""

    def ntk(a, b):
        aa, ab, bb = (mpmath.fdot(u, v) / len(a) for u, v in ((a, a), (a, b), (b, b)))
        sw, sb, tangent = mpmath.mpf(2**0.5) ** 2, mpmath.mpf(0.1) ** 2, 0
        for layer in range(depth + 1):
            aa, ab, bb = (sw * k + sb for k in (aa, ab, bb))
            tangent = sw * tangent + ab
            if layer < depth:
                s = mpmath.sqrt(aa * bb)
                angle = mpmath.mpf(0) if a is b else mpmath.acos(ab / s)
                ab = (s * mpmath.sin(angle) + (mpmath.pi - angle) * ab) / (2 * mpmath.pi)
                aa, bb, tangent = aa / 2, bb / 2, tangent * (mpmath.pi - angle) / (2 * mpmath.pi)
        return tangent

    n = len(xs)
    K = mpmath.matrix([[ntk(a, b) for b in xs] for a in xs])
    ridge_term = reg * sum(K[i, i] for i in range(n)) / n
    inverse = (K + ridge_term * mpmath.eye(n)) ** -1
    pred = mpmath.matrix([[ntk(a, b) for b in xs] for a in xt]) * inverse * mpmath.matrix(ys)
    return sum((pred[i, c] - yt[i][c]) ** 2 for i in range(len(xt)) for c in range(len(ys[0]))) / (
        2 * len(xt) * len(ys[0])
    )


@pytest.mark.parametrize("depth", [1, 3])
def test_kip_gradient_by_40_digits(depth):
    """Directional derivative by central differences of step 1e-13 in 40 digits."""
    xs, ys, xt, yt = (z[:5] for z in problem())
    direction = noise(*xs.shape)
    xs.requires_grad_()
    loss, _ = kip_loss(fc(depth), xs, ys, xt, yt)
    loss.backward()
    with mpmath.workdps(40):
        base, along, rest = (
            [[mpmath.mpf(v) for v in row] for row in z.detach().flatten(1).tolist()] for z in (xs, direction, xt)
        )
        step = mpmath.mpf(10) ** -13

        def objective(e):
            moved = [[u + e * v for u, v in zip(*rows, strict=True)] for rows in zip(base, along, strict=True)]
            return kip_by_40_digits(depth, moved, ys.tolist(), rest, yt.tolist())

        expected = float((objective(step) - objective(-step)) / (2 * step))
        assert loss.item() == pytest.approx(float(objective(mpmath.mpf(0))), rel=1e-12)
    assert (xs.grad * direction).sum().item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("network", [partial(convnet, prepend=False, depth=2), partial(fc, 2), partial(fc, 1)])
def test_kip_by_autograd_alone(network):
    """The same value and gradients as the objective written down; and gradients only for what asks for them."""
    xs, ys, xt, yt = (z[:10] for z in problem())
    kernel, tiny = network(), network(memory=1)
    xs.requires_grad_(), ys.requires_grad_()
    pred = kernel(xt, xs) @ ridge(kernel(xs), ys, reg=1e-3)
    plain = 0.5 * (pred - yt).square().mean()
    expected = torch.autograd.grad(plain, (xs, ys))
    for k in (kernel, tiny):
        loss, found = kip_loss(k, xs, ys, xt, yt, reg=1e-3, variances=kernel.variances(xt))
        torch.testing.assert_close((loss, found), (plain, pred), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(torch.autograd.grad(loss, (xs, ys)), expected, rtol=1e-9, atol=1e-14)
    for chosen in (0, 1):
        inputs = [z.detach().requires_grad_(i == chosen) for i, z in enumerate((xs, ys))]
        kip_loss(kernel, *inputs, xt, yt, reg=1e-3)[0].backward()
        torch.testing.assert_close(inputs[chosen].grad, expected[chosen], rtol=1e-9, atol=1e-14)
        assert inputs[1 - chosen].grad is None
    with torch.no_grad():
        assert not kip_loss(kernel, xs, ys, xt, yt)[0].requires_grad


@pytest.mark.parametrize("b_std", [0.0, 0.1])
def test_kip_of_one_hidden_layer_is_layer_by_layer(b_std):
    """What is by hand is what any network takes: also where angles are 0 or pi, and of black images."""
    by_hand, layered = (fc(1, b_std=b_std) for _ in range(2))
    layered.fused = None
    x = noise(6, 1, 3, 3)
    support = torch.cat([x[:3], 2 * x[:1], -x[:1], torch.zeros_like(x[:1])]).requires_grad_()
    targets = torch.cat([x, -3 * x[1:2], torch.zeros_like(x[:1])])
    labels, wanted = noise(6, 2, seed=1).requires_grad_(), noise(8, 2, seed=2)
    found = []
    for kernel in (by_hand, layered):
        loss, pred = kip_loss(kernel, support, labels, targets, wanted, reg=1e-3)
        found.append((loss, pred, *torch.autograd.grad(loss, (support, labels))))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("depth", [1, 2])
def test_kip_gives_targets_no_gradient(depth):
    xs, ys, xt, yt = (z[:6].clone().requires_grad_() for z in problem())
    loss, pred = kip_loss(fc(depth), xs, ys, xt, yt, variances=fc(depth).variances(xt))
    loss.backward()
    assert xt.grad is None and yt.grad is None and not pred.requires_grad and pred.is_contiguous()
    assert xs.grad is not None and ys.grad is not None


@pytest.mark.gpu
@pytest.mark.parametrize("depth", [1, 2])
def test_kip_on_a_gpu(depth):
    found = []
    for device in ("cpu", "cuda"):
        xs, ys, xt, yt = (z[:10].to(device) for z in problem())
        xs.requires_grad_(), ys.requires_grad_()
        loss, pred = kip_loss(fc(depth), xs, ys, xt, yt)
        found.append([z.cpu() for z in (loss, pred, *torch.autograd.grad(loss, (xs, ys)))])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2])
def test_kip_names_images_that_are_none(depth):
    """The same lines for what is by hand."""
    x, y = noise(4, 1, 4, 4), noise(4, 2)
    for support, targets, message in (
        (x.half(), x.half(), "torch.float16"),
        (x.long(), x.long(), "torch.int64"),
        (x.flatten(1), x.flatten(1), r"\(4, 16\)"),
        (x, noise(4, 16, 1, 1), "only the number of images may differ"),
        (x, x.float(), "only the number of images may differ"),
    ):
        with pytest.raises(ValueError, match=message):
            kip_loss(fc(depth), support, y, targets, y)
    with pytest.raises(ValueError, match="singular with reg=0: raise reg"):
        kip_loss(fc(depth, b_std=0.0), torch.zeros_like(x), y, x, y, reg=0.0)
    with pytest.raises(ValueError, match="NaN or infinite entries"):
        kip_loss(fc(depth), x / 0, y, x, y)


@pytest.mark.parametrize("depth", [1, 2])
def test_kip_in_float32(depth):
    exact, rough = problem(), [z.float() for z in problem()]
    for z in (exact[0], rough[0]):
        z.requires_grad_()
    losses = [kip_loss(fc(depth), *inputs)[0] for inputs in (exact, rough)]
    sum(losses).backward()
    assert losses[1].dtype == rough[0].grad.dtype == torch.float32
    assert relative(losses[1], losses[0].detach()) < 1e-4
    assert relative(rough[0].grad, exact[0].grad) < 1e-3


def test_ridge_leaves_nothing_behind():
    """Without the cyclic collector: a step of FRePo would keep its factor until that runs."""
    K = (noise(4, 6) @ noise(4, 6).T).requires_grad_()
    gc.disable()
    try:
        solution = ridge(K, noise(4, 2), reg=0.1)
        left = weakref.ref(solution.grad_fn)
        del solution
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("relative_reg", [True, False])
def test_ridge_is_the_minimum(relative_reg):
    """(K + l I) a = y: the representer solution of ``|y - K a|^2 + l a'Ka``; predict returns y where l is nothing."""
    x, y = noise(12, 1, 4, 4), noise(12, 3, seed=1)
    K = fc(2)(x)
    strength = 1e-2 * (K.trace() / 12 if relative_reg else 1.0)
    a = ridge(K, y, reg=1e-2, relative=relative_reg)
    torch.testing.assert_close(K @ a + strength * a, y, rtol=1e-9, atol=1e-11)
    exact = ridge(K, y, reg=0.0)
    torch.testing.assert_close(predict(fc(2), x, x, exact, chunk=5), y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("relative_reg", [True, False])
def test_ridge_derivatives(relative_reg):
    factor, y = noise(5, 7).requires_grad_(), noise(5, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: ridge(a @ a.T, b, reg=0.1, relative=relative_reg), (factor, y))


def test_singular_kernels_are_named():
    x = noise(6, 1, 2, 2) * torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0]).view(-1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"the 6 x 6 kernel matrix is singular with reg=0: raise reg"):
        ridge(fc(1, b_std=0.0)(x, get="nngp"), noise(6, 2), reg=0.0)
    with pytest.raises(ValueError, match="6 x 6 kernel matrix has NaN or infinite entries"):
        ridge(fc(1)(x / 0), noise(6, 2), reg=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_label_solve(name):
    xs, _, xt, yt = problem()
    labels = label_solve(KERNELS[name], xs, zip(xt.split(13), yt.split(13), strict=True))
    assert relative(labels, VALUES[f"ls/{name}/labels"]) < 1e-9


def test_label_solve_is_the_minimum():
    """No other labels fit the targets better by ridge regression, up to the regularisation, whose weight is 1e-12."""
    xs, _, xt, yt = problem()
    labels = label_solve(fc(1), xs.float(), [(xt, yt)], reg=1e-12).requires_grad_()
    loss, _ = kip_loss(fc(1), xs.float().double(), labels, xt, yt, reg=1e-12 / 10, relative=False)
    loss.backward()
    assert labels.grad.abs().max() < 1e-9
    assert labels.dtype == torch.float64


def mnist(split):
    """Pixels (N, 1, 28, 28), float64, and classes."""
    if not MNIST.exists():
        pytest.skip(f"no MNIST in {MNIST} (NCDD_DATA says where)")
    pixels = np.fromfile(MNIST / f"{split}-images-idx3-ubyte", dtype=np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return torch.from_numpy(pixels).double(), np.fromfile(MNIST / f"{split}-labels-idx1-ubyte", np.uint8, offset=8)


def test_replayed_trajectory():
    """Twenty steps of KIP on real MNIST with the reference's batches; Label Solve from the same ten images."""
    expected = reference("kip_fc1_mnist_10_trajectory.npz")
    x, digits = mnist("train")
    mean, std = x.mean(), x.std(correction=0)
    x = (x - mean) / std
    y = torch.eye(10, dtype=torch.float64)[torch.from_numpy(digits).long()] - 0.1
    random = np.random.RandomState(1)  # as the reference

    def draw(per_class):
        return np.concatenate([random.choice(np.flatnonzero(digits == c), per_class, replace=False) for c in range(10)])

    first, kernel, losses = draw(1), fc(1), []
    np.testing.assert_array_equal(first, expected["init_idx"])
    labels = label_solve(kernel, x[first], zip(x.split(2000), y.split(2000), strict=True))
    test, answers = mnist("t10k")
    found = predict(kernel, (test - mean) / std, x[first], ridge(kernel(x[first]), labels, reg=1e-6)).argmax(1)
    assert 0.57 < np.mean(found.numpy() == answers) < 0.62  # with labels one-hot - 0.1 it is 0.33
    support, norms = x[first].requires_grad_(), kernel.variances(x)
    optimizer = torch.optim.Adam([support], lr=0.04)
    for step in range(20):
        batch = draw(500)
        optimizer.zero_grad()
        loss, _ = kip_loss(kernel, support, y[first], x[batch], y[batch], variances=tuple(q[batch] for q in norms))
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            assert relative(support.grad, images(expected["grad0"])) < 2e-7  # the reference's diagonal, again
        optimizer.step()
    np.testing.assert_array_equal(batch, expected["last_batch_idx"])
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-8)
    assert relative(support, images(expected["x20"])) < 2e-7


@pytest.mark.parametrize("kernel", [fc(1), fc(3), conv(1)])
def test_a_second_derivative_is_refused(kernel):
    """As a wrong one would be silent."""
    x, y = noise(3, 1, 4, 4).requires_grad_(), noise(3, 2, seed=1).requires_grad_()
    for value in (kernel(x, noise(2, 1, 4, 4, seed=2)).sum(), kip_loss(kernel, x, y, x.detach(), y.detach())[0]):
        with pytest.raises(RuntimeError, match="differentiable once"):
            torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(ridge(torch.eye(3, dtype=y.dtype), y, reg=1.0).sum(), y, create_graph=True)


def test_labels_that_do_not_fit_are_named():
    x, y, kernel = noise(4, 1, 4, 4), noise(4, 2), fc(1)
    for labels in (torch.eye(4, dtype=torch.int64), y.float(), y[:3], y[:, 0]):
        with pytest.raises(ValueError, match=r"labels are .*: \(4, C\) in torch.float64 is needed"):
            ridge(kernel(x), labels, reg=1e-6)
    for targets in (y[:3], y[:, :1], y[:, 0], y.float()):
        with pytest.raises(ValueError, match=r"y is .*: of 4 targets"):
            kip_loss(kernel, x, y, x, targets)
    with pytest.raises(ValueError, match=r"reg is -0\.1: a number >= 0"):
        kip_loss(kernel, x, y, x, y, reg=-0.1)
    with pytest.raises(ValueError, match="no targets"):
        label_solve(kernel, x, [])
    for batches in ([(x, torch.arange(4))], [(x, y), (x, y[:, :1])], [(x, y[:3])]):
        with pytest.raises(ValueError, match=r"y is .*: \(4, C\) is needed"):
            label_solve(kernel, x, batches)
