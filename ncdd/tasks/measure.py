"""`task=measure`: every Neural Collapse metric of a saved checkpoint, or of each in a folder of them."""

from __future__ import annotations

import os

from ncdd.callbacks import NeuralCollapseCallback
from ncdd.models.checkpoint import series
from ncdd.report.rows import print_rows
from ncdd.report.table import ROWS
from ncdd.tasks.subject import Subject


def measure(*, subject: Subject) -> None:
    """Measure on train, val (where there is one) and test as training does, by the same callback, and write the same.

    metrics.csv has a row a checkpoint, by the epochs that it was trained for; summary.json, collapse.npz and the
    figures are of all of them, the last one being final.
    """
    trainer, method, data = subject.trainer, subject.method, subject.data
    found = [c for c in trainer.callbacks if isinstance(c, NeuralCollapseCallback)]  # type: ignore[attr-defined]
    if not found:
        raise ValueError("task=measure needs the callback that measures: callbacks=default has it")
    callback = found[0]
    splits = data.measure_dataloaders() | ({"val": data.val_dataloader()} if data.val_fraction else {})
    callback.loaders = {name: splits[name] for name in ("train", "val", "test", "real") if name in splits}
    for epochs, file in series(subject.checkpoint):
        steps = subject.load(file).steps or 0
        values = callback.measure(trainer, method)
        callback.publish(trainer, values, epochs=epochs, step=steps, title=f"{os.path.relpath(file)}, epoch {epochs}")
    subject.record.close(trainer, method, epochs=epochs, steps=steps)
    shown = [key for _, key in ROWS]
    rows = [{"split": split} | {key: values.get(f"{split}/{key}") for key in shown} for split in callback.loaders]
    print_rows(rows, title=f"{os.path.relpath(file)}, epoch {epochs}")
