"""FRePo's objective against closed forms, and three iterations against its JAX reference."""

import math
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ncdd.distill.frepo import (
    distil,
    first_labels,
    half_squared_error,
    label_margin_loss,
    meta_loss,
    mirrored,
    ridge_weights,
)
from ncdd.distill.lamb import Lamb, cosine_to
from ncdd.distill.pool import NetworkPool
from ncdd.models import Network
from ncdd.models.frepo_conv import FRePoConv, LeCunLinear

SHARED = Path(os.environ.get("NCDD_SHARED", Path(__file__).parents[3] / "shared"))
REFERENCE = SHARED / "reference" / "frepo" / "step_mnist.npz"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize(("n", "D"), [(4, 9), (9, 4)])
def test_ridge_weights_are_the_primal_solution(n, D):
    """(F'F + l I)^-1 F'y, whichever of n and D is larger."""
    features, labels = noise(n, D), noise(n, 3, seed=1)
    ridge = 0.1 * features.square().sum() / n
    expected = torch.linalg.solve(features.T @ features + ridge * torch.eye(D), features.T @ labels)
    torch.testing.assert_close(ridge_weights(features, labels, reg=0.1), expected.T)


def test_a_set_that_spans_the_real_features_predicts_them():
    features, labels = noise(4, 9), noise(4, 3, seed=1)
    mixed = noise(6, 4, seed=2)
    loss = meta_loss(features, labels, mixed @ features, mixed @ labels, reg=1e-12)
    assert loss.kernel.item() < 1e-18


def test_gradients():
    real, targets = noise(5, 6, seed=2), noise(5, 3, seed=3)
    inputs = noise(4, 6).requires_grad_(), noise(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, y: sum(meta_loss(f, y, real, targets, reg=0.1)), inputs)


def test_label_margin():
    labels = torch.tensor([[0.5, 0.45, 0.0, 0.0], [0.9, 0.1, 0.0, -0.2]])
    assert label_margin_loss(labels).item() == pytest.approx(-(0.05 + 0.25) / 2)


def test_first_labels():
    found = first_labels(torch.tensor([2, 0]), 40)
    assert found.shape == (2, 40)
    assert found[0, 2].item() == pytest.approx((1 - 1 / 40) / 2)
    assert found.sum(1).abs().max() < 1e-6


def test_half_squared_error():
    assert half_squared_error(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2)).item() == 1.25


def test_mirrored():
    images, labels = mirrored(torch.arange(4.0).view(1, 1, 2, 2), torch.tensor([[1.0, 2.0]]))
    assert images[1, 0].tolist() == [[1, 0], [3, 2]]
    assert labels.tolist() == [[1, 2], [1, 2]]


def test_a_singular_kernel_is_named():
    with pytest.raises(ValueError, match=r"singular with reg=0: raise reg"):
        ridge_weights(torch.ones(3, 5), torch.ones(3, 2), reg=0.0)


# ---------------------------------------------------------------- the reference, in float64


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    if not REFERENCE.exists():
        pytest.skip(f"no {REFERENCE} (NCDD_SHARED says where)")
    with np.load(REFERENCE) as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name], dtype=np.float64)) for name in arrays}


def put(network: nn.Module, reference: dict[str, Tensor], name: str) -> None:
    """flax's parameters: convolutions HWIO, a classifier of features in the order H W C."""
    of = {kind: [m for m in network.model if isinstance(m, kind)] for kind in (nn.Conv2d, nn.BatchNorm2d)}
    with torch.no_grad():
        for i, conv in enumerate(of[nn.Conv2d]):
            conv.weight.copy_(reference[f"{name}/params/Conv_{i}/kernel"].permute(3, 2, 0, 1))
            conv.bias.copy_(reference[f"{name}/params/Conv_{i}/bias"])
        for i, norm in enumerate(of[nn.BatchNorm2d]):
            norm.weight.copy_(reference[f"{name}/params/BatchNorm_{i}/scale"])
            norm.bias.copy_(reference[f"{name}/params/BatchNorm_{i}/bias"])
            norm.running_mean.copy_(reference[f"{name}/batch_stats/BatchNorm_{i}/mean"])
            norm.running_var.copy_(reference[f"{name}/batch_stats/BatchNorm_{i}/var"])
        kernel = reference[f"{name}/params/Dense_0/kernel"]
        network.head.weight.copy_(channels_first(kernel.T))
        network.head.bias.copy_(reference[f"{name}/params/Dense_0/bias"])


def channels_first(features: Tensor) -> Tensor:
    """(n, 4 * 4 * 32) in the order H W C -> C H W."""
    return features.reshape(-1, 4, 4, 32).permute(0, 3, 1, 2).flatten(1)


def new_network() -> Network:
    body = FRePoConv(in_channels=1, image_size=28, width=8, depth=3)
    return Network(body, LeCunLinear(num_features=512, num_classes=10, bias=True)).double()


def close(found: Tensor, expected: Tensor, bound: float) -> None:
    assert float((found.detach() - expected).abs().max() / expected.abs().max()) < bound


