"""Joint and Invert under a Trainer, on digits: a step by hand, what they reach, and through a stop."""

import copy
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from ncdd.callbacks import NeuralCollapseCallback
from ncdd.callbacks.guards import StepSeed
from ncdd.collapse import measure
from ncdd.data import ImageDataModule, sources
from ncdd.distill.augment import DiffAugment
from ncdd.distill.evaluate import Protocol, accuracy, evaluate
from ncdd.distill.pool import NetworkPool
from ncdd.methods.invert import Invert, total_variation
from ncdd.methods.joint import Joint
from ncdd.models import MLP, Linear, Network, SimplexETF, XavierLinear

EVERY = 10


def new_network(head: str = "etf", width: int = 32) -> Network:
    body = MLP(in_channels=1, image_size=8, width=width, depth=2, norm="none")
    if head == "linear":
        return Network(body, Linear(num_features=width, num_classes=10, bias=True))
    etf = SimplexETF(num_features=width, num_classes=10, bias=False, rotation="random", scale=1.0, seed=0)
    return Network(body, etf)


def learned_head() -> Network:
    return Network(new_network().model, XavierLinear(num_features=32, num_classes=10, bias=True))


def shared(lr: float = 0.1) -> dict:
    return {
        "new_network": new_network,
        "optimizer": partial(torch.optim.Adam, lr=lr),
        "scheduler": partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
        "images_per_class": 1,
        "init": "noise",
        "learn_labels": False,
    }


def joint(*, size: int = 2, max_age: int | None = 5, **changes) -> Joint:
    own = {
        "objective": "ncc",
        "pool": partial(NetworkPool, optimizer=partial(torch.optim.SGD, lr=0.05), size=size, max_age=max_age),
        "pool_data": "S+T",
        "match_blocks": True,
        "partition": 1,
        "real_per_class": 8,
        "augment": DiffAugment(strategy="none"),
        "temperature": 3.0,
        "reg": 1e-3,
        "inner_steps": 2,
        "inner_lr": 0.1,
        "etf_weight": 0.0,
        "covariance_weight": 0.0,
    }
    torch.manual_seed(0)
    return Joint(**shared() | own | changes)


@pytest.fixture(scope="module")
def digits() -> ImageDataModule:
    data = ImageDataModule(source=sources.digits, batch_size=64, measure_batch_size=200, seed=0, val_fraction=0.1)
    data.setup()
    return data


def fit(method, data, steps, *callbacks, resume=None):
    """Trained for so many steps: less than an epoch, or whole ones."""
    trainer = pl.Trainer(
        max_epochs=max(1, steps // EVERY),
        limit_train_batches=min(steps, EVERY),
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StepSeed(seed=0), *callbacks],
    )
    data.draws = (method.sampling, EVERY)
    trainer.fit(method, datamodule=data, ckpt_path=resume, weights_only=True)
    return method


def from_scratch(method, data) -> float:
    """Accuracy of fresh networks on validation images."""
    found = evaluate(
        method.synthetic_set(),
        partial(new_network, "linear"),
        data.val_dataloader(),
        seed=0,
        protocol=Protocol(steps=100, lr=0.1),
        networks=2,
    )
    return found.mean


# ---------------------------------------------------------------- joint


def test_one_step_by_hand(digits):
    """One network, objective means: the set and the weights move along the gradients of two separate losses."""
    method = joint(
        size=1,
        max_age=None,
        objective="means",
        match_blocks=False,
        optimizer=partial(torch.optim.SGD, lr=0.5),
        init="real",
    )
    before, batches = copy.deepcopy(method.pool.networks[0]), []

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            batches.append((batch, module.images.detach().clone()))

    fit(method, digits, 1, Keep())
    (((real, classes), images),) = batches
    images.requires_grad_()
    with torch.no_grad():
        h = before.forward_features(real)
        mu = torch.stack([h[classes == c].mean(0) for c in range(10)])
        unit = (mu - mu.mean(0)).square().sum(1).mean()
    loss = (mu - before.forward_features(images)).square().sum() / (10 * unit)
    loss.backward()
    torch.testing.assert_close(method.images.detach(), (images - 0.5 * images.grad).detach(), rtol=1e-4, atol=1e-5)
    weights = [p.requires_grad_() for name, p in before.named_parameters() if name != "head.weight"]
    both, labels = torch.cat([real, images.detach()]), torch.cat([classes, torch.arange(10)])
    gradients = torch.autograd.grad(F.cross_entropy(before(both), labels), weights)
    after = [p for name, p in method.pool.networks[0].named_parameters() if name != "head.weight"]
    for old, gradient, new in zip(weights, gradients, after, strict=True):
        torch.testing.assert_close(new, (old - 0.05 * gradient).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ["ncc", "means", "krr_etf", "unroll"])
