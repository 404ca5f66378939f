"""Every strategy against reverse passes written by hand in float64, and against each other."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ncdd.distill import unrolled
from ncdd.distill.unrolled import Adam, GradientDescent, Steps, train
from ncdd.models import ConvNet, LeNet, Linear

STRATEGIES = list(itertools.product(("full", "recompute"), (False, True)))
T, B, K = 4, 5, 3


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(norm: str = "instance", seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = ConvNet(in_channels=1, image_size=8, width=4, depth=2, norm=norm)
        return nn.Sequential(body, Linear(num_features=body.num_features, num_classes=K, bias=True)).double()


def problem(shape=(1, 8, 8), soft=False) -> tuple[Steps, torch.Tensor, torch.Tensor]:
    """Steps whose tensors are leaves, and a real batch."""
    images = torch.randn(T * B, *shape, dtype=torch.float64, generator=draw(1)).requires_grad_()
    labels = torch.arange(T * B) % K
    if soft:
        labels = torch.softmax(torch.randn(T * B, K, dtype=torch.float64, generator=draw(2)), -1).requires_grad_()
    sizes = torch.tensor([0.3, 0.1, 0.2, 0.4], dtype=torch.float64).requires_grad_()
    real = torch.randn(16, *shape, dtype=torch.float64, generator=draw(3))
    return Steps(images, labels, unrolled.repeated_order(T * B, steps=T, epochs=1), sizes), real, torch.arange(16) % K


def batches_of(steps: Steps) -> list[tuple[torch.Tensor, ...]]:
    return [(steps.images[rows], steps.labels[rows], lr) for rows, lr in zip(steps.order, steps.sizes, strict=True)]


def gradients(steps: Steps) -> list[torch.Tensor]:
    return [t.grad for t in steps if t.requires_grad]


def assert_same(found, expected, tolerance=1e-12):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- by hand


def softmax_regression_by_hand(steps, real, labels, weight, onehot):
    """Loss and gradients (images, soft labels, sizes) of GD on `CE(x W')`, every derivative written out.

    G(W) = (p - y)' x / B; its derivative along V is ((p * (x V' - rowsum(p * x V'))' x) / B.
    """
    trail = [weight]
    for x, y, lr in batches_of(steps):
        p = torch.softmax(x @ trail[-1].T, 1)
        trail.append(trail[-1] - lr * (p - onehot(y)).T @ x / B)
    p = torch.softmax(real @ trail[-1].T, 1)
    loss = -(torch.log(p) * F.one_hot(labels, K)).sum(1).mean()
    adjoint = (p - F.one_hot(labels, K)).T @ real / len(real)
    found = []
    for (x, y, lr), w in reversed(list(zip(batches_of(steps), trail[:-1], strict=True))):
        p, target = torch.softmax(x @ w.T, 1), onehot(y)
        along = x @ adjoint.T  # (B, K), the logits' derivative along the adjoint
        curved = (
            p * (along - (p * along).sum(1, keepdim=True)) / B
        )  # the loss' second derivative in the logits, along it
        size_grad = -(adjoint * ((p - target).T @ x / B)).sum()
        image_grad = -lr * ((p - target) @ adjoint / B + curved @ w)
        label_grad = lr * (along - (p * along).sum(1, keepdim=True)) / B  # the labels' sum scales p
        found.append((image_grad, label_grad, size_grad))
        adjoint = adjoint - lr * curved.T @ x
    images, labels, sizes = zip(*reversed(found), strict=True)
    return loss, [torch.cat(images), torch.cat(labels), torch.stack(sizes)]


@pytest.mark.parametrize(("memory", "vectorise"), STRATEGIES)
@pytest.mark.parametrize("soft", [False, True])
def test_softmax_regression_against_every_derivative_by_hand(memory, vectorise, soft):
    steps, real, labels = problem((6,), soft)
    weights = {"w": torch.randn(K, 6, dtype=torch.float64, generator=draw(4))}

    def inner(w, x, y):
        return F.cross_entropy(x @ w["w"].T, y)

    losses = unrolled.outer_step(
        inner, lambda w: inner(w, real, labels), [weights], steps, memory=memory, vectorise=vectorise
    )
    onehot = (lambda y: y) if soft else (lambda y: F.one_hot(y, K))
    with torch.no_grad():
        loss, (images, soft_labels, sizes) = softmax_regression_by_hand(steps, real, labels, weights["w"], onehot)
    assert_same([losses], [loss.view(1)])
    assert_same(gradients(steps), [images, soft_labels, sizes] if soft else [images, sizes])


def reference_reverse_pass(apply, weights, steps, real, labels):
    """The loop of Wang et al.'s code: stored weights, and one Hessian-vector product a step, going back."""
    trail, batches = [{name: w.clone().requires_grad_() for name, w in weights.items()}], batches_of(steps)
    for x, y, lr in batches_of(steps):
        now = trail[-1]
        grads = torch.autograd.grad(F.cross_entropy(apply(now, x), y), list(now.values()))
        trail.append({k: (w - lr * g).detach().requires_grad_() for (k, w), g in zip(now.items(), grads, strict=True)})
    loss = F.cross_entropy(apply(trail[-1], real), labels)
    adjoint = torch.autograd.grad(loss, list(trail[-1].values()))
    found = []
    for t in reversed(range(T)):
        now = trail[t]
        x, y, lr = batches[t]
        x, lr = x.detach().requires_grad_(), lr.detach().requires_grad_()
        inner = F.cross_entropy(apply(now, x), y)
        moved = [lr * g for g in torch.autograd.grad(inner, list(now.values()), create_graph=True)]
        pulled = torch.autograd.grad(moved, [x, lr, *now.values()], [-a for a in adjoint])
        found.append(pulled[:2])
        adjoint = [a + p for a, p in zip(adjoint, pulled[2:], strict=True)]
    images, sizes = zip(*reversed(found), strict=True)
    return loss.detach(), [torch.cat(images), torch.stack(sizes)]


