"""A synthetic set, read from a file, in the place of the train split of the dataset that it stands for."""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ncdd.data import folders, sources
from ncdd.data.images import Images, Normalisation, Source
from ncdd.data.whitening import Whitening, unpacked

_log = logging.getLogger(__name__)
_NPZ_KEYS = (("images", "labels"), ("image", "label"))  # KIP's, FRePo's
STEPWISE = "works only in its own order with its own step sizes; trained otherwise it may lose most of its accuracy"
REAL = ("digits", *sources.TORCHVISION, "tiny_imagenet", "image_folder")


def distilled(*, path: str, real: Source | str | None, root: str, download: bool) -> Source:
    """The synthetic set of `path` to train on, and the splits of `real` to measure and test on.

    path: safetensors with `images` float32 (N, C, H, W), already normalised, `labels` int64 (N,) or float32 (N, K) and,
          under the metadata key "ncdd", JSON with dataset, mean and std; or npz with (images, labels) or
          (image, label), NHWC or NCHW. uint8 images are raw pixels.
    real: a Source, or the name of one of REAL, read from `root`; None: the dataset that the file's metadata names.

    The real splits are pixels as ever; the source names the normalisation and the whitening of the file's images.
    """
    tensors, metadata = read(Path(path).expanduser(), setting="dataset.path")
    images, labels = tensors["images"], tensors["labels"]
    if not isinstance(real, Source):
        real = _real(real or metadata.get("dataset"), path, root, download, image_size=images.shape[2])
    images, labels = _match(path, images, labels, real)
    say_other_data(metadata.get("dataset"), metadata.get("class_names", ()), real.name, real.class_names)
    normalisation = normalisation_of(metadata)
    if "step_sizes" in tensors:
        _log.warning("%s is a step-wise set: it %s", path, STEPWISE)
    whitening = whitening_of(tensors, metadata)
    if whitening is not None and normalisation is None:
        raise ValueError(f"{path} holds a ZCA transform, but not the mean and std that come before it")
    train = Images(images, labels)
    return Source(train, real.test, real.class_names, real.name, real.train, normalisation, whitening)


def read(path: Path, *, setting: str = "path") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) as they are stored: `images` and `labels`, and whatever else there is.

    setting: what the path was given as, for the messages.
    Errors: FileNotFoundError; ValueError for an unknown format, a damaged file, one without images and labels, and
    for images or labels that no network can be trained on.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{setting}={path}: no file there; a .safetensors or .npz file is needed")
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz}
    if path.suffix not in readers:
        raise ValueError(f"{setting}={path}: unknown format {path.suffix or '(none)'}; use {' or '.join(readers)}")
    tensors, metadata = readers[path.suffix](path)
    _check(path, tensors["images"], tensors["labels"])
    return tensors, metadata


def say_other_data(dataset: str | None, class_names: Sequence[str], name: str, names: Sequence[str]) -> None:
    """Warn where a set is of another dataset, or of classes of other names, than the real images beside it.

    dataset, class_names: what the set's file says; None and empty where it does not.  name, names: of the real ones.
    """
    if dataset is not None and dataset != name:
        _log.warning("the set was distilled from %s, but the real images are of %s", dataset, name)
    if class_names and list(class_names) != list(names):
        _log.warning("the set's classes are %s, but those of %s are %s", ", ".join(class_names), name, ", ".join(names))


def normalisation_of(metadata: dict[str, Any]) -> Normalisation | None:
    """What a file's images were normalised with, where its metadata says so."""
    if "mean" not in metadata or "std" not in metadata:
        return None
    return Normalisation(tuple(metadata["mean"]), tuple(metadata["std"]))


