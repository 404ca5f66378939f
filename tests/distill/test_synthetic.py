"""Round trips through every format, agreement with numpy, PIL and torchvision, and what does not fit together."""

import json
import logging
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from ncdd.data import ImageDataModule, Images, Normalisation, Source
from ncdd.data.distilled import distilled
from ncdd.data.pixels import denormalise, normalise
from ncdd.data.whitening import Whitening
from ncdd.distill.synthetic import SyntheticSet

GRAY = Normalisation((0.4,), (0.25,))
PIXELS = torch.randint(256, (6, 1, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3
SOFT = torch.softmax(torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), 1)


def made(**changes) -> SyntheticSet:
    given = {"images": normalise(PIXELS, GRAY), "labels": LABELS, "normalisation": GRAY, "class_names": ("a", "b", "c")}
    return SyntheticSet(**given | changes)


def whitening(norm=None) -> Whitening:
    draw = torch.Generator().manual_seed(2)
    root = torch.randn(25, 25, generator=draw, dtype=torch.float64)
    matrix = (root @ root.T / 25 + torch.eye(25)).float().double()  # as files hold it
    mean = torch.randn(25, generator=draw, dtype=torch.float64)
    return Whitening(matrix=matrix, mean=mean, norm=norm)


def real() -> Source:
    return Source(Images(PIXELS, LABELS), Images(PIXELS[:3], LABELS[:3]), ["a", "b", "c"], name="made_up")


@pytest.mark.parametrize("labels", [LABELS, SOFT])
def test_save_and_load_give_everything_back(tmp_path, labels):
    steps = {"step_sizes": torch.tensor([0.1, 0.2]), "order": torch.tensor([[0, 1, 2], [3, 4, 5]])}
    about = {"dataset": "mnist", "method": "unrolled", "config": {"lr": 0.1}, "commit": "abc", "accuracy": 0.5}
    saved = made(labels=labels, whitening=whitening(), **steps, **about)
    saved.save(tmp_path / "deep" / "set.safetensors")
    got = SyntheticSet.load(tmp_path / "deep" / "set.safetensors")
    for name in ("images", "labels", "step_sizes", "order"):
        assert torch.equal(getattr(got, name), getattr(saved, name))
    assert torch.equal(got.whitening.matrix, saved.whitening.matrix)
    assert torch.equal(got.whitening.mean, saved.whitening.mean)
    for name in ("normalisation", "class_names", *about):
        assert getattr(got, name) == getattr(saved, name)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["set.safetensors"]


def test_a_stepwise_set_says_so(tmp_path, caplog):
    path = tmp_path / "set.safetensors"
    with caplog.at_level(logging.WARNING):
        made(step_sizes=torch.ones(1), order=torch.arange(6)[None]).save(path)
        assert "is a step-wise set: it works only in its own order" in caplog.text
        caplog.clear()
        distilled(path=str(path), real=real(), root="data", download=False)
        assert "is a step-wise set" in caplog.text
    with safe_open(path, framework="pt") as file:
        assert "own order" in json.loads(file.metadata()["ncdd"])["stepwise"]
    got = SyntheticSet.load(path)
    assert got.stepwise


def test_dataset_distilled_trains_on_it(tmp_path):
    made().save(tmp_path / "set.safetensors")
    got = distilled(path=str(tmp_path / "set.safetensors"), real=real(), root="data", download=False)
    assert torch.equal(got.train.pixels, made().images)
    assert got.normalisation == GRAY
    assert got.real.pixels.dtype == torch.uint8


@pytest.mark.parametrize("norm", [None, 4.0])
def test_a_whitened_set_whitens_the_real_images(tmp_path, norm):
    zca = whitening(norm)
    made(whitening=zca).save(tmp_path / "set.safetensors")
    data = ImageDataModule(
        source=partial(distilled, path=str(tmp_path / "set.safetensors"), real=real()),
        root="data",
        batch_size=2,
        measure_batch_size=2,
        seed=0,
    )
    data.setup()
    rows = ((PIXELS.double() / 255 - 0.4) / 0.25).flatten(1).numpy()
    if norm:
        rows = rows - rows.mean(1, keepdims=True)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    else:
        rows = rows - zca.mean.numpy()
    expected = rows @ zca.matrix.numpy()
    for split, count in (("real", 6), ("test", 3)):
        np.testing.assert_allclose(data.splits[split].pixels.flatten(1).numpy(), expected[:count], rtol=1e-4, atol=1e-4)
    assert torch.equal(data.whitening.matrix, zca.matrix)


def test_pixels_are_what_was_normalised():
    assert torch.equal(made().pixels(), PIXELS)
    zca = whitening()
    whitened = made(images=zca(normalise(PIXELS, GRAY).double()).float(), whitening=zca)
    assert torch.equal(whitened.pixels(), PIXELS)
    assert torch.equal(denormalise(torch.tensor([[[[-9.0, 9.0]]]]), GRAY).flatten(), torch.tensor([0, 255]).byte())
    with pytest.raises(ValueError, match="normalisation: unknown for this set"):
        made(normalisation=None).pixels()


def test_kips_whitening_loses_mean_and_norm_only():
    zca = whitening(norm=4.0)
    x = torch.randn(3, 1, 5, 5, dtype=torch.float64)
    back = zca.inverse(zca(x)).flatten(1)
    rows = x.flatten(1) - x.flatten(1).mean(1, keepdim=True)
    torch.testing.assert_close(back, 4 * rows / rows.norm(dim=1, keepdim=True) + zca.mean)


@pytest.mark.parametrize("labels", [LABELS, SOFT])
def test_npz_round_trip(tmp_path, labels):
    made(labels=labels).export_npz(tmp_path / "set.npz")
    with np.load(tmp_path / "set.npz") as file:
        assert sorted(file) == ["images", "labels", "mean", "std"]
    got = SyntheticSet.load(tmp_path / "set.npz", dataset="mnist", normalisation=GRAY)
    assert torch.equal(got.images, made().images)
    assert torch.equal(got.labels, labels)
    assert (got.dataset, got.normalisation) == ("mnist", GRAY)


@pytest.mark.parametrize("keys", [("images", "labels"), ("image", "label")])
def test_published_layouts_are_channels_last(tmp_path, keys):
    """KIP's and FRePo's files: float NHWC, labels (N, K)."""
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3))
    np.savez(tmp_path / "set.npz", **dict(zip(keys, (images, SOFT[:4].numpy()), strict=True)))
    got = SyntheticSet.load(tmp_path / "set.npz")
    np.testing.assert_allclose(got.images.numpy(), images.transpose(0, 3, 1, 2), rtol=1e-6)
    assert (got.num_classes, got.labels.dtype) == (3, torch.float32)


