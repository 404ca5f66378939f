"""Pictures of synthetic images: a grid of them labelled by class, and an animation of grids.

Shapes: N images of H x W pixels and C colours, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ncdd.report.style import DPI, MEDIUM, SMALL, new_figure, shorten
from ncdd.runfolder import replacing

MOST_OF_CLASS, MOST = 20, 600  # images that are shown, of a class and in all
BAND = 10  # classes beside one another
CELLS = (0.75, 0.45)  # inches an image, of up to FEW rows and of more
FEW = 10
HEADER, GAP = 0.3, 0.07  # above a band, and between images, as fractions of an image
LABELS = 3.2  # inches for the labels of soft ones


@dataclass(frozen=True)
class Grid:
    """Where images stand: a row a class where that is wide, else a column a class, in bands of `BAND` classes.

    of_class: images of each class that are shown.
    """

    num_classes: int
    of_class: int

    @property
    def by_row(self) -> bool:
        return self.of_class >= self.num_classes or self.of_class >= BAND >= self.num_classes / 2

    @property
    def rows(self) -> int:
        return self.num_classes if self.by_row else self.bands * self.of_class

    @property
    def columns(self) -> int:
        return self.of_class if self.by_row else min(BAND, self.num_classes)

    @property
    def bands(self) -> int:
        return 1 if self.by_row else -(-self.num_classes // BAND)

    def place(self, k: int, j: int) -> tuple[float, float]:
        """Left upper corner (down, across) of image `j` of class `k`, where an image with its gap is 1 x 1."""
        if self.by_row:
            return k, j
        return k // BAND * (self.of_class + HEADER) + j, k % BAND

    @property
    def height(self) -> float:
        return self.rows + HEADER * (self.bands - 1)


def grid_figure(
    pixels: NDArray[np.uint8],
    classes: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    title: str,
    marks: Sequence[str] = (),
    labels: NDArray[np.float32] | None = None,
) -> Figure:
    """Images (N, C, H, W) by class, in their order; of many, the first ones of each class.

    marks: of the first, second, ... image of a class, the step of a step-wise set and its size.
    labels: (N, K), of a set that learns them; the mean of each class is drawn beside the images.
    """
    K = len(class_names)
    members = [np.flatnonzero(classes == k) for k in range(K)]
    most = max(len(rows) for rows in members)
    grid = Grid(K, min(most, MOST_OF_CLASS, max(1, MOST // K)))
    cell = CELLS[grid.rows > FEW]
    width, height = 1.2 + cell * max(grid.columns, 6), 0.8 + cell * grid.height
    learned = labels is not None
    figure = new_figure(width + LABELS * learned, max(height, 2.8 * learned))
    panels = figure.subplots(1, 1 + learned, squeeze=False, width_ratios=[width, LABELS][: 1 + learned])[0]
    _images(panels[0], pixels, members, grid)
    _names(panels[0], grid, [shorten(name, 10 if cell == CELLS[0] else 6) for name in class_names], marks)
    shown = f", the first {grid.of_class} of {most} a class" if most > grid.of_class else ""
    figure.suptitle(title + shown, fontsize=MEDIUM)
    if labels is not None:
        _labels(panels[1], np.stack([labels[rows].mean(0) for rows in members]), class_names)
    return figure


def _images(ax: Axes, pixels: NDArray[np.uint8], members: Sequence[NDArray[np.int64]], grid: Grid) -> None:
    """One picture of all, in which an image with its gap is 1 x 1."""
    C, H, W = pixels.shape[1:]
    down, across = H + max(1, round(GAP * H)), W + max(1, round(GAP * W))
    mosaic = np.full((round(down * grid.height), across * grid.columns, C), 255, np.uint8)
    for k, rows in enumerate(members):
        for j, index in enumerate(rows[: grid.of_class]):
            y, x = grid.place(k, j)
            top, left = round(y * down), round(x * across)
            mosaic[top : top + H, left : left + W] = pixels[index].transpose(1, 2, 0)
    looks: dict[str, Any] = {"vmin": 0, "vmax": 255, "interpolation": "nearest"} | ({"cmap": "gray"} if C == 1 else {})
    ax.imshow(mosaic.squeeze(2) if C == 1 else mosaic, extent=(0, grid.columns, grid.height, 0), **looks)
    ax.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=SMALL)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _names(ax: Axes, grid: Grid, names: Sequence[str], marks: Sequence[str]) -> None:
    """Class names at the rows or over the columns of each band, and marks at the others."""
    middle = 0.5 / (1 + GAP)
    firsts = [grid.place(k, 0) for k in range(len(names))]
    if grid.by_row:
        ax.set_yticks([y + middle for y, _ in firsts], names)
        ax.set_xticks([j + middle for j in range(len(marks[: grid.of_class]))], marks[: grid.of_class])
        return
    for name, (y, x) in zip(names, firsts, strict=True):
        ax.annotate(
            name, (x + middle, y), xytext=(0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=SMALL
        )
    ax.set_xticks([])
    tops = [grid.place(k, j)[0] for k in range(0, len(names), BAND) for j in range(len(marks[: grid.of_class]))]
    ax.set_yticks([top + middle for top in tops], [*marks[: grid.of_class]] * grid.bands if tops else [])


def _labels(ax: Axes, labels_KK: NDArray[np.float32], names: Sequence[str]) -> None:
    """The mean label of each class's images, a row a class."""
    picture = ax.imshow(labels_KK, cmap="viridis", interpolation="nearest")
    ax.figure.colorbar(picture, ax=ax, shrink=0.8).ax.tick_params(labelsize=SMALL)
    ax.set_title("mean label by class", fontsize=SMALL)
    every = -(-len(names) // 20)
    ax.set_xticks([])
    ax.set_yticks(range(0, len(names), every), [shorten(name, 10) for name in names[::every]], fontsize=SMALL)


def save_grid(path: Path, figure: Figure) -> None:
    """As PNG, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def animate(pictures: Sequence[Path], path: Path, *, seconds: float = 0.5) -> None:
    """The pictures one after the other, `seconds` each and the last one longer, for ever, in a WebP file."""
    if len(pictures) < 2:
        return
    frames = [Image.open(picture).convert("RGB") for picture in pictures]
    size = frames[0].size
    frames = [frame if frame.size == size else frame.resize(size) for frame in frames]
    durations: Any = [int(1000 * seconds)] * (len(frames) - 1) + [int(4000 * seconds)]
    with replacing(path) as temporary:
        frames[0].save(temporary, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0)
