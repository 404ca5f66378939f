"""Matching on digits in seconds: against the published loop, against its own start, and through a stop."""

import copy
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from ncdd.callbacks.guards import StepSeed
from ncdd.data import ImageDataModule, sources
from ncdd.data.draws import DrawLoader
from ncdd.data.loader import DeviceLoader
from ncdd.distill.augment import DiffAugment
from ncdd.distill.coresets import coreset
from ncdd.distill.evaluate import Protocol, evaluate
from ncdd.distill.matching import class_means
from ncdd.methods.coreset import Coreset
from ncdd.methods.matching import DC, DM, Training, matching, siamese_classes
from ncdd.methods.mtt import MTT, Trajectory
from ncdd.models import ConvNet, Linear, Network

EVERY = 4
PLAIN, DSA = (DiffAugment(strategy=names) for names in ("none", "color_crop_cutout_scale_rotate"))


def new_network(norm: str = "instance", width: int = 8, feature_dim: int | None = None) -> Network:
    body = ConvNet(in_channels=1, image_size=8, width=width, depth=2, norm=norm, feature_dim=feature_dim)
    return Network(body, Linear(num_features=body.num_features, num_classes=10, bias=True))


def method(objective: str = "dm", **changes):
    settings = {
        "new_network": new_network,
        "optimizer": partial(torch.optim.SGD, lr={"dm": 1.0, "mtt": 30.0}.get(objective, 0.1), momentum=0.5),
        "scheduler": partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
        "images_per_class": 1,
        "init": "real",
        "learn_labels": False,
        "objective": objective,
        "augment": PLAIN,
        "real_per_class": 16,
        "partition": 1,
        "training": Training(outer_loop=3, inner_loop=2, lr=0.1, batch_size=256),
        "experts": None,
        "trajectory": trajectory(),
    }
    assert settings.keys() >= changes.keys()
    return matching(**{**settings, **changes})


def trajectory(**changes) -> Trajectory:
    settings = {"epochs": 2, "last_start": None, "steps": 4, "batch_size": None, "step_size": 0.05, "step_size_lr": 0.1}
    return Trajectory(**{**settings, "memory": "full", **changes})


@pytest.fixture(scope="module")
def digits() -> ImageDataModule:
    data = ImageDataModule(source=sources.digits, batch_size=64, measure_batch_size=512, seed=0, val_fraction=0.1)
    data.setup()
    return data


@pytest.fixture(scope="module")
def experts(tmp_path_factory, digits) -> Path:
    """Two runs of five epochs."""
    folder = tmp_path_factory.mktemp("experts")
    loader = digits.train_dataloader()
    for seed in range(2):
        torch.manual_seed(seed)
        network = new_network()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        checkpoints = folder / f"seed={seed}" / "checkpoints"
        checkpoints.mkdir(parents=True)
        for epoch in range(1, 6):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(network(x), y).backward()
                optimizer.step()
            torch.save({"state_dict": network.state_dict(), "epoch": epoch}, checkpoints / f"epoch_{epoch}.ckpt")
    return folder


