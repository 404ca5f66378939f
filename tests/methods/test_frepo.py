"""FRePo under a Trainer, on digits: against a plain loop, through a stop, and what it learns."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from ncdd.callbacks.guards import StepSeed
from ncdd.data import ImageDataModule, sources
from ncdd.data.draws import DrawLoader, Sampling
from ncdd.distill.lamb import Lamb
from ncdd.distill.pool import NetworkPool
from ncdd.methods.frepo import FRePo
from ncdd.models import Network
from ncdd.models.frepo_conv import FRePoConv, LeCunLinear

EVERY = 5


def new_network() -> Network:
    body = FRePoConv(in_channels=1, image_size=8, width=8, depth=2)
    return Network(body, LeCunLinear(num_features=body.num_features, num_classes=10, bias=True))


def frepo(**changes) -> FRePo:
    torch.manual_seed(0)
    pool = partial(NetworkPool, optimizer=partial(torch.optim.Adam, lr=1e-3), size=3, max_age=4)
    settings = {
        "new_network": new_network,
        "optimizer": partial(Lamb, lr=1e-2),
        "scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=EVERY, gamma=0.9),
        "images_per_class": 1,
        "init": "real",
        "learn_labels": True,
        "pool": pool,
        "batch_size": 64,
        "reg": 1e-6,
        "use_flip": False,
        "online_images": 1000,
        "krr_networks": 3,
        "chunk": 16,
        "precision": "float32",
        "compile": False,
    }
    return FRePo(**settings | changes)


@pytest.fixture(scope="module")
def digits() -> ImageDataModule:
    data = ImageDataModule(source=sources.digits, batch_size=64, measure_batch_size=100, seed=0, val_fraction=0.1)
    data.setup()
    return data


def fit(method, data, steps, folder=None, resume=None):
    """Trained for so many steps; the state at the end of each epoch in `folder`."""

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer, _):
            if folder:
                trainer.save_checkpoint(folder / f"{trainer.global_step}.ckpt")

    each = max(1, min(steps, EVERY))
    trainer = pl.Trainer(
        max_epochs=steps // each,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StepSeed(seed=0), Save()],
    )
    data.draws = (method.sampling, each)
    trainer.fit(method, datamodule=data, ckpt_path=resume, weights_only=True)
    return method


def batches(data, steps):
    """What the Trainer draws in its first epoch."""
    return list(
        DrawLoader(
            images=data.splits["train"],
            normalisation=data.normalisation,
            sampling=Sampling(batch_size=64),
            steps=steps,
            seed=0,
            num_workers=0,
        )
    )


@pytest.mark.parametrize("use_flip", [False, True])
def test_a_plain_loop_does_the_same(digits, use_flip):
    """With one network, written out: meta loss by a linear solve of the features' Gram matrix, then an Adam step.

    LAMB turns what is left of pixels without a gradient into steps, of up to 1e-2 here: float32 shows in its third
    digit.
    """
    one = partial(NetworkPool, optimizer=partial(torch.optim.Adam, lr=1e-3), size=1, max_age=None)
    method = frepo(pool=one, use_flip=use_flip, krr_networks=1, reg=1e-2)
    network = new_network()
    network.load_state_dict(method.pool.networks[0].state_dict())
    start = fit(frepo(pool=one, krr_networks=1), digits, 0)
    images, labels = (p.detach().clone().requires_grad_() for p in (start.images, start.labels))
    lamb = Lamb([images, labels], lr=1e-2)
    adam = torch.optim.Adam(network.parameters(), lr=1e-3)
    for x, classes in batches(digits, 3):
        network.eval()
        synthetic = torch.cat([images, images.flip(-1)]) if use_flip else images
        h = network.forward_features(synthetic).double()
        K = h @ h.T
        y = (torch.cat([labels, labels]) if use_flip else labels).double()
        alpha = torch.linalg.solve(K + 1e-2 * K.trace() / len(K) * torch.eye(len(K)), y)
        pred = network.forward_features(x).detach().double() @ h.T @ alpha
        margin = labels.topk(2).values
        loss = 0.5 * (pred - F.one_hot(classes, 10) + 0.1).square().sum(1).mean()
        loss = loss - (margin[:, 0] - margin[:, 1]).clamp(max=0.1).mean()
        images.grad, labels.grad = torch.autograd.grad(loss, (images, labels))
        lamb.step()
        network.train()
        adam.zero_grad()
        (0.5 * (network(images.detach()) - labels.detach()).square().sum(1).mean()).backward()
        adam.step()
    found = fit(method, digits, 3)
    torch.testing.assert_close(found.images, images, rtol=0, atol=2e-4)
    torch.testing.assert_close(found.labels, labels, rtol=0, atol=2e-4)
    for name, tensor in network.eval().state_dict().items():
        torch.testing.assert_close(found.pool.networks[0].state_dict()[name], tensor, rtol=0, atol=2e-4, msg=name)


def test_the_set_learns(digits):
    """By 60 steps from random real images: ridge regression on the test split gains 10 points."""
    method = fit(frepo(), digits, 0)
    loader = digits.test_dataloader()
    before = method.measure(method.synthetic_set(), loader)["krr_accuracy"]
    method = fit(frepo(), digits, 60)
    assert method.measure(method.synthetic_set(), loader)["krr_accuracy"] > before + 0.1


@pytest.mark.filterwarnings("ignore")  # a checkpoint of a Trainer without logger
@pytest.mark.parametrize("options", [{}, {"online_images": 7, "learn_labels": False}], ids=str)
def test_resumed_bit_for_bit(digits, tmp_path, options):
    """Images, labels, and every network of the pool with its optimizer and age."""
    whole = fit(frepo(**options), digits, 3 * EVERY, folder=tmp_path)
    resumed = fit(frepo(**options), digits, 3 * EVERY, resume=tmp_path / f"{EVERY}.ckpt")
    ours, theirs = (method.state_dict() for method in (resumed, whole))
    state, expected = (s.pop("pool._extra_state") for s in (ours, theirs))
    assert state["ages"] == expected["ages"]
    assert sum(state["ages"]) < 3 * EVERY  # one was started anew
    for mine, other in zip(state["optimizers"], expected["optimizers"], strict=True):
        for index, moments in other["state"].items():
            assert all(torch.equal(mine["state"][index][name], value) for name, value in moments.items())
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert not torch.equal(fit(frepo(**options), digits, EVERY).images, whole.images)


def test_chunks_and_precision_of_the_real_features(digits):
    method = fit(frepo(), digits, 1)
    x = batches(digits, 1)[0][0]
    network = method.pool.networks[0]
    with torch.no_grad():
        expected = network.forward_features(x)
    torch.testing.assert_close(method.real_features(network, x), expected)
    method = frepo(precision="bfloat16")
    found = method.real_features(network, x)
    assert found.dtype == torch.bfloat16
    assert 1e-4 < ((found - expected).norm() / expected.norm()).item() < 2e-2
    assert fit(method, digits, 2).images.dtype == torch.float32


def test_fixed_labels_stay(digits):
    method = fit(frepo(learn_labels=False), digits, 2)
    assert torch.equal(method.labels, torch.arange(10))
    assert not torch.equal(method.images, fit(frepo(learn_labels=False), digits, 0).images)


def test_evaluation_is_without_batch_norm():
    network = frepo().judges()()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "float16"}, r"method\.precision='float16': choose from float32, bfloat16"),
        ({"reg": 0.0}, r"method\.reg=0\.0: a number > 0"),
        ({"chunk": 0}, r"method\.chunk=0: a number >= 1"),
        ({"online_images": 0}, r"method\.online_images=0: a number >= 1"),
        ({"krr_networks": 4}, r"method\.krr_networks=4: a number from 1 to pool\.size=3"),
        ({"batch_size": 0}, r"batch_size=0"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        frepo(**changes)


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.0, r"10 x 10 kernel matrix is singular .*: raise reg"), (float("nan"), r"NaN or infinite entries")],
)
def test_kernels_that_fail_say_what_helps(digits, value, message):
    class Spoilt(FRePo):
        def setup(self, stage):
            super().setup(stage)
            self.images.data[:] = value

    method = frepo(reg=1e-30)
    method.__class__ = Spoilt
    with pytest.raises(ValueError, match=message):
        fit(method, digits, 1)


@pytest.mark.slow
def test_compiled_is_the_same(digits):
    """One compilation serves all networks of the pool."""
    torch._dynamo.reset()
    eager, compiled = (fit(frepo(compile=compile), digits, EVERY) for compile in (False, True))
    torch.testing.assert_close(compiled.images, eager.images, rtol=0, atol=2e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6
