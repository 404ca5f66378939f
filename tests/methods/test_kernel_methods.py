"""KIP and Label Solve under a Trainer, on digits: against plain loops and closed forms, and through a stop."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from ncdd.callbacks.guards import StepSeed
from ncdd.data import ImageDataModule, Images, Source, sources
from ncdd.data.draws import DrawLoader, Sampling
from ncdd.distill.augment import DiffAugment
from ncdd.distill.regression import centred, krr_accuracy
from ncdd.kernels import fc, ridge
from ncdd.methods.kip import KIP
from ncdd.methods.label_solve import LabelSolve

EVERY = 10
SHARED = {
    "new_network": torch.nn.Identity,
    "optimizer": lambda groups: torch.optim.Adam(groups, lr=0.04),
    "scheduler": lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
    "images_per_class": 1,
    "init": "real",
    "kernel": "fc1",
    "reg": 1e-6,
    "memory": 2**30,
}


def kip(**changes) -> KIP:
    own = {
        "learn_labels": False,
        "targets_per_class": 40,
        "precision": "float64",
        "augment": DiffAugment(strategy="none"),
        "corruption": 0.0,
    }
    return KIP(**SHARED | own | changes)


@pytest.fixture(scope="module")
def digits() -> ImageDataModule:
    data = ImageDataModule(source=sources.digits, batch_size=64, measure_batch_size=100, seed=0, val_fraction=0.1)
    data.setup()
    return data


def fit(method, data, steps, folder=None, resume=None):
    """Trained for so many steps, less than an epoch or whole ones; the state at the end of each epoch in `folder`."""

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer, _):
            if folder:
                trainer.save_checkpoint(folder / f"{trainer.global_step}.ckpt")

    trainer = pl.Trainer(
        max_epochs=max(1, steps // EVERY),
        limit_train_batches=min(steps, EVERY),
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StepSeed(seed=0), Save()],
    )
    data.draws = (method.sampling, EVERY)
    trainer.fit(method, datamodule=data, ckpt_path=resume, weights_only=True)
    return method


def accuracy(method, data, split="test") -> float:
    return method.measure(method.synthetic_set(), data._measure(split))["krr_accuracy"]


def batches(data, per_class, steps):
    """What the Trainer draws in its first epoch."""
    sampling = Sampling(per_class=per_class)
    loader = DrawLoader(
        images=data.splits["train"],
        normalisation=data.normalisation,
        sampling=sampling,
        steps=steps,
        seed=0,
        num_workers=0,
    )
    return list(loader)


def test_centred():
    assert centred(torch.tensor([1, 0]), 4, torch.float64).tolist() == [
        [-0.25, 0.75, -0.25, -0.25],
        [0.75] + [-0.25] * 3,
    ]
    soft = torch.randn(3, 4)
    assert torch.equal(centred(soft, 4, torch.float32), soft)


@pytest.mark.parametrize("learn_labels", [False, True])
def test_kip_is_adam_on_the_objective(digits, learn_labels):
    """The same as a plain loop by autograd over all targets at once."""
    start = fit(kip(learn_labels=learn_labels), digits, 0)
    images = start.images.detach().clone().requires_grad_()
    targets = (F.one_hot(torch.arange(10), 10).double() - 0.1).requires_grad_(learn_labels)
    optimizer = torch.optim.Adam([images, targets] if learn_labels else [images], lr=0.04)
    for x, y in batches(digits, 40, EVERY)[:3]:
        K, K_ts = fc(1)(images), fc(1)(x.double(), images)
        pred = K_ts @ torch.linalg.solve(K + 1e-6 * K.trace() / 10 * torch.eye(10).double(), targets)
        loss = 0.5 * (pred - (F.one_hot(y, 10).double() - 0.1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = fit(kip(learn_labels=learn_labels), digits, 3)
    torch.testing.assert_close(found.images, images, rtol=1e-7, atol=1e-7)
    assert found.synthetic_set().labels.dtype == (torch.float32 if learn_labels else torch.int64)
    if learn_labels:
        torch.testing.assert_close(found.labels, targets, rtol=1e-7, atol=1e-7)
    else:
        assert torch.equal(found.labels, torch.arange(10))


def test_kip_learns(digits):
    before, after = (accuracy(fit(kip(), digits, steps), digits) for steps in (0, 40))
    assert before < 0.75
    assert after > 0.9


@pytest.mark.parametrize("changes", [{"memory": 2**16}, {"precision": "float32"}], ids=str)
def test_kip_in_chunks_and_in_single_precision(digits, changes):
    """The memory bound changes nothing but the order of a sum; float32 stays near."""
    whole, other = fit(kip(), digits, 3), fit(kip(**changes), digits, 3)
    bound = 1e-9 if "memory" in changes else 1e-3
    torch.testing.assert_close(other.images.double(), whole.images, rtol=0, atol=bound)


def test_corrupted_pixels_stay(digits):
    plain, start, end = fit(kip(), digits, 0), *(fit(kip(corruption=0.25), digits, steps) for steps in (0, 5))
    for method in (start, end):
        assert method.corrupt.flatten(1).sum(1).tolist() == [16] * 10  # of 64
        assert torch.equal(method.images[method.corrupt], method.noise[method.corrupt])
    assert torch.equal(start.images[~start.corrupt], plain.images[~start.corrupt])
    moved = end.images != start.images
    assert torch.equal(moved, ~start.corrupt & moved)
    assert moved.sum() > 0.9 * (~start.corrupt).sum()
    assert start.corrupt.flatten(1).unique(dim=0).shape[0] == 10


@pytest.mark.filterwarnings("ignore")  # a checkpoint of a Trainer without logger
def test_resumed_bit_for_bit(digits, tmp_path):
    options = {"corruption": 0.25, "learn_labels": True, "augment": DiffAugment(strategy="crop_flip_rotate")}
    whole = fit(kip(**options), digits, 2 * EVERY, folder=tmp_path)
    resumed = fit(kip(**options), digits, 2 * EVERY, resume=tmp_path / f"{EVERY}.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert not torch.equal(fit(kip(**options), digits, EVERY).images, whole.images)
    assert not torch.equal(fit(kip(learn_labels=True), digits, EVERY).images, fit(kip(**options), digits, EVERY).images)


def test_label_solve_is_least_squares(digits):
    """What is predicted from the labels is the best that the kernel's columns can do for the train split."""
    method = fit(LabelSolve(**SHARED), digits, 1)
    assert torch.equal(method.images, fit(kip(), digits, 0).images.float())
    x = torch.cat([x for x, _ in digits._measure("train")]).double()
    y = torch.cat([y for _, y in digits._measure("train")])
    support = method.images.detach().double()
    K_ts, targets = fc(1)(x, support).numpy(), (F.one_hot(y, 10).double() - 0.1).numpy()
    best = np.linalg.lstsq(K_ts, targets, rcond=None)[0]
    coefficients = ridge(fc(1)(support), method.labels.double(), reg=1e-7, relative=False)
    np.testing.assert_allclose(K_ts @ coefficients.detach().numpy(), K_ts @ best, atol=1e-4)
    assert accuracy(method, digits) > accuracy(fit(kip(), digits, 0), digits) + 0.05
    assert accuracy(method, digits) == pytest.approx(
        krr_accuracy(fc(1), method.synthetic_set(), digits._measure("test"), reg=1e-7, relative=False)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": "fc9"}, r"kernel='fc9': choose from fc1, fc2, fc3, conv3, convnet, convnet3, myrtle5"),
        ({"corruption": 1.0}, r"method\.corruption=1\.0: a fraction in \[0, 1\)"),
        ({"reg": -1.0}, r"method\.reg=-1\.0: a number >= 0"),
        ({"targets_per_class": 0}, r"per_class=0"),
        ({"precision": "half"}, r"method\.precision='half': choose from float32, float64"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        kip(**changes)


def test_kernels_that_fail_say_what_helps(digits, source_of_twins):
    with pytest.raises(ValueError, match=r"the 10 x 10 kernel matrix is singular with reg=0: raise reg"):
        fit(kip(reg=0.0, targets_per_class=1), source_of_twins, 1)
    wild = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=1e200)}
    with pytest.raises(ValueError, match=r"NaN or infinite entries: .* raise reg, which is 1e-06, or lower the learn"):
        fit(kip(**wild), digits, 5)


@pytest.fixture
def source_of_twins() -> ImageDataModule:
    """Ten classes with the same image, all zeros once it is normalised: every entry of the kernel is the same."""
    images = Images(torch.full((10, 1, 4, 4), 7, dtype=torch.uint8), torch.arange(10))
    twins = Source(images, images, list("abcdefghij"), "twins")
    data = ImageDataModule(source=twins, mean=[7 / 255], std=[0.5], batch_size=5, measure_batch_size=5, seed=0)
    data.setup()
    return data
