"""The data module alone and under a Trainer, and every file of conf/dataset."""

import inspect
import json
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from safetensors.torch import save_file

from ncdd.data import Augment, Images, Normalisation, Source, distilled_module, module, sources
from ncdd.data.module import ImageDataModule

CONF = sorted((Path(__file__).parents[2] / "conf" / "dataset").glob("*.yaml"))


def build(source, **changes) -> ImageDataModule:
    options = {"batch_size": 8, "measure_batch_size": 16, "seed": 3, **changes}
    data = ImageDataModule(source=source, **options)
    data.setup()
    return data


def test_what_it_knows_after_setup(source):
    data = build(source)
    assert (data.num_classes, data.in_channels, data.image_size) == (3, 3, 6)
    assert data.class_names == ["a", "b", "c"]
    assert data.counts.tolist() == [20, 20, 20]
    values = source.train.pixels.numpy() / 255
    assert data.mean == pytest.approx(values.mean((0, 2, 3)))
    assert data.std == pytest.approx(values.std((0, 2, 3)))
    assert build(source, mean=[0.1, 0.2, 0.3], std=[1, 1, 1]).mean == (0.1, 0.2, 0.3)


def test_setup_reads_once_and_without_being_asked(source):
    calls = []

    def read():
        calls.append(1)
        return source

    data = ImageDataModule(source=read, batch_size=8, measure_batch_size=16, seed=0)
    assert not calls
    data.prepare_data()
    data.setup("fit")
    data.train_dataloader()
    data.setup()
    assert calls == [1]


def test_root_and_download_reach_the_source(mnist_root):
    source = partial(sources.torchvision_set, name="mnist")
    assert build(source, root=str(mnist_root), download=True).image_size == 28
    assert build(sources.digits, root="anywhere").image_size == 8


def test_measuring_is_plain_ordered_and_whole(source):
    data = build(source, augment=Augment(crop=2, flip=True))
    loaders = data.measure_dataloaders()
    assert list(loaders) == ["train", "test"]
    for name, split in (("train", source.train), ("test", source.test)):
        got = torch.cat([x for x, _ in loaders[name]])
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
        torch.testing.assert_close(got, (split.pixels / 255 - mean) / std, rtol=0, atol=1e-5)
        assert torch.equal(torch.cat([y for _, y in loaders[name]]), split.labels)


def test_validation_is_held_out(source):
    data = build(source, val_fraction=0.25)
    assert data.counts.tolist() == [15, 15, 15]
    rows = [split.pixels.flatten(1) for split in (data.splits["train"], data.splits["val"])]
    assert sorted(map(tuple, torch.cat(rows).tolist())) == sorted(map(tuple, source.train.pixels.flatten(1).tolist()))
    assert sum(len(y) for _, y in data.val_dataloader()) == 15
    assert build(source).val_dataloader() == []


def test_thinning_and_relabelling(source):
    assert build(source, samples_per_class=4).counts.tolist() == [4, 4, 4]
    assert build(source, imbalance=4.0).counts.tolist() == [20, 10, 5]
    assert build(source, val_fraction=0.5, samples_per_class=8, imbalance=4.0).counts.tolist() == [8, 4, 2]
    data = build(source, random_labels=True, val_fraction=0.5)
    trained = torch.cat([y for _, y in data.measure_dataloaders()["train"]])
    assert torch.equal(trained, data.splits["train"].labels)
    clean = {tuple(x.flatten().tolist()): int(y) for x, y in zip(source.train.pixels, source.train.labels, strict=True)}
    truth = [[clean[tuple(row)] for row in data.splits[name].pixels.flatten(1).tolist()] for name in ("train", "val")]
    assert truth[0] != data.splits["train"].labels.tolist()
    assert truth[1] == data.splits["val"].labels.tolist()
    noisy = build(source, label_noise=0.5).splits["train"]
    assert noisy.pixels is source.train.pixels  # relabelling copies no image
    assert 0 < (noisy.labels != source.train.labels).sum() <= 30


def test_one_sample_a_class_is_enough(made_up):
    lone = made_up(3)
    data = build(Source(lone, lone, ["a", "b", "c"], "lone"), imbalance=1.0)
    assert data.counts.tolist() == [1, 1, 1]


def test_a_lone_sample_stays_in_train(made_up):
    few = Images(made_up(7).pixels, torch.tensor([0, 1, 1, 1, 2, 2, 2]))
    data = build(Source(few, few, ["a", "b", "c"], "few"), val_fraction=0.4)
    assert data.counts.tolist() == [1, 2, 2]


