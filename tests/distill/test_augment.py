"""DSA against the published code written out image by image, FRePo's against its reference, and draws."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ncdd.distill import augment
from ncdd.distill.augment import OPERATIONS, DiffAugment

SHARED = Path(os.environ.get("NCDD_SHARED", Path(__file__).parents[3] / "shared"))
REFERENCE = SHARED / "reference" / "frepo" / "augmentation.npz"
DSA = "color_crop_cutout_flip_scale_rotate"
FREPO = "flip_color_crop_rotate_translate_cutout"
X = torch.randn(5, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- the published DSA, one image at a time


def published(name: str, x: torch.Tensor, u: list[float]) -> torch.Tensor:
    """DatasetCondensation's `DiffAugment` for one image (C, H, W), its random numbers given."""
    size = x.shape[1]
    if name == "color":
        x = x + (u[0] - 0.5) * 1.0
        mean = x.mean(0, keepdim=True)
        x = (x - mean) * (u[1] * 2.0) + mean
        return (x - x.mean()) * (u[2] + 0.5) + x.mean()
    if name == "flip":
        return x.flip(2) if u[0] < 0.5 else x
    if name == "crop":
        pad = int(size * 0.125 + 0.5)
        top, left = (pad + math.floor(v * (2 * pad + 1)) - pad for v in u[:2])
        return F.pad(x, [pad] * 4)[:, 2 * pad - top :, 2 * pad - left :][:, :size, :size]
    if name == "cutout":
        half = int(size * 0.5 + 0.5)
        out = x.clone()
        row, column = (math.floor(v * (size + 1 - half % 2)) for v in u[:2])
        for i in range(half):
            for j in range(half):
                r, c = (min(max(o + k - half // 2, 0), size - 1) for o, k in ((row, i), (column, j)))
                out[:, r, c] = 0
        return out
    if name == "scale":
        sx, sy = (v * (1.2 - 1 / 1.2) + 1 / 1.2 for v in u[:2])
        theta = torch.tensor([[sx, 0, 0], [0, sy, 0]], dtype=x.dtype)
    else:
        angle = (u[0] - 0.5) * 2 * 15 / 180 * math.pi
        theta = torch.tensor(
            [[math.cos(angle), math.sin(-angle), 0], [math.sin(angle), math.cos(angle), 0]], dtype=x.dtype
        )
    grid = F.affine_grid(theta[None], [1, *x.shape], align_corners=False)
    return F.grid_sample(x[None], grid, align_corners=False)[0]


@pytest.mark.parametrize("name", DSA.split("_"))
@pytest.mark.parametrize("size", [12, 9])
def test_dsa_is_the_published_code(name, size):
    x = X[..., :size, :size]
    u = torch.rand(20, 5, 3, dtype=torch.float64, generator=draw())
    for uniform in u:
        got = OPERATIONS["dsa"][name](x, uniform)
        expected = torch.stack([published(name, image, row.tolist()) for image, row in zip(x, uniform, strict=True)])
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- FRePo


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference values are not here")
def test_frepos_operations_are_the_references():
    """Float32 values of the JAX code: one image through each operation with known parameters."""
    with np.load(REFERENCE) as file:
        data = {name: torch.from_numpy(file[name]).double() for name in file}
    x = data["x"].permute(2, 0, 1)[None]
    one = {name: data[name].view(1) for name in ("crop_zoom", "rot_theta", "b", "c", "s")}
    centre, moved = data["crop_center"].view(2, 1), data["tr_dydx"].view(2, 1)
    size = (32, 32)

    def warped(theta):
        return augment.affine(x, theta, padding="border", align_corners=True)

    results = {
        "crop": warped(augment.zoom(one["crop_zoom"], *centre, size)),
        "rot": warped(augment.rotation(one["rot_theta"])),
        "tr": warped(augment.zoom(torch.ones(1), *-moved, size)),
        "flip": augment.flip(x, torch.tensor([True])),
        "color": augment.colour(x, one["b"], one["s"], one["c"]),
        "cut": augment.cutout(x, torch.tensor([11]), torch.tensor([21]), 8, 8),
    }
    for name, result in results.items():
        torch.testing.assert_close(result[0].permute(1, 2, 0), data[name], rtol=0, atol=1e-5)


def test_frepos_strengths_are_in_their_ranges():
    """At the ends of the uniform numbers, and the same ends by an affine map written out."""
    ends = torch.tensor([[0.0, 0.0, 0.0], [1 - 1e-9] * 3], dtype=torch.float64)
    x = X[:2]
    for sign, row in ((-1, 0), (1, 1)):
        u = ends[row : row + 1]
        strength = math.exp(sign * 0.25)
        expected = augment.colour(x, *(torch.tensor([v]).double() for v in (sign * 0.25, strength, strength)))
        torch.testing.assert_close(OPERATIONS["frepo"]["color"](x, u), expected, rtol=1e-6, atol=1e-6)
        shifted = OPERATIONS["frepo"]["translate"](x[..., :8, :8], u)  # an eighth of 8: one pixel, the border repeated
        square = x[..., :8, :8]
        index = (torch.arange(8) - sign).clamp(0, 7)
        torch.testing.assert_close(shifted, square[:, :, index][..., index], rtol=1e-6, atol=1e-6)
        holes = (OPERATIONS["frepo"]["cutout"](x, u)[0, 0] == 0).nonzero()
        assert (holes.amin(0).tolist(), holes.amax(0).tolist()) == ([0, 0], [2, 2]) if sign < 0 else ([9, 9], [11, 11])


def test_frepos_crop_stays_inside_when_it_enlarges():
    """The corners of what is shown lie in the image for zoom >= 1, up to the half pixel of the border."""
    image = torch.arange(16, dtype=torch.float64).expand(1, 1, 16, 16)
    u = torch.tensor([[1 - 1e-9, 0.5, 1 - 1e-9]], dtype=torch.float64)
    got = OPERATIONS["frepo"]["crop"](image, u)[0, 0, 0]
    expected = 7.5 + (torch.arange(16) - 7.5 + 2.0) / 1.25  # moved by (1.25 - 1) 16 / 2 pixels
    torch.testing.assert_close(got, expected.double().clamp(0, 15), rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize(("family", "strategy"), [("dsa", DSA), ("frepo", FREPO)])
def test_siamese_batches_see_the_same_transform(family, strategy):
    transform = DiffAugment(strategy=strategy, family=family)
    for seed in range(12):
        whole, part = transform.siamese(draw(seed), X, X[3:])
        torch.testing.assert_close(whole[3:], part, rtol=1e-12, atol=1e-12)
        same = transform(X[:1].expand(5, -1, -1, -1), draw(seed))
        assert torch.equal(transform(X, draw(seed)), transform(X, draw(seed)))
        if transform.draw(1, draw(seed)).operation in ("color", "rotate", "scale"):
            assert not torch.allclose(same[0], same[1])  # apart from siamese draws, each image has its own strength


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, ops in OPERATIONS.items() for name in ops])
def test_gradients_reach_the_images(family, name):
    x = X[:2, :, :6, :6].clone().requires_grad_()
    u = torch.rand(2, 3, dtype=torch.float64, generator=draw(3))
    assert torch.autograd.gradcheck(lambda images: OPERATIONS[family][name](images, u), x)


def test_each_operation_is_drawn_as_often():
    transform, generator = DiffAugment(strategy=DSA), draw()
    names = [transform.draw(1, generator).operation for _ in range(1200)]
    assert all(150 < names.count(name) < 250 for name in DSA.split("_"))


def test_none_changes_nothing_and_errors_name_the_choices():
    nothing = DiffAugment(strategy="none")
    assert not nothing.active and nothing(X, draw()) is X
    with pytest.raises(ValueError, match="no 'translate' among dsa's operations; choose from color, crop"):
        DiffAugment(strategy="color_translate")
    with pytest.raises(ValueError, match="family='x': choose from dsa, frepo"):
        DiffAugment(strategy="color", family="x")
