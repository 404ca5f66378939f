"""`python -m ncdd.distill`: the images of a set, out of its file in one command."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.datasets import ImageFolder

from ncdd.data import Normalisation
from ncdd.data.pixels import normalise
from ncdd.data.whitening import Whitening
from ncdd.distill.__main__ import describe, main
from ncdd.distill.synthetic import SyntheticSet

PIXELS = torch.randint(256, (6, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NORM = Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def saved(path, **changes) -> SyntheticSet:
    given = {"images": normalise(PIXELS, NORM), "labels": torch.arange(6) % 3, "normalisation": NORM}
    made = SyntheticSet(**given | {"class_names": ("a", "b", "c"), "dataset": "d", "method": "dm"} | changes)
    made.save(path)
    return made


def test_both_formats_hold_the_set(tmp_path, capsys):
    made = saved(tmp_path / "set.safetensors", accuracy=0.875)
    arguments = ["--npz", str(tmp_path / "out/set.npz"), "--folder", str(tmp_path / "png")]
    assert main([str(tmp_path / "set.safetensors"), *arguments]) == 0
    with np.load(tmp_path / "out/set.npz") as file:
        np.testing.assert_array_equal(file["images"], made.images.numpy())
        np.testing.assert_array_equal(file["labels"], made.labels.numpy())
    folder = ImageFolder(str(tmp_path / "png"))
    assert folder.classes == ["0_a", "1_b", "2_c"]
    images = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image, _ in folder]
    by_class = [PIXELS[index] for k in range(3) for index in (k, k + 3)]
    assert all(torch.equal(image, expected) for image, expected in zip(images, by_class, strict=True))
    out = capsys.readouterr().out.splitlines()
    assert out[0] == (
        "6 images of shape (3, 5, 5), 2 a class, hard labels of 3 classes, of d, by dm, validation score 87.50%"
    )
    assert out[1:] == [str(tmp_path / "out/set.npz"), str(tmp_path / "png")]


def test_what_it_says_of_other_sets(tmp_path):
    steps = {"step_sizes": torch.ones(2), "order": torch.arange(6).view(2, 3)}
    labels = torch.eye(3)[torch.tensor([0, 1, 2, 0, 0, 0])]
    found = describe(saved(tmp_path / "set.safetensors", labels=labels, dataset=None, method=None, **steps))
    assert found == "6 images of shape (3, 5, 5), 1 to 4 a class, learned labels of 3 classes, 2 steps"


def test_a_published_npz_is_told_its_normalisation(tmp_path, capsys):
    made = saved(tmp_path / "set.safetensors")
    np.savez(tmp_path / "kip.npz", images=made.images.permute(0, 2, 3, 1).numpy(), labels=made.labels.numpy())
    file, folder = str(tmp_path / "kip.npz"), str(tmp_path / "png")
    assert main([file, "--folder", folder]) == 2
    assert "does not say what its images were normalised with: give --mean and --std" in capsys.readouterr().err
    assert main([file, "--folder", folder, "--mean", "0.4", "0.5", "0.6"]) == 2
    assert "error: --mean and --std: give both or neither" in capsys.readouterr().err
    assert main([file, "--folder", folder, "--mean", "0.4", "0.5", "0.6", "--std", "0.2", "0.3", "0.4"]) == 0
    assert len(ImageFolder(folder)) == 6


@pytest.mark.parametrize("norm", [None, "kip", "frepo"])
def test_an_npz_comes_back_with_its_normalisation(tmp_path, norm):
    zca = norm and Whitening(matrix=torch.eye(75), mean=torch.ones(75), norm=2.0 if norm == "kip" else None)
    saved(tmp_path / "set.safetensors", whitening=zca).export_npz(tmp_path / "set.npz")
    got = SyntheticSet.load(tmp_path / "set.npz")
    assert got.normalisation == NORM
    assert (got.whitening is None) == (zca is None)
    if zca:
        assert torch.equal(got.whitening.matrix, zca.matrix)
        assert torch.equal(got.whitening.mean, zca.mean)
        assert got.whitening.norm == zca.norm


def test_uint8_images_are_pixels(tmp_path):
    """Normalised by what the file says; refused where it says nothing."""
    tensors = {"images": PIXELS, "labels": torch.arange(6) % 3}
    save_file(tensors, tmp_path / "a.safetensors", {"ncdd": json.dumps({"mean": NORM.mean, "std": NORM.std})})
    assert torch.equal(SyntheticSet.load(tmp_path / "a.safetensors").images, normalise(PIXELS, NORM))
    save_file(tensors, tmp_path / "b.safetensors")
    assert main([str(tmp_path / "b.safetensors")]) == 2


@pytest.mark.parametrize(("name", "message"), [("none.npz", "no file"), ("set.txt", "unknown format .txt")])
def test_mistakes_are_named(tmp_path, capsys, name, message):
    (tmp_path / "set.txt").write_text("")
    assert main([str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err
