"""Training unrolled: a network trained for T steps on synthetic data, differentiated in that data (Wang et al. 2018).

Shapes: N images (C, H, W), T steps of B of them, K classes, n networks. Weights are a dict, name -> tensor; networks
that train together ("stacked") have a leading axis n in each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_, vmap
from torch.nn import functional as F

Weights = dict[str, Tensor]
Apply = Callable[[Weights, Tensor], Tensor]  # (weights, images (B, C, H, W)) -> logits (B, K)
Inner = Callable[[Weights, Tensor, Tensor], Tensor]  # (weights, images, labels) -> loss ()
Objective = Callable[[Weights], Tensor]  # weights after the last step -> outer loss ()
_Step = Callable[..., tuple[Tensor, ...]]  # (batch, weights and optimiser state, graph=) -> those after the step


class Diverged(FloatingPointError):  # noqa: N818 - a state of the computation, named as one says it
    """An outer loss that is not a finite number."""


# ---------------------------------------------------------------- networks as functions


def functional(network: nn.Module) -> Apply:
    """`network` as a function of its weights; the module that is given is never changed.

    What it does not train, a fixed ETF head say, stays as it is in `network` for whatever weights.
    BatchNorm normalises by the batch it is given and keeps no running statistics: under the T steps these would mix
    the networks and be a second, undifferentiated path from images to loss.
    """
    bare = copy.deepcopy(network).train()
    replace_all_batch_norm_modules_(bare)

    def apply(weights: Weights, images: Tensor) -> Tensor:
        return functional_call(bare, weights, (images,))

    return apply


def weights_of(network: nn.Module) -> Weights:
    """A copy of what `network` trains."""
    return {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}


def stack(networks: Sequence[Weights]) -> Weights:
    """n networks as one with a leading axis n."""
    return {name: torch.stack([weights[name] for weights in networks]) for name in networks[0]}


def inner_loss(apply: Apply, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy) -> Inner:
    """`loss(logits, labels)` of a network's weights on a batch; cross-entropy takes hard and soft labels."""
    return lambda weights, images, labels: loss(apply(weights, images), labels)


# ---------------------------------------------------------------- what is learned


class Steps(NamedTuple):
    """images (N, C, H, W), labels (N,) or (N, K), the images' order (T, B) int64, and step sizes (T,)."""

    images: Tensor
    labels: Tensor
    order: Tensor
    sizes: Tensor


def repeated_order(num_images: int, steps: int, epochs: int) -> Tensor:
    """(T, B) int64: all images in `steps` batches of neighbours, `epochs` times over; T = steps * epochs."""
    if num_images % steps:
        raise ValueError(f"steps={steps}: cannot share {num_images} images equally; use a divisor")
    return torch.arange(num_images).view(steps, -1).repeat(epochs, 1)


def balanced_order(num_classes: int, per_class: int, *, steps: int, epochs: int) -> Tensor:
    """(T, B) int64 for images that are ordered by class: each step has `per_class` of each, B in all.

    The first step takes the first ones of each class, the next step the next; T = steps * epochs.
    """
    images = torch.arange(num_classes * steps * per_class).view(num_classes, steps, per_class)
    return images.transpose(0, 1).reshape(steps, -1).repeat(epochs, 1)


def shuffled_order(order: Tensor, generator: torch.Generator) -> Tensor:
    """The same steps in a random order."""
    return order[torch.randperm(len(order), generator=generator)]


def raw_step_sizes(size: float, steps: int) -> Tensor:
    """(T,) of what `step_sizes` maps to `size`: log(exp(size) - 1)."""
    if not size > 0:
        raise ValueError(f"step size {size}: a number > 0 is needed")
    return torch.full((steps,), size, dtype=torch.float64).expm1().log().float()


def step_sizes(raw: Tensor) -> Tensor:
    """softplus: positive whatever the optimiser does to `raw`."""
    return F.softplus(raw)


# ---------------------------------------------------------------- inner optimisers