def test_uint8_npz_needs_a_normalisation(tmp_path):
    np.savez(tmp_path / "set.npz", images=PIXELS.numpy(), labels=LABELS.numpy()[:, None])
    with pytest.raises(ValueError, match=r"holds pixels \(torch.uint8\): give the normalisation"):
        SyntheticSet.load(tmp_path / "set.npz")
    assert torch.equal(SyntheticSet.load(tmp_path / "set.npz", normalisation=GRAY).pixels(), PIXELS)
    zca = whitening()
    whitened = SyntheticSet.load(tmp_path / "set.npz", normalisation=GRAY, whitening=zca, only_pixels=True)
    assert torch.equal(whitened.images, zca(normalise(PIXELS, GRAY)))
    np.savez(tmp_path / "floats.npz", images=made().images.numpy(), labels=LABELS.numpy())
    floats = SyntheticSet.load(tmp_path / "floats.npz", normalisation=GRAY, whitening=zca, only_pixels=True)
    assert torch.equal(floats.images, made().images)
    assert (floats.normalisation, floats.whitening) == (None, None)


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_is_an_image_folder(tmp_path, channels):
    names = ("zebra", "a/b", *"cdefghijk")
    pixels = PIXELS.expand(-1, channels, -1, -1)
    normalisation = Normalisation((0.4,) * channels, (0.25,) * channels)
    labels = torch.tensor([0, 1, 10, 0, 1, 10])
    images = normalise(pixels, normalisation)
    made(images=images, labels=labels, normalisation=normalisation, class_names=names).export_folder(tmp_path)
    folder = ImageFolder(str(tmp_path))
    assert folder.classes == ["00_zebra", "01_a_b", "10_k"]
    for path, _ in folder.samples:
        index = int(path[-9:-4])
        read = np.asarray(folder.loader(path)).transpose(2, 0, 1)
        np.testing.assert_array_equal(read, pixels[index].expand(3, -1, -1).numpy())


def test_it_is_a_dataset():
    loader = DataLoader(made(labels=SOFT), batch_size=4)
    assert [len(x) for x, _ in loader] == [4, 2]
    assert torch.equal(torch.cat([y for _, y in loader]), SOFT)
    assert torch.equal(made(labels=SOFT).classes, SOFT.argmax(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": PIXELS}, r"images: normalised floats \(N, C, H, W\) needed, found torch.uint8"),
        ({"labels": LABELS[:2]}, r"labels: \(N,\) or \(N, K\) for 6 images, found torch.int64 of shape \(2,\)"),
        ({"labels": SOFT.long()}, r"labels: int64 \(N,\) or float32 \(N, K\) needed"),
        ({"labels": LABELS + 1}, r"labels: a class 3, but 3 class_names"),
        ({"order": torch.zeros(1, 6).long()}, "step_sizes and order: give both"),
        ({"order": torch.zeros(1, 6).long(), "step_sizes": torch.ones(2)}, r"\(T,\) and \(T, B\) are needed"),
        (
            {"order": torch.full((1, 6), 6), "step_sizes": torch.ones(1)},
            r"indices of 6 images are needed, found 6\.\.6",
        ),
    ],
)
def test_what_does_not_fit_together(changes, message):
    with pytest.raises(ValueError, match=message):
        made(**changes)
