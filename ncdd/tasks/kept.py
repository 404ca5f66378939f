"""What a task has finished is kept in its folder, sets and rows of a table, for a run that was stopped to go on."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from ncdd.distill import SyntheticSet
from ncdd.report.rows import Row
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
            "remove the file to have them learned again"
        )
    log.info("%s was learned before", name)
    return kept


def kept_rows(path: Path) -> list[Row]:
    """The rows of a table as `ncdd.report.rows.write_rows` has written it, in the same types; none of no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Row] = [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]
    log.info("%d rows of %s were there before", len(rows), path.name)
    return rows


def _value(text: str) -> str | int | float | None:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text or None
