"""Evaluation against a plain torch loop, against itself stacked, and against what its formulas say."""

import logging
import re
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from ncdd.allocator import keep_freed_memory
from ncdd.data.sources import digits
from ncdd.distill import evaluate as ev
from ncdd.distill import unrolled
from ncdd.distill.augment import DiffAugment
from ncdd.distill.compute import Cost, measured
from ncdd.distill.coresets import coreset
from ncdd.distill.evaluate import Protocol, evaluate
from ncdd.distill.synthetic import SyntheticSet
from ncdd.models import MLP, ConvNet, Linear, SimplexETF

DIGITS = digits()
X, Y = ((DIGITS.train.pixels.float() / 255 - 0.3) / 0.37), DIGITS.train.labels
TEST = [((DIGITS.test.pixels.float() / 255 - 0.3) / 0.37, DIGITS.test.labels)]
QUICK = Protocol(epochs=8, batch_size=10, lr=0.05)


def real_set(per_class: int = 3, **changes) -> SyntheticSet:
    generator = torch.Generator().manual_seed(0)
    images, labels = coreset("random", X, Y, num_classes=10, per_class=per_class, generator=generator)
    return SyntheticSet(**{"images": images, "labels": labels} | changes)


def new_network(norm: str = "instance", head: str = "linear") -> nn.Module:
    body = ConvNet(in_channels=1, image_size=8, width=8, depth=2, norm=norm)
    given = {"num_features": body.num_features, "num_classes": 10, "bias": True}
    etf = {"rotation": "random", "scale": 1.0, "seed": int(torch.randint(100, ()))}
    return nn.Sequential(body, Linear(**given) if head == "linear" else SimplexETF(**given, **etf))


def test_one_full_batch_run_is_a_plain_torch_loop():
    """30 images in one batch: no order to draw, so torch alone must give the same accuracy."""
    protocol = Protocol(epochs=20, batch_size=256, lr=0.05)
    found = evaluate(real_set(), new_network, TEST, seed=3, protocol=protocol, networks=2)
    data, expected = real_set(), []
    for index in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(ev.fold_in(3, ev.INIT, index))
            net = new_network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10], gamma=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(data.images), data.labels).backward()
            optimizer.step()
            schedule.step()
        expected.append((net(TEST[0][0]).argmax(1) == TEST[0][1]).float().mean().item())
    assert found.accuracies == pytest.approx(expected, abs=3 / len(TEST[0][1]))
    assert found.steps == 20
    assert found.mean > 0.5


