"""Pictures of synthetic images: a grid of them labelled by class, and an animation of grids.

Shapes: N images of H x W pixels and C colours, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ncdd.report.style import DPI, MEDIUM, SMALL, new_figure
from ncdd.runfolder import replacing

MOST = 20  # images of a class that are shown
CELL = 0.45  # inches an image
GAP = 2  # white pixels between images


def grid_figure(
    pixels: NDArray[np.uint8],
    classes: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    title: str,
    columns: Sequence[str] = (),
) -> Figure:
    """A row a class, in which its images (N, C, H, W) stand in their order, at most `MOST` of them.

    columns: what is written over each image of a row, the step size of its step, say.
    """
    rows = [np.flatnonzero(classes == k)[:MOST] for k in range(len(class_names))]
    widest = max(len(row) for row in rows)
    height, width = pixels.shape[2] + GAP, pixels.shape[3] + GAP
    mosaic = np.full((height * len(rows), width * widest, pixels.shape[1]), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, index in enumerate(row):
            top, left = r * height, c * width
            mosaic[top : top + height - GAP, left : left + width - GAP] = pixels[index].transpose(1, 2, 0)
    figure = new_figure(1.2 + CELL * max(widest, 6), 0.6 + CELL * len(rows))
    axes = figure.add_subplot()
    grey = mosaic.shape[2] == 1
    axes.imshow(mosaic.squeeze(2) if grey else mosaic, cmap="gray" if grey else None, vmin=0, vmax=255)
    shown = f", the first {MOST} of each class" if any((classes == k).sum() > MOST for k in range(len(rows))) else ""
    axes.set_title(title + shown, fontsize=MEDIUM)
    axes.set_yticks([r * height + height / 2 for r in range(len(rows))], class_names, fontsize=SMALL)
    axes.set_xticks([c * width + width / 2 for c in range(len(columns[:widest]))], columns[:widest], fontsize=SMALL)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


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
