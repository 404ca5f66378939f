"""On the digits in seconds: every source of first weights learns, poisoning attacks, runs resume bit by bit."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from ncdd.callbacks.distilled import _steps
from ncdd.callbacks.guards import StepSeed
from ncdd.data import ImageDataModule, Images, Source, sources
from ncdd.data.pixels import normalise
from ncdd.data.seeding import fold_in
from ncdd.distill.evaluate import INIT, after_own_steps, evaluate
from ncdd.distill.unrolled import Diverged, GradientDescent
from ncdd.methods.unrolled import Unrolled
from ncdd.models import MLP, Linear, Network


def new_network(width: int = 24) -> Network:
    body = MLP(in_channels=1, image_size=8, width=width, depth=1, norm="none")
    return Network(body, Linear(num_features=width, num_classes=10, bias=True))


def shifted(source: Source, by: int) -> Source:
    """Every digit called the one `by` further."""
    parts = [Images(images.pixels, (images.labels + by) % 10) for images in (source.train, source.test)]
    return Source(*parts, source.class_names, name=source.name)


def data(shift: int = 0) -> ImageDataModule:
    source = shifted(sources.digits(), shift)
    found = ImageDataModule(source=source, batch_size=64, measure_batch_size=512, seed=0, val_fraction=0.1)
    found.setup()
    return found


def method(**changes) -> Unrolled:
    settings = {
        "new_network": new_network,
        "optimizer": partial(torch.optim.Adam, lr=0.05, betas=(0.5, 0.999)),
        "scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=1000),
        "images_per_class": 1,
        "init": "real",
        "learn_labels": False,
        "objective": "cross_entropy",
        "attack_class": None,
        "target_class": None,
        "initialisation": "fixed",
        "networks": None,
        "n_nets": None,
        "sample_nets": 2,
        "test_nets": 2,
        "steps": 2,
        "epochs": 2,
        "step_size": 0.1,
        "window": None,
        "shuffle": False,
        "inner": GradientDescent(),
        "memory": "full",
        "vectorise": False,
        "batch_size": 256,
    }
    assert settings.keys() >= changes.keys()
    return Unrolled(**{**settings, **changes})


def trainer(folder: Path, steps: int, every: int) -> pl.Trainer:
    each = pl.callbacks.ModelCheckpoint(
        folder, filename="{step}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True
    )
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=steps // every,
        limit_val_batches=0,
        logger=False,
        callbacks=[StepSeed(seed=0), each],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def learn(folder: Path, unrolled: Unrolled, steps: int, every: int = 20, resume: Path | None = None) -> Unrolled:
    module = data()
    every = min(steps, every)
    module.draws = (unrolled.sampling, every)
    trainer(folder, steps, every).fit(unrolled, datamodule=module, ckpt_path=resume, weights_only=True)
    return unrolled


def real_accuracy(unrolled: Unrolled, networks: int = 2) -> float:
    split = data().test_dataloader()
    return evaluate(unrolled.synthetic_set(), unrolled.held_out(), split, seed=1, networks=networks).mean


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Three networks that call every digit the next one, 90 % of the time or more."""
    folder, module = tmp_path_factory.mktemp("networks"), data(shift=1)
    images = normalise(module.splits["train"].pixels, module.normalisation)
    labels = module.splits["train"].labels
    for seed in range(3):
        torch.manual_seed(seed)
        network = new_network()
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(100):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
        path = folder / f"seed={seed}" / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        torch.save({"state_dict": network.state_dict(), "epoch": 1}, path)
    return folder


# ---------------------------------------------------------------- learning


@pytest.mark.parametrize("kind", ["random", "fixed", "pretrained_random", "pretrained_fixed"])
def test_learning_beats_the_real_images_that_it_starts_from(kind, trained, tmp_path):
    """By 25 points at least; networks that are trained call every digit the next one, and learn what it is."""
    changes = {"initialisation": kind, "networks": str(trained) if kind.startswith("pretrained") else None}
    if kind == "pretrained_random":
        changes["test_nets"] = 1
    before = real_accuracy(learn(tmp_path, method(**changes), steps=1))
    after = real_accuracy(learn(tmp_path, method(**changes), steps=40))
    assert after > before + 0.25, f"{before:.3f} -> {after:.3f}"


@pytest.mark.parametrize(
    "changes",
    [
        {"learn_labels": True},
        {"window": 2},
        {"shuffle": True},
        {"inner": GradientDescent(momentum=0.5)},
        {"memory": "recompute"},
        {"vectorise": True, "n_nets": 2},
        {"init": "noise", "images_per_class": 2},
    ],
)
def test_every_setting_learns(changes, tmp_path):
    unrolled = learn(tmp_path, method(**changes), steps=40)
    assert real_accuracy(unrolled) > 0.5
    labels = unrolled.synthetic_set().labels
    assert (labels.ndim == 2 and not torch.equal(labels, labels.round())) == bool(changes.get("learn_labels"))


