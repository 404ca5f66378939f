"""`task=layers`: how features change through a network, layer by layer (the tunnel effect, Masarczyk et al. 2023)."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ncdd.collapse import Moments, ShiftedSums
from ncdd.collapse import measure as measure_collapse
from ncdd.collapse.layers import (
    linear_accuracy,
    numerical_rank,
    pooled,
    ridge_probe,
    stable_rank,
    total_covariance,
)
from ncdd.models.blocks import blocks
from ncdd.models.checkpoint import network
from ncdd.report.figures import draw
from ncdd.report.rows import Row, print_rows, write_rows
from ncdd.tasks.subject import Subject


def layers(
    *, subject: Subject, layers: Sequence[str] | None, max_samples: int | None, ridge: float, tolerance: float
) -> None:
    """NC1, accuracies of nearest class mean and of a linear probe, and ranks of every layer: a table and a figure.

    layers: names as in `named_modules()` of the network; None takes every block, see `ncdd.models.blocks`.
    max_samples: of train and of test, drawn at random; all layers' pooled features of these are kept, in float32:
        `4 bytes x samples x sum of the layers' channels`, 77 MB for 10,000 and a resnet18. None takes all samples.
    ridge: of the probe on standardised features, see `ncdd.collapse.layers.ridge_probe`.
    tolerance: of the numerical rank, relative to the covariance's largest singular value (1e-3 in the paper).

    One forward pass of train and of test. Features are averaged over positions. The probe is fitted on train; nearest
    means are those of train, on test too.
    """
    epochs, file = subject.load_last()
    body = network(subject.method.model)
    if layers is None and "SwinTransformer" in type(body).__name__:
        raise ValueError("task=layers reads channels first; Swin transformers have them last")
    names = blocks(body) if layers is None else known(body, layers)
    splits = {}
    for split in ("train", "test"):
        with collecting(body, names) as found:
            _, labels = subject.features(subject.loader(split, max_samples))
        for name in names:
            if sum(map(len, found[name])) != len(labels):
                raise ValueError(
                    f"task.layers: {name} is not called once for each sample (a part that is shared?); name others"
                )
        splits[split] = {name: (torch.cat(found[name]), labels) for name in names}
    num_classes = subject.method.head.out_features
    rows: list[Row] = []
    for depth, name in enumerate(names, start=1):
        train, test = splits["train"].pop(name), splits["test"].pop(name)
        rows.append({"layer": name, "depth": depth, **layer_values(train, test, num_classes, ridge, tolerance)})
    write_rows(subject.folder / "layers.csv", rows)
    last = {key: value for key, value in rows[-1].items() if isinstance(value, float)}
    subject.summarise(epochs, file, last)
    if subject.record.figures:
        draw(subject.folder)
    print_rows(rows, title=f"{os.path.relpath(file)}, epoch {epochs}")


def layer_values(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], num_classes: int, ridge: float, tolerance: float
) -> dict[str, float]:
    """What is measured of one layer's features (N, D) and labels (N,), on both splits."""
    moments = train_moments(*train, num_classes)
    own = measure_collapse(*train, num_classes=num_classes, vci=False)
    other = measure_collapse(*test, num_classes=num_classes, vci=False, reference_means_KD=own.mean_KD)
    weight, bias = ridge_probe(moments, ridge)
    _, covariance = total_covariance(moments)
    return {
        "features": train[0].shape[1],
        "train/nc1_pinv": own.values["nc1_pinv"],
        "test/nc1_pinv": other.values["nc1_pinv"],
        "train/ncc_accuracy": own.values["ncc_accuracy"],
        "test/ncc_accuracy__train_means": other.values["ncc_accuracy__train_means"],
        "train/probe_accuracy": linear_accuracy(*train, weight, bias),
        "test/probe_accuracy": linear_accuracy(*test, weight, bias),
        "rank": int(numerical_rank(covariance, tolerance)),
        "stable_rank": float(stable_rank(covariance)),
    }


def train_moments(features_ND: Tensor, labels_N: Tensor, num_classes: int) -> Moments:
    """Moments with their scatter, of all classes; ValueError where one has no sample."""
    sums = ShiftedSums.zeros(num_classes, features_ND.shape[1], features_ND.device)
    sums.update(features_ND, labels_N)
    absent = (sums.count_K == 0).nonzero().flatten().tolist()
    if absent:
        raise ValueError(f"no train sample of class {absent[0]} among {len(labels_N)}: raise task.max_samples")
    return sums.moments()


def known(body: nn.Module, layers: Sequence[str]) -> list[str]:
    """The layers named, if the network has them; ValueError that suggests what was meant."""
    names = [name for name, _ in body.named_modules() if name]
    for layer in layers:
        if layer not in names:
            near = difflib.get_close_matches(layer, names, n=3, cutoff=0.0)
            raise ValueError(f"task.layers: no layer {layer!r}; did you mean one of {', '.join(near)}?")
    twice = {layer for layer in layers if list(layers).count(layer) > 1}
    if twice:
        raise ValueError(f"task.layers: {min(twice)} is named twice")
    return list(layers)


@contextmanager
def collecting(body: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """While it is open, every forward pass adds each named layer's pooled output (B, C), float32, to a list."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> None:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(f"task.layers: {name} puts out a {type(output).__name__}, not one tensor; name others")
            # what was not pooled is copied: a later layer may work in place
            found[name].append(pooled(output.detach()).to(torch.float32, copy=output.ndim == 2))

        hooks.append(body.get_submodule(name).register_forward_hook(hook))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for name in names:
            keep(name)
        yield found
    finally:
        for handle in hooks:
            handle.remove()
