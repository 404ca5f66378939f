"""Published datasets: scikit-learn's bundled digits, and what torchvision reads.

Every source is called with `root`, the folder where its files lie, and `download`, whether it may fetch them there;
those bundled with a package take both and need neither, so that `dataset.root=...` holds for every dataset.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncdd.data import corrupt
from ncdd.data.adapt import adapt
from ncdd.data.images import Images, Source

OFFLINE = "dataset=digits needs no files"
DIGITS = tuple("0123456789")


def digits(*, root: str | None = None, download: bool = False, image_size: int = 8) -> Source:
    """1797 handwritten digits of 8 x 8 pixels from scikit-learn, split 80 : 20 by class, the same in every run.

    image_size: enlarged to it, bilinearly, for networks that need more pixels.
    """
    if image_size < 8:
        raise ValueError(f"dataset.source.image_size={image_size}: the digits have 8 pixels; a number >= 8 is needed")
    from sklearn.datasets import load_digits  # imported here: it costs a second that other datasets need not pay

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images * (255 / 16)).unsqueeze(1).round()
    pixels = adapt(pixels, channels=1, image_size=image_size).round().to(torch.uint8)
    everything = Images(pixels, torch.from_numpy(bunch.target.astype(np.int64)))
    train, test = corrupt.split(everything.labels, num_classes=10, fraction=0.2, seed=0)
    return Source(everything.select(train), everything.select(test), list(DIGITS), name="digits")


# ---------------------------------------------------------------- torchvision

_Files = dict[str, str | None]  # path below root -> its MD5, or None where torchvision knows none


def _idx_files(dataset: Any) -> _Files:
    names = (Path(url).stem for url, _ in dataset.resources)
    return {f"{dataset.__name__}/raw/{name}": None for name in names}


def _cifar_files(dataset: Any) -> _Files:
    meta = (dataset.meta["filename"], dataset.meta["md5"])
    return {f"{dataset.base_folder}/{name}": md5 for name, md5 in (*dataset.train_list, *dataset.test_list, meta)}


def _split_files(dataset: Any) -> _Files:
    return {name: md5 for _, name, md5 in (dataset.split_list["train"], dataset.split_list["test"])}


@dataclass(frozen=True)
class _Published:
    """How torchvision knows a dataset."""

    cls: str
    files: Callable[[Any], _Files]
    class_names: tuple[str, ...] = ()  # empty: the ones torchvision gives
    train: dict[str, Any] = field(default_factory=lambda: {"train": True})
    test: dict[str, Any] = field(default_factory=lambda: {"train": False})


TORCHVISION = {
    "mnist": _Published("MNIST", _idx_files, DIGITS),
    "fashion_mnist": _Published("FashionMNIST", _idx_files),
    "kmnist": _Published("KMNIST", _idx_files),
    "cifar10": _Published("CIFAR10", _cifar_files),
    "cifar100": _Published("CIFAR100", _cifar_files),
    "svhn": _Published("SVHN", _split_files, DIGITS, {"split": "train"}, {"split": "test"}),
    "usps": _Published("USPS", _split_files, DIGITS),
}


def torchvision_set(*, name: str, root: str, download: bool) -> Source:
    """One of TORCHVISION, in memory; SVHN without its extra split."""
    import torchvision.datasets  # imported here: it costs a second that other datasets need not pay

    if name not in TORCHVISION:
        raise ValueError(f"source.name={name}: unknown; choose one of {', '.join(TORCHVISION)}")
    published = TORCHVISION[name]
    dataset = getattr(torchvision.datasets, published.cls)
    folder = Path(root).expanduser().resolve()
    files = published.files(dataset)
    _fetch(name, dataset, published, folder, files, download)
    _check(name, folder, files)
    train = dataset(str(folder), download=False, **published.train)
    test = dataset(str(folder), download=False, **published.test)
    return Source(_images(train), _images(test), list(published.class_names or train.classes), name)


def _fetch(name: str, dataset: Any, published: _Published, folder: Path, files: _Files, download: bool) -> None:
    """Download what is missing, or say what is."""
    missing = [file for file in files if not (folder / file).is_file()]
    if not missing:
        return
    offline = f"put the files there and set dataset.download=false, or choose another dataset: {OFFLINE}"
    if not download:
        raise FileNotFoundError(
            f"{name}: not found in {folder}: {', '.join(missing)}. Set dataset.root to the folder that holds them, "
            f"or dataset.download=true to fetch them; {OFFLINE}"
        )
    try:
        for split in (published.train, published.test):
            dataset(str(folder), download=True, **split)
    except (OSError, RuntimeError) as error:
        # torchvision lists the mirrors it tried on several lines.
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{name}: could not fetch {', '.join(missing)} into {folder} ({reason}). Without a network, {offline}"
        ) from error


def _check(name: str, folder: Path, files: _Files) -> None:
    """Name a damaged file: torchvision reads IDX files and USPS unchecked, and names none of CIFAR's."""
    from torchvision.datasets.utils import check_integrity

    for file, md5 in files.items():
        path = folder / file
        if path.name.endswith("-ubyte"):
            _check_idx(path)
        elif not check_integrity(str(path), md5):
            raise ValueError(
                f"{name}: {path} is damaged: its MD5 is not {md5} ({path.stat().st_size} bytes found); "
                "remove it and fetch it again"
            )


def _check_idx(path: Path) -> None:
    """The IDX format of MNIST: 0x0000, 0x08 for uint8, the number of axes, each axis' length (big-endian), the data."""
    axes = 3 if "images" in path.name else 1
    with path.open("rb") as file:
        header = file.read(4 + 4 * axes)
    if len(header) < 4 + 4 * axes or header[:4] != bytes((0, 0, 8, axes)):
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes with {axes} axes: its header must be "
            f"{4 + 4 * axes} bytes that start with 0000080{axes}, found {header[:4].hex() or 'nothing'}"
        )
    shape = struct.unpack(f">{axes}I", header[4:])
    expected, found = len(header) + int(np.prod(shape)), path.stat().st_size
    if expected != found:
        raise ValueError(
            f"{path} is damaged: {expected} bytes expected for the shape {shape} in its header, {found} found; "
            "remove it and fetch it again"
        )


def _images(dataset: Any) -> Images:
    """torchvision keeps (N, H, W), (N, H, W, 3) or (N, 3, H, W), a tensor or an array; labels also as a list."""
    pixels = torch.as_tensor(dataset.data)
    labels: Tensor = torch.as_tensor(dataset.labels if hasattr(dataset, "labels") else dataset.targets)
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(1)
    elif pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    return Images(pixels.contiguous(), labels.long())