@pytest.mark.parametrize(("memory", "vectorise"), STRATEGIES)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_networks_against_the_papers_reverse_pass(memory, vectorise, norm):
    steps, real, labels = problem()
    nets = [network(norm, seed) for seed in range(3)]
    before = [p.clone() for net in nets for p in (*net.parameters(), *net.buffers())]
    apply, weights = unrolled.functional(nets[0]), [unrolled.weights_of(net) for net in nets]
    inner = unrolled.inner_loss(apply)
    losses = unrolled.outer_step(
        inner, lambda w: inner(w, real, labels), weights, steps, memory=memory, vectorise=vectorise
    )
    results = [reference_reverse_pass(apply, w, steps, real, labels) for w in weights]
    assert_same([losses], [torch.stack([loss for loss, _ in results])])
    assert_same(gradients(steps), [sum(grads) / 3 for grads in zip(*(g for _, g in results), strict=True)])
    after = [p for net in nets for p in (*net.parameters(), *net.buffers())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "a network or its buffers were changed"


# ---------------------------------------------------------------- variants


@pytest.mark.parametrize("memory", ["full", "recompute"])
@pytest.mark.parametrize("window", [1, 3, 9])
def test_a_window_is_the_unrolled_end_after_a_trained_start(memory, window):
    steps, real, labels = problem()
    apply, weights = unrolled.functional(network()), unrolled.weights_of(network())
    inner = unrolled.inner_loss(apply)
    unrolled.outer_step(inner, lambda w: inner(w, real, labels), [weights], steps, memory=memory, window=window)
    start = max(0, T - window)
    parts, _, _ = problem()
    head = parts._replace(order=parts.order[:start], sizes=parts.sizes[:start])
    tail = parts._replace(order=parts.order[start:], sizes=parts.sizes[start:])
    middle = train(inner, weights, head, differentiable=False)
    assert not any(w.requires_grad for w in middle.values())
    unrolled.outer_step(inner, lambda w: inner(w, real, labels), [middle], tail)
    assert_same(gradients(steps), gradients(parts))
    assert bool((steps.images.grad[: start * B] == 0).all())


@pytest.mark.parametrize(
    ("optimiser", "theirs"),
    [
        (GradientDescent(), lambda p, lr: torch.optim.SGD(p, lr)),
        (GradientDescent(momentum=0.9), lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)),
        (Adam(eps=1e-30), lambda p, lr: torch.optim.Adam(p, lr, eps=1e-15)),
    ],
)
def test_inner_optimisers_are_torchs(optimiser, theirs):
    """With one step size for all steps; and both memory strategies give the same gradient."""
    steps, _, _ = problem()
    steps = steps._replace(sizes=torch.full((T,), 0.01, dtype=torch.float64).requires_grad_())
    net = network("none")  # a norm makes gradients that are rounding error, which Adam would divide by themselves
    apply, start = unrolled.functional(net), unrolled.weights_of(net)
    optimizer = theirs(net.parameters(), 0.01)
    inner, gradients = unrolled.inner_loss(apply), []
    for memory in ("full", "recompute"):
        trained = train(inner, start, steps, optimiser=optimiser, memory=memory)
        total = sum(w.square().sum() for w in trained.values())
        gradients.append(torch.autograd.grad(total, [steps.images, steps.sizes]))
    assert_same(*gradients, 1e-9)
    for x, y, _ in batches_of(steps._replace(images=steps.images.detach())):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert_same([w.detach() for w in trained.values()], list(net.parameters()), 1e-9)