def test_images_of_noise_come_to_teach_networks(objective, digits):
    """Where guessing, and what is learned of noise, is 0.1."""
    method = fit(joint(objective=objective, max_age=20), digits, 150)
    assert from_scratch(method, digits) > 0.25


def test_read_literally_the_images_learn_nothing_of_the_real_ones(digits):
    """Their own loss falls, and networks trained on them guess."""
    method = fit(joint(objective="literal", max_age=20), digits, 150)
    assert float(method.set_loss) < 0.7 * torch.tensor(10.0).log()
    assert from_scratch(method, digits) < 0.2


@pytest.mark.parametrize(
    "changes",
    [
        {"pool_data": "S"},
        {"pool_data": "T"},
        {"learn_labels": True},
        {"images_per_class": 2, "covariance_weight": 0.1},
        {"etf_weight": 1.0},
        {"new_network": partial(new_network, "linear")},
        {"new_network": partial(new_network, "etf", 10)},  # d = K
        {"size": 1, "max_age": None},
        {"partition": 2, "init": "kmeans", "covariance_weight": 0.1},
    ],
    # not str: the address of a function differs between the processes of a parallel run
    ids=["S", "T", "labels", "covariance", "etf_weight", "linear_head", "d=K", "one_network", "partition"],
)
def test_variants_move_the_set_and_keep_its_form(changes, digits):
    method = joint(**changes)
    fit(method, digits, 10)
    start = joint(**changes)
    fit(start, digits, 0)
    found = method.synthetic_set()
    assert found.images.isfinite().all()
    assert not torch.equal(found.images, start.synthetic_set().images)
    assert found.classes.tolist() == start.synthetic_set().classes.tolist()
    if "learn_labels" in changes:
        torch.testing.assert_close(found.labels.sum(1), torch.ones(10))
        assert not torch.equal(found.labels, start.synthetic_set().labels)


def test_a_partition_learns_four_images_of_the_numbers_of_one(digits):
    """Of 4 x 4 pixels, seen as 8 x 8: between the centres of two pixels lie two new ones, at a quarter and three."""
    method = fit(joint(partition=2), digits, 1)
    assert method.images.numel() == 10 * 8 * 8
    found = method.synthetic_set()
    assert found.images.shape == (40, 1, 8, 8)
    assert found.labels.tolist() == [c for c in range(10) for _ in range(4)]
    between = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    pairs = torch.stack([torch.arange(3), torch.arange(1, 4)], 1)
    enlarge = torch.zeros(8, 4)
    enlarge[0, 0] = enlarge[7, 3] = 1.0
    for row, pair in zip(range(1, 7, 2), pairs, strict=True):
        enlarge[row : row + 2, pair] = between
    torch.testing.assert_close(found.images, enlarge @ method.images.detach() @ enlarge.T)


def test_a_partition_starts_at_means_of_pixels(digits):
    """Of the images that a set of four a class would start at."""
    parts, whole = joint(partition=2, init="kmeans"), joint(images_per_class=4, init="kmeans")
    for method in (parts, whole):
        fit(method, digits, 0)
    blocks = whole.images.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    torch.testing.assert_close(parts.images, blocks)


def test_a_stopped_run_goes_on_bit_for_bit(digits, tmp_path):
    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    through = fit(joint(learn_labels=True), digits, 2 * EVERY, Save())
    stopped = fit(joint(learn_labels=True), digits, 2 * EVERY, resume=tmp_path / f"{EVERY}.ckpt")
    for name, tensor in through.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(tensor, stopped.state_dict()[name]), name
    assert through.pool.ages == stopped.pool.ages