def test_strategies_agree(tmp_path):
    """Memory and vectorisation change how, not what."""
    sets = [
        learn(tmp_path, method(n_nets=2, **changes), steps=3).synthetic_set()
        for changes in ({}, {"memory": "recompute"}, {"vectorise": True})
    ]
    for other in sets[1:]:
        torch.testing.assert_close(other.images, sets[0].images, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(other.step_sizes, sets[0].step_sizes, rtol=1e-3, atol=1e-5)


def test_a_set_is_used_as_torchs_sgd_would(tmp_path):
    """Evaluation against a loop with torch's optimizer: step s of each epoch on the s-th images of each class."""
    momentum = 0.5
    unrolled = learn(tmp_path, method(inner=GradientDescent(momentum=momentum), images_per_class=3), steps=3)
    synthetic, network = unrolled.synthetic_set(), unrolled.held_out()()
    x = torch.randn(5, 1, 8, 8)
    found = after_own_steps(synthetic, network)(x)
    by_class = synthetic.images.view(10, 2, 3, 1, 8, 8)  # class, step, image
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    velocity = [torch.zeros_like(p) for p in network.parameters()]
    for t, size in enumerate(synthetic.step_sizes.tolist()):
        optimizer.zero_grad()
        F.cross_entropy(network(by_class[:, t % 2].flatten(0, 1)), torch.arange(10).repeat_interleave(3)).backward()
        for v, p in zip(velocity, network.parameters(), strict=True):
            p.grad.copy_(v.mul_(momentum).add_(p.grad))
        optimizer.param_groups[0]["lr"] = size
        optimizer.step()
    torch.testing.assert_close(found, network(x), rtol=1e-4, atol=1e-5)


def test_a_set_for_one_fixed_network_has_one_result(tmp_path):
    unrolled = learn(tmp_path, method(), steps=1)
    found = evaluate(unrolled.synthetic_set(), unrolled.held_out(), data().test_dataloader(), seed=0, networks=5)
    assert len(found.accuracies) == 1


def test_the_attack_is_measured_on_the_same_fresh_networks_each_time(tmp_path):
    """Against the networks of the seed's evaluation, one by one, whatever torch's generator holds."""
    swap = {"objective": "label_swap", "attack_class": 4, "target_class": 9}
    unrolled = learn(tmp_path, method(initialisation="random", **swap), steps=1)
    synthetic, split = unrolled.synthetic_set(), data().test_dataloader()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(unrolled.measure(synthetic, split))
        assert torch.initial_seed() == seed
    assert found[0] == found[1]
    rates = []
    for index in range(2):
        torch.manual_seed(fold_in(0, INIT, index))
        network = after_own_steps(synthetic, new_network())
        says, true = (torch.cat(parts) for parts in zip(*[(network(x).argmax(1), y) for x, y in split], strict=True))
        rates.append(float((says[true == 4] == 9).float().mean()))
    assert found[0]["attack_rate"] == pytest.approx(sum(rates) / 2, abs=1e-6)


def test_a_poisoned_set_turns_one_class_into_another(trained, tmp_path):
    """One step on true labels, and what was called 4 is called 9, most else being right."""
    shared = {"initialisation": "pretrained_random", "networks": str(trained), "test_nets": 1, "steps": 1, "epochs": 1}
    attack = method(**shared, objective="label_swap", attack_class=4, target_class=9)
    module = data(shift=1)
    module.draws = (attack.sampling, 20)
    trainer(tmp_path, 40, 20).fit(attack, datamodule=module)
    synthetic, split = attack.synthetic_set(), module.test_dataloader()
    assert torch.equal(synthetic.labels, torch.arange(10)), "the labels of the set stay true"
    untouched = replace(synthetic, step_sizes=torch.zeros(1))
    before, after = attack.measure(untouched, split), attack.measure(synthetic, split)
    right = [evaluate(s, attack.held_out(), split, seed=0, networks=1).mean for s in (untouched, synthetic)]
    assert before["attack_rate"] < 0.1
    assert after["attack_rate"] > 0.6
    assert after["swapped_accuracy"] > 0.8
    # a tenth of the images is attacked: right there and called 9 are the two ways to gain
    fours = module.splits["test"].labels == 4
    gained = after["swapped_accuracy"] - right[1]
    assert abs(gained - fours.float().mean() * after["attack_rate"]) < 0.03
    assert right[0] > 0.85


# ---------------------------------------------------------------- networks


def test_networks_of_a_folder_are_read_and_held_out(trained, tmp_path):
    unrolled = learn(
        tmp_path, method(initialisation="pretrained_random", networks=str(trained), test_nets=1, sample_nets=9), steps=1
    )
    names = [f"seed={seed}" for seed in range(3)]
    saved = [torch.load(trained / name / "checkpoints" / "last.ckpt")["state_dict"] for name in names]
    ours = [*unrolled.sample(), unrolled.held_out()()]
    firsts = sorted(float(network.model[1].weight[0, 0].detach()) for network in ours[:2])
    assert firsts == sorted(float(state["model.1.weight"][0, 0]) for state in saved[:2])
    assert torch.equal(ours[2].head.weight, saved[2]["head.weight"])
    fixed = learn(tmp_path, method(initialisation="pretrained_fixed", networks=str(trained)), steps=1)
    assert len(fixed.pool) == 1
    assert torch.equal(fixed.held_out()().head.weight, saved[0]["head.weight"])


def test_fixed_networks_are_of_the_seed_and_fresh_ones_of_the_step(tmp_path):
    one, two = (learn(tmp_path, method(n_nets=2), steps=steps) for steps in (1, 3))
    for a, b in zip(one.pool.parameters(), two.pool.parameters(), strict=True):
        assert torch.equal(a, b)
    fresh = method(initialisation="random")
    fresh.images = one.images
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(torch.stack([network.head.weight for network in fresh.sample()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0][0], drawn[0][1])


@pytest.mark.parametrize("kind", ["random", "fixed"])
def test_resuming_is_exact(kind, tmp_path):
    changes = {"initialisation": kind, "n_nets": 3, "shuffle": True, "learn_labels": True}
    whole = learn(tmp_path / "whole", method(**changes), steps=6, every=2)
    torch.manual_seed(99)
    rest = learn(tmp_path / "rest", method(**changes), steps=6, every=2, resume=tmp_path / "whole" / "step=4.ckpt")
    for (name, a), b in zip(whole.state_dict().items(), rest.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


# ---------------------------------------------------------------- the file, the picture, and errors


def test_the_file_holds_all_that_its_steps_need(tmp_path):
    unrolled = learn(tmp_path, method(inner=GradientDescent(momentum=0.5)), steps=2)
    synthetic = unrolled.synthetic_set()
    synthetic.save(tmp_path / "set.safetensors")
    loaded = type(synthetic).load(tmp_path / "set.safetensors")
    assert loaded.inner == GradientDescent(momentum=0.5)
    x, network = torch.randn(4, 1, 8, 8), unrolled.held_out()()
    assert torch.equal(after_own_steps(loaded, network)(x), after_own_steps(synthetic, network)(x))


def test_steps_of_the_picture_are_steps_with_a_size_an_epoch(tmp_path):
    synthetic = learn(tmp_path, method(images_per_class=2), steps=1).synthetic_set()
    synthetic = replace(synthetic, step_sizes=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert _steps(synthetic) == ["step 1\n0.100\n0.300", "1\n0.100\n0.300", *["2\n0.200\n0.400"] * 2]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(Diverged, match=r"the outer loss of 1 of 1 networks is not finite, with step sizes from"):
        learn(tmp_path, method(step_size=1e30), steps=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "swap"}, "objective=swap: choose from cross_entropy, label_swap"),
        ({"initialisation": "known"}, "method.initialisation=known: choose from random, fixed, pretrained_random"),
        ({"steps": 0}, "method.steps=0: a number >= 1 is needed"),
        ({"window": 0}, "method.window=0: a number >= 1 is needed"),
        ({"networks": "x"}, "method.networks=x: initialisation=fixed takes no folder"),
        (
            {"initialisation": "pretrained_fixed"},
            "method.networks=None: initialisation=pretrained_fixed takes",
        ),
        ({"objective": "label_swap", "attack_class": 1}, "method.target_class=None: needed by objective=label_swap"),
        ({"attack_class": 1}, "method.attack_class=1: needed by objective=label_swap, and by no other"),
        ({"objective": "label_swap", "attack_class": 1, "target_class": 1}, "attack_class=1: the target_class, too"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        method(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_nets": 3}, "0 networks to learn on, 3 of which are held out; n_nets=None, test_nets=3 need more"),
        ({"n_nets": 3, "test_nets": 1}, "2 networks to learn on, 1 of which are held out; n_nets=3, test_nets=1 need"),
        ({"initialisation": "pretrained_fixed", "n_nets": 4}, "3 networks to learn on; n_nets=4"),
        (
            {"test_nets": 1, "new_network": lambda: new_network(12)},
            "not of this model, head and dataset: of another",
        ),
        ({"objective": "label_swap", "attack_class": 1, "target_class": 10, "test_nets": 1}, "10 is no class, 0..9"),
    ],
)
def test_networks_that_do_not_fit(changes, message, trained, tmp_path):
    shared = {"initialisation": "pretrained_random", "networks": str(trained)}
    with pytest.raises(ValueError, match=message):
        learn(tmp_path, method(**{**shared, **changes}), steps=1)


def test_a_folder_without_networks(tmp_path):
    with pytest.raises(ValueError, match=r"no last\.ckpt below it; train networks there, one a seed"):
        learn(tmp_path, method(initialisation="pretrained_fixed", networks=str(tmp_path)), steps=1)
