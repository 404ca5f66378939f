"""What a task has finished is kept in its folder, sets and rows of a table, for a run that was stopped to go on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ncdd.distill import SyntheticSet
from ncdd.report.rows import Row, read_rows
from ncdd.tasks.bench import Bench

log = logging.getLogger(__name__)


def described(bench: Bench, images: Tensor, labels: Tensor) -> SyntheticSet:
    """Images and labels as a set of the bench's data."""
    data = bench.data
    return SyntheticSet(
        images=images.cpu(),
        labels=labels.cpu(),
        dataset=data.source_name,
        class_names=tuple(data.class_names),
        normalisation=data.normalisation,
        whitening=data.whitening,
    )


def kept_set(bench: Bench, name: str, count: int, learn: Callable[[], tuple[Tensor, Tensor]]) -> SyntheticSet:
    """The set in the file NAME of the bench's folder, learned now where it is not there yet or not to be resumed.

    count: of its images.  learn: gives images (count, C, H, W) and labels (count, K).
    Raises ValueError where the file holds a set of another size, or of other data.
    """
    path, data = bench.folder / name, bench.data
    if not (bench.resume and path.exists()):
        described(bench, *learn()).save(path)
        return SyntheticSet.load(path)
    kept = SyntheticSet.load(path)
    shapes = (count, data.in_channels, data.image_size, data.image_size), (count, data.num_classes)
    found = (*map(tuple, (kept.images.shape, kept.labels.shape)), kept.dataset, kept.normalisation)
    if found != (*shapes, data.source_name, data.normalisation):
        raise ValueError(
            f"{path}: images {found[0]} with labels {found[1]} of {kept.dataset} are not what is asked for here; "
            f"remove {bench.folder} to begin anew"
        )
    log.info("%s was learned before", name)
    return kept


def kept_rows(path: Path) -> list[Row]:
    """The rows of a task's table; none of no file."""
    rows: list[Row] = list(read_rows(path)) if path.exists() else []
    if rows:
        log.info("%d rows of %s were there before", len(rows), path.name)
    return rows
