"""What a set starts from, against the real images that it is to be of."""

import pytest
import torch

from ncdd.data.images import Images, Normalisation
from ncdd.data.sources import digits
from ncdd.distill.start import read, start

REAL = digits().train
NORM = Normalisation((0.3,), (0.37,))
EXPECTED = (REAL.pixels.float() / 255 - 0.3) / 0.37


def begin(init: str, per_class: int = 2, seed: int = 0, real: Images = REAL):
    return start(init, real, NORM, num_classes=10, per_class=per_class, seed=seed)


@pytest.mark.parametrize("init", ["real", "noise", "herding", "kmeans", "nearest"])
def test_so_many_of_each_class_in_order(init):
    images, classes = begin(init)
    assert images.shape == (20, 1, 8, 8)
    assert images.dtype == torch.float32
    assert classes.tolist() == sorted(2 * list(range(10)))


@pytest.mark.parametrize("init", ["real", "herding", "nearest"])
def test_real_images_are_those_of_their_class(init):
    for image, k in zip(*begin(init), strict=True):
        assert torch.isclose(EXPECTED[REAL.labels == k], image, atol=1e-6).flatten(1).all(1).any()


def test_class_means_and_noise():
    images, classes = begin("class_mean", per_class=1)
    for image, k in zip(images, classes, strict=True):
        torch.testing.assert_close(image, EXPECTED[REAL.labels == k].mean(0))
    noise, _ = begin("noise", per_class=100)
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("init", ["real", "noise"])
def test_drawn_from_the_seed_alone(init):
    torch.manual_seed(1)
    first = begin(init)[0]
    assert torch.equal(begin(init)[0], first)
    assert not torch.equal(begin(init, seed=1)[0], first)


def test_read_normalises_pixels_and_takes_floats_as_they_are():
    torch.testing.assert_close(read(REAL, NORM), EXPECTED)
    torch.testing.assert_close(read(REAL, NORM, torch.tensor([3, 1])), EXPECTED[[3, 1]])
    torch.testing.assert_close(read(Images(EXPECTED, REAL.labels), NORM), EXPECTED)


@pytest.mark.parametrize(
    ("init", "per_class", "message"),
    [
        ("rael", 1, "init='rael': choose from noise, real, herding, kmeans, class_mean, nearest"),
        ("real", 1000, r"images_per_class=1000: the smallest class, \d, has \d+ real images"),
        ("real", 0, "images_per_class=0"),
        ("class_mean", 2, "class_mean makes one image a class"),
    ],
)
def test_what_cannot_begin(init, per_class, message):
    with pytest.raises(ValueError, match=message):
        begin(init, per_class)
