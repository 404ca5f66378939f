"""Digits, the real MNIST where present, made-up files of torchvision's formats, and what is said when they fail."""

import bz2
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from sklearn.datasets import load_digits

from ncdd.data import Images, Source, sources
from ncdd.data.images import channel_statistics

REAL_DATA = Path(os.environ.get("NCDD_DATA", "data"))


def test_digits_are_scikit_learns():
    digits = sources.digits()
    assert (len(digits.train), len(digits.test)) == (1438, 359)
    assert digits.train.shape == (1, 8, 8)
    assert digits.train.pixels.dtype == torch.uint8
    bunch = load_digits()
    both = torch.cat([digits.train.pixels, digits.test.pixels]).flatten(1).numpy() * (16 / 255)
    # as sets of rows: the split permutes but neither loses nor repeats
    assert sorted(map(tuple, both.round())) == sorted(map(tuple, bunch.data))
    counts = torch.cat([digits.train.labels, digits.test.labels]).bincount()
    assert counts.tolist() == np.bincount(bunch.target).tolist()
    test_share = digits.test.labels.bincount() / counts
    assert ((test_share - 0.2).abs() < 0.005).all()
    assert torch.equal(sources.digits().test.labels, digits.test.labels)


def test_digits_are_enlarged_as_pillow_would():
    large, small = sources.digits(image_size=28), sources.digits()
    assert large.train.shape == (1, 28, 28)
    assert torch.equal(large.train.labels, small.train.labels)
    one = Image.fromarray(small.train.pixels[7, 0].numpy()).resize((28, 28), Image.Resampling.BILINEAR)
    assert (large.train.pixels[7, 0].int() - torch.from_numpy(np.array(one)).int()).abs().max() <= 1  # its rounding
    with pytest.raises(ValueError, match=r"image_size=7: the digits have 8 pixels; a number >= 8 is needed"):
        sources.digits(image_size=7)


@pytest.mark.skipif(not (REAL_DATA / "MNIST").is_dir(), reason="needs MNIST in $NCDD_DATA")
def test_the_real_mnist():
    mnist = sources.torchvision_set(name="mnist", root=str(REAL_DATA), download=False)
    assert (len(mnist.train), len(mnist.test)) == (60000, 10000)
    assert mnist.train.shape == (1, 28, 28)
    assert mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    found = channel_statistics(mnist.train)
    assert found.mean == pytest.approx((0.1307,), abs=1e-4)  # the published values
    assert found.std == pytest.approx((0.3081,), abs=1e-4)


def test_idx_files_are_read_as_they_are(mnist_root):
    mnist = sources.torchvision_set(name="mnist", root=str(mnist_root), download=False)
    raw = (mnist_root / "MNIST/raw/train-images-idx3-ubyte").read_bytes()[16:]
    assert mnist.train.pixels.shape == (20, 1, 28, 28)
    assert mnist.train.pixels.numpy().tobytes() == raw
    assert mnist.test.labels.tolist() == list(range(10))
    assert mnist.class_names == list("0123456789")


def test_usps_and_its_checksum(tmp_path, monkeypatch):
    """Labels 1..10 and pixels -1..1 in text become 0..9 and 0..255."""
    splits = {}
    for split, file in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        lines = [f"{label} " + " ".join(f"{i + 1}:{-1 + 2 * (label - 1) / 9}" for i in range(256)) for label in (1, 10)]
        (tmp_path / file).write_bytes(bz2.compress("\n".join(lines).encode()))
        splits[split] = ["", file, hashlib.md5((tmp_path / file).read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.USPS, "split_list", splits)
    usps = sources.torchvision_set(name="usps", root=str(tmp_path), download=False)
    assert usps.train.pixels.shape == (2, 1, 16, 16)
    assert usps.train.labels.tolist() == [0, 9]
    assert usps.train.pixels.flatten(1).unique(dim=1).flatten().tolist() == [0, 255]
    (tmp_path / "usps.t.bz2").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"usps: .*usps\.t\.bz2 is damaged: its MD5 is not .*\(4 bytes found\)"):
        sources.torchvision_set(name="usps", root=str(tmp_path), download=False)


