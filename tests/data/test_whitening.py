"""Whitening against a reference on real MNIST, against what it promises, and in the data module."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ncdd.data import ImageDataModule, Images, Normalisation, Source
from ncdd.data.adapt import AdaptedLoader
from ncdd.data.distilled import whitening_of
from ncdd.data.pixels import normalise
from ncdd.data.whitening import fit_whitening, packed, unpacked
from tests.kernels.conftest import images, noise, reference, relative
from tests.kernels.test_krr import MNIST


def photographs(n, seed=0):
    """(n, 3, 4, 4): correlated, off-centre, of unequal channels."""
    smooth = torch.nn.functional.avg_pool2d(noise(n, 3, 6, 6, seed=seed), 3, stride=1)
    return 3 * smooth * torch.tensor([1.0, 2.0, 3.0]).view(-1, 1, 1) + torch.tensor([0.5, 0.0, -1.0]).view(-1, 1, 1)


def unit(x):
    rows = x.flatten(1) - x.flatten(1).mean(dim=1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True)


def test_mnist():
    expected = reference("zca_ref.npz")
    if not MNIST.exists():
        pytest.skip(f"no MNIST in {MNIST} (NCDD_DATA says where)")
    pixels = np.fromfile(MNIST / "train-images-idx3-ubyte", dtype=np.uint8, offset=16).reshape(-1, 1, 28, 28)
    x = torch.from_numpy(pixels[: int(expected["n"])]).double()
    x = (x - x.mean()) / x.std(correction=0)
    found = fit_whitening(x, variant="kip")
    assert relative(found.matrix.trace(), expected["W_trace"]) < 1e-10
    assert relative(found.matrix.diagonal(), expected["W_diag"]) < 1e-10
    assert relative(found(x[:5]), images(expected["out5"])) < 1e-10
    assert found(x[:5].float()).dtype == torch.float32


@pytest.mark.parametrize("variant", ["kip", "frepo"])
def test_whitens(variant):
    """The second moment S becomes S (S + l I)^-1, about the mean image where that is what is subtracted."""
    x = photographs(200)
    found = fit_whitening(x, variant=variant)
    rows = unit(x) if variant == "kip" else x.flatten(1) - x.flatten(1).mean(dim=0)
    S = rows.T @ rows / len(x)
    expected = S @ torch.linalg.inv(S + 0.1 * S.trace() / len(S) * torch.eye(len(S)).double())
    z = found(x).flatten(1)
    torch.testing.assert_close(z.T @ z / len(x), expected, rtol=1e-9, atol=1e-11)


def test_inverse():
    x = photographs(200)
    exact = fit_whitening(x, variant="frepo")
    torch.testing.assert_close(exact.inverse(exact(x)), x, rtol=1e-10, atol=1e-9)
    own = fit_whitening(x, variant="kip")
    back = own.inverse(own(x))
    torch.testing.assert_close(unit(back), unit(x), rtol=1e-10, atol=1e-10)  # up to each image's own mean and norm
    for measure in (torch.mean, lambda z: (z.flatten(1) - z.flatten(1).mean(dim=1, keepdim=True)).norm(dim=1).mean()):
        torch.testing.assert_close(measure(back), measure(x), rtol=1e-10, atol=1e-10)


def test_fewer_images_than_numbers():
    """S has rank 10: in the directions of the 38 images that are not there W is the identity."""
    scales = torch.linalg.eigvalsh(fit_whitening(photographs(10), variant="kip").matrix)
    assert (scales - 1).abs().sort().values[37] < 1e-12
    assert (scales - 1).abs().sort().values[38] > 1e-3


@pytest.mark.parametrize("variant", ["kip", "frepo"])
def test_as_files_hold_it(variant):
    """A quarter of the bytes: images in float32 are whitened by it bit for bit, and pixels come back to 1e-5."""
    x = photographs(200) * torch.linspace(1, 100, 4)  # ill conditioned
    exact = fit_whitening(x, variant=variant)
    assert torch.linalg.cond(exact.matrix) > 5
    held = packed(exact.matrix)
    assert 4 * held.nbytes == pytest.approx(exact.matrix.nbytes, rel=0.03)
    found = replace(exact, matrix=unpacked(held))
    assert torch.equal(found.matrix, found.matrix.T)
    assert torch.equal(found(x.float()), exact(x.float()))
    z = exact(x)
    assert (found.inverse(z) - exact.inverse(z)).abs().max() < 1e-5 * x.abs().max()


def test_files_that_hold_all_of_it_are_read():
    exact = fit_whitening(photographs(200), variant="kip")
    found = whitening_of({"zca_matrix": exact.matrix, "zca_mean": exact.mean}, {"zca_norm": exact.norm})
    assert torch.equal(found.matrix, exact.matrix)
    assert (found.norm, whitening_of({}, {})) == (exact.norm, None)


def test_a_constant_image_is_finite():
    x = torch.cat([photographs(9), torch.full((1, 3, 4, 4), 7.0)])
    assert not fit_whitening(x, variant="kip")(x)[9].any()


# ------------------------------------------------------------ in the data module


def build(source, **changes):
    options = {"batch_size": 8, "measure_batch_size": 16, "seed": 3, **changes}
    data = ImageDataModule(source=source, **options)
    data.setup()
    return data


@pytest.mark.parametrize("variant", ["kip", "frepo"])
def test_every_split_is_whitened_by_the_train_split(source, variant):
    plain, data = (build(source, val_fraction=0.25, whiten=whiten) for whiten in (None, variant))
    assert plain.whitening is None
    expected = fit_whitening(normalise(plain.splits["train"].pixels, plain.normalisation), variant=variant)
    torch.testing.assert_close(data.whitening.matrix, expected.matrix)
    for name, split in plain.splits.items():
        found = torch.cat([x for x, _ in data._measure(name)])
        torch.testing.assert_close(found, expected(normalise(split.pixels, plain.normalisation)))
        assert torch.equal(data.splits[name].labels, split.labels)
    assert source.train.pixels.dtype == torch.uint8  # untouched


def test_another_data_set_as_the_network_knows_it(source, made_up):
    trained = build(source, whiten="kip")
    other = Source(made_up(30), made_up(9), source.class_names, "other")
    data, raw = build(other), build(other)
    data.normalise_as(trained)
    expected = trained.whitening(normalise(other.test.pixels, trained.normalisation))
    torch.testing.assert_close(data.splits["test"].pixels, expected)
    loader = AdaptedLoader(
        images=raw.splits["test"],
        channels=3,
        image_size=6,
        normalisation=trained.normalisation,
        whitening=trained.whitening,
        batch_size=4,
    )
    torch.testing.assert_close(torch.cat([x for x, _ in loader]), expected)
    with pytest.raises(ValueError, match=r"dataset\.whiten=frepo: the network's own data decide it"):
        build(other, whiten="frepo").normalise_as(trained)
    with pytest.raises(ValueError, match="leave the second data set's whiten at null"):
        AdaptedLoader(
            images=trained.splits["test"],
            channels=3,
            image_size=6,
            normalisation=trained.normalisation,
            batch_size=4,
        )


def test_a_synthetic_set_brings_its_own(source):
    stats = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    own = fit_whitening(normalise(source.train.pixels, stats), variant="frepo")
    train = Images(torch.randn(3, 3, 6, 6), torch.arange(3))
    made = Source(train, source.test, source.class_names, "made_up", source.train, stats, own)
    data = build(made)
    assert data.whitening is own
    assert torch.equal(data.splits["train"].pixels, train.pixels)
    for name, split in (("real", source.train), ("test", source.test)):
        torch.testing.assert_close(data.splits[name].pixels, own(normalise(split.pixels, stats)))
    with pytest.raises(ValueError, match=r"dataset\.whiten=kip: the synthetic set's file decides it"):
        build(replace(made, whitening=None), whiten="kip")
    with pytest.raises(ValueError, match=r"dataset\.whiten=zca: null, kip or frepo is needed"):
        build(source, whiten="zca")