def test_three_iterations_of_the_reference(reference):
    """Its features at step 0 are scaled by float32's 1 / sqrt(1 + 1e-5), once a BatchNorm, which regression undoes.

    From the second step its networks' weights are rounded to float32, which leaves 3e-6 of a step here.
    """
    pool = NetworkPool(new_network=new_network, optimizer=partial(torch.optim.Adam, lr=3e-4), size=1, max_age=100)
    network = pool.networks[0]
    put(network, reference, "nn0")
    images = reference["xp0"].permute(0, 3, 1, 2).contiguous().requires_grad_()
    labels = reference["yp0"].clone().requires_grad_()
    lamb = Lamb([images, labels], lr=3e-4)
    schedule = cosine_to(lamb, steps=100, final=0.1)
    rounding = (float(np.float32(1) / np.sqrt(np.float32(1 + 1e-5))) * math.sqrt(1 + 1e-5)) ** 2
    for i in range(3):
        bound = 1e-10 if i == 0 else 1e-7
        with torch.no_grad():
            real = network.forward_features(reference["X"][i].permute(0, 3, 1, 2))
        if i == 0:
            close(real * rounding, channels_first(reference["feat0"]), 1e-10)
        loss = meta_loss(network.forward_features(images), labels, real, reference["Y"][i])
        lamb.zero_grad()
        sum(loss).backward()
        close(loss.kernel, reference[f"kernel_loss{i}"], bound)
        close(loss.label, reference[f"label_loss{i}"], bound)
        close(sum(loss), reference[f"total_loss{i}"], bound)
        close(images.grad.norm(), reference[f"grad_norm_x{i}"], bound)
        close(labels.grad.norm(), reference[f"grad_norm_y{i}"], bound)
        before = images.detach().clone(), labels.detach().clone()
        lamb.step()
        schedule.step()
        expected = reference[f"xp{i + 1}"].permute(0, 3, 1, 2), reference[f"yp{i + 1}"]
        for found, target, old in zip((images, labels), expected, before, strict=True):
            step = (target - old).abs().max()
            assert (found.detach() - target).abs().max() < (1e-9 if i == 0 else 1e-5) * step
        online = pool.advance(0, lambda net: half_squared_error(net(images.detach()), labels.detach()))
        close(online, reference[f"online_loss{i}"], 1e-10 if i == 0 else 1e-6)
    end = new_network()
    put(end, reference, "nn3")
    for name, tensor in end.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(network.state_dict()[name], tensor, rtol=0, atol=1e-6, msg=name)


# ---------------------------------------------------------------- a set by one call


def learn(iterations: int, classes: Tensor, **changes) -> tuple[Tensor, Tensor]:
    """From images of two kinds of 8 x 8 pixels: class 3 has a bright top, class 5 a bright bottom."""
    images = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[classes == 3, :, :4] += 1
    images[classes == 5, :, 4:] += 1

    def tiny() -> Network:
        body = FRePoConv(in_channels=1, image_size=8, width=4, depth=2)
        return Network(body, LeCunLinear(num_features=body.num_features, num_classes=10, bias=True))

    settings = {
        "num_classes": 10,
        "per_class": 2,
        "new_network": tiny,
        "pool": partial(NetworkPool, optimizer=partial(torch.optim.Adam, lr=1e-3), size=2, max_age=5),
        "lr": 1e-2,
        "batch_size": 20,
        "reg": 1e-6,
        "use_flip": False,
        "online_images": 1000,
        "chunk": 16,
        "seed": 0,
    }
    return distil(images, classes, iterations=iterations, **settings | changes)


def test_distil():
    """By its seed, of the classes that occur; the difference of the classes comes out of the noise."""
    classes = torch.tensor([3, 5]).repeat(30)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    x, y = learn(40, classes)
    assert torch.equal(torch.get_rng_state(), state)
    again = learn(40, classes)
    assert torch.equal(x, again[0]) and torch.equal(y, again[1])
    assert x.shape == (4, 1, 8, 8)
    assert y.argmax(1).tolist() == [3, 3, 5, 5]
    start, labels = learn(1, classes, lr=1e-12)
    torch.testing.assert_close(labels, first_labels(torch.tensor([3, 3, 5, 5]), 10))

    def contrast(images: Tensor) -> Tensor:
        difference = images[:2].mean(0) - images[2:].mean(0)
        return difference[:, :4].mean() - difference[:, 4:].mean()

    assert contrast(x) > contrast(start)
    assert not torch.equal(learn(1, classes, lr=1e-12, seed=1)[0], start)
    mirrored_x, _ = learn(3, classes, use_flip=True)
    assert not torch.equal(mirrored_x, learn(3, classes)[0])


def test_distil_names_a_class_with_too_few_images():
    classes = torch.tensor([3] * 59 + [5])
    with pytest.raises(ValueError, match=r"images_per_class=2: class 5 has 1 real images"):
        learn(1, classes)