def fit(learner, data, steps, folder=None, resume=None):
    """Trained for so many steps; the state at the end of each epoch in `folder`."""
    save = (
        [pl.callbacks.ModelCheckpoint(folder, "{step}", save_top_k=-1, save_on_train_epoch_end=True)] if folder else []
    )
    trainer = pl.Trainer(
        **({"max_steps": steps, "max_epochs": -1} if steps % EVERY else {"max_epochs": steps // EVERY}),
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StepSeed(seed=0), *save],
    )
    data.draws = (learner.sampling, EVERY)
    trainer.fit(learner, datamodule=data, ckpt_path=resume, weights_only=True)
    data.draws = None
    return learner


def batches(data, learner) -> list:
    """What the steps of the first three epochs are given."""
    draws = DrawLoader(
        images=data.splits["train"],
        normalisation=data.normalisation,
        sampling=learner.sampling,
        steps=3 * EVERY,
        seed=data.seed,
        num_workers=0,
    )
    return list(draws)


def always(network: nn.Module):
    """A factory of copies of one network."""
    return lambda: copy.deepcopy(network)


# ---------------------------------------------------------------- against a plain loop


def as_seen(images: torch.Tensor) -> torch.Tensor:
    """At the size of the digits: bilinear between the centres of pixels, at the rim the outermost."""
    if images.shape[-1] == 8:
        return images
    places = ((torch.arange(8) + 0.5) / 2 - 0.5).clamp(0, 3)
    weight = (1 - (places[:, None] - torch.arange(4)).abs()).clamp(min=0)
    return weight @ images @ weight.T


@pytest.mark.parametrize(("images_per_class", "partition"), [(2, 1), (1, 2)])
def test_dm_is_gradient_descent_on_the_distance_of_class_means(digits, images_per_class, partition):
    network = new_network()
    settings = {"new_network": always(network), "images_per_class": images_per_class, "partition": partition}
    each = images_per_class * partition**2
    learner = fit(method("dm", **settings), digits, 3)
    images = fit(method("dm", **settings), digits, 0).images.detach().clone()
    assert images.shape == (10 * each, 1, 8 // partition, 8 // partition)
    optimizer = torch.optim.SGD([images.requires_grad_()], lr=1.0, momentum=0.5)
    for x, y in batches(digits, learner)[:3]:
        optimizer.zero_grad()
        means = (
            class_means(network.forward_features(x), y, 10),
            network.forward_features(as_seen(images)).view(10, each, -1).mean(1),
        )
        (means[0] - means[1]).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(learner.images, images, rtol=1e-4, atol=1e-5)


def published_distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """DatasetCondensation's `distance_wb`."""
    if ours.ndim == 1:
        return torch.zeros(())
    a, b = ours.flatten(1), theirs.flatten(1)
    return (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 0.000001)).sum()


@pytest.mark.parametrize(("norm", "partition"), [("instance", 1), ("batch", 1), ("instance", 2)])
def test_dc_is_the_published_loop(digits, norm, partition):
    """DatasetCondensation's main.py: three updates of the set with each network, two epochs on the set between them."""
    first = new_network(norm)
    with torch.no_grad():  # other statistics than 0 and 1, which moving them once would leave nearly as they are
        for _ in range(20 if norm == "batch" else 0):
            first(torch.randn(64, 1, 8, 8))
    settings = {"new_network": always(first), "images_per_class": 3 - partition, "partition": partition}
    learner = fit(method("dc", **settings), digits, 7)
    images = fit(method("dc", **settings), digits, 0).images.detach().clone().requires_grad_()
    labels = learner.labels
    of_images = torch.optim.SGD([images], lr=0.1, momentum=0.5)
    for step, (x, y) in enumerate(batches(digits, learner)[:7]):
        if step % 3 == 0:
            net = copy.deepcopy(first).train()
            of_net = torch.optim.SGD(net.parameters(), lr=0.1)
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        if norms:
            net.train()
            net(torch.cat([x[y == c][:16] for c in range(10)]))
            for module in norms:
                module.eval()
        loss = torch.zeros(())
        for c in range(10):
            real = torch.autograd.grad(F.cross_entropy(net(x[y == c]), y[y == c]), list(net.parameters()))
            of_class = F.cross_entropy(net(as_seen(images)[labels == c]), labels[labels == c])
            ours = torch.autograd.grad(of_class, list(net.parameters()), create_graph=True)
            loss = loss + sum(published_distance(s, r) for s, r in zip(ours, real, strict=True))
        of_images.zero_grad()
        loss.backward()
        of_images.step()
        if step % 3 == 2:
            continue
        net.train()
        for _ in range(2):
            of_net.zero_grad()
            F.cross_entropy(net(as_seen(images.detach())), labels).backward()
            of_net.step()
    moved = float((learner.images - fit(method("dc", **settings), digits, 0).images).detach().abs().max())
    assert moved > 0.05
    torch.testing.assert_close(learner.images, images, rtol=1e-3, atol=1e-3 * moved)


def test_real_and_synthetic_images_of_a_class_share_one_draw():
    images, labels = torch.randn(1, 1, 8, 8).expand(40, 1, 8, 8), torch.arange(40) % 10
    pairs = list(siamese_classes(DSA, torch.Generator().manual_seed(0), (images, labels), (images[:20], labels[:20])))
    for c, ((real, of_real), (synthetic, of_synthetic)) in enumerate(pairs):
        assert of_real.tolist() == [c] * 4
        assert of_synthetic.tolist() == [c] * 2
        torch.testing.assert_close(real[:2], synthetic)
    assert len({float(real[0].sum()) for (real, _), _ in pairs}) > 5, "classes have draws of their own"


def test_mtt_takes_the_steps_of_plain_gradient_descent(digits, experts):
    """The loss of its first step, by a loop over modules."""
    learner = method("mtt", experts=str(experts), images_per_class=3, trajectory=trajectory(batch_size=12, steps=5))
    fit(learner, digits, 0)
    torch.manual_seed(3)
    ways = learner.stretches[int(torch.randint(2, ()))]
    files = ways[int(torch.randint(len(ways), ()))]
    orders = torch.Generator().manual_seed(7)
    network, target = (new_network() for _ in files)
    for net, file in zip((network, target), files, strict=True):
        net.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
    way = sum((a - b).square().sum() for a, b in zip(network.parameters(), target.parameters(), strict=True))
    rows = [
        chunk
        for _ in range(3)  # two full batches of 12 in an order of 30 images
        for chunk in torch.randperm(30, generator=orders).split(12)[:2]
    ][:5]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for chunk in rows:
        optimizer.zero_grad()
        F.cross_entropy(network(learner.images.detach()[chunk]), learner.labels[chunk]).backward()
        optimizer.step()
    left = sum((a - b).square().sum() for a, b in zip(network.parameters(), target.parameters(), strict=True))
    learner.log, learner.generator = lambda *_: None, lambda: torch.Generator().manual_seed(7)
    torch.manual_seed(3)
    found = learner.outer_step(None)
    torch.testing.assert_close(found, (left / way).detach(), rtol=1e-4, atol=0)
    assert learner.images.grad.abs().max() > 0
    assert learner.raw_size.grad.abs() > 0


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize("objective", ["dm", "dc"])
def test_a_set_beats_the_real_images_that_it_began_as_by_ten_points(digits, objective):
    networks = partial(new_network, width=16)
    augment = PLAIN if objective == "dc" else DSA
    training = Training(outer_loop=1, inner_loop=1, lr=0.01, batch_size=256)
    found = []
    for count in (0, 60):
        learner = fit(method(objective, new_network=networks, augment=augment, training=training), digits, count)
        result = evaluate(
            learner.synthetic_set(),
            networks,
            digits.val_dataloader(),
            networks=3,
            seed=0,
            protocol=Protocol(lr=0.05, epochs=100),
        )
        found.append(result.mean)
    assert found[1] > found[0] + 0.1, found


def test_mtt_comes_nearer_to_its_experts(digits, experts):
    settings = {"experts": str(experts), "images_per_class": 1, "trajectory": trajectory(steps=8, step_size=0.02)}
    before, after = (fit(method("mtt", **settings), digits, steps) for steps in (0, 40))
    losses = []
    for learner in (before, after):
        learner.log = lambda *_: None
        values = []
        for seed in range(6):
            torch.manual_seed(seed)
            values.append(learner.outer_step(None))
        losses.append(float(torch.stack(values).mean()))
    assert losses[1] < 0.8 * losses[0], losses
    assert after.raw_size.item() != pytest.approx(before.raw_size.item())


@pytest.mark.parametrize("objective", ["dm", "dc", "mtt"])
def test_a_stop_changes_nothing(digits, experts, tmp_path, objective):
    """DC is stopped between two updates of one network, MTT with momentum in images and step size."""
    settings = {"augment": DSA, "experts": str(experts) if objective == "mtt" else None}
    whole = fit(method(objective, **settings), digits, 3 * EVERY, tmp_path)
    torch.manual_seed(1234)
    resumed = fit(method(objective, **settings), digits, 3 * EVERY, resume=tmp_path / f"step={EVERY}.ckpt")
    assert resumed.global_step == 3 * EVERY
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("objective", ["random", "herding"])
def test_a_coreset_is_chosen_and_stays(digits, objective):
    chosen = Coreset(
        new_network=new_network,
        optimizer=partial(torch.optim.SGD, lr=1.0, weight_decay=0.1),
        scheduler=partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
        images_per_class=2,
        objective=objective,
    )
    synthetic = fit(chosen, digits, 1).synthetic_set()
    loader = DeviceLoader(
        images=digits.splits["train"], normalisation=digits.normalisation, batch_size=2000, seed=0, num_workers=0
    )
    ((images, labels),) = loader
    assert all((image == images[labels == c]).flatten(1).all(1).any() for image, c in synthetic)
    if objective == "herding":
        expected, _ = coreset(
            "herding", images, labels, num_classes=10, per_class=2, generator=torch.Generator().manual_seed(0)
        )
        assert torch.equal(synthetic.images, expected)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "dx"}, "objective=dx: choose from dm, dc, dsa, mtt"),
        ({"learn_labels": True}, "distill.learn_labels=true: objective=dm learns images only"),
        ({"experts": "somewhere"}, "method.experts=somewhere: objective=dm needs none"),
        ({"objective": "mtt"}, "method.experts=None: objective=mtt needs a folder of trained runs"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes)