def test_neural_collapse_is_measured_on_real_and_distilled_images(digits):
    collapse = NeuralCollapseCallback(layer="pool.networks.0.head", vci=False)
    method = fit(joint(size=1, max_age=None), digits, EVERY, collapse)
    found = method.trainer.callback_metrics
    network = method.pool.networks[0].eval()
    with torch.no_grad():
        features = {split: [] for split in ("train", "distilled")}
        for x, _ in digits.measure_dataloaders()["train"]:
            features["train"].append(network.forward_features(x))
        features["distilled"].append(network.forward_features(method.images))
    train = torch.cat(features["train"]), digits.splits["train"].labels
    own = measure(*train, num_classes=10, vci=False)
    distilled = measure(
        features["distilled"][0], torch.arange(10), num_classes=10, reference_means_KD=own.mean_KD, vci=False
    )
    assert float(found["train/nc1_pinv"]) == pytest.approx(own.values["nc1_pinv"], rel=1e-4)
    key = "nc1_pinv__train_means"  # how far the set's features are from the real class means
    assert float(found[f"distilled/{key}"]) == pytest.approx(distilled.values[key], rel=1e-4)
    assert "real_test/nc1_pinv" in found


def test_evaluations_train_a_learned_head_whatever_the_method(trained):
    """A fixed one is replaced, from before the data are seen; one that is learned stays what it is."""
    torch.manual_seed(3)
    for method in (joint(), invert(trained[1], new_network=new_network)):
        for judges in (method.judges(), method.held_out()):
            network = judges()
            assert type(network.head) is Linear
            assert network.head.weight.requires_grad
            assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    kinds = [type(new().head) for new in (joint(new_network=learned_head).judges(), learned_head)]
    assert kinds == [XavierLinear, XavierLinear]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "nc"}, r"objective='nc': choose from ncc, means"),
        ({"pool_data": "TS"}, r"method\.pool_data='TS': choose from S, T, S\+T"),
        ({"partition": 0}, r"method\.partition=0: a number >= 1"),
        ({"covariance_weight": 1.0}, r"method\.covariance_weight=1\.0: one image a class"),
        ({"temperature": 0.0}, "method.temperature=0.0: a number above 0 is needed"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        joint(**changes)


# ---------------------------------------------------------------- invert


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A network that has learned digits, and the file with its weights."""
    torch.manual_seed(0)
    network = new_network("linear", 64)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    images, labels = (torch.cat(parts) for parts in zip(*digits.measure_dataloaders()["train"], strict=True))
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("trained") / "weights.pt"
    torch.save(network.state_dict(), path)
    return network, path


def invert(path, **changes) -> Invert:
    torch.manual_seed(1)
    network = new_network("linear", 64)
    own = {
        "model": network.model,
        "head": network.head,
        "checkpoint": str(path),
        "target": "means",
        "total_variation": 0.0,
        "new_network": partial(new_network, "linear", 64),
    }
    return Invert(**shared() | own | changes)


def test_inverted_images_have_the_features_of_the_class_means(digits, trained):
    network, path = trained
    method = fit(invert(path), digits, 150)
    with torch.no_grad():
        real = [(network.forward_features(x), y) for x, y in digits.measure_dataloaders()["train"]]
        h, y = (torch.cat(parts) for parts in zip(*real, strict=True))
        means = torch.stack([h[y == c].mean(0) for c in range(10)])
        between = (means - means.mean(0)).square().sum(1).mean()
        error = (network.forward_features(method.images) - means).square().sum(1).mean()
    assert error < 0.03 * between
    found = method.measure(method.synthetic_set(), digits.test_dataloader())
    assert found["frozen_accuracy"] == accuracy(network, digits.test_dataloader())
    assert found["ncc_accuracy"] == pytest.approx(found["ncc_accuracy_real"], abs=0.02)
    assert found["ncc_accuracy"] > from_scratch(method, digits)  # the ceiling is not what a fresh network learns


def test_the_vertices_have_the_spread_of_the_real_means(digits, trained):
    _, path = trained
    method = fit(invert(path, target="etf"), digits, 1)
    offset = method.targets - method.real_means.mean(0)
    rows = F.normalize(trained[0].head.weight.detach(), dim=1)
    torch.testing.assert_close(F.normalize(offset, dim=1), rows, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(offset.square().sum(1), method.unit.expand(10), rtol=1e-4, atol=1e-5)


def test_total_variation_of_a_ramp_and_of_a_constant():
    ramp = torch.arange(5.0).expand(2, 3, 4, 5)
    assert total_variation(ramp) == 1
    assert total_variation(2 * ramp.transpose(2, 3)) == 2
    assert total_variation(torch.full((1, 1, 3, 3), 7.0)) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "mean"}, r"method\.target='mean': choose from means, etf"),
        ({"total_variation": -1.0}, r"method\.total_variation=-1\.0: a number >= 0"),
        ({"learn_labels": True}, r"distill\.learn_labels=true: method=invert"),
    ],
)
def test_mistakes_of_invert_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        invert("weights.pt", **changes)
