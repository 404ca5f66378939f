"""Coresets of the bundled digits against brute force and scikit-learn's definitions."""

import numpy as np
import pytest
import torch

from ncdd.data.sources import digits
from ncdd.distill.coresets import CORESETS, coreset, herding, nearest_to_mean

TRAIN = digits().train
IMAGES, LABELS = TRAIN.pixels.float() / 255, TRAIN.labels


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pick(name: str, per_class: int, seed: int = 0, **given):
    return coreset(name, IMAGES, LABELS, num_classes=10, per_class=per_class, generator=draw(seed), **given)


def found_in(images, pool) -> torch.Tensor:
    """(n,) index in `pool` of each image, -1 for none."""
    same = (images.flatten(1)[:, None] == pool.flatten(1)[None]).all(2)
    return torch.where(same.any(1), same.float().argmax(1), -1)


@pytest.mark.parametrize("name", CORESETS)
def test_sizes_classes_and_seeds(name):
    per_class = 1 if name == "class_mean" else 3
    images, labels = pick(name, per_class)
    assert images.shape == (10 * per_class, 1, 8, 8)
    assert torch.equal(labels, torch.arange(10).repeat_interleave(per_class))
    assert torch.equal(images, pick(name, per_class)[0])
    if name in ("random", "herding", "nearest"):
        index = found_in(images, IMAGES)
        assert torch.equal(LABELS[index], labels)
        assert len(set(index.tolist())) == 10 * per_class
    assert torch.equal(images, pick(name, per_class, seed=1)[0]) == (name not in ("random", "kmeans"))


def test_herding_is_greedy():
    rows = torch.randn(12, 4, generator=draw(), dtype=torch.float64)
    chosen = herding(rows, 4).tolist()
    for size in range(1, 5):
        options = [i for i in range(12) if i not in chosen[: size - 1]]
        errors = [float((rows[[*chosen[: size - 1], i]].mean(0) - rows.mean(0)).norm()) for i in options]
        assert chosen[size - 1] == options[int(np.argmin(errors))]
    assert sorted(herding(rows, 12).tolist()) == list(range(12))


def test_nearest_is_nearest():
    rows = torch.randn(12, 4, generator=draw(), dtype=torch.float64)
    order = sorted(range(12), key=lambda i: float((rows[i] - rows.mean(0)).norm()))
    assert nearest_to_mean(rows, 5).tolist() == order[:5]


def test_kmeans_centres_are_means_of_their_nearest_images():
    images, _ = pick("kmeans", 2)
    for c, (a, b) in enumerate(images.view(10, 2, 1, 8, 8)):
        mine = IMAGES[c == LABELS].double()
        nearer = (mine - a).flatten(1).norm(dim=1) < (mine - b).flatten(1).norm(dim=1)
        torch.testing.assert_close(mine[nearer].mean(0).float(), a, rtol=0, atol=1e-2)
    torch.testing.assert_close(pick("kmeans", 1)[0], pick("class_mean", 1)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "per_class", "message"),
    [
        ("best", 1, "objective='best': choose from random, herding, kmeans, class_mean, nearest"),
        ("random", 500, r"images_per_class=500: the smallest class, 8, has 139 real images; choose 1 to 139"),
        ("random", 0, "images_per_class=0"),
        ("class_mean", 2, "images_per_class=2: class_mean makes one image a class; use 1, or kmeans"),
    ],
)
def test_errors(name, per_class, message):
    with pytest.raises(ValueError, match=message):
        pick(name, per_class)
