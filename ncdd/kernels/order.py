"""Functions of autograd with a first derivative only."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., Any]


def first_order(backward: Backward) -> Backward:
    """For a `torch.autograd.Function`'s backward pass: ``create_graph=True`` raises RuntimeError.

    torch's own `once_differentiable` raises only where the incoming gradient has a graph, and calls the derivative of
    anything else a constant: Hessians would be silently wrong.
    """

    @wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("kernels and ridge regression are differentiable once: create_graph=True asks for more")
        return backward(ctx, *grads)

    return checked