@dataclass(frozen=True)
class GradientDescent:
    """`v <- momentum v + g; w <- w - lr v`; plain gradient descent without momentum, as in the paper."""

    momentum: float = 0.0

    def start(self, weights: Sequence[Tensor]) -> list[Tensor]:
        return [torch.zeros_like(w) for w in weights] if self.momentum else []

    def update(
        self, weights: Sequence[Tensor], state: Sequence[Tensor], grads: Sequence[Tensor], lr: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        if self.momentum:
            grads = state = [self.momentum * v + g for v, g in zip(state, grads, strict=True)]
        down = -lr  # one number to negate, where `w - lr g` negates every gradient on the way back
        return [w + down * g for w, g in zip(weights, grads, strict=True)], list(state)


@dataclass(frozen=True)
class Adam:
    """Adam with eps under the root, where its derivative stays finite for weights without gradient."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def start(self, weights: Sequence[Tensor]) -> list[Tensor]:
        zeros = [torch.zeros_like(w) for w in weights]
        return [*zeros, *zeros, weights[0].new_zeros(())]

    def update(
        self, weights: Sequence[Tensor], state: Sequence[Tensor], grads: Sequence[Tensor], lr: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        n, t = len(weights), state[-1] + 1
        m = [self.beta1 * m + (1 - self.beta1) * g for m, g in zip(state[:n], grads, strict=True)]
        v = [self.beta2 * v + (1 - self.beta2) * g * g for v, g in zip(state[n:-1], grads, strict=True)]
        short1, short2 = 1 - self.beta1**t, 1 - self.beta2**t
        new = [w - lr * a / short1 / (b / short2 + self.eps).sqrt() for w, a, b in zip(weights, m, v, strict=True)]
        return new, [*m, *v, t]


# ---------------------------------------------------------------- the inner loop


def train(
    inner: Inner,
    weights: Weights,
    steps: Steps,
    *,
    optimiser: GradientDescent | Adam = GradientDescent(),
    differentiable: bool = True,
    memory: Literal["full", "recompute"] = "full",
    window: int | None = None,
) -> Weights:
    """The weights after T steps, differentiable in the steps' images, labels and sizes, and in `weights`.

    differentiable: False keeps no graph at all.
    memory: "full" keeps the graph of every step; "recompute" keeps the weights between steps, and computes each
            step's graph again when it is differentiated: T times less memory for about a quarter more time.
    window: differentiate the last `window` steps only (truncated; the steps before them get no gradient).
    """
    if memory not in ("full", "recompute"):
        raise ValueError(f"memory={memory!r}: choose from full, recompute")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: a number of steps >= 1 is needed, or None for all")
    names, count, total = list(weights), len(weights), len(steps.sizes)
    first = 0 if window is None else max(0, total - window)

    def step(batch: Sequence[Tensor], tensors: Sequence[Tensor], graph: bool) -> tuple[Tensor, ...]:
        images, labels, rows, lr = batch
        values, state = tensors[:count], tensors[count:]
        x, y = images.index_select(0, rows), labels.index_select(0, rows)
        value = inner(dict(zip(names, values, strict=True)), x, y).sum()
        grads = torch.autograd.grad(value, values, create_graph=graph, allow_unused=True, materialize_grads=True)
        return tuple(t for group in optimiser.update(values, state, grads, lr) for t in group)

    values = tuple(weights.values())
    tensors = (*values, *optimiser.start(values))
    order = steps.order.to(steps.images.device)
    for t, (rows, lr) in enumerate(zip(order, steps.sizes.unbind(), strict=True)):
        batch = (steps.images, steps.labels, rows, lr)
        if not differentiable or t < first:
            tensors = _without_graph(step, batch, tensors, count)
        elif memory == "recompute":
            tensors = _Recomputed.apply(step, count, *batch, *tensors)
        else:
            tensors = tuple(_with_grad(w) for w in tensors[:count]) + tensors[count:]
            with torch.enable_grad():
                tensors = step(batch, tensors, graph=True)
    return dict(zip(names, tensors[:count], strict=True))


def _with_grad(tensor: Tensor) -> Tensor:
    """Itself where it has a history, else a leaf that grad can be taken in."""
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_()


def _without_graph(step: _Step, batch: Sequence[Tensor], tensors: Sequence[Tensor], count: int) -> tuple[Tensor, ...]:
    """A step whose results have no history."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_(i < count) for i, t in enumerate(tensors)]
        return tuple(t.detach() for t in step([t.detach() for t in batch], leaves, graph=False))


class _Recomputed(torch.autograd.Function):
    """One step that keeps its inputs only. A checkpoint of torch.utils cannot hold the gradient taken inside.

    The inputs hold the whole set and the rows of this step, not their images, so that T steps share one copy.
    """

    BATCH = 4  # images, labels, rows and step size come before the weights

    @staticmethod
    def forward(ctx: Any, step: _Step, count: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.step, ctx.count = step, count
        ctx.save_for_backward(*inputs)
        return _without_graph(step, inputs[: _Recomputed.BATCH], inputs[_Recomputed.BATCH :], count)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # the inner gradient is taken in the weights, whether the outer one is or not
        weights = range(_Recomputed.BATCH, _Recomputed.BATCH + ctx.count)
        needed = ctx.needs_input_grad[2:]
        inputs = [t.detach().requires_grad_(needed[i] or i in weights) for i, t in enumerate(ctx.saved_tensors)]
        with torch.enable_grad():
            outputs = ctx.step(inputs[: _Recomputed.BATCH], inputs[_Recomputed.BATCH :], graph=True)
        wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
        moved = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
        results, pulls = zip(*moved, strict=True)
        found = iter(torch.autograd.grad(results, wanted, pulls, allow_unused=True))
        return (None, None, *(next(found) if need else None for need in needed))


# ---------------------------------------------------------------- the outer step


def outer_step(
    inner: Inner,
    objective: Objective,
    networks: Sequence[Weights],
    steps: Steps,
    *,
    optimiser: GradientDescent | Adam = GradientDescent(),
    memory: Literal["full", "recompute"] = "full",
    window: int | None = None,
    vectorise: bool = False,
) -> Tensor:
    """Train each network by `steps` and add the gradient of the mean objective to whatever leaves `steps` come from.

    Returns the objective of each network, (n,), without graph.
    vectorise: all networks train at once by `torch.vmap`; else one after the other, each graph freed before the next.
               The objective is taken one by one either way: its batches are large, and fill the machine by themselves.
    Raises Diverged, and adds nothing, where an objective is not finite.
    """
    leaves = Steps(*(t.detach().requires_grad_(t.requires_grad) for t in steps))
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    totals = [torch.zeros_like(leaf) for leaf in wanted]
    trained_on = vmap(inner, (0, None, None), randomness="different") if vectorise else inner
    values: list[Tensor] = []
    for weights in [stack(networks)] if vectorise else networks:
        trained = train(trained_on, weights, leaves, optimiser=optimiser, memory=memory, window=window)
        members = _unstack(trained) if vectorise else [trained]
        pulls = [_pull(objective, member, len(networks)) for member in members]
        values += [value for value, _ in pulls]
        adjoints = [torch.stack(parts) if vectorise else parts[0] for parts in zip(*(g for _, g in pulls), strict=True)]
        grads = torch.autograd.grad(list(trained.values()), wanted, adjoints, allow_unused=True, materialize_grads=True)
        for total, grad in zip(totals, grads, strict=True):
            total += grad
    losses = torch.stack(values)
    if not bool(losses.isfinite().all()):
        low, high = (float(bound) for bound in steps.sizes.detach().aminmax())
        raise Diverged(
            f"the outer loss of {int((~losses.isfinite()).sum())} of {len(losses)} networks is not finite, with step "
            f"sizes from {low:.3g} to {high:.3g}: lower the outer learning rate or the initial step size"
        )
    torch.autograd.backward([t for t in steps if t.requires_grad], totals)
    return losses


def _unstack(weights: Weights) -> list[Weights]:
    return [dict(zip(weights, parts, strict=True)) for parts in zip(*weights.values(), strict=True)]


def _pull(objective: Objective, weights: Weights, count: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The objective of one of `count` networks, and the gradient of its share of the mean in the weights."""
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    value = objective(leaves)
    wanted = list(leaves.values())
    return value.detach(), torch.autograd.grad(value / count, wanted, allow_unused=True, materialize_grads=True)
