"""`task=evaluate`: what a synthetic set is worth: beside baselines of its size, on other networks, and at what cost."""

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
from ncdd.data.distilled import say_other_data
from ncdd.data.seeding import fold_in
from ncdd.data.whitening import Whitening
from ncdd.distill import SyntheticSet
from ncdd.distill.compute import hardware
from ncdd.distill.coresets import CORESETS
from ncdd.distill.evaluate import (
    TEST,
    Evaluation,
    NewNetwork,
    Protocol,
    are_probabilities,
    best_protocol,
    merged,
)
from ncdd.distill.evaluate import baselines as baseline_sets
from ncdd.distill.evaluate import evaluate as judge
from ncdd.distill.ranking import Scores, scores, with_hard_labels
from ncdd.distill.start import read
from ncdd.models import with_learned_head
from ncdd.models.network import Body, Head, network_of
from ncdd.report.figures import draw
from ncdd.report.rows import Row, print_rows, write_rows
from ncdd.tasks.bench import Bench, sample_loader

log = logging.getLogger(__name__)
THIS, HARD, REAL = "this_set", "hard_labels", "real_data"
OWN_STEPS = "own_steps"
COLLAPSE = ("accuracy", "nc1_pinv", "nc2_etf_M", "nc2_etf_W", "nc3_dual_etf", "nc4_agree_bias")
Further = Callable[[nn.Module], Mapping[str, float]] | None
Protocols = Mapping[str, Protocol]
Shared = Mapping[str, Any]  # arguments of all evaluations


@dataclass(frozen=True)
class Result:
    """Networks of one architecture, trained on one set by one protocol.

    own: whether the architecture is the one that all sets are compared on; `cross` may have one of the same name.
    """

    trained_on: str
    network: str
    protocol: str
    found: Evaluation
    own: bool = True

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

        def mean(name: str) -> float:
            return float(np.mean([numbers[name] for numbers in self.found.further]))

        about = {"set": self.trained_on, "n": len(self.found.further)}
        return [{**about, "split": split, **{name: mean(f"{split}/{name}") for name in COLLAPSE}} for split in splits]