@pytest.mark.parametrize("head", ["linear", "etf"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_stacked_is_one_by_one(head, optimizer):
    """The same weights, orders and augmentations; a fixed ETF differs between the networks too."""
    augment = DiffAugment(strategy="color_crop_cutout_scale_rotate")
    protocol = replace(QUICK, optimizer=optimizer, lr=0.01, augment=augment, epochs=3)
    runs = [
        evaluate(
            real_set(), lambda: new_network(head=head), TEST, seed=0, protocol=protocol, networks=3, stacked=stacked
        )
        for stacked in (False, True)
    ]
    assert runs[0].accuracies == pytest.approx(runs[1].accuracies, abs=3 / len(TEST[0][1]))
    assert len(set(runs[0].accuracies)) == 3


def test_seeds_are_the_networks_and_nothing_else():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    five = evaluate(real_set(), new_network, TEST, seed=0, protocol=QUICK, networks=3, stacked=False)
    assert torch.equal(state, torch.random.get_rng_state())
    one = evaluate(real_set(), new_network, TEST, seed=0, protocol=QUICK, networks=1)
    assert one.accuracies == five.accuracies[:1]
    assert evaluate(real_set(), new_network, TEST, seed=1, protocol=QUICK, networks=1).accuracies != one.accuracies


def mlp() -> nn.Module:
    body = MLP(in_channels=1, image_size=8, width=32, depth=1, norm="none")
    return nn.Sequential(body, Linear(num_features=32, num_classes=10, bias=True))


@pytest.mark.parametrize("new", [lambda: new_network("batch"), mlp], ids=["batch norm", "mlp"])
def test_other_networks_learn_too(new):
    protocol = replace(QUICK, batch_size=32, epochs=30)
    found = evaluate(real_set(10), new, TEST, seed=0, protocol=protocol, networks=3)
    assert len(found.accuracies) == 3
    assert found.mean > 0.6


@pytest.mark.parametrize("stacked", [False, True])
def test_what_else_is_measured_is_of_the_trained_networks(stacked):
    """The accuracies again, by the networks that are handed out; their training is not part of it."""

    def again(network: nn.Module) -> dict[str, float]:
        assert not network.training
        return {"accuracy": ev.accuracy(network, TEST)}

    found = evaluate(real_set(), new_network, TEST, seed=0, protocol=QUICK, networks=2, stacked=stacked, further=again)
    assert tuple(numbers["accuracy"] for numbers in found.further) == found.accuracies
    assert found.mean > 0.3


def test_cost_of_a_block():
    with measured("cpu") as cost:
        torch.ones(2**26).sum()  # 256 MiB, freed: malloc keeps it
        time.sleep(0.05)
    with measured("cpu") as little:
        pass
    assert 0.05 <= cost.seconds < 5
    assert cost.memory > little.memory + 2**27
    assert cost.hardware.startswith("CPU, ")
    assert re.fullmatch(r"\d\.\d s, [\d,]+ MB, CPU, \d+ threads?", str(cost))


def test_a_block_that_sleeps_costs_no_time_of_the_cpu():
    keep_freed_memory()
    del [torch.ones(2**26) for _ in range(4)][:]  # a GiB, which is given back before the clocks start
    with measured("cpu") as cost:
        time.sleep(0.1)
    assert 0 <= cost.cpu_seconds < 0.05 < 0.1 <= cost.seconds


def test_costs_add_up():
    total = Cost("CPU", 1.0, 5, 0.5) + Cost("CPU", 2.0, None, 1.5) + Cost("CPU", 3.0, 4, 2.5)
    assert total == Cost("CPU", 6.0, 5, 4.5)
    assert (Cost("CPU") + Cost("CPU")).memory is None


def test_batch_norm_cannot_be_stacked():
    with pytest.raises(ValueError, match="stacked=True: networks with BatchNorm cannot be trained together"):
        evaluate(real_set(), lambda: new_network("batch"), TEST, seed=0, protocol=QUICK, stacked=True)


def test_mse_trains_on_targets_and_cross_entropy_refuses_them():
    hard = real_set()
    targets = torch.nn.functional.one_hot(hard.labels, 10).float() - 0.1
    protocol = replace(QUICK, loss="mse")
    runs = [
        evaluate(s, new_network, TEST, seed=0, protocol=protocol, networks=1)
        for s in (hard, replace(hard, labels=targets))
    ]
    assert runs[0].accuracies == runs[1].accuracies
    assert runs[0].mean > 0.3
    with pytest.raises(ValueError, match="labels are regression targets, no probabilities; use loss='mse'"):
        evaluate(replace(hard, labels=targets), new_network, TEST, seed=0, protocol=QUICK)


def test_a_stepwise_set_is_trained_by_its_steps(caplog):
    data = real_set(step_sizes=torch.tensor([0.1, 0.3, 0.2]), order=torch.arange(30).view(3, 10))
    found = evaluate(data, lambda: new_network("batch"), TEST, seed=0, networks=1)
    net = ev._fresh(lambda: new_network("batch"), 0, 0)
    for rows, size in zip(data.order, data.step_sizes, strict=True):
        torch.optim.SGD(net.parameters(), lr=float(size)).zero_grad()
        nn.functional.cross_entropy(net(data.images[rows]), data.labels[rows]).backward()
        torch.optim.SGD(net.parameters(), lr=float(size)).step()
    expected = ev.accuracy(net, TEST)  # still in training mode: by the batch's statistics
    assert found.accuracies == pytest.approx([expected], abs=1e-6)
    assert (found.steps, caplog.text) == (3, "")
    with caplog.at_level(logging.WARNING):
        evaluate(data, new_network, TEST, seed=0, protocol=replace(QUICK, epochs=1), networks=1, own_steps=False)
    assert "step-wise one: it works only in its own order" in caplog.text


def test_networks_that_are_kept_are_tested_once_each():
    """Two networks, whose own steps leave nothing to chance: asked for five, there are two results and no copies."""
    kept = [ev._fresh(new_network, 7, index) for index in range(2)]
    data = real_set(1, step_sizes=torch.tensor([0.1]), order=torch.arange(10).view(1, 10))
    found = evaluate(data, ev.Kept(kept), TEST, seed=0, networks=5)
    assert found.accuracies == evaluate(data, new_network, TEST, seed=7, networks=2).accuracies
    assert len(ev.fresh_networks(new_network, 5, seed=0)) == 5
    assert str(evaluate(data, ev.Kept(kept[:1]), TEST, seed=0, networks=5)).endswith("(n = 1)")


def test_distilling_beats_its_own_random_start():
    """Ten random digits against the same ten after 60 outer steps of the unrolled method, from fixed weights."""
    data, net = real_set(1), ev._fresh(new_network, 0, 0)
    images, raw = data.images.clone().requires_grad_(), unrolled.raw_step_sizes(0.1, 3).requires_grad_()
    order = unrolled.repeated_order(10, steps=1, epochs=3)
    inner, start = unrolled.inner_loss(unrolled.functional(net)), unrolled.weights_of(net)
    optimizer = torch.optim.Adam([images, raw], lr=0.05, betas=(0.5, 0.999))
    generator = torch.Generator().manual_seed(0)

    def made() -> SyntheticSet:
        return replace(data, images=images.detach(), step_sizes=unrolled.step_sizes(raw).detach(), order=order)

    before = evaluate(made(), new_network, TEST, seed=0, networks=1)
    for _ in range(60):
        rows = torch.randint(len(X), (128,), generator=generator)
        optimizer.zero_grad()
        steps = unrolled.Steps(images, data.labels, order, unrolled.step_sizes(raw))
        unrolled.outer_step(inner, lambda w, x=X[rows], y=Y[rows]: inner(w, x, y), [start], steps)
        optimizer.step()
    assert evaluate(made(), new_network, TEST, seed=0, networks=1).mean > before.mean + 0.3


def test_baselines_are_of_the_same_size_and_random_has_draws():
    found = ev.baselines(X, Y, num_classes=10, per_class=1, seed=0, draws=3)
    assert {name: len(sets) for name, sets in found.items()} == {
        "random": 3,
        "herding": 1,
        "kmeans": 1,
        "class_mean": 1,
        "nearest": 1,
    }
    assert all(len(data) == 10 and data.method == name for name, sets in found.items() for data in sets)
    assert not torch.equal(found["random"][0].images, found["random"][1].images)
    assert "class_mean" not in ev.baselines(X, Y, num_classes=10, per_class=2, seed=0)
    results = [evaluate(data, new_network, TEST, seed=0, protocol=QUICK, networks=1) for data in found["random"]]
    total = ev.merged(results)
    assert total.accuracies == tuple(result.accuracies[0] for result in results)
    assert total.cost.seconds == pytest.approx(sum(result.cost.seconds for result in results))


# ---------------------------------------------------------------- formulas


def test_protocols():
    assert Protocol().num_steps(10) == 300
    assert Protocol().num_steps(600) == 900
    assert [Protocol().scale(step, 300) for step in (0, 149, 150)] == [1.0, 1.0, 0.1]
    cosine = Protocol(schedule="cosine", warmup=10)
    assert [cosine.scale(step, 110) for step in (0, 9, 10, 60)] == pytest.approx([0.1, 1, 1, 0.5])
    cosine = Protocol(schedule="cosine", warmup=10, final=0.01)  # optax's cosine_decay_schedule(1, 100, alpha=0.01)
    assert [cosine.scale(step, 110) for step in (9, 10, 60, 110)] == pytest.approx([1, 1, 0.505, 0.01])
    with pytest.raises(ValueError, match=r"final=2: a fraction of the learning rate"):
        Protocol(final=2)
    with pytest.raises(ValueError, match="optimizer='lion': choose from sgd, adam"):
        Protocol(optimizer="lion")
    for wrong in ({"lr": -1.0}, {"lr": float("nan")}, {"warmup": -5}, {"momentum": 5.0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}.* are needed"):
            Protocol(**wrong)
    with pytest.raises(ValueError, match="warmup=500, steps=20: no more steps of warm-up than of training"):
        Protocol(steps=20, warmup=500)
    for name in ("steps", "epochs", "batch_size"):
        with pytest.raises(ValueError, match=f"{name}=0: a number >= 1 is needed"):
            Protocol(**{name: 0})


def test_mean_and_deviation():
    result = ev.Evaluation((0.5, 0.6, 0.7), 10, Cost("CPU"))
    assert (result.mean, result.std) == (pytest.approx(0.6), pytest.approx(0.1))
    assert str(result) == "60.00 +- 10.00 % (n = 3)"
    assert result.named("a").keys() == {"a", "a_std"}
    alone = ev.Evaluation((0.5,), 10, Cost("CPU"))
    assert (alone.std, str(alone), alone.named("a")) == (None, "50.00 % (n = 1)", {"a": 0.5})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": []}, "test: no images to test on"),
        (
            {"test": [(torch.zeros(2, 1, 9, 9), torch.zeros(2))]},
            r"of shape \(1, 8, 8\), the test images have \(1, 9, 9\)",
        ),
        ({"networks": 0}, "networks=0: a number >= 1 is needed"),
    ],
)
def test_what_cannot_be_evaluated(changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**{"synthetic": real_set(), "new_network": new_network, "test": TEST, "seed": 0} | changes)


def test_the_best_of_several_protocols_is_by_validation(caplog):
    """A rate of 1e-6 teaches nothing, one of 10 diverges, so 0.05 wins; equal ones are told apart by their order."""
    tried = {"lr": [1e-6, 0.05, 10.0], "weight_decay": [0.0, 0.0]}
    with caplog.at_level(logging.INFO):
        found = ev.best_protocol(real_set(), new_network, TEST, replace(QUICK, epochs=20), tried, seed=0)
    assert found == replace(QUICK, epochs=20, lr=0.05, weight_decay=0.0)
    assert len(caplog.messages) == 6
    assert caplog.messages[0].startswith("lr 1e-06, weight_decay 0 on validation: ")
