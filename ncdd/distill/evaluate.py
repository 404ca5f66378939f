"""The one evaluation of every method: fresh networks, trained from scratch on a synthetic set, tested on real images.

A plain loop, no Trainer. Network i of a seed has the same first weights for every set that it is trained on.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_, vmap
from torch.nn import functional as F

from ncdd.data.distilled import STEPWISE
from ncdd.data.seeding import fold_in
from ncdd.distill import unrolled
from ncdd.distill.augment import DiffAugment
from ncdd.distill.compute import Cost, measured
from ncdd.distill.coresets import CORESETS, coreset
from ncdd.distill.synthetic import SyntheticSet
from ncdd.distill.unrolled import Weights

_log = logging.getLogger(__name__)
Batches = Iterable[tuple[Tensor, Tensor]]  # (images (B, C, H, W), labels (B,)), iterated anew for every test
Net = TypeVar("Net", bound=nn.Module)
NewNetwork = Callable[[], nn.Module]  # images -> logits, with fresh weights from torch's global generator
Numbers = Mapping[str, float]
# streams of random numbers, apart from those of `ncdd.data.seeding`; TEST: of a run's seed, for networks that test a
# set and are others than those of the seed itself, which choose it on the validation split
INIT, TRAIN, BASELINE, TEST = range(100, 104)
_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "mse": lambda logits, targets: 0.5 * (logits - targets).square().sum(1).mean(),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a network is trained on a synthetic set; the default is the DC family's (Zhao et al. 2021).

    epochs, batch_size: batches of all images in a new order each epoch; where `steps` is given, so many batches.
    schedule: "step" (times 0.1 after half the steps), "cosine" or "constant", behind `warmup` linear steps.
    final:    the fraction of the learning rate at which "cosine" ends.
    loss:     "cross_entropy", or "mse": half the squared error against the labels, or one-hot - 1/K for hard ones.
    augment:  one draw a batch.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    epochs: int = 300
    steps: int | None = None
    schedule: Literal["step", "cosine", "constant"] = "step"
    warmup: int = 0
    final: float = 0.0
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    augment: DiffAugment | None = None

    def __post_init__(self) -> None:
        choices = {"optimizer": ("sgd", "adam"), "schedule": ("step", "cosine", "constant"), "loss": tuple(_LOSSES)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose from {', '.join(allowed)}")
        if not 0 <= self.final <= 1:
            raise ValueError(f"final={self.final}: a fraction of the learning rate, from 0 to 1, is needed")
        if not (0 < self.lr < math.inf and self.weight_decay >= 0 and 0 <= self.momentum < 1 and self.warmup >= 0):
            raise ValueError(
                f"lr={self.lr}, momentum={self.momentum}, weight_decay={self.weight_decay}, warmup={self.warmup}: "
                "lr > 0, a momentum in [0, 1) and others >= 0 are needed"
            )
        if self.steps is not None and self.warmup > self.steps:
            raise ValueError(f"warmup={self.warmup}, steps={self.steps}: no more steps of warm-up than of training")
        for name in ("batch_size", "epochs", "steps"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"{name}={number}: a number >= 1 is needed")

    def num_steps(self, num_images: int) -> int:
        """Batches in all."""
        return self.steps or self.epochs * math.ceil(num_images / self.batch_size)

    def scale(self, step: int, total: int) -> float:
        """What the learning rate is multiplied by at `step`, from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, total - self.warmup)
        cosine = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))
        return {"step": 0.1 if 2 * step >= total else 1.0, "cosine": cosine}.get(self.schedule, 1.0)


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in fractions, one a network; `steps` of training each, and what training and testing them all cost.

    further: what else was measured of each network, by name.
    """

    accuracies: tuple[float, ...]
    steps: int
    cost: Cost
    further: tuple[Numbers, ...] = ()

    @property
    def mean(self) -> float:
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def std(self) -> float | None:
        """With n - 1; of one network there is none."""
        if len(self.accuracies) < 2:
            return None
        return math.sqrt(sum((a - self.mean) ** 2 for a in self.accuracies) / (len(self.accuracies) - 1))

    def named(self, name: str) -> dict[str, float]:
        """The mean as NAME and the deviation, where there is one, as NAME_std."""
        return {name: self.mean} | ({} if self.std is None else {f"{name}_std": self.std})

    def __str__(self) -> str:
        deviation = "" if self.std is None else f" +- {100 * self.std:.2f}"
        return f"{100 * self.mean:.2f}{deviation} % (n = {len(self.accuracies)})"


# ---------------------------------------------------------------- evaluation


def evaluate(
    synthetic: SyntheticSet,
    new_network: NewNetwork,
    test: Batches,
    *,
    seed: int,
    protocol: Protocol = Protocol(),
    networks: int = 5,
    own_steps: bool = True,
    stacked: bool | None = None,
    device: torch.device | str = "cpu",
    further: Callable[[nn.Module], Numbers] | None = None,
) -> Evaluation:
    """Train `networks` fresh networks on the set, each with seeds of its own, and test each.

    new_network: fresh ones, or `Kept` ones, of which none is tested twice.
    own_steps: train a step-wise set in its own order with its own step sizes, as it is meant; False: by `protocol` like
               any other set, with a warning.
    stacked: train all networks at once by `torch.vmap`, none of which may have BatchNorm, whose running statistics
             cannot be stacked; None: on a GPU, where small networks leave most of it idle, if it can be done. On a CPU
             the grouped convolutions that it leads to are slower than one network after the other.
    further: what else to measure of each trained network, in eval mode on `device`; not part of the cost.
    Raises ValueError where set and test images differ in shape, and for labels that are no probabilities.
    """
    if networks < 1:
        raise ValueError(f"networks={networks}: a number >= 1 is needed")
    _same_shape(synthetic, test)
    by_steps = synthetic.stepwise and own_steps
    if synthetic.stepwise and not own_steps:
        _log.warning("the set is a step-wise one: it %s", STEPWISE)
    with measured(device) as cost:
        synthetic = synthetic.to(device)
        nets = [network.to(device) for network in fresh_networks(new_network, networks, seed=seed)]
        if by_steps:
            nets = [after_own_steps(synthetic, network) for network in nets]
        else:
            _train(synthetic, nets, protocol, seed=seed, stacked=stacked)
        accuracies = tuple(accuracy(network, test, device) for network in nets)
    steps = len(synthetic.order) if by_steps and synthetic.order is not None else protocol.num_steps(len(synthetic))
    return Evaluation(accuracies, steps, cost, tuple(further(network) for network in nets) if further else ())


def best_protocol(
    synthetic: SyntheticSet,
    new_network: NewNetwork,
    validation: Batches,
    protocol: Protocol,
    values: Mapping[str, Sequence[float]],
    *,
    seed: int,
    networks: int = 1,
    own_steps: bool = True,
    device: torch.device | str = "cpu",
) -> Protocol:
    """Of the protocol with all combinations of `values`, by field, what does best on a split of the training data.

    validation: a split that neither the set nor a test knows.  own_steps: see `evaluate`.
    Of equals the first is taken.
    """
    tried: list[tuple[float, Protocol]] = []
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        one = replace(protocol, **chosen)  # type: ignore[arg-type]
        found = evaluate(
            synthetic,
            new_network,
            validation,
            seed=seed,
            networks=networks,
            protocol=one,
            own_steps=own_steps,
            device=device,
        )
        _log.info("%s on validation: %s", ", ".join(f"{name} {value:g}" for name, value in chosen.items()), found)
        tried.append((found.mean, one))
    return max(tried, key=lambda pair: pair[0])[1]


def baselines(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    per_class: int,
    seed: int,
    names: Iterable[str] = tuple(CORESETS),
    draws: int = 5,
) -> dict[str, list[SyntheticSet]]:
    """Sets of the same size that learn nothing, by name, from real images (N, C, H, W) normalised as the synthetic set.

    "random" has `draws` sets, the others one; "class_mean" is left out where a class has more than one image.
    Evaluate each set of a name with a share of the networks, and put the results together by `merged`.
    """
    found: dict[str, list[SyntheticSet]] = {}
    for name in names:
        if name == "class_mean" and per_class > 1:
            continue
        for draw in range(draws if name == "random" else 1):
            generator = torch.Generator().manual_seed(fold_in(seed, BASELINE, draw))
            chosen, classes = coreset(
                name, images, labels, num_classes=num_classes, per_class=per_class, generator=generator
            )
            found.setdefault(name, []).append(SyntheticSet(images=chosen, labels=classes, method=name))
    return found


def merged(evaluations: Sequence[Evaluation]) -> Evaluation:
    """One result of all networks, for several draws of one method; they have trained for as many steps."""
    accuracies = tuple(accuracy for evaluation in evaluations for accuracy in evaluation.accuracies)
    cost = reduce(operator.add, (evaluation.cost for evaluation in evaluations))
    further = tuple(numbers for evaluation in evaluations for numbers in evaluation.further)
    return Evaluation(accuracies, evaluations[0].steps, cost, further)


def _same_shape(synthetic: SyntheticSet, test: Batches) -> None:
    made_for = tuple(synthetic.images.shape[1:])
    for images, _ in test:
        found = tuple(images.shape[1:])
        if found != made_for:
            raise ValueError(f"the synthetic set is of images of shape {made_for}, the test images have {found}")
        return
    raise ValueError("test: no images to test on")


def are_probabilities(labels: Tensor) -> bool:
    """Whether labels, classes (N,) or rows (N, K), are what cross-entropy takes, and no regression targets."""
    return labels.ndim == 1 or bool(((labels.sum(1) - 1).abs() < 1e-3).all() & (labels >= 0).all())


def _targets(synthetic: SyntheticSet, protocol: Protocol) -> Tensor:
    """The labels as the protocol's loss wants them."""
    labels = synthetic.labels
    if protocol.loss == "mse":
        classes = synthetic.num_classes
        return labels if labels.ndim == 2 else F.one_hot(labels, classes).float() - 1 / classes
    if not are_probabilities(labels):
        raise ValueError(
            "loss='cross_entropy': the set's labels are regression targets, no probabilities; use loss='mse'"
        )
    return labels