def whitening_of(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Whitening | None:
    """The ZCA transform of a file's images, where it holds one."""
    if "zca_upper" in tensors:
        matrix = unpacked(tensors["zca_upper"])
    elif "zca_matrix" in tensors:
        matrix = tensors["zca_matrix"].double()
    else:
        return None
    return Whitening(matrix=matrix, mean=tensors["zca_mean"], norm=metadata.get("zca_norm"))


def channels_first(images: Tensor) -> Tensor:
    """(N, H, W, C) -> (N, C, H, W), where only the last axis can be the colours (1 or 3); others as they are."""
    if images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        return images.permute(0, 3, 1, 2).contiguous()
    return images


def _real(name: str | None, path: str, root: str, download: bool, image_size: int) -> Source:
    """The dataset called `name`, with images as large as the synthetic ones where they are resized on reading."""
    if name is None:
        raise ValueError(
            f"{path} does not say which dataset it stands for: set dataset.real to one of {', '.join(REAL)}"
        )
    budget = 4 * 2**30  # bytes, as in conf/dataset
    readers: dict[str, Callable[..., Source]] = {
        "digits": partial(sources.digits, image_size=max(8, image_size)),
        **{known: partial(sources.torchvision_set, name=known) for known in sources.TORCHVISION},
        "tiny_imagenet": partial(folders.tiny_imagenet, image_size=image_size, memory_budget=budget),
        "image_folder": partial(folders.image_folder, image_size=image_size, memory_budget=budget),
    }
    if name not in readers:
        raise ValueError(f"dataset.real={name}: unknown; choose one of {', '.join(REAL)}")
    return readers[name](root=root, download=download)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
            metadata = json.loads((file.metadata() or {}).get("ncdd", "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: its metadata are damaged, 'ncdd' is no JSON ({error})") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: its metadata are damaged, 'ncdd' is no JSON object")
    if not {"images", "labels"} <= tensors.keys():
        raise ValueError(f"{path} must hold the tensors images and labels; found {', '.join(tensors)}")
    return tensors, metadata


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is damaged or no npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or holds more than plain arrays ({error})") from error
    for images, labels in _NPZ_KEYS:
        if {images, labels} <= arrays.keys():
            named = {"images": arrays[images], "labels": arrays[labels]}
            named |= {name: arrays[name] for name in ("zca_matrix", "zca_mean") if name in arrays}
            metadata = {name: arrays[name].tolist() for name in ("mean", "std", "zca_norm") if name in arrays}
            return {name: torch.from_numpy(array) for name, array in named.items()}, metadata
    raise ValueError(f"{path} must hold (images, labels) or (image, label); found {', '.join(arrays)}")


def _check(path: Path, images: Tensor, labels: Tensor) -> None:
    """Raise ValueError for what is no set of images of several classes."""
    if images.ndim != 4 or not len(images):
        raise ValueError(f"{path}: images of shape {tuple(images.shape)}; (N, C, H, W) with N >= 1 is needed")
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise ValueError(f"{path}: images are {images.dtype}; normalised floats or uint8 pixels are needed")
    for name, tensor in (("images", images), ("labels", labels)):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{path}: its {name} hold numbers that are not finite")
    if labels.ndim not in (1, 2) or len(labels) != len(images):
        raise ValueError(f"{path}: {len(images)} images but labels of shape {tuple(labels.shape)}; (N,) or (N, K) fit")
    if labels[0].numel() == 1 and bool((labels == labels[0]).all()):
        raise ValueError(f"{path}: all its labels are {labels[0].item():g}; at least two classes are needed")


def _match(path: str, images: Tensor, labels: Tensor, real: Source) -> tuple[Tensor, Tensor]:
    """Images as NCHW float32 or uint8 of the real size, labels as int64 (N,) or float32 (N, K); else an error."""
    shape, num_classes = real.train.shape, len(real.class_names)
    if tuple(images.shape[1:]) != shape and images.shape[3] == shape[0]:
        images = images.permute(0, 3, 1, 2).contiguous()
    if tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"{path}: images of shape {tuple(images.shape)} do not fit {real.name}: "
            f"(N, {shape[0]}, {shape[1]}, {shape[2]}) or (N, {shape[1]}, {shape[2]}, {shape[0]}) is needed"
        )
    if images.is_floating_point():
        images = images.float()
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.ndim == 2 and labels.shape[1] != num_classes:
        raise ValueError(
            f"{path}: labels of shape {tuple(labels.shape)} do not fit the {num_classes} classes of {real.name}: "
            f"(N,) or (N, {num_classes}) is needed"
        )
    return images, labels.long() if labels.ndim == 1 else labels.float()
