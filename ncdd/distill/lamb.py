"""LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2), which learns FRePo's images and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """Adam whose step on each tensor is as long as the tensor is: ``p -= lr ||p|| / ||u|| u``.

    ``u = m / (sqrt(v) + eps) + weight_decay p`` with bias-corrected moments m and v. Where p or u is zero the ratio
    of norms is 1, and it is not bounded, as in optax.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"optimizer.lr={lr}: a number > 0 is needed")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        (beta1, beta2), state = group["betas"], self.state[p]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2)
        mean = state["exp_avg"] / (1 - beta1 ** state["step"])
        variance = state["exp_avg_sq"] / (1 - beta2 ** state["step"])
        update = mean / (variance.sqrt() + group["eps"]) + group["weight_decay"] * p
        of_p, of_update = p.norm(), update.norm()
        ratio = torch.where((of_p > 0) & (of_update > 0), of_p / of_update, 1.0)  # on the device, without waiting
        p.sub_(group["lr"] * ratio * update)


def cosine_to(optimizer: torch.optim.Optimizer, *, steps: int, final: float) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate times 1 falling to `final`, by half a cosine over `steps` steps, and then constant."""
    if steps < 1:
        raise ValueError(f"scheduler.steps={steps}: a number >= 1 is needed")

    def factor(step: int) -> float:
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