class Kept(Generic[Net]):
    """Copies of `networks`, one after the other and over again, in the place of fresh ones."""

    def __init__(self, networks: Sequence[Net]) -> None:
        self.distinct = len(networks)
        self._turn = itertools.cycle(networks)

    def __call__(self) -> Net:
        return copy.deepcopy(next(self._turn))


def fresh_networks(new_network: Callable[[], Net], count: int, *, seed: int) -> list[Net]:
    """Networks 0 .. count - 1 of `seed`, or as many as are `Kept`; torch's global generator is left as it was."""
    if isinstance(new_network, Kept):
        count = min(count, new_network.distinct)
    return [_fresh(new_network, seed, index) for index in range(count)]


def _fresh(new_network: Callable[[], Net], seed: int, index: int) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(fold_in(seed, INIT, index))
        return new_network()


def _has_batch_norm(network: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def _optimizer(weights: list[Tensor], protocol: Protocol) -> torch.optim.Optimizer:
    if protocol.optimizer == "adam":
        return torch.optim.Adam(weights, protocol.lr, weight_decay=protocol.weight_decay)
    return torch.optim.SGD(weights, protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay)


class _Stream:
    """The batches of one network: (images, targets), augmented, a pure function of (seed, network)."""

    def __init__(self, images: Tensor, targets: Tensor, protocol: Protocol, seed: int, index: int) -> None:
        self.images, self.targets, self.protocol = images, targets, protocol
        self.generator = torch.Generator().manual_seed(fold_in(seed, TRAIN, index))
        self.rows: list[Tensor] = []

    def __next__(self) -> tuple[Tensor, Tensor]:
        if not self.rows:
            order = torch.randperm(len(self.images), generator=self.generator).to(self.images.device)
            self.rows = list(order.split(self.protocol.batch_size))
        rows = self.rows.pop(0)
        images, targets = self.images.index_select(0, rows), self.targets.index_select(0, rows)
        if self.protocol.augment is not None:
            images = self.protocol.augment(images, self.generator)
        return images, targets


def _train(
    synthetic: SyntheticSet, nets: list[nn.Module], protocol: Protocol, *, seed: int, stacked: bool | None
) -> None:
    """Train the networks by `protocol`, and leave them in eval mode."""
    batch_norm = _has_batch_norm(nets[0])
    if stacked and batch_norm:
        raise ValueError("stacked=True: networks with BatchNorm cannot be trained together; use stacked=False")
    if stacked is None:
        stacked = len(nets) > 1 and synthetic.images.is_cuda and not batch_norm
    targets = _targets(synthetic, protocol)
    streams = [_Stream(synthetic.images, targets, protocol, seed, index) for index in range(len(nets))]
    total = protocol.num_steps(len(synthetic))
    if stacked:
        _train_stacked(nets, streams, protocol, total)
    else:
        for network, stream in zip(nets, streams, strict=True):
            _train_one(network, stream, protocol, total)
    for network in nets:
        network.eval()


def _train_one(network: nn.Module, stream: _Stream, protocol: Protocol, total: int) -> None:
    loss = _LOSSES[protocol.loss]
    network.train()
    optimizer = _optimizer([p for p in network.parameters() if p.requires_grad], protocol)
    for step in range(total):
        optimizer.param_groups[0]["lr"] = protocol.lr * protocol.scale(step, total)
        x, y = next(stream)
        optimizer.zero_grad()
        loss(network(x), y).backward()
        optimizer.step()


def _train_stacked(nets: list[nn.Module], streams: list[_Stream], protocol: Protocol, total: int) -> None:
    """The optimisers act on each number by itself, so that one on stacked weights is n optimisers."""
    loss, network = _LOSSES[protocol.loss], nets[0].train()
    weights = {k: w.requires_grad_() for k, w in unrolled.stack([unrolled.weights_of(net) for net in nets]).items()}
    fixed = [{k: t for k, t in net.state_dict().items() if k not in weights} for net in nets]
    constants = unrolled.stack(fixed) if fixed[0] else {}

    def losses(weights: Weights, constants: Weights, x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(network, {**weights, **constants}, (x,)), y)

    optimizer = _optimizer(list(weights.values()), protocol)
    for step in range(total):
        optimizer.param_groups[0]["lr"] = protocol.lr * protocol.scale(step, total)
        x, y = (torch.stack(parts) for parts in zip(*map(next, streams), strict=True))
        optimizer.zero_grad()
        vmap(losses, randomness="different")(weights, constants, x, y).sum().backward()
        optimizer.step()
    for index, net in enumerate(nets):
        net.load_state_dict({name: w.detach()[index] for name, w in weights.items()}, strict=False)


def after_own_steps(synthetic: SyntheticSet, network: nn.Module) -> nn.Module:
    """`network` as it is after the steps of a step-wise set, a copy in eval mode; BatchNorm goes by its batch."""
    assert synthetic.order is not None and synthetic.step_sizes is not None
    inner, start = unrolled.inner_loss(unrolled.functional(network)), unrolled.weights_of(network)
    steps = unrolled.Steps(synthetic.images, synthetic.labels, synthetic.order, synthetic.step_sizes)
    weights = unrolled.train(inner, start, steps, optimiser=synthetic.inner, differentiable=False)
    trained = replace_all_batch_norm_modules_(copy.deepcopy(network))
    trained.load_state_dict(weights, strict=False)
    return trained.eval()


@torch.no_grad()
def accuracy(network: Callable[[Tensor], Tensor], test: Batches, device: torch.device | str = "cpu") -> float:
    """The fraction of `test` whose largest logit is its label's."""
    right, count = torch.zeros((), dtype=torch.int64, device=device), 0
    for x, y in test:
        right += (network(x.to(device)).argmax(1) == y.to(device)).sum()
        count += len(y)
    return int(right) / count
