"""Whitening against a reference on real MNIST, and against what it promises."""

import numpy as np
import pytest
import torch

from ncdd.kernels import fit_zca
from tests.kernels.conftest import images, noise, reference, relative
from tests.kernels.test_krr import MNIST

CHANNELS = (-1, 1, 1)


def photographs(n, seed=0):
    """Correlated, off-centre, of unequal channels."""
    smooth = torch.nn.functional.avg_pool2d(noise(n, 3, 6, 6, seed=seed), 3, stride=1)
    return 30 * smooth * torch.tensor([1.0, 2.0, 3.0]).view(CHANNELS) + torch.tensor([5.0, 0.0, -90.0]).view(CHANNELS)


def test_mnist():
    expected = reference("zca_ref.npz")
    if not MNIST.exists():
        pytest.skip(f"no MNIST in {MNIST} (NCDD_DATA says where)")
    pixels = np.fromfile(MNIST / "train-images-idx3-ubyte", dtype=np.uint8, offset=16).reshape(-1, 1, 28, 28)
    x = torch.from_numpy(pixels[: int(expected["n"])])
    zca = fit_zca(x)
    assert relative(zca.mean_C, expected["mean"]) < 1e-12
    assert relative(zca.std_C, expected["std"]) < 1e-12
    assert relative(zca.matrix.trace(), expected["W_trace"]) < 1e-10
    assert relative(zca.matrix.diagonal(), expected["W_diag"]) < 1e-10
    assert relative(zca.transform(x[:5].double()), images(expected["out5"])) < 1e-10
    assert zca.transform(x[:5]).dtype == torch.float32


@pytest.mark.parametrize("per_image", [True, False])
def test_whitens(per_image):
    """The second moment becomes C (C + l I)^-1, about the mean image where that is what is subtracted."""
    x = photographs(200)
    zca = fit_zca(x, reg=0.1, per_image=per_image)
    standard = ((x - x.mean(dim=(0, 2, 3), keepdim=True)) / x.std(dim=(0, 2, 3), keepdim=True, correction=0)).flatten(1)
    if per_image:
        centred = standard - standard.mean(dim=1, keepdim=True)
        centred = centred / centred.norm(dim=1, keepdim=True)
    else:
        centred = standard - standard.mean(dim=0)
    C = centred.T @ centred / len(x)
    expected = C @ torch.linalg.inv(C + 0.1 * C.trace() / len(C) * torch.eye(len(C), dtype=C.dtype))
    z = zca.transform(x).flatten(1)
    torch.testing.assert_close(z.T @ z / len(x), expected, rtol=1e-9, atol=1e-11)


def test_inverse():
    x = photographs(200)
    exact = fit_zca(x, per_image=False)
    torch.testing.assert_close(exact.inverse(exact.transform(x)), x, rtol=1e-10, atol=1e-9)
    own = fit_zca(x)
    back = own.inverse(own.transform(x))
    standard = [(z - own.mean_C.view(CHANNELS)) / own.std_C.view(CHANNELS) for z in (x, back)]
    for image, found in zip(*standard, strict=True):  # up to each image's own mean and norm
        assert np.corrcoef(image.flatten(), found.flatten())[0, 1] == pytest.approx(1, abs=1e-10)
    spread = [(z - z.mean(dim=(1, 2, 3), keepdim=True)).flatten(1).norm(dim=1).mean() for z in standard]
    torch.testing.assert_close(*spread, rtol=1e-10, atol=0)


def test_fewer_images_than_pixels():
    """C has rank 10: in the directions of the 38 images that are not there W is the identity."""
    zca = fit_zca(photographs(10))
    scales = torch.linalg.eigvalsh(zca.matrix)
    assert (scales - 1).abs().sort().values[37] < 1e-12
    assert (scales - 1).abs().sort().values[38] > 1e-3


def test_constant_channel():
    x = photographs(10)
    x[:, 1] = 7.0
    with pytest.raises(ValueError, match="constant channel"):
        fit_zca(x)