def test_gradients_reach_raw_sizes_shared_images_and_soft_labels_through_shared_uses():
    """E epochs over S batches: an image's gradient is the sum over its uses; `outer_step` adds to what is there."""
    images = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=draw(1)).requires_grad_()
    raw_labels = torch.randn(6, K, dtype=torch.float64, generator=draw(2)).requires_grad_()
    raw = unrolled.raw_step_sizes(0.1, 4).double().requires_grad_()
    order = unrolled.repeated_order(6, steps=2, epochs=2)
    assert order.tolist() == [[0, 1, 2], [3, 4, 5]] * 2
    inner = unrolled.inner_loss(unrolled.functional(network()))
    real, labels = torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=draw(3)), torch.arange(8) % K
    nets = [unrolled.weights_of(network(seed=seed)) for seed in range(2)]

    def steps():
        return Steps(images, raw_labels.softmax(1), order, unrolled.step_sizes(raw))

    def objective(w):
        return inner(w, real, labels)

    for _ in range(2):
        unrolled.outer_step(inner, objective, nets, steps())
    loss = sum(objective(train(inner, net, steps())) for net in nets) / 2
    expected = torch.autograd.grad(loss, [images, raw_labels, raw])
    assert_same([t.grad for t in (images, raw_labels, raw)], [2 * g for g in expected])
    torch.testing.assert_close(unrolled.step_sizes(raw), torch.full((4,), 0.1).double(), rtol=1e-6, atol=0)


def test_a_balanced_order_takes_as_many_of_each_class_in_every_step():
    classes = torch.arange(3).repeat_interleave(4 * 2)  # two images a class in each of four steps
    order = unrolled.balanced_order(3, 2, steps=4, epochs=2)
    assert order.shape == (8, 6)
    for rows in order:
        assert classes[rows].bincount().tolist() == [2, 2, 2]
    assert order[0].tolist() == [0, 1, 8, 9, 16, 17]
    assert order[:4].flatten().sort().values.tolist() == list(range(24)), "an epoch uses every image once"
    assert torch.equal(order[4:], order[:4])


def test_shuffling_moves_whole_steps():
    order = unrolled.repeated_order(20, steps=10, epochs=1)
    mixed = unrolled.shuffled_order(order, draw())
    assert not torch.equal(order, mixed)
    assert torch.equal(mixed[mixed[:, 0].argsort()], order)


def test_lenet_runs_stacked():
    """Max pooling and Xavier weights under vmap, against the loop."""
    nets = [nn.Sequential(LeNet(in_channels=1, image_size=12), nn.Linear(84, K)).double() for _ in range(2)]
    inner = unrolled.inner_loss(unrolled.functional(nets[0]))
    found = []
    for vectorise in (False, True):
        steps, real, labels = problem((1, 12, 12))
        weights = [unrolled.weights_of(net) for net in nets]
        losses = unrolled.outer_step(
            inner, lambda w, x=real, y=labels: inner(w, x, y), weights, steps, vectorise=vectorise
        )
        found.append([losses, *gradients(steps)])
    assert_same(*found)


def test_a_loss_that_is_not_finite_stops_before_any_gradient():
    steps, real, labels = problem()
    steps = steps._replace(sizes=torch.full((T,), 1e200, dtype=torch.float64).requires_grad_())
    inner = unrolled.inner_loss(unrolled.functional(network()))
    with pytest.raises(unrolled.Diverged, match=r"of 1 of 1 networks is not finite, with step sizes from 1e\+200"):
        unrolled.outer_step(inner, lambda w: inner(w, real, labels), [unrolled.weights_of(network())], steps)
    assert steps.images.grad is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unrolled.repeated_order(10, steps=3, epochs=1), "steps=3: cannot share 10 images equally"),
        (lambda: unrolled.raw_step_sizes(0.0, 3), "step size 0.0: a number > 0"),
        (lambda: train(None, {}, problem()[0], memory="half"), "memory='half': choose from full, recompute"),
        (lambda: train(None, {}, problem()[0], window=0), "window=0: a number of steps >= 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