def test_errors_of_settings():
    with pytest.raises(ValueError, match=r"method.training.inner_loop=0: a number >= 1 is needed"):
        Training(outer_loop=1, inner_loop=0, lr=0.1, batch_size=1)
    with pytest.raises(ValueError, match=r"method.trajectory.steps=0: a number >= 1 is needed"):
        trajectory(steps=0)
    with pytest.raises(ValueError, match="objective=best: choose from random, herding, kmeans, class_mean, nearest"):
        Coreset(new_network=new_network, optimizer=None, scheduler=None, images_per_class=1, objective="best")


@pytest.mark.parametrize("objective", ["dm", "dc"])
def test_too_few_real_images_for_the_set(digits, objective):
    with pytest.raises(ValueError, match="images_per_class=500: the smallest class, 8, has 125 real images"):
        fit(method(objective, images_per_class=500), digits, 1)


def test_errors_of_experts(digits, experts):
    with pytest.raises(ValueError, match=r"method.experts=nowhere: no run with checkpoints below it; train"):
        fit(method("mtt", experts="nowhere"), digits, 1)
    with pytest.raises(ValueError, match=r"seed=0 has checkpoints after epoch 1, 2, 3, 4, 5; needed are two with"):
        fit(method("mtt", experts=str(experts), trajectory=trajectory(epochs=5)), digits, 1)
    with pytest.raises(ValueError, match=r"epoch_1.ckpt is not of this model, head and dataset: .*of another shape"):
        fit(method("mtt", experts=str(experts), new_network=partial(new_network, width=4)), digits, 1)


def test_each_objective_is_a_method_of_its_own(experts):
    found = [method(objective) for objective in ("dm", "dc", "dsa")]
    found.append(method("mtt", experts=str(experts)))
    assert [type(learner) for learner in found] == [DM, DC, DC, MTT]
