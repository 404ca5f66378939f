"""Synthetic sets from files: both formats, both layouts, and every way in which they may not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ncdd.data.distilled import distilled
from ncdd.data.images import Normalisation

IMAGES = torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3
SOFT = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
STATS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


def store(folder: Path, images=IMAGES, labels=LABELS, **metadata) -> str:
    path = folder / "set.safetensors"
    save_file({"images": images, "labels": labels}, path, {"ncdd": json.dumps(metadata)})
    return str(path)


def read(path, real, root="data"):
    return distilled(path=str(path), real=real, root=root, download=False)


@pytest.mark.parametrize("labels", [LABELS, SOFT])
def test_safetensors(tmp_path, source, labels):
    got = read(store(tmp_path, labels=labels, dataset="made_up", **STATS), source)
    assert torch.equal(got.train.pixels, IMAGES)
    assert torch.equal(got.train.labels, labels)
    assert got.normalisation == Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert got.real is source.train
    assert got.test is source.test
    assert got.class_names == source.class_names


@pytest.mark.parametrize("keys", [("images", "labels"), ("image", "label")])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("labels", [LABELS.numpy(), LABELS.numpy()[:, None].astype(np.int32), SOFT.numpy()])
def test_npz(tmp_path, source, keys, channels_last, labels):
    images = IMAGES.double().numpy()
    images = images.transpose(0, 2, 3, 1) if channels_last else images
    np.savez(tmp_path / "set.npz", **dict(zip(keys, (images, labels), strict=True)))
    got = read(tmp_path / "set.npz", source)
    assert torch.equal(got.train.pixels, IMAGES)
    assert torch.equal(got.train.labels, SOFT if labels.shape == (6, 3) else LABELS)
    assert got.normalisation is None


def test_the_file_names_its_dataset(tmp_path):
    images = torch.randn(10, 1, 8, 8)
    got = read(store(tmp_path, images, torch.arange(10), dataset="digits"), None)
    assert (got.name, len(got.real), len(got.test)) == ("digits", 1438, 359)


def test_a_folder_is_read_at_the_images_size(tmp_path, folder):
    path = store(tmp_path, torch.randn(2, 3, 4, 4), torch.arange(2))
    assert read(path, "image_folder", str(folder)).real.shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": IMAGES[:, :1].contiguous()},
            r"\(6, 1, 6, 6\) do not fit made_up: \(N, 3, 6, 6\) or \(N, 6, 6, 3\) is needed",
        ),
        ({"images": IMAGES[..., :5].contiguous()}, r"\(6, 3, 6, 5\) do not fit made_up"),
        ({"images": IMAGES / 0}, r"hold numbers that are not finite"),
        ({"images": IMAGES.long()}, r"images are torch\.int64; normalised floats or uint8"),
        (
            {"labels": SOFT[:, :2].contiguous()},
            r"labels of shape \(6, 2\) do not fit the 3 classes of made_up: \(N,\) or \(N, 3\)",
        ),
        ({"labels": LABELS + 1}, r"made_up: a label in its train split is outside 0\.\.2, found 1\.\.3"),
        ({"labels": LABELS[:5]}, r"6 images but labels of shape \(5,\)"),
        ({"labels": SOFT / 0}, r"its labels hold numbers that are not finite"),
        ({"labels": LABELS * 0 + 2}, r"all its labels are 2; at least two classes are needed"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"images of shape \(0, 3, 6, 6\); \(N, C, H, W\) with N >= 1"),
    ],
)
def test_what_does_not_fit(tmp_path, source, changes, message):
    with pytest.raises(ValueError, match=message):
        read(store(tmp_path, **{"images": IMAGES, "labels": LABELS, **changes}), source)


@pytest.mark.parametrize("metadata", ["{", "[1]"])
def test_damaged_metadata_name_the_file(tmp_path, source, metadata):
    save_file({"images": IMAGES, "labels": LABELS}, tmp_path / "x.safetensors", {"ncdd": metadata})
    with pytest.raises(ValueError, match=r"x\.safetensors: its metadata are damaged, 'ncdd' is no JSON"):
        read(tmp_path / "x.safetensors", source)


def test_another_dataset_and_other_classes_are_told(tmp_path, source, caplog):
    read(store(tmp_path, dataset="made_up", class_names=source.class_names), source)
    assert not caplog.messages
    read(store(tmp_path, dataset="mnist", class_names=["x", "y", "z"]), source)
    assert caplog.messages == [
        "the set was distilled from mnist, but the real images are of made_up",
        f"the set's classes are x, y, z, but those of made_up are {', '.join(source.class_names)}",
    ]


def test_which_dataset(tmp_path):
    with pytest.raises(
        ValueError, match=r"does not say which dataset it stands for: set dataset\.real to one of digits"
    ):
        read(store(tmp_path), None)
    with pytest.raises(ValueError, match=r"dataset\.real=mnits: unknown; choose one of digits, mnist"):
        read(store(tmp_path, dataset="mnits"), None)


def test_what_cannot_be_read(tmp_path, source):
    with pytest.raises(FileNotFoundError, match=r"dataset\.path=.*none\.npz: no file there"):
        read(tmp_path / "none.npz", source)
    for name in ("half.npz", "half.safetensors", "empty.npz", "empty.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 half" if name.startswith("half") else b"")
        with pytest.raises(ValueError, match=rf"{name} is damaged or no "):
            read(tmp_path / name, source)
    (tmp_path / "set.pt").touch()
    with pytest.raises(ValueError, match=r"set\.pt: unknown format \.pt; use \.safetensors or \.npz"):
        read(tmp_path / "set.pt", source)
    np.savez(tmp_path / "x.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match=r"must hold \(images, labels\) or \(image, label\); found images"):
        read(tmp_path / "x.npz", source)
    save_file({"images": IMAGES}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"must hold the tensors images and labels; found images"):
        read(tmp_path / "x.safetensors", source)


def test_pickles_are_not_opened(tmp_path, source):
    np.savez(tmp_path / "x.npz", images=np.array([{}], dtype=object), labels=LABELS)
    with pytest.raises(ValueError, match=r"x\.npz is damaged or holds more than plain arrays \(.*allow_pickle"):
        read(tmp_path / "x.npz", source)