def evaluate(
    *,
    bench: Bench,
    synthetic: SyntheticSet,
    networks: int,
    protocols: Mapping[str, Protocol | None],
    own: bool,
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
    """Train fresh networks on the set and test them on real images, by each protocol and by the set's own.

    networks: behind each mean and deviation.  protocols: by name; of the first one are Neural Collapse (of a step-wise
        set: of its own steps) and `cross`. None is left out.  own: also those by which the set's run has tested it.
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
    shape = {"in_channels": data.in_channels, "image_size": data.image_size, "num_classes": data.num_classes}
    others = {name: partial(network_of, architectures[name], head, **shape) for name in cross}
    for new_network in others.values():
        new_network()  # what cannot read these images says so before hours have passed
    given = {name: p for name, p in protocols.items() if p is not None}
    if not given:
        raise ValueError("task.protocols: none is left; at least one is needed")
    mine = own_protocols(bench, synthetic) if own else {}
    new = {name: p for name, p in mine.items() if p not in given.values()}
    suitable = {name: suited(p, synthetic) for name, p in {**given, **new}.items()}
    first_own = next(iter(mine.values()), None)
    its_own = next((name for name, p in {**given, **new}.items() if p == first_own), None)
    shared = {
        "test": data.test_dataloader(),
        "seed": fold_in(bench.seed, TEST),
        "networks": networks,
        "device": bench.device,
    }
    loaders = {"train": sample_loader(data, "train", collapse_samples), "test": data.test_dataloader()}
    collapse = partial(collapse_of, loaders=loaders, num_classes=data.num_classes)

    parts = [of_set(bench, synthetic, suitable, shared, collapse)]
    if baselines or real:
        train = real_images(data)
        parts.append(of_baselines(bench, real_sets(synthetic, train, baselines, draws, bench), suitable, shared))
    parts.append(of_architectures(synthetic, others, suitable, shared))
    if real:
        parts.append(of_real(bench, train, real, {**shared, "networks": real_networks}, collapse))
        if synthetic.labels.ndim == 2:
            parts.append(of_hard_labels(bench, synthetic, *next(iter(given.items())), shared))
    results: list[Result] = []
    for result in chain(*parts):
        log.info("%s, %s, %s: %s", result.trained_on, result.network, result.protocol, result.found)
        results.append(result)
    publish(bench, f"{len(synthetic)} images", results, dd_ranking(results, suitable, its_own))


# ---------------------------------------------------------------- what fits what


def fitting(synthetic: SyntheticSet, data: ImageDataModule, *, trust: bool) -> SyntheticSet:
    """The set, where it is of images and classes as the data's, in the same units; else ValueError."""
    shape, own = data.splits["test"].shape, tuple(synthetic.images.shape[1:])
    if own != shape:
        raise ValueError(f"distilled: the set is of images of shape {own}, those of {data.source_name} are {shape}")
    if synthetic.num_classes != data.num_classes:
        raise ValueError(
            f"distilled: the set is of {synthetic.num_classes} classes, {data.source_name} has {data.num_classes}"
        )
    say_other_data(synthetic.dataset, synthetic.class_names, data.source_name, data.class_names)
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
    if not same_whitening(synthetic.whitening, data.whitening):
        raise ValueError(
            f"distilled: the set was whitened by another transform than the data, here dataset.whiten={data.whiten}: "
            "give dataset.whiten, dataset.val_fraction and seed as in the run that made it"
        )
    return synthetic


def same_whitening(one: Whitening | None, other: Whitening | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.matrix.shape == other.matrix.shape and torch.allclose(one.matrix, other.matrix, rtol=1e-3, atol=1e-5)


def check_names(**settings: tuple[Iterable[str], Iterable[str]]) -> None:
    """ValueError for a name that is none of the choices."""
    for setting, (names, choices) in settings.items():
        if unknown := set(names) - set(choices):
            raise ValueError(f"task.{setting}: no {min(unknown)!r}; choose from {', '.join(choices)}")


def suited(protocol: Protocol, synthetic: SyntheticSet) -> Protocol:
    """The protocol, with the squared error for labels that are regression targets, as KIP's and FRePo's are."""
    return protocol if are_probabilities(synthetic.labels) else replace(protocol, loss="mse")


def own_protocols(bench: Bench, synthetic: SyntheticSet) -> dict[str, Protocol]:
    """Those by which the run that made the set has tested it, as own...; none where it is not known."""
    data, found = bench.data, dict[str, Protocol]()
    if synthetic.stepwise:
        return found  # its own steps are
    for callback in bench.trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(callback, DistilledSet):
            continue
        for name, protocol in callback.final.items():
            if protocol is not None and callback.tune and data.val_fraction:
                validation: Any = data.val_dataloader()
                protocol = best_protocol(
                    synthetic,
                    judges(bench),
                    validation,
                    protocol,
                    callback.tune,
                    networks=max(1, callback.networks),
                    seed=bench.seed,
                    device=bench.device,
                )
            if protocol is not None:
                found[name.replace("accuracy", "own")] = protocol
    return found


# ---------------------------------------------------------------- what is trained


def of_set(
    bench: Bench,
    synthetic: SyntheticSet,
    protocols: Protocols,
    shared: Shared,
    further: Further,
) -> Iterator[Result]:
    """The set itself: by its own steps where it has them, and by each protocol; of the first of all `further`, too."""
    name = name_of(bench)
    if synthetic.stepwise:
        yield Result(THIS, name, OWN_STEPS, judge(synthetic, held_out(bench), further=further, **shared))
        further = None
    for protocol_name, protocol in protocols.items():
        found = judge(synthetic, judges(bench), protocol=protocol, own_steps=False, further=further, **shared)
        yield Result(THIS, name, protocol_name, found)
        further = None


def of_baselines(
    bench: Bench,
    sets: Mapping[str, Sequence[SyntheticSet]],
    protocols: Protocols,
    shared: Shared,
) -> Iterator[Result]:
    """Each baseline by each protocol; the networks are shared out among its draws."""
    for baseline, draws in sets.items():
        each = max(1, shared["networks"] // len(draws))
        for protocol_name, protocol in protocols.items():
            found = [
                judge(
                    of_draw,
                    judges(bench),
                    protocol=protocol,
                    **{**shared, "networks": each, "seed": fold_in(shared["seed"], draw)},
                )
                for draw, of_draw in enumerate(draws)
            ]
            yield Result(baseline, name_of(bench), protocol_name, merged(found))


def of_architectures(
    synthetic: SyntheticSet,
    others: Mapping[str, NewNetwork],
    protocols: Protocols,
    shared: Shared,
) -> Iterator[Result]:
    """The set on other networks, by the first protocol."""
    protocol_name, protocol = next(iter(protocols.items()))
    for name, new_network in others.items():
        found = judge(synthetic, new_network, protocol=protocol, own_steps=False, **shared)
        yield Result(THIS, name, protocol_name, found, own=False)


def of_real(
    bench: Bench, train: SyntheticSet, protocol: Protocol, shared: Shared, further: Further
) -> Iterator[Result]:
    """All real images."""
    found = judge(train, judges(bench), protocol=protocol, further=further, **shared)
    yield Result(REAL, name_of(bench), "real", found)


def of_hard_labels(
    bench: Bench, synthetic: SyntheticSet, name: str, protocol: Protocol, shared: Shared
) -> Iterator[Result]:
    """The set with each soft label's class: what the images are worth without their labels."""
    hard = with_hard_labels(synthetic)
    found = judge(hard, judges(bench), protocol=protocol, own_steps=False, **shared)
    yield Result(HARD, name_of(bench), name, found)


def real_images(data: ImageDataModule) -> SyntheticSet:
    """The train split as a set."""
    train = data.splits["train"]
    return SyntheticSet(images=read(train, data.normalisation), labels=train.classes.cpu())


def real_sets(
    synthetic: SyntheticSet, train: SyntheticSet, names: Sequence[str], draws: int, bench: Bench
) -> dict[str, list[SyntheticSet]]:
    """Sets of real images as large as the synthetic one; ValueError where that is not so many of each class."""
    num_classes = bench.data.num_classes
    if names and len(synthetic) % num_classes:
        raise ValueError(
            f"task.baselines: {len(synthetic)} images cannot be shared equally by {num_classes} classes; set []"
        )
    return baseline_sets(
        train.images,
        train.labels,
        names=names,
        num_classes=num_classes,
        per_class=len(synthetic) // num_classes,
        seed=bench.seed,
        draws=draws,
    )


def name_of(bench: Bench) -> str:
    """What the set's own architecture is called."""
    return type(bench.new_network().model).__name__.lower()


def judges(bench: Bench) -> NewNetwork:
    """The networks that the run which made the set was tested on, or would have been."""
    method: Any = bench.method
    return method.judges() if hasattr(method, "judges") else with_learned_head(bench.new_network)


def held_out(bench: Bench) -> NewNetwork:
    """The networks that the method which made the set keeps for testing; its judges where it is not known."""
    method: Any = bench.method
    if not hasattr(method, "held_out"):
        return judges(bench)
    method.trainer = bench.trainer
    method.setup("fit")
    return method.held_out()


# ---------------------------------------------------------------- what is measured


@torch.no_grad()
def collapse_of(
    network: nn.Module, *, loaders: Mapping[str, Iterable[tuple[Tensor, Tensor]]], num_classes: int
) -> dict[str, float]:
    """Neural Collapse as SPLIT/METRIC; of the splits after the first one also against the first one's class means."""
    values: dict[str, float] = {}
    reference: Tensor | None = None
    head: Any = network.head
    device = head.weight.device
    for split, loader in loaders.items():
        metric = NeuralCollapse(num_classes, vci=False).to(device)
        metric.set_head(head.weight, head.bias)
        if reference is not None:
            metric.set_reference(reference)
        for x, y in loader:
            features = network.forward_features(x.to(device))  # type: ignore[operator]
            metric.update(features, y.to(device), head(features))
        found = metric.measure()
        reference = found.mean_KD if reference is None else reference
        values |= {f"{split}/{name}": value for name, value in found.values.items()}
        values[f"{split}/accuracy"] = found.values["linear_accuracy"]
    return values


def dd_ranking(results: Sequence[Result], protocols: Protocols, its_own: str | None) -> Scores | None:
    """DD-Ranking's scores, None where some results lack.

    ior is by the protocol `its_own`, that of the set's run, or where it is None by the first one; hlr by the first one;
    ars by the first ones with and without augmentation. Of soft labels their classes are the hard ones.
    """
    mean = {(result.trained_on, result.protocol): result.found.mean for result in results if result.own}
    first = next(iter(protocols))
    if (REAL, "real") not in mean or ("random", first) not in mean:
        return None
    pairs = {name: (mean[THIS, name], mean["random", name]) for name in protocols}
    augmented = [pairs[name] for name, protocol in protocols.items() if protocol.augment is not None]
    plain = [pairs[name] for name, protocol in protocols.items() if protocol.augment is None]
    return scores(
        real_hard=mean[REAL, "real"],
        synthetic_hard=mean.get((HARD, first), mean[THIS, first]),
        synthetic=pairs[its_own or first][0],
        random=pairs[its_own or first][1],
        with_augmentation=augmented[0] if augmented else None,
        without_augmentation=plain[0] if plain else None,
    )


def publish(bench: Bench, size: str, results: Sequence[Result], found: Scores | None) -> None:
    """Files, figure and tables, where another architecture of the same name as the set's own is cross_NAME."""
    taken = {result.network for result in results if result.own}
    shown = (r if r.own or r.network not in taken else replace(r, network=f"cross_{r.network}") for r in results)
    rows = [result.row() for result in shown]
    collapse = [row for result in results for row in result.collapse_rows()]
    write_rows(bench.folder / "evaluate.csv", rows)
    write_rows(bench.folder / "collapse.csv", collapse)
    ranks = {} if found is None else {f"ranking/{k}": v for k, v in asdict(found).items() if v is not None}
    bench.summarise(final_values(results) | ranks)
    if bench.record.figures:
        draw(bench.folder)
    where = f"tested on {bench.data.source_name}; {hardware(bench.device)}"
    print_rows(rows, title=f"{size}, {where}")
    print_rows(collapse, title="Neural Collapse of the networks, on real images")
    if found is not None:
        print_rows([{"score": name, "value": value} for name, value in ranks.items()], title="DD-Ranking")


def final_values(results: Sequence[Result]) -> dict[str, float]:
    """For the summary: `test/accuracy` (first result), `test/accuracy_PROTOCOL` and SPLIT/METRIC of the set itself;
    `cross/NETWORK/accuracy`; and as those of the set, but behind `BASELINE/` or `real_data/`, of others."""
    first, values = results[0].protocol, dict[str, float]()
    for result in results:
        of = "test" if result.trained_on == THIS else result.trained_on
        of = of if result.own else f"cross/{result.network}"
        name = f"{of}/accuracy" if result.protocol in (first, "real") else f"{of}/accuracy_{result.protocol}"
        values |= result.found.named(name)
        for row in result.collapse_rows():
            of = row["split"] if result.trained_on == THIS else f"{result.trained_on}/{row['split']}"
            values |= {f"{of}/{metric}": row[metric] for metric in COLLAPSE if metric != "accuracy"}
    return values
