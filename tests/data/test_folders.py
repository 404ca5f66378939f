"""Folders of images: what is read, in which order, and what is said about each thing that can be wrong with them."""

import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ncdd.data import ImageFiles, folders
from ncdd.data.images import channel_statistics

BUDGET = 10**9


def read(folder, image_size=8, memory_budget=BUDGET, download=False):
    return folders.image_folder(root=str(folder), download=download, image_size=image_size, memory_budget=memory_budget)


def png(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


@pytest.mark.parametrize("memory_budget", [0, BUDGET])
def test_classes_and_files_are_in_sorted_order(folder, memory_budget):
    source = read(folder, memory_budget=memory_budget)
    assert source.class_names == ["cat", "dog"]
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test.labels.tolist() == [0, 0, 1, 1]
    assert isinstance(source.train.pixels, ImageFiles) == (memory_budget == 0)
    assert source.train.shape == (3, 8, 8)
    assert torch.equal(source.train.pixels[4], png(folder / "train/dog/1.png"))
    assert torch.equal(source.train.select(torch.tensor([4])).pixels[0], source.train.pixels[4])


def test_the_budget_counts_both_splits(folder, caplog):
    assert isinstance(read(folder, memory_budget=10 * 3 * 64).train.pixels, torch.Tensor)
    with caplog.at_level(logging.INFO):
        assert isinstance(read(folder, memory_budget=10 * 3 * 64 - 1).train.pixels, ImageFiles)
    assert "is over source.memory_budget, so it stays on disk" in caplog.text


def test_statistics_do_not_depend_on_where_the_pixels_are(folder):
    assert channel_statistics(read(folder).train) == channel_statistics(read(folder, memory_budget=0).train)


def test_the_shorter_side_is_resized_and_the_centre_cropped(folder):
    """Left, middle and right third in three colours: of a 3:1 image only the middle one remains."""
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, :20, 0] = wide[:, 20:40, 1] = wide[:, 40:, 2] = 200
    Image.fromarray(wide).save(folder / "train/cat/0.png")
    got = read(folder, image_size=10).train.pixels[0]
    assert torch.equal(got[:, :, 1:-1], torch.tensor([0, 200, 0]).view(3, 1, 1).expand(3, 10, 8).byte())


def test_grey_and_transparent_images_become_rgb(folder):
    Image.new("L", (8, 8), 7).save(folder / "train/cat/0.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 128)).save(folder / "train/cat/1.png")
    pixels = read(folder).train.pixels
    assert pixels[:2, :, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]


def test_val_stands_in_for_test(folder):
    (folder / "test").rename(folder / "val")
    assert len(read(folder).test) == 4


def test_hidden_files_are_passed_over(folder):
    (folder / "train/cat/.DS_Store").touch()
    (folder / "train/.cache").mkdir()
    assert len(read(folder).train) == 6


def test_progress_is_told(folder, caplog, monkeypatch):
    monkeypatch.setattr(folders, "_SECONDS_BETWEEN_LINES", -1.0)
    with caplog.at_level(logging.INFO):
        read(folder)
    assert "decoded 6 of 6 images in 0 s" in caplog.text


def write(path, content=b""):
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: shutil.rmtree(f / "train"),
            r"no folder .*train\. Expected .*train/CLASS/\*\.jpg .*set dataset\.root",
        ),
        (lambda f: shutil.rmtree(f / "test"), r"no folder .*val\. Expected"),
        (lambda f: [shutil.rmtree(f / "train" / c) for c in ("cat", "dog")], r"no class folder in .*train\. Expected"),
        (lambda f: shutil.rmtree(f / "test/dog"), r"same classes; only in train: dog; only in test: none"),
        (lambda f: (f / "train/emu").mkdir(), r"train/emu is empty: every class folder needs at least one image"),
        (lambda f: write(f / "test/cat/notes.txt"), r"test/cat/notes\.txt is not an image file: .* \.jpeg, \.jpg"),
        (lambda f: write(f / "train/dog/1.png"), r"cannot decode the image .*train/dog/1\.png .*; replace the file"),
        (
            lambda f: write(f / "test/dog/0.png", (f / "test/dog/0.png").read_bytes()[:100]),
            r"cannot decode the image .*test/dog/0\.png",
        ),
    ],
)
def test_messages(folder, damage, message):
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(folder)


def test_download_and_size_are_checked(folder):
    with pytest.raises(ValueError, match=r"dataset\.download=true: a folder of your own images has no address"):
        read(folder, download=True)
    with pytest.raises(ValueError, match=r"source\.image_size=0: a number of pixels >= 1"):
        read(folder, image_size=0)


@pytest.fixture
def tiny(tmp_path):
    """Two classes of the official layout, one word each, three train and one val image a class."""
    root = tmp_path / "tiny-imagenet-200"
    wnids = ["n02", "n01"]
    (root / "val/images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(wnids))
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tEuropean fire salamander\nn03\tother\n")
    for label, wnid in enumerate(wnids):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (64, 64), (label, index, 0)).save(root / f"train/{wnid}/images/{wnid}_{index}.png")
        Image.new("L", (64, 64), 9 + label).save(root / f"val/images/val_{label}.png")
    (root / "val/val_annotations.txt").write_text("val_0.png\tn02\t0\t0\t9\t9\nval_1.png\tn01\t0\t0\t9\t9\n")
    return tmp_path


def read_tiny(root, download=False):
    return folders.tiny_imagenet(root=str(root), download=download, image_size=64, memory_budget=BUDGET)


def test_tiny_imagenet(tiny):
    source = read_tiny(tiny)
    assert source.class_names == ["goldfish", "European fire salamander"]
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.train.pixels[:, 0, 0, 0].tolist() == [1, 1, 1, 0, 0, 0]
    assert source.test.labels.tolist() == [0, 1]
    assert source.test.pixels[:, 0, 0, 0].tolist() == [10, 9]


def test_tiny_imagenet_that_is_not_there(tiny, tmp_path_factory, monkeypatch):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match=r"tiny-imagenet-200\.zip, is not in .*empty.*dataset\.download=true"):
        read_tiny(empty)

    def refuse(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(
        FileNotFoundError, match=r"could not fetch http://cs231n.*Name or service.*download=false.*digits"
    ):
        read_tiny(empty, download=True)
    (tiny / "tiny-imagenet-200/val/val_annotations.txt").write_text("val_0.png\tn09\t0\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt: the line 'val_0.*' names no class of wnids\.txt"):
        read_tiny(tiny)
    (tiny / "tiny-imagenet-200/words.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"tiny-imagenet-200 has no words\.txt; unpack"):
        read_tiny(tiny)
