"""`task=membership`: does a network tell whose images its distilled training set was made from? (FRePo's)"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncdd.data import ImageDataModule
from ncdd.data.seeding import fold_in
from ncdd.distill import SyntheticSet
from ncdd.distill.evaluate import Protocol, evaluate
from ncdd.distill.membership import ATTACKS, attack
from ncdd.distill.regression import centred
from ncdd.models.frepo_conv import without_batch_norm
from ncdd.report.figures import draw
from ncdd.report.rows import Row, print_rows, write_rows
from ncdd.tasks.bench import Bench, sample_loader
from ncdd.tasks.evaluate import check_names, real_images
from ncdd.tasks.kept import described, kept_rows, kept_set

log = logging.getLogger(__name__)
CHUNK = 240  # stream of random numbers
BATCH = 256
FEWEST = 100
TABLE = "membership.csv"


def membership(
    *,
    bench: Bench,
    chunks: int,
    members: int,
    images_per_class: int,
    steps: Sequence[int],
    attacks: Sequence[str],
    distil: Callable[..., tuple[Tensor, Tensor]],
    protocol: Protocol,
) -> None:
    """Attack networks trained on a chunk of the train split, and on the set distilled from it (Zhou et al. 2022).

    A control attacks the latter networks as if the next chunk, of which their set knows nothing, had been the members:
    what it finds is the difference between the train and the test split. Of a single chunk there is none.

    chunks, members: the first chunks * members images; non-members are as many of the test split, drawn at random.
    images_per_class: of the distilled sets.  distil: `ncdd.distill.frepo.distil`.
    steps, protocol: each number of steps is one network, without BatchNorm, trained from scratch.
    attacks: names of `ncdd.distill.membership`.

    The published code trains its "distilled" networks on the real images that the sets start from; here they are
    trained on what was learned. Writes membership.csv, distilled_CHUNK.safetensors, summary.json and a figure; a run
    that was stopped goes on behind the sets and rows that are there. Raises ValueError where there are too few images.
    """
    data = bench.data
    check_names(attacks=(attacks, ATTACKS))
    for key, wanted in (("steps", [*map(str, steps)]), ("attacks", [*attacks])):
        if not wanted or len(set(wanted)) < len(wanted):
            raise ValueError(f"task.{key}=[{','.join(wanted)}]: at least one is needed, and none twice")
    if min(steps) < 1:
        raise ValueError(f"task.steps={list(steps)}: numbers >= 1 are needed")
    check_sizes(data, chunks, members)
    real = real_images(data).to(bench.device)
    others_x, others_y = together(sample_loader(data, "test", members), bench.device)
    rows = kept_rows(bench.folder / TABLE) if bench.resume else []
    known = {(row["set"], row["chunk"], row["steps"]) for row in rows}
    parts = list(zip(real.images.split(members), real.labels.split(members), strict=True))[:chunks]
    for chunk, (x, y) in enumerate(parts):
        learn = partial(
            distil,
            x,
            y,
            num_classes=data.num_classes,
            per_class=images_per_class,
            new_network=bench.new_network,
            seed=fold_in(bench.seed, CHUNK, chunk),
        )
        count = images_per_class * len(y.unique())
        learned = kept_set(bench, f"distilled_{chunk}.safetensors", count, learn)
        control = {"control": parts[(chunk + 1) % chunks]} if chunks > 1 else {}
        cases = [(learned, {"distilled": (x, y), **control}), (described(bench, x, y), {"real": (x, y)})]
        for synthetic, suspects in cases:
            further = partial(
                attacked_as,
                suspects=suspects,
                others=(others_x, others_y),
                loss=protocol.loss,
                attacks=attacks,
                seed=bench.seed,
            )
            for number in steps:
                if all((name, chunk, number) in known for name in suspects):
                    continue
                longer = replace(protocol, steps=number)
                found = trained(bench, synthetic, longer, further, fold_in(bench.seed, chunk))
                for name in suspects:
                    own = {key.removeprefix(f"{name}/"): v for key, v in found.items() if key.startswith(f"{name}/")}
                    rows.append({"set": name, "chunk": chunk, "steps": number, "accuracy": found["accuracy"], **own})
                    auc = ", ".join(f"{attack} {own[f'{attack}_auc']:.2f}" for attack in attacks)
                    log.info("chunk %d, %s, %d steps: AUC %s", chunk, name, number, auc)
                write_rows(bench.folder / TABLE, rows)
    means, accuracies = mean_rows(rows), {f"{attack}_accuracy" for attack in attacks}  # these are in the file
    bench.summarise({f"test/{row['set']}_{row['steps']}_{k}": row[k] for row in means for k in row if "auc" in k})
    if bench.record.figures:
        draw(bench.folder)
    shown = [{k.removesuffix("_auc"): v for k, v in row.items() if k not in accuracies} for row in means]
    print_rows(shown, title=f"AUC of attacks; {data.source_name}, {members} members, means over {chunks} chunks")


def check_sizes(data: ImageDataModule, chunks: int, members: int) -> None:
    """ValueError where there are too few images, or too few are asked for."""
    if chunks < 1:
        raise ValueError(f"task.chunks={chunks}: a number >= 1 is needed")
    if members < FEWEST:
        raise ValueError(
            f"task.members={members}: at least {FEWEST} are needed, of which attacks are fitted to a quarter"
        )
    available, outside = len(data.splits["train"]), len(data.splits["test"])
    if chunks * members > available or members > outside:
        raise ValueError(
            f"task.chunks={chunks}, task.members={members}: {data.source_name} has {available} train images here, and "
            f"{outside} to test on"
        )


def trained(
    bench: Bench,
    synthetic: SyntheticSet,
    protocol: Protocol,
    further: Callable[[nn.Module], Mapping[str, float]],
    seed: int,
) -> dict[str, float]:
    """Test accuracy of a network trained on the set, and what `further` says of it."""
    found = evaluate(
        synthetic,
        without_batch_norm(bench.new_network),
        bench.data.test_dataloader(),
        seed=seed,
        protocol=protocol,
        networks=1,
        device=bench.device,
        further=further,
    )
    return {"accuracy": found.mean, **found.further[0]}


def together(loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    """All images of a loader, and their labels."""
    images, labels = zip(*loader, strict=True)
    return torch.cat(images).to(device), torch.cat(labels).to(device)


def attacked_as(
    network: nn.Module,
    *,
    suspects: Mapping[str, tuple[Tensor, Tensor]],
    others: tuple[Tensor, Tensor],
    loss: str,
    attacks: Sequence[str],
    seed: int,
) -> dict[str, float]:
    """`NAME/...` of `attacked`, for suspects (images, classes) by name, beside others who are no members."""
    found: dict[str, float] = {}
    for name, inside in suspects.items():
        images, classes = (torch.cat(pair) for pair in zip(inside, others, strict=True))
        numbers = attacked(network, images=images, classes=classes, loss=loss, attacks=attacks, seed=seed)
        found |= {f"{name}/{key}": value for key, value in numbers.items()}
    return found


def attacked(
    network: nn.Module, *, images: Tensor, classes: Tensor, loss: str, attacks: Sequence[str], seed: int
) -> dict[str, float]:
    """`ATTACK_auc` and `ATTACK_accuracy` on images (2n, C, H, W), of which the first half are the members."""
    with torch.no_grad():
        logits = torch.cat([network(part) for part in images.split(BATCH)]).double()
    if loss == "mse":
        losses = 0.5 * (logits - centred(classes, logits.shape[1], logits.dtype)).square().sum(1)
    else:
        losses = F.cross_entropy(logits, classes, reduction="none")
    member = np.arange(len(images)) < len(images) // 2
    found: dict[str, float] = {}
    for name in attacks:
        result = attack(name, logits.cpu().numpy(), losses.cpu().numpy(), member, seed=seed)
        found |= {f"{name}_auc": result.auc, f"{name}_accuracy": result.accuracy}
    return found


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """One row for each set and number of steps, a mean over the chunks."""
    groups = list(dict.fromkeys((row["set"], row["steps"]) for row in rows))
    names = [name for name in rows[0] if name not in ("set", "steps", "chunk")]
    found: list[Row] = []
    for group in groups:
        own = [row for row in rows if (row["set"], row["steps"]) == group]
        found.append(
            dict(zip(("set", "steps"), group, strict=True)) | {n: float(np.mean([r[n] for r in own])) for n in names}
        )
    return found
