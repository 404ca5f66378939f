"""Images in folders: the user's own, one folder a class, and Tiny ImageNet as it is published."""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from ncdd.data.images import ImageFiles, Images, Source, decode
from ncdd.data.sources import OFFLINE

log = logging.getLogger(__name__)

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_CHUNK = 256  # images a thread decodes at a time
_SECONDS_BETWEEN_LINES = 5.0


def image_folder(*, root: str, download: bool, image_size: int, memory_budget: int) -> Source:
    """root/train/CLASS/* and root/test/CLASS/* (or root/val), as RGB of image_size x image_size.

    The shorter side is resized to image_size and the centre cropped. Labels follow the sorted class names. When both
    splits take at most `memory_budget` bytes they are decoded now, by all cores; else batch by batch, each epoch.
    """
    if download:
        raise ValueError("dataset.download=true: a folder of your own images has no address to fetch it from")
    folder = Path(root).expanduser().resolve()
    layout = f"Expected {folder}/train/CLASS/*.jpg and {folder}/test/CLASS/*.jpg (or val): set dataset.root; {OFFLINE}"
    test_name = "test" if (folder / "test").is_dir() else "val"
    for name in ("train", test_name):
        if not (folder / name).is_dir():
            raise FileNotFoundError(f"image_folder: no folder {folder / name}. {layout}")
    train, test = _classes(folder / "train"), _classes(folder / test_name)
    if not train:
        raise FileNotFoundError(f"image_folder: no class folder in {folder / 'train'}. {layout}")
    if train.keys() != test.keys():
        raise ValueError(
            f"{folder}: train and {test_name} must hold the same classes; "
            f"only in train: {_few(train.keys() - test.keys())}; "
            f"only in {test_name}: {_few(test.keys() - train.keys())}"
        )
    return _source(train, test, list(train), image_size, memory_budget, name="image_folder")


TINY_IMAGENET = "tiny-imagenet-200"
TINY_IMAGENET_URL = f"http://cs231n.stanford.edu/{TINY_IMAGENET}.zip"


def tiny_imagenet(*, root: str, download: bool, image_size: int, memory_budget: int) -> Source:
    """root/tiny-imagenet-200 as unpacked from its archive: 200 classes, 64 x 64; its val split is the test set.

    Labels follow the sorted WordNet ids; a class is named by the first word of its entry in words.txt.
    """
    parent = Path(root).expanduser().resolve()
    folder = parent / TINY_IMAGENET
    if not folder.is_dir():
        _fetch_tiny_imagenet(parent, download)
    needed = ("wnids.txt", "words.txt", "val/val_annotations.txt", "train", "val/images")
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"tiny_imagenet: {folder} has no {', '.join(missing)}; unpack {TINY_IMAGENET}.zip again"
        )
    wnids = sorted((folder / "wnids.txt").read_text().split())
    words = dict(line.split("\t", 1) for line in (folder / "words.txt").read_text().splitlines() if "\t" in line)
    train = {wnid: _files(folder / "train" / wnid / "images") for wnid in wnids}
    test: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    for line in (folder / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid = (*line.split("\t"), "")[:2]
        if wnid not in test:
            raise ValueError(
                f"{folder / 'val/val_annotations.txt'}: the line {line[:60]!r} names no class of wnids.txt"
            )
        test[wnid].append(str(folder / "val" / "images" / name))
    names = [words.get(wnid, wnid).split(",")[0] for wnid in wnids]
    return _source(train, test, names, image_size, memory_budget, name="tiny_imagenet")


def _fetch_tiny_imagenet(parent: Path, download: bool) -> None:
    expected = f"the folder {TINY_IMAGENET}, unpacked from {TINY_IMAGENET_URL},"
    if not download:
        raise FileNotFoundError(
            f"tiny_imagenet: {expected} is not in {parent}. Set dataset.root to the folder that holds it, "
            f"or dataset.download=true to fetch it; {OFFLINE}"
        )
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        download_and_extract_archive(TINY_IMAGENET_URL, str(parent), remove_finished=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"tiny_imagenet: could not fetch {TINY_IMAGENET_URL} into {parent} ({error}). Without a network, put "
            f"{expected} there and set dataset.download=false, or choose another dataset: {OFFLINE}"
        ) from error


def _few(names: set[str]) -> str:
    first = sorted(names)[:5]
    return ", ".join(first) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"


def _classes(split: Path) -> dict[str, list[str]]:
    """Sorted class name -> sorted image paths; hidden files and folders are passed over."""
    visible = sorted(entry for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return {entry.name: _files(entry) for entry in visible}


def _files(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not paths:
        raise ValueError(f"{folder} is empty: every class folder needs at least one image")
    for path in paths:
        if path.suffix.lower() not in EXTENSIONS:
            raise ValueError(f"{path} is not an image file: move it away, or use {', '.join(sorted(EXTENSIONS))}")
    return [str(path) for path in paths]


def _source(
    train: dict[str, list[str]],
    test: dict[str, list[str]],
    class_names: list[str],
    image_size: int,
    memory_budget: int,
    name: str,
) -> Source:
    """Class -> paths, in label order, to a Source."""
    if image_size < 1:
        raise ValueError(f"source.image_size={image_size}: a number of pixels >= 1 is needed")
    splits = []
    for paths_of in (train, test):
        counts = torch.tensor([len(paths) for paths in paths_of.values()])
        paths = tuple(path for paths in paths_of.values() for path in paths)
        splits.append(Images(ImageFiles(paths, image_size), torch.arange(len(counts)).repeat_interleave(counts)))
    size = sum(len(images) for images in splits) * 3 * image_size**2
    if size <= memory_budget:
        splits = [_in_memory(images) for images in splits]
    else:
        what = "is over source.memory_budget, so it stays on disk: dataset.num_workers processes decode it each epoch"
        log.info("%s: %.1f GiB decoded %s", name, size / 2**30, what)
    return Source(splits[0], splits[1], class_names, name)


def _in_memory(images: Images) -> Images:
    """Decode all files with a thread a core (Pillow releases the interpreter's lock), with a line every few seconds."""
    files = images.pixels
    assert isinstance(files, ImageFiles)
    out = np.empty((len(files), 3, files.size, files.size), dtype=np.uint8)

    def fill(start: int) -> int:
        for index in range(start, min(start + _CHUNK, len(files))):
            out[index] = decode(files.paths[index], files.size)
        return min(start + _CHUNK, len(files))

    begin = last = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(fill, range(0, len(files), _CHUNK)):
            if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                log.info("decoded %d of %d images in %.0f s", done, len(files), last - begin)
    return Images(torch.from_numpy(out), images.labels)