def test_seeds_change_the_draws_but_nothing_else(source):
    first, again, other = (build(source, val_fraction=0.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.splits["val"].pixels, again.splits["val"].pixels)
    assert not torch.equal(first.splits["val"].pixels, other.splits["val"].pixels)
    assert first.mean == other.mean


# ------------------------------------------------------------ synthetic sets


def synthetic(source, normalisation=None) -> Source:
    train = Images(torch.randn(3, 3, 6, 6), torch.eye(3))
    return Source(train, source.test, source.class_names, "made_up", source.train, normalisation)


def test_a_synthetic_set_beside_the_real_one(source):
    stats = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    data = build(synthetic(source, stats))
    assert (data.mean, data.counts.tolist()) == (stats.mean, [1, 1, 1])
    loaders = data.measure_dataloaders()
    assert {name: sum(len(y) for _, y in loader) for name, loader in loaders.items()} == {
        "train": 3,
        "real": 60,
        "test": 15,
    }
    assert torch.equal(next(iter(loaders["train"]))[0], data.splits["train"].pixels)
    assert next(iter(data.train_dataloader()))[1].shape == (3, 3)
    rounded = build(synthetic(source, stats), mean=[0.40004, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    assert rounded.mean == (0.40004, 0.5, 0.6)


def test_normalisation_of_a_synthetic_set_must_be_known_and_agree(source):
    with pytest.raises(ValueError, match=r"mean=null, dataset\.std=null: the synthetic set's file does not say"):
        build(synthetic(source))
    stats = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    message = r"dataset\.mean=\[0\.5, 0\.5, 0\.5\], .* differ from what the synthetic set was normalised with, \[0\.4"
    with pytest.raises(ValueError, match=message):
        build(synthetic(source, stats), mean=[0.5, 0.5, 0.5], std=[0.2, 0.25, 0.3])
    with pytest.raises(ValueError, match="soft labels: "):
        build(synthetic(source, stats), label_noise=0.1)


def test_distilled_module_reads_the_file(tmp_path):
    metadata = {"dataset": "digits", "mean": [0.3], "std": [0.4]}
    tensors = {"images": torch.randn(10, 1, 8, 8), "labels": torch.arange(10)}
    save_file(tensors, tmp_path / "set.safetensors", {"ncdd": json.dumps(metadata)})
    node = yaml.safe_load(next(path for path in CONF if path.stem == "distilled").read_text())
    node.pop("_target_")
    node.update(path=str(tmp_path / "set.safetensors"), augment=None, seed=0)
    data = distilled_module(**node)
    data.setup()
    assert (data.counts.tolist(), data.mean, data.image_size) == ([1] * 10, (0.3,), 8)
    assert list(data.measure_dataloaders()) == ["train", "real", "test"]


# ------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, r"dataset\.batch_size=0: a number >= 1 is needed"),
        ({"measure_batch_size": 0}, r"dataset\.measure_batch_size=0: a number >= 1"),
        ({"val_fraction": 1.0}, r"dataset\.val_fraction=1\.0: a fraction in \[0, 1\)"),
        ({"val_fraction": 0.001}, r"dataset\.val_fraction=0\.001: leaves no validation sample of 60"),
        ({"samples_per_class": 0}, r"dataset\.samples_per_class=0: null or >= 1"),
        ({"samples_per_class": 21}, r"samples_per_class=21: .* has 20 samples; choose 1 to 20"),
        ({"imbalance": 0.1}, r"dataset\.imbalance=0\.1: a factor >= 1"),
        ({"label_noise": 2.0}, r"dataset\.label_noise=2\.0: a fraction in \[0, 1\]"),
        ({"num_workers": -1}, r"dataset\.num_workers=-1: a number >= 0"),
        ({"random_labels": True, "label_noise": 0.5}, r"random_labels=true already replaces every label"),
        ({"mean": [0.5, 0.5, 0.5]}, r"dataset\.mean=\[0\.5, 0\.5, 0\.5\], dataset\.std=None: give both, or null"),
        ({"mean": [0.5], "std": [0.5]}, r"dataset\.mean=\[0\.5\]: 3 numbers are needed, one a channel"),
        ({"mean": [0.5] * 3, "std": [0.5, 0, 0.5]}, r"std=\[0\.5, 0, 0\.5\]: every channel needs a number > 0"),
        ({"mean": [0.5] * 3, "std": [0.5]}, r"one number a channel is needed in both"),
    ],
)
def test_messages(source, changes, message):
    with pytest.raises(ValueError, match=message):
        build(source, **changes)


def test_more_messages(made_up):
    images = made_up(12)
    with pytest.raises(ValueError, match=r"x: only one class, \['a'\]; at least two"):
        build(one_class(images))
    wide = Images(images.pixels[..., :5], images.labels)
    with pytest.raises(ValueError, match=r"x: images of 6 x 5 pixels; square ones are needed"):
        build(Source(wide, wide, ["a", "b", "c"], "x"))
    with pytest.raises(ValueError, match=r"x: no train sample of 1 of 4 classes \(d\); every class needs one"):
        build(Source(images, images, ["a", "b", "c", "d"], "x"))
    data = build(Source(images, images, ["a", "b", "c"], "x"), batch_size=100, drop_last=True)
    with pytest.raises(ValueError, match=r"dataset\.batch_size=100: no batch in 12 train samples with drop_last=True"):
        data.train_dataloader()


def one_class(images: Images) -> Source:
    alone = Images(images.pixels, torch.zeros(len(images), dtype=torch.int64))
    return Source(alone, alone, ["a"], "x")


# ------------------------------------------------------------ under a Trainer


class Recorder(pl.LightningModule):
    """Keeps what each step was given; its one weight makes it trainable."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[int, tuple[int, torch.Tensor]] = {}

    def training_step(self, batch, _):
        self.seen[self.global_step] = (self.current_epoch, batch[0].clone())
        return self.weight * batch[0].mean()

    def validation_step(self, *_):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(source, folder, stop_at=None, resume=None, **changes) -> dict:
    """Three epochs of eight steps, a checkpoint each step; `stop_at` ends it as if killed after that many steps."""

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(folder / f"{trainer.global_step}.ckpt")
            if trainer.global_step == stop_at:
                raise KeyError("killed")

        def on_train_epoch_end(self, trainer, _):
            trainer.save_checkpoint(folder / f"epoch{trainer.current_epoch}.ckpt")

    module = Recorder()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Save()],
        **changes,
    )
    data = build(source, augment=Augment(crop=2, flip=True, cutout=2))
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except KeyError:
        assert stop_at
    return module.seen


@pytest.mark.filterwarnings("ignore")
def test_a_killed_training_resumes_bitwise(source, tmp_path):
    """From the middle and the end of an epoch, with the epochs that Lightning counts, not the loader."""
    whole = fit(source, tmp_path)
    assert [epoch for epoch, _ in whole.values()] == [0] * 8 + [1] * 8 + [2] * 8
    assert len({tuple(x.flatten().tolist()) for _, x in whole.values()}) == 24
    for checkpoint, steps in (("5", 5), ("8", 8), ("epoch0", 8), ("11", 11), ("epoch1", 16)):
        resumed = fit(source, tmp_path, resume=tmp_path / f"{checkpoint}.ckpt")
        assert list(resumed) == list(range(steps, 24)), checkpoint
        for step, (epoch, x) in resumed.items():
            assert epoch == whole[step][0], checkpoint
            assert torch.equal(x, whole[step][1]), checkpoint


def test_no_validation_split_is_no_warning(source):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **options)
    trainer.fit(Recorder(), datamodule=build(source))
    assert trainer.num_val_batches == [0]


@pytest.mark.filterwarnings("ignore")
def test_epochs_cut_short_by_lightning_still_move_on(source, tmp_path):
    whole, short = fit(source, tmp_path), fit(source, tmp_path, limit_train_batches=3)
    assert [epoch for epoch, _ in short.values()] == [0] * 3 + [1] * 3 + [2] * 3
    for step, (epoch, x) in short.items():
        assert torch.equal(x, whole[8 * epoch + step % 3][1])


# ------------------------------------------------------------ conf/dataset


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_each_yaml_says_what_it_is_and_repeats_no_default(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[1].startswith("_target_: ")
    node = yaml.safe_load(path.read_text())
    assert "seed" not in node  # run.py gives it
    target = getattr(module, node["_target_"].rsplit(".", 1)[1])
    arguments = set(inspect.signature(target).parameters) - {"seed"}
    assert set(node) - {"_target_"} == arguments  # every argument can be set, and its default is read here


@pytest.mark.parametrize("path", [p for p in CONF if p.stem in sources.TORCHVISION], ids=lambda p: p.stem)
def test_each_torchvision_yaml_names_itself(path):
    assert yaml.safe_load(path.read_text())["source"]["name"] == path.stem
