"""Small made-up images, and writers of the file formats that datasets come in."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ncdd.data import Images, Source


def _made_up(count: int, num_classes: int = 3, channels: int = 3, size: int = 6) -> Images:
    """Pixels that differ everywhere, labels in turn."""
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % num_classes)


@pytest.fixture
def made_up():
    """(count, num_classes, channels, size) -> Images"""
    return _made_up


@pytest.fixture
def source() -> Source:
    return Source(_made_up(60), _made_up(15), ["a", "b", "c"], name="made_up")


def _write_idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes())


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    """The four files of MNIST with 20 and 10 images of 28 x 28."""
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("t10k", 10)):
        raw = tmp_path / "MNIST" / "raw"
        _write_idx(raw / f"{split}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        _write_idx(raw / f"{split}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train: 6 images of 'cat' and 'dog', test: 4; 8 x 8, PNG so that what is read is what was written."""
    random = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{index}.png")
    return tmp_path
