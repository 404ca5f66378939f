"""One tiny training run, with a checkpoint of each epoch, that all tasks look at; and the command, as users call it."""

import os
import sys
from pathlib import Path

import pytest

import run
from ncdd.data import Images, Source
from ncdd.data.sources import digits
from tests.run.conftest import TINY, command  # noqa: F401  the fixture

EPOCHS = 2


def dim_digits(*, root: str | None = None, download: bool = False, image_size: int = 8) -> Source:
    """The digits at half their brightness: a data set whose own mean and deviation differ."""
    source = digits(image_size=image_size)
    dim = [Images(images.pixels // 2, images.labels) for images in (source.train, source.test)]
    return Source(*dim, source.class_names, name="dim_digits")


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of a run on 100 digits with a validation split, measured by other than the default conventions."""
    home, before = tmp_path_factory.mktemp("trained"), (Path.cwd(), sys.argv)
    os.chdir(home)
    sys.argv = [
        "run.py", *TINY, "dataset.val_fraction=0.2", "callbacks=every_epoch", "callbacks.collapse.weighting=sample",
        "seed=3", "dataset.imbalance=2", "hydra.run.dir=run",
    ]  # fmt: skip
    try:
        run.main()
    finally:
        os.chdir(before[0])
        sys.argv = before[1]
    return home / "run"
