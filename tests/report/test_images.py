"""Grids of synthetic images: every image where its class and number say, names and marks beside them; the animation."""

import numpy as np
import pytest
from PIL import Image

from ncdd.report import images
from ncdd.report.images import Grid, animate, grid_figure, save_grid


def made(K: int, each: int, C: int = 1, S: int = 8):
    """Images of one brightness each, 10 + their number, and their classes, not in order."""
    order = np.random.default_rng(0).permutation(K * each)
    pixels = np.broadcast_to((10 + np.arange(K * each))[:, None, None, None], (K * each, C, S, S)).astype(np.uint8)
    return pixels, np.repeat(np.arange(K), each)[order]


def shown(figure) -> np.ndarray:
    """(H, W) brightness of what the grid's axes show."""
    picture = np.asarray(figure.axes[0].images[0].get_array())
    return picture if picture.ndim == 2 else picture[:, :, 0]


@pytest.mark.parametrize(
    ("K", "each", "C", "by_row"),
    [(10, 1, 3, False), (10, 3, 1, False), (10, 10, 1, True), (3, 5, 3, True), (12, 2, 1, False)],
)
def test_each_image_is_where_its_class_and_number_say(K, each, C, by_row):
    pixels, classes = made(K, each, C)
    figure = grid_figure(pixels, classes, [str(k) for k in range(K)], title="t")
    grid, picture = Grid(K, each), shown(figure)
    assert grid.by_row == by_row
    for k in range(K):
        for j, index in enumerate(np.flatnonzero(classes == k)):
            y, x = grid.place(k, j)
            top, left = round(y * 9), round(x * 9)
            assert (picture[top : top + 8, left : left + 8] == 10 + index).all()
    assert (picture != 255).sum() == K * each * 64


def test_a_row_a_class_has_names_to_the_left_and_marks_above():
    pixels, classes = made(3, 4)
    ax = grid_figure(pixels, classes, ["cat", "dog", "a very long name"], title="t", marks=list("abcd")).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog", "a very lo…"]
    assert [label.get_text() for label in ax.get_xticklabels()] == list("abcd")


def test_a_column_a_class_has_names_above_each_band_and_marks_to_the_left():
    pixels, classes = made(12, 2)
    ax = grid_figure(pixels, classes, [f"c{k}" for k in range(12)], title="t", marks=["step 1", "step 2"]).axes[0]
    places = {text.get_text(): text.xy for text in ax.texts}
    assert list(places) == [f"c{k}" for k in range(12)]
    assert places["c3"][1] == places["c0"][1] < places["c10"][1] == places["c11"][1]
    assert places["c10"][0] == places["c0"][0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["step 1", "step 2"] * 2


def test_of_many_the_first_ones_are_shown_and_the_title_says_so():
    pixels, classes = made(2, 30)
    figure = grid_figure(pixels, classes, ["a", "b"], title="iteration 3")
    assert figure.get_suptitle() == "iteration 3, the first 20 of 30 a class"
    assert (shown(figure) != 255).sum() == 40 * 64


def test_learned_labels_are_shown_as_the_mean_of_each_class():
    pixels, classes = made(3, 2)
    labels = np.random.default_rng(1).random((6, 3)).astype(np.float32)
    figure = grid_figure(pixels, classes, ["a", "b", "c"], title="t", labels=labels)
    found = np.asarray(figure.axes[1].images[0].get_array())
    np.testing.assert_allclose(found, [labels[classes == k].mean(0) for k in range(3)], rtol=1e-6)


def test_an_animation_of_the_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "DPI", 30)
    pixels, classes = made(2, 1)
    paths = [tmp_path / f"step_{n}.png" for n in range(3)]
    for n, path in enumerate(paths):
        save_grid(path, grid_figure(pixels + 60 * n, classes, ["a", "b"], title=f"iteration {n}"))
    animate(paths, tmp_path / "out.webp", seconds=0.5)
    with Image.open(tmp_path / "out.webp") as file:
        durations = []
        for n in range(file.n_frames):
            file.seek(n)
            file.load()
            durations.append(file.info["duration"])
        assert (file.n_frames, file.info["loop"]) == (3, 0)
    assert durations == [500, 500, 2000]
    animate(paths[:1], tmp_path / "one.webp")
    assert not (tmp_path / "one.webp").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.webp", "step_0.png", "step_1.png", "step_2.png"]
