"""A pool of networks of many ages, trained while a set is learned, one of which serves each meta gradient.

FRePo (Zhou et al. 2022, arXiv 2206.00719, section 3.3): a set learned against networks of one age would suit only that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

NewOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class NetworkPool(nn.Module):
    """`size` networks, each with an optimizer and an age of its own: the steps that it has been trained for.

    new_network: fresh weights, from torch's global generator.  optimizer: factory, given a network's parameters.
    max_age: a network older than this starts anew; None: never. Ages begin staggered, at `i max_age / size`, though all
        weights are fresh, so that the networks do not start anew all at once.

    Between the calls of `advance` every network is in eval mode, whatever `train` is told, and its weights take no
    gradient: what serves a meta gradient is constant. What is drawn comes from torch's global generator, and all the
    rest is in `state_dict`, so that a pool that is loaded goes on exactly as the one that was saved.
    """

    networks: nn.ModuleList

    def __init__(
        self, *, new_network: Callable[[], nn.Module], optimizer: NewOptimizer, size: int, max_age: int | None
    ) -> None:
        if size < 1:
            raise ValueError(f"pool.size={size}: a number >= 1 is needed")
        if max_age is not None and max_age < 0:
            raise ValueError(f"pool.max_age={max_age}: null or a number >= 0 is needed")
        super().__init__()
        self.new_network, self.new_optimizer, self.max_age = new_network, optimizer, max_age
        self.networks = nn.ModuleList(new_network() for _ in range(size)).eval()
        self.ages = [(max_age or 0) * index // size for index in range(size)]
        self.trained: list[list[nn.Parameter]] = [
            [p for p in network.parameters() if p.requires_grad] for network in self.networks
        ]
        self.networks.requires_grad_(False)
        self.optimizers = [optimizer(weights) for weights in self.trained]

    def __len__(self) -> int:
        return len(self.networks)

    def draw(self) -> int:
        """The index of a network, each as likely as the others."""
        return int(torch.randint(len(self), ()))

    def advance(self, index: int, loss: Callable[[nn.Module], Tensor]) -> Tensor | None:
        """Train network `index` by one step of its optimizer on `loss(network)`, in train mode; the loss, detached.

        One that is older than max_age gets fresh weights and a fresh optimizer instead, and None is returned.
        """
        if self.max_age is not None and self.ages[index] > self.max_age:
            self.renew(index)
            return None
        network, weights, optimizer = self.networks[index], self.trained[index], self.optimizers[index]
        for p in weights:
            p.requires_grad_(True)
        network.train()
        try:
            value = loss(network)
            for p, gradient in zip(weights, torch.autograd.grad(value, weights), strict=True):
                p.grad = gradient
        finally:
            network.eval()
            for p in weights:
                p.requires_grad_(False)
        optimizer.step()
        optimizer.zero_grad()
        self.ages[index] += 1
        return value.detach()

    def renew(self, index: int) -> None:
        """Fresh weights, in place, a fresh optimizer, and age 0."""
        self.networks[index].load_state_dict(self.new_network().state_dict())
        self.optimizers[index] = self.new_optimizer(self.trained[index])
        self.ages[index] = 0

    def train(self, mode: bool = True) -> NetworkPool:
        """Leaves the networks in eval mode."""
        self.training = mode
        return self

    def get_extra_state(self) -> dict[str, Any]:
        return {"ages": list(self.ages), "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.ages = list(state["ages"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NetworkPool:
        """`to` another device or dtype takes the optimizers' states along."""
        super()._apply(fn, recurse)
        for optimizer in self.optimizers:
            optimizer.load_state_dict(optimizer.state_dict())
        return self
