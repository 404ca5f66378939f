"""Each batched function against a loop over samples with the same parameters."""

import pytest
import torch
from torch import Tensor

from ncdd.data import augment
from ncdd.data.augment import Augment


def batch(dtype: torch.dtype = torch.float32, count: int = 17) -> Tensor:
    pixels = torch.randint(256, (count, 3, 7, 5), generator=torch.Generator().manual_seed(1))
    return pixels.to(dtype)


def integers(high: int, count: int = 17) -> Tensor:
    return torch.randint(high, (count,), generator=torch.Generator().manual_seed(high))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_is_the_naive_crop(dtype):
    images, top, left, fill = batch(dtype), integers(5), integers(5), torch.tensor([1.0, 2.0, 3.0])
    got = augment.crop(images, top, left, 2, fill)
    for image, y, x, out in zip(images, top, left, got, strict=True):
        padded = fill.to(dtype).view(3, 1, 1).repeat(1, 11, 9)
        padded[:, 2:9, 2:7] = image
        assert torch.equal(out, padded[:, y : y + 7, x : x + 5])


def test_the_centre_crop_changes_nothing():
    images = batch()
    centre = torch.full((17,), 4)
    assert torch.equal(augment.crop(images, centre, centre, 4), images)


def test_flip_is_the_naive_flip():
    images, mask = batch(), integers(2).bool()
    for image, flipped, out in zip(images, mask, augment.flip(images, mask), strict=True):
        assert torch.equal(out, image.flip(-1) if flipped else image)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_cutout_is_the_naive_cutout(size):
    images, row, column = batch(), integers(7), integers(5)
    for image, y, x, out in zip(images, row, column, augment.cutout(images, row, column, size, -1.0), strict=True):
        expected = image.clone()
        expected[:, max(0, y - size // 2) : y - size // 2 + size, max(0, x - size // 2) : x - size // 2 + size] = -1
        assert torch.equal(out, expected)


def test_augment_is_its_parts_in_order():
    images, every = batch(), Augment(crop=2, flip=True, cutout=3)
    draws = every.draw(17, torch.Generator().manual_seed(0))
    expected = augment.crop(images, (draws[:, 0] * 5).long(), (draws[:, 1] * 5).long(), 2, 9.0)
    expected = augment.flip(expected, draws[:, 2] < 0.5)
    expected = augment.cutout(expected, (draws[:, 3] * 7).long(), (draws[:, 4] * 5).long(), 3)
    assert torch.equal(every(images, draws, 9.0), expected)


def test_draws_reach_every_offset_evenly_and_stay_in_range():
    offsets = augment._below(Augment(crop=4).draw(90_000, torch.Generator().manual_seed(0))[:, 0], 9)
    assert offsets.bincount().shape == (9,)
    assert ((offsets.bincount() - 10_000).abs() < 500).all()  # five standard deviations
    assert augment._below(torch.tensor([1 - 2**-24]), 9).item() == 8
    assert augment._below(torch.tensor([1.0]), 9).item() == 8


def test_zeros_mean_none():
    images = batch()
    assert not Augment().active
    assert Augment()(images, torch.rand(17, 5)) is images
    assert all(Augment(**one).active for one in ({"crop": 1}, {"flip": True}, {"cutout": 1}))


def test_negative_sizes_are_refused():
    with pytest.raises(ValueError, match=r"augment\.crop=-1: a number of pixels >= 0 is needed"):
        Augment(crop=-1)
