"""`task=evaluate`: what a synthetic set is worth, beside baselines of its size, on other networks, and what it costs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ncdd.callbacks.distilled import DistilledSet
from ncdd.collapse import NeuralCollapse
from ncdd.data import ImageDataModule
from ncdd.data.seeding import fold_in
from ncdd.distill import SyntheticSet
from ncdd.distill import evaluate as judge
from ncdd.distill.coresets import CORESETS
from ncdd.distill.evaluate import Evaluation, NewNetwork, Protocol
from ncdd.distill.ranking import Scores, scores, with_hard_labels
from ncdd.distill.start import read
from ncdd.models import Network
from ncdd.report.figures import draw
from ncdd.report.rows import Row, print_rows, write_rows
from ncdd.tasks.bench import Bench, sample_loader

log = logging.getLogger(__name__)
THIS, HARD, REAL = "this set", "this set, hard labels", "real data"
OWN_STEPS = "own steps"
COLLAPSE = ("accuracy", "nc1_pinv", "nc2_etf_M", "nc2_etf_W", "nc3_dual_etf", "nc4_agree_bias")
Body = Callable[..., Any]  # (in_channels=, image_size=) -> a body with `forward_features` and `num_features`
Head = Callable[..., nn.Linear]  # (num_features=, num_classes=) -> the last layer


@dataclass(frozen=True)
class Result:
    """Networks of one architecture, trained on one set by one protocol."""

    trained_on: str
    network: str
    protocol: str
    found: Evaluation

    def row(self) -> Row:
        cost = self.found.cost
        return {
            "set": self.trained_on,
            "network": self.network,
            "protocol": self.protocol,
            "n": len(self.found.accuracies),
            "accuracy": self.found.mean,
            "accuracy_std": self.found.std,
            "steps": self.found.steps,
            "seconds": round(cost.seconds, 2),
            "memory_mb": float("nan") if cost.memory is None else round(cost.memory / 1e6, 1),
        }

    def collapse_rows(self) -> list[Row]:
        """A row a split: the networks' mean of each metric of `COLLAPSE`."""
        splits = dict.fromkeys(name.split("/")[0] for numbers in self.found.further for name in numbers)
        return [
            {"set": self.trained_on, "split": split, "n": len(self.found.further)}
            | {name: float(np.mean([numbers[f"{split}/{name}"] for numbers in self.found.further])) for name in COLLAPSE}
            for split in splits
        ]


def evaluate(
    *,
    bench: Bench,
    synthetic: SyntheticSet,
    networks: int,
    protocols: Mapping[str, Protocol],
    baselines: Sequence[str],
    draws: int,
    cross: Sequence[str],
    architectures: Mapping[str, Body],
    head: Head,
    real: Protocol | None,
    real_networks: int,
    collapse_samples: int | None,
    trust: bool,
) -> None:
    """Train fresh networks on the set and test them on real images, by each protocol and by those of its own run.

    networks: behind each mean and deviation.  protocols: by name; of the first one are Neural Collapse and `cross`.
    baselines: of `ncdd.distill.coresets`, as many real images of the train split; `draws` sets of random ones.
    cross: names of further `architectures`, with `head`.
    real: how `real_networks` networks are trained on the whole train split, which is held in memory as float32; None
        for not, and then there are no DD-Ranking scores.
    collapse_samples: Neural Collapse is measured on so many of the train split, and on the test split; None: on all.
    trust: take images whose file does not say how they were normalised to be normalised and whitened as the data are.

    A step-wise set is trained by its own steps first, from the networks that its method keeps for testing.
    Writes evaluate.csv, collapse.csv, summary.json and a figure. Raises ValueError where set and data do not fit.
    """
    data = bench.data
    synthetic = fitting(synthetic, data, trust=trust)
    check_names(baselines=(baselines, CORESETS), cross=(cross, architectures))
    others = {name: partial(network_of, architectures[name], head, data) for name in cross}
    for new_network in others.values():
        new_network()  # what cannot read these images says so before hours have passed
    shared = {"test": data.test_dataloader(), "seed": bench.seed, "networks": networks, "device": bench.device}
    loaders = {"train": sample_loader(data, "train", collapse_samples), "test": data.test_dataloader()}
    collapse = partial(collapse_of, loaders=loaders, num_classes=data.num_classes)
    mine = {name: suited(p, synthetic) for name, p in (protocols | own_protocols(bench, synthetic)).items()}
    train = SyntheticSet(images=read(data.splits["train"], data.normalisation), labels=data.splits["train"].classes.cpu())
    plain = next(iter(protocols.values()))
    parts = [
        of_set(bench, synthetic, mine, shared, collapse),
        of_baselines(bench, baselines_of(synthetic, train, baselines, draws, bench), mine, shared),
        of_architectures(synthetic, others, mine, shared),
    ]
    if real is not None:
        parts.append(of_real(bench, train, real, shared | {"networks": real_networks}, collapse))
        if synthetic.labels.ndim == 2:
            parts.append(of_set(bench, with_hard_labels(synthetic), {next(iter(protocols)): plain}, shared, None, HARD))
    results: list[Result] = []
    for result in chain(*parts):
        log.info("%s, %s, %s: %s", result.trained_on, result.network, result.protocol, result.found)
        results.append(result)
    publish(bench, results, ranking(results, mine))


# ---------------------------------------------------------------- what fits what


def fitting(synthetic: SyntheticSet, data: ImageDataModule, *, trust: bool) -> SyntheticSet:
    """The set, where it is of images and classes as the data's, in the same units; else ValueError that says how not."""
    shape, own = data.splits["test"].shape, tuple(synthetic.images.shape[1:])
    if own != shape:
        raise ValueError(f"distilled: the set is of images of shape {own}, those of {data.source_name} are {shape}")
    if synthetic.num_classes != data.num_classes:
        raise ValueError(
            f"distilled: the set is of {synthetic.num_classes} classes, {data.source_name} has {data.num_classes}"
        )
    theirs, ours = synthetic.normalisation, data.normalisation
    means = f"dataset.mean={list(ours.mean)}, dataset.std={list(ours.std)}, dataset.whiten={data.whiten}"
    if theirs is None:
        if not trust:
            raise ValueError(
                f"distilled: the file does not say what its images were normalised with; if it is by {means}, say so "
                "by task.trust=true"
            )
        return replace(synthetic, normalisation=ours, whitening=data.whitening)
    if not ours.close_to(theirs):
        raise ValueError(
            f"distilled: the set was normalised with {list(theirs.mean)}, {list(theirs.std)}, here are {means}: "
            "set dataset.mean and dataset.std to the former"
        )
    pair = [None if whitening is None else whitening.matrix for whitening in (synthetic.whitening, data.whitening)]
    same = pair[0] is pair[1] if None in pair else pair[0].shape == pair[1].shape and torch.allclose(*pair, rtol=1e-3)
    return synthetic


def check_names(**settings: tuple[Sequence[str], Iterable[str]]) -> None:
    """ValueError for a name that is none of the choices."""
    for setting, (names, choices) in settings.items():
        if unknown := set(names) - set(choices):
            raise ValueError(f"task.{setting}: no {min(unknown)!r}; choose from {', '.join(choices)}")
