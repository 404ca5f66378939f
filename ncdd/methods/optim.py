"""Parameter groups by what is decayed, and LBFGS with the weight decay that torch's lacks."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Optimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
Scheduler = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


def parameter_groups(
    body: nn.Module,
    head: nn.Module,
    *,
    body_decay: float | None,
    norm_decay: float | None,
    head_decay: float | None,
) -> list[dict[str, Any]]:
    """Trainable parameters in up to three groups, each with its own weight decay; None leaves the optimizer's.

    body: weights of matrices and convolutions.  norm: biases and normalisation parameters of the body.
    head: weight and bias of the last layer (Zhu et al. 2021 decay only these, and the features).
    """
    for name, decay in (("body_decay", body_decay), ("norm_decay", norm_decay), ("head_decay", head_decay)):
        if decay is not None and not decay >= 0:
            raise ValueError(f"method.{name}={decay}: null or a number >= 0 is needed")
    of_body = [p for p in body.parameters() if p.requires_grad]
    members = [
        ([p for p in of_body if p.ndim > 1], body_decay),
        ([p for p in of_body if p.ndim <= 1], norm_decay),
        ([p for p in head.parameters() if p.requires_grad], head_decay),
    ]
    groups: list[dict[str, Any]] = []
    for params, decay in members:
        if params:
            groups.append({"params": params} | ({} if decay is None else {"weight_decay": decay}))
    return groups


def configure(groups: list[dict[str, Any]], optimizer: Optimizer, scheduler: Scheduler) -> Any:
    """What `configure_optimizers` returns: the optimizer, and the scheduler stepped each epoch."""
    built = optimizer(groups)
    return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler(built), "interval": "epoch"}}


class LBFGS(torch.optim.LBFGS):
    """torch's LBFGS (Liu & Nocedal 1989) on `loss + sum_p weight_decay_p / 2 ||p||^2`.

    torch's takes one group of parameters and no weight decay; here each group brings its own, as for the others.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        history_size: int,
        max_iter: int,
        line_search_fn: str | None,
    ) -> None:
        groups = list(params)
        self._decayed = [(p, group.get("weight_decay", weight_decay)) for group in groups for p in group["params"]]
        super().__init__(
            [p for p, _ in self._decayed],
            lr=lr,
            history_size=history_size,
            max_iter=max_iter,
            line_search_fn=line_search_fn,
        )

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        def decayed() -> Tensor:
            loss = torch.as_tensor(closure()).detach().clone()
            with torch.no_grad():
                for p, decay in self._decayed:
                    if decay and p.grad is not None:
                        p.grad.add_(p, alpha=decay)
                        loss = loss + 0.5 * decay * p.square().sum()
                if dist.is_available() and dist.is_initialized():  # all ranks must decide alike on what it is
                    dist.all_reduce(loss)
                    loss = loss / dist.get_world_size()
            return loss

        return super().step(decayed)
