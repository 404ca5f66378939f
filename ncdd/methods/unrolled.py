"""`method=unrolled`: images by which a few steps of gradient descent teach a network (Wang et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncdd.data.draws import Sampling
from ncdd.data.seeding import fold_in
from ncdd.distill import SyntheticSet, unrolled
from ncdd.distill.evaluate import Kept, after_own_steps, fresh_networks
from ncdd.methods.distill import Batch, Distillation, NewNetwork
from ncdd.methods.optim import Optimizer, Scheduler
from ncdd.models import Network
from ncdd.models.checkpoint import put, read

POOL = 220  # stream of random numbers, apart from those of `ncdd.methods.distill`
INITIALISATIONS = ("random", "fixed", "pretrained_random", "pretrained_fixed")
OBJECTIVES = ("cross_entropy", "label_swap")


class Unrolled(Distillation):
    """Dataset distillation (Wang, Zhu, Torralba & Efros 2018, arXiv 1811.10959, algorithm 1).

    From weights theta_0 a network is trained by T = steps * epochs steps, each on images of its own, of which there are
    `images_per_class` a class in each of `steps`, used again in each epoch. The cross-entropy of the trained network on
    real images is minimised by gradient descent through all of it, in images and step sizes (softplus of what the
    optimizer updates) and, with learn_labels, in labels; these begin one-hot and need not remain probabilities.

    initialisation: where theta_0 comes from, and so which networks the set is made for:
        "random": fresh ones in each step.          "fixed": `n_nets` random ones, the same from first to last.
        "pretrained_random", "pretrained_fixed":     of the folder `networks`, every last.ckpt below it, in the order
        of their paths: the former keeps the last `test_nets` to be tested on, and learns on `n_nets` of the others.
    n_nets: None: all that there are, or 1 for fixed ones.  sample_nets: so many of them in each step.
    test_nets: so many does `measure` train; fixed ones are tested on themselves.
    objective: "label_swap", a study of robustness on one's own networks: the labels of the set stay true, but trained
        on it, the network is to call `attack_class` `target_class` and otherwise be right (section 4.3). Measured then:
        attack_rate, the fraction of the one that is called the other, and swapped_accuracy, that of the objective.
    step_size: before learning.  window: differentiate the last steps only; None: all.  shuffle: the steps' order is
        drawn anew for each real batch.  inner, memory, vectorise: see `ncdd.distill.unrolled`.
    batch_size: real images in a step.
    Other arguments: `Distillation`. Raises ValueError, and `unrolled.Diverged` for a loss that is not finite.
    """

    pool: nn.ModuleList
    order: Tensor

    def __init__(
        self,
        *,
        new_network: NewNetwork,
        optimizer: Optimizer,
        scheduler: Scheduler,
        images_per_class: int,
        init: str,
        learn_labels: bool,
        objective: Literal["cross_entropy", "label_swap"],
        attack_class: int | None,
        target_class: int | None,
        initialisation: Literal["random", "fixed", "pretrained_random", "pretrained_fixed"],
        networks: str | None,
        n_nets: int | None,
        sample_nets: int,
        test_nets: int,
        steps: int,
        epochs: int,
        step_size: float,
        window: int | None,
        shuffle: bool,
        inner: unrolled.GradientDescent | unrolled.Adam,
        memory: Literal["full", "recompute"],
        vectorise: bool,
        batch_size: int,
    ) -> None:
        for name, value, choices in (
            ("objective", objective, OBJECTIVES),
            ("method.initialisation", initialisation, INITIALISATIONS),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value}: choose from {', '.join(choices)}")
        counts = {"n_nets": n_nets, "sample_nets": sample_nets, "test_nets": test_nets, "steps": steps}
        for name, count in (counts | {"epochs": epochs, "window": window}).items():
            if count is not None and count < 1:
                raise ValueError(f"method.{name}={count}: a number >= 1 is needed")
        if (networks is not None) != initialisation.startswith("pretrained"):
            needed = "no folder" if networks else "a folder of trained networks"
            raise ValueError(f"method.networks={networks}: initialisation={initialisation} takes {needed}")
        super().__init__(
            new_network=new_network,
            optimizer=optimizer,
            scheduler=scheduler,
            images_per_class=images_per_class * steps,
            init=init,
            learn_labels=learn_labels,
            sampling=Sampling(batch_size=batch_size),
        )
        self.swap = _swap(objective, attack_class, target_class)
        self.initialisation, self.networks = initialisation, networks
        self.n_nets, self.sample_nets, self.test_nets = n_nets, sample_nets, test_nets
        self.num_steps, self.num_epochs, self.step_size = steps, epochs, step_size
        self.window, self.shuffle, self.inner = window, shuffle, inner
        self.memory, self.vectorise = memory, vectorise

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for label in self.swap or ():
            if not 0 <= label < self.num_classes:
                raise ValueError(f"method.attack_class, target_class: {label} is no class, 0..{self.num_classes - 1}")
        total = self.num_steps * self.num_epochs
        self.raw_sizes = nn.Parameter(unrolled.raw_step_sizes(self.step_size, total))
        each = len(self.images) // (self.num_classes * self.num_steps)
        order = unrolled.balanced_order(self.num_classes, each, steps=self.num_steps, epochs=self.num_epochs)
        self.register_buffer("order", order)
        pool, self.held = self._networks()
        self.pool = nn.ModuleList(pool)  # in the checkpoint: a set for fixed networks is of no use without them

    def on_fit_start(self) -> None:
        self.logits = unrolled.functional(self.network())  # where the Trainer has put the set

    def learned(self) -> Iterable[nn.Parameter]:
        return [*super().learned(), self.raw_sizes]

    def outer_step(self, batch: Batch) -> Tensor:
        real, labels = batch
        targets = self.targets(labels)
        order = unrolled.shuffled_order(self.order, self.generator()) if self.shuffle else self.order
        sizes = unrolled.step_sizes(self.raw_sizes)
        losses = unrolled.outer_step(
            unrolled.inner_loss(self.logits),
            lambda weights: F.cross_entropy(self.logits(weights, real), targets),
            [unrolled.weights_of(network) for network in self.sample()],
            unrolled.Steps(self.images, self.labels, order, sizes),
            optimiser=self.inner,
            memory=self.memory,
            window=self.window,
            vectorise=self.vectorise,
        )
        self.log_dict({"train/step_size_min": sizes.detach().min(), "train/step_size_max": sizes.detach().max()})
        return losses.mean()

    def sample(self) -> list[Network]:
        """The networks of a step, drawn from torch's global generator."""
        if self.initialisation == "random":
            return [self.network() for _ in range(self.sample_nets)]
        pool: list[Network] = list(self.pool)  # type: ignore[arg-type]
        return [pool[i] for i in torch.randperm(len(self.pool))[: self.sample_nets].tolist()]

    def targets(self, labels: Tensor) -> Tensor:
        """What trained networks are to say of real images."""
        if self.swap is None:
            return labels
        attack, target = self.swap
        return labels.masked_fill(labels == attack, target)

    def synthetic_set(self) -> SyntheticSet:
        sizes = unrolled.step_sizes(self.raw_sizes.detach()).float().cpu()
        return replace(super().synthetic_set(), step_sizes=sizes, order=self.order.cpu().clone(), inner=self.inner)

    # ------------------------------------------------------------ evaluation

    def held_out(self) -> NewNetwork:
        """One of the networks that the set is made for, its head too: a fresh one, or one kept for testing."""
        return self.new_network if self.initialisation == "random" else Kept(self.held)

    @torch.no_grad()
    def measure(self, synthetic: SyntheticSet, loader: Iterable[Batch]) -> dict[str, float]:
        """Of label_swap: attack_rate and swapped_accuracy, means over `test_nets` networks, the same at each call."""
        if self.swap is None:
            return {}
        attack, target = self.swap
        swapped, attacked = [], []
        for start in fresh_networks(self.held_out(), self.test_nets, seed=self.data.seed):
            network = after_own_steps(synthetic.to(self.device), start.to(self.device))
            found = [(network(x).argmax(1), y) for x, y in loader]
            says, true = torch.cat([says for says, _ in found]), torch.cat([true for _, true in found])
            swapped.append((says == self.targets(true)).float().mean())
            attacked.append((says[true == attack] == target).float().mean())
        return {
            "swapped_accuracy": float(torch.stack(swapped).mean()),
            "attack_rate": float(torch.stack(attacked).mean()),
        }

    # ------------------------------------------------------------ networks

    def _networks(self) -> tuple[list[Network], list[Network]]:
        """Those that the set is learned on, none where they are fresh each time, and those to test it on."""
        if self.initialisation == "random":
            return [], []
        if self.initialisation == "fixed":
            pool = [self._seeded(index) for index in range(self.n_nets or 1)]
            return pool, pool
        folder = Path(self.networks or "")
        files = sorted(folder.rglob("last.ckpt"))
        if not files:
            raise ValueError(f"method.networks={folder}: no last.ckpt below it; train networks there, one a seed")
        if self.initialisation == "pretrained_fixed":
            files, held = files[: self._at_most(len(files), self.n_nets or 1)], []
        else:
            most = self._at_most(len(files) - self.test_nets, self.n_nets)
            files, held = files[:most], files[-self.test_nets :]
        pool = [self._trained(file) for file in files]
        return pool, [self._trained(file) for file in held] or pool

    def _at_most(self, there: int, wanted: int | None) -> int:
        if there < max(1, wanted or 1):
            kept = f", {self.test_nets} of which are held out" if self.initialisation == "pretrained_random" else ""
            raise ValueError(
                f"method.networks={self.networks}: {max(0, there)} networks to learn on{kept}; "
                f"n_nets={wanted}, test_nets={self.test_nets} need more: lower them, or train more"
            )
        return wanted or there

    def _seeded(self, index: int) -> Network:
        """Network `index` of the run's seed; torch's global generator is left as it was."""
        with torch.random.fork_rng():
            torch.manual_seed(fold_in(self.data.seed, POOL, index))
            return self.new_network()

    def _trained(self, file: Path) -> Network:
        network = self.new_network()
        put(read(file), network.model, network.head)
        return network


def _swap(objective: str, attack: int | None, target: int | None) -> tuple[int, int] | None:
    """(attack, target) of label_swap; ValueError where they are missing, equal, or given to another objective."""
    for name, value in (("attack_class", attack), ("target_class", target)):
        if (value is not None) != (objective == "label_swap"):
            raise ValueError(f"method.{name}={value}: needed by objective=label_swap, and by no other")
    if attack is None or target is None:
        return None
    if attack == target:
        raise ValueError(f"method.attack_class={attack}: the target_class, too; choose another")
    return attack, target