class _Layout:
    """What torchvision's CIFAR (N, H, W, 3; list) and SVHN (N, 3, H, W; array) hold."""

    def __init__(self, data, **labels):
        self.data = data
        self.__dict__.update(labels)


def test_colour_images_become_nchw():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    cifar = sources._images(_Layout(pixels, targets=[3, 1, 2, 0]))
    svhn = sources._images(_Layout(pixels.transpose(0, 3, 1, 2), labels=np.array([3, 1, 2, 0])))
    for images in (cifar, svhn):
        assert images.pixels.is_contiguous()
        assert images.labels.dtype == torch.int64
        assert images.labels.tolist() == [3, 1, 2, 0]
        assert images.pixels[1, 2, 5, 7] == pixels[1, 5, 7, 2]
    assert torch.equal(cifar.pixels, svhn.pixels)


@pytest.mark.parametrize("name", sources.TORCHVISION)
def test_missing_files_are_named(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        sources.torchvision_set(name=name, root=str(tmp_path), download=False)
    message = str(error.value)
    assert message.startswith(f"{name}: not found in {tmp_path}: ")
    assert "\n" not in message
    assert "dataset.download=true" in message
    assert "dataset=digits needs no files" in message
    expected = {"mnist": "MNIST/raw/t10k-labels-idx1-ubyte", "cifar10": "cifar-10-batches-py/data_batch_5"}
    assert expected.get(name, "") in message


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn", "usps"])
def test_no_network(name, tmp_path, monkeypatch):
    """urllib's error when a name cannot be looked up, made without looking one up."""

    def refuse(*_, **__):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("builtins.print", lambda *_, **__: None)
    with pytest.raises(FileNotFoundError) as error:
        sources.torchvision_set(name=name, root=str(tmp_path), download=True)
    message = str(error.value)
    assert message.startswith(f"{name}: could not fetch ")
    assert f"into {tmp_path} (" in message
    assert "Name or service not known" in message
    assert "\n" not in message
    assert "dataset.download=false" in message
    assert "dataset=digits" in message


def test_a_truncated_idx_file_is_named(mnist_root):
    path = mnist_root / "MNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte is damaged: 7856 bytes expected .* 5000 found"):
        sources.torchvision_set(name="mnist", root=str(mnist_root), download=False)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08\x00 still compressed"])
def test_another_kind_of_file_is_named(mnist_root, content):
    (mnist_root / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(content)
    message = (
        r"train-labels-idx1-ubyte is not an IDX file .* 8 bytes that start with 00000801, found (nothing|1f8b0800)"
    )
    with pytest.raises(ValueError, match=message):
        sources.torchvision_set(name="mnist", root=str(mnist_root), download=False)


def test_labels_out_of_range_are_refused(mnist_root):
    path = mnist_root / "MNIST/raw/train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\xc8")
    with pytest.raises(ValueError, match=r"mnist: a label in its train split is outside 0\.\.9, found 0\.\.200"):
        sources.torchvision_set(name="mnist", root=str(mnist_root), download=False)


def test_unequal_numbers_of_images_and_labels_are_refused(made_up):
    images = made_up(6)
    with pytest.raises(ValueError, match="x: 6 images but 5 labels in its test split"):
        Source(images, Images(images.pixels, images.labels[:5]), ["a", "b", "c"], name="x")


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"source\.name=cifar11: unknown; choose one of mnist, .*usps"):
        sources.torchvision_set(name="cifar11", root=str(tmp_path), download=False)


def test_channel_statistics_are_numpys(made_up):
    images = made_up(2500)
    values = images.pixels.numpy() / 255
    found = channel_statistics(images)
    assert found.mean == pytest.approx(values.mean((0, 2, 3)), abs=1e-12)
    assert found.std == pytest.approx(values.std((0, 2, 3)), abs=1e-12)
