"""`task=continual`: classes come a few at a time, and what is kept of them is a distilled memory (FRePo's)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ncdd.data.seeding import fold_in
from ncdd.distill import SyntheticSet
from ncdd.distill.evaluate import Evaluation, Protocol, evaluate
from ncdd.models.frepo_conv import without_batch_norm
from ncdd.report.figures import draw
from ncdd.report.rows import Row, print_rows, write_rows
from ncdd.tasks.bench import Bench
from ncdd.tasks.evaluate import real_images
from ncdd.tasks.kept import described, kept_rows, kept_set

log = logging.getLogger(__name__)
KEPT = 230  # stream of random numbers
TABLE = "continual.csv"
DISTILLED, RANDOM = "distilled", "random"


def continual(
    *,
    bench: Bench,
    steps: int,
    images_per_class: int,
    distil: Callable[..., tuple[Tensor, Tensor]],
    protocol: Protocol,
    networks: int,
) -> None:
    """Learn a memory of each step's classes alone, and train fresh networks on all memories so far (Zhou et al. 2022).

    steps: the classes, in the order of `RandomState(seed).permutation`, are shared among so many, equally.
    images_per_class: of each memory, whose labels are of all classes.  distil: `ncdd.distill.frepo.distil`.
    protocol: how `networks` networks, without BatchNorm, are trained from scratch on memories 0 .. k, to be tested on
        the classes of these.

    Beside it stand memories of as many random real images. Writes continual.csv, memory_STEP.safetensors, summary.json
    and a figure; a run that was stopped goes on behind the memories and rows that are there. Raises ValueError where
    the classes cannot be shared equally.
    """
    data = bench.data
    if networks < 1:
        raise ValueError(f"task.networks={networks}: a number >= 1 is needed")
    order = class_order(data.num_classes, steps, bench.seed)
    real = real_images(data).to(bench.device)
    images, classes = real.images, real.labels
    judged = without_batch_norm(bench.new_network)
    memories: dict[str, list[SyntheticSet]] = {DISTILLED: [], RANDOM: []}
    rows = kept_rows(bench.folder / TABLE) if bench.resume else []
    known = {(row["set"], row["step"]) for row in rows}
    for step, own in enumerate(order):
        member = torch.isin(classes, torch.tensor(own, device=classes.device))
        seed = fold_in(bench.seed, KEPT, step)
        learn = partial(
            distil,
            images[member],
            classes[member],
            num_classes=data.num_classes,
            per_class=images_per_class,
            new_network=bench.new_network,
            seed=seed,
        )
        count = images_per_class * len(own)
        memories[DISTILLED].append(kept_set(bench, f"memory_{step}.safetensors", count, learn))
        memories[RANDOM].append(described(bench, *some_of_each(images, classes, own, images_per_class, seed)))
        seen = [c for group in order[: step + 1] for c in group]
        for name, parts in memories.items():
            if (name, step) in known:
                continue
            found = evaluate(
                joined(parts),
                judged,
                Seen(data.test_dataloader(), seen),
                seed=bench.seed,
                protocol=protocol,
                networks=networks,
                device=bench.device,
            )
            log.info("step %d, %d classes, %s memory: %s", step, len(seen), name, found)
            rows.append(row(name, step, len(seen), len(joined(parts)), found))
            write_rows(bench.folder / TABLE, rows)
    bench.summarise(final(rows))
    if bench.record.figures:
        draw(bench.folder)
    print_rows(rows, title=f"{data.source_name}, {steps} steps, {images_per_class} images a class")


def class_order(num_classes: int, steps: int, seed: int) -> list[list[int]]:
    """`steps` groups of classes."""
    if steps < 1 or num_classes % steps:
        raise ValueError(f"task.steps={steps}: a divisor of the {num_classes} classes is needed")
    return np.random.RandomState(seed).permutation(num_classes).reshape(steps, -1).tolist()


class Seen:
    """The batches of a loader, of the classes seen only."""

    def __init__(self, loader: Iterable[tuple[Tensor, Tensor]], classes: Sequence[int]) -> None:
        self.loader, self.classes = loader, torch.tensor(classes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.loader:
            among = torch.isin(y, self.classes.to(y.device))
            if among.any():
                yield x[among], y[among]


def some_of_each(
    images: Tensor, labels: Tensor, classes: Sequence[int], count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """`count` random images of each of these classes, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for c in classes:
        own = (labels == c).nonzero().squeeze(1)
        rows.append(own[torch.randperm(len(own), generator=generator)[:count].to(own.device)])
    chosen = torch.cat(rows)
    return images[chosen], labels[chosen]


def joined(parts: Sequence[SyntheticSet]) -> SyntheticSet:
    """All memories as one set."""
    return SyntheticSet(
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        class_names=parts[0].class_names,
    )


def row(memory: str, step: int, classes: int, images: int, found: Evaluation) -> Row:
    return {
        "set": memory,
        "step": step,
        "classes": classes,
        "images": images,
        "n": len(found.accuracies),
        "accuracy": found.mean,
        "accuracy_std": found.std,
    }


def final(rows: Sequence[Row]) -> Mapping[str, float]:
    """Of each memory the accuracy after the last step, and its mean over the steps (Rebuffi et al. 2017)."""
    found: dict[str, float] = {}
    for memory in (DISTILLED, RANDOM):
        values = [row["accuracy"] for row in rows if row["set"] == memory]
        found |= {f"test/{memory}_accuracy": values[-1], f"test/{memory}_mean_accuracy": sum(values) / len(values)}
    return found
