"""Every YAML composes, passes check() and its targets build and run; every kind of mistake is named."""

import inspect
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.loggers import Logger

import run
from ncdd import config
from ncdd.data import ImageDataModule, Images, Source
from ncdd.methods.distill import Distillation
from ncdd.models import Network

CONF = Path(__file__).parents[1] / "conf"
CHOICES = sorted(p.relative_to(CONF).with_suffix("") for p in CONF.glob("*/*.yaml"))
# what a choice needs before it means anything, or to be built on a machine without a GPU
NEEDS = {
    "dataset/distilled": ["dataset.path=set.safetensors"],
    "trainer/gpu": ["trainer.accelerator=cpu"],
    "method/etf": ["head=etf"],
    "method/invert": ["method.checkpoint=null"],
    "experiment/joint_invert": ["method.checkpoint=null"],
    "model/unconstrained": ["dataset=ufm"],
    "callbacks/ufm": ["experiment=ufm"],
}


def plain(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_choice_composes_and_passes_check(choice):
    group, name = choice.parts
    config.check(plain(f"{group}={name}", *NEEDS.get(str(choice), [])), run.WIRED)


@pytest.mark.parametrize("name", ["accuracy", "accuracy_augmented"])
def test_frepo_is_tested_by_either_protocol_alone(name):
    config.check(plain("method=frepo", f"callbacks.distilled.final.{name}=null"), run.WIRED)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_choice_builds(choice, tmp_path, monkeypatch):
    """Every node of the composed configuration, with the arguments that run.py wires in, and a forward pass or step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    group, name = choice.parts
    cfg = OmegaConf.create(
        plain(f"{group}={name}", *NEEDS.get(str(choice), []), f"+trainer.default_root_dir={tmp_path}")
    )
    if group == "method" and "width" in cfg.model:
        cfg.model.width = 8  # a step of a second, not of a minute
    build = partial(instantiate, _convert_="all")
    shape = (1, 1) if "Unconstrained" in cfg.model._target_ else (3, 32)

    def new_network() -> Network:
        model = build(cfg.model, in_channels=shape[0], image_size=shape[1])
        return Network(model, build(cfg.head, num_features=model.num_features, num_classes=10))

    network = new_network()
    x = torch.randn(2, shape[0], shape[1], shape[1])
    assert network.eval()(x).shape == (2, 10)
    parts = {part: build(cfg[part]) for part in ("loss", "optimizer", "scheduler")}
    parts |= {"model": network.model, "head": network.head, "new_network": new_network}
    asked = inspect.signature(config.locate(cfg.method._target_)).parameters
    method = build(cfg.method, **{part: value for part, value in parts.items() if part in asked})
    if not isinstance(method, Distillation):
        classify(method, x)
    elif group == "method":
        distil(method, build(cfg.trainer, callbacks=[], logger=False, max_steps=1, enable_checkpointing=False))
    if choice != Path("dataset/distilled"):  # reads its file when it is built; tests/data does that
        assert isinstance(build(cfg.dataset, seed=0), pl.LightningDataModule)
    callbacks = [build(node) for node in cfg.callbacks.values()]
    assert isinstance(build(cfg.trainer, callbacks=callbacks, logger=False), pl.Trainer)
    if cfg.task:
        assert callable(build(cfg.task))
    if cfg.logger:
        about = {
            "folder": tmp_path,
            "name": "n",
            "group": None,
            "job_type": "t",
            "tags": ["a"],
            "settings": {"seed": 0},
        }
        assert isinstance(build(cfg.logger, **about), Logger)


def classify(method: pl.LightningModule, x: torch.Tensor) -> None:
    """A forward pass and a loss."""
    configured = method.configure_optimizers()
    assert isinstance(configured["optimizer"], torch.optim.Optimizer)
    assert isinstance(configured["lr_scheduler"]["scheduler"], torch.optim.lr_scheduler.LRScheduler)
    with torch.no_grad():
        features, logits = method.eval().features(x), method(x)
        assert logits.shape == (2, 10)
        assert method.objective(logits, features, torch.tensor([1, 7])).isfinite()


def distil(method: Distillation, trainer: pl.Trainer) -> None:
    """One update of the set, on three random images of each class."""
    images = Images(torch.randint(256, (30, 3, 32, 32), dtype=torch.uint8), torch.arange(30) % 10)
    source = Source(images, images, [str(k) for k in range(10)], name="noise")
    data = ImageDataModule(source=source, batch_size=8, measure_batch_size=8, seed=0)
    data.draws = (method.sampling, 1)
    trainer.fit(method, datamodule=data)
    synthetic = method.synthetic_set()
    assert trainer.global_step == 1
    assert synthetic.classes.unique().tolist() == list(range(10))
    assert synthetic.images.isfinite().all()


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_choice_says_what_it_is(choice):
    first = (CONF / f"{choice}.yaml").read_text().splitlines()
    assert first[0].startswith("# "), "the first line of a group's YAML is a comment that says what it is"


def test_head_etf_brings_its_method_unless_another_is_named():
    assert plain("head=etf")["method"]["_target_"].endswith("FixedETF")
    assert plain("head=etf", "method=classify")["method"]["_target_"].endswith("Classify")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+model.widht=3"], "model.widht: ncdd.models.ResNet takes no 'widht'; did you mean width?"),
        (["+trainer.max_epoch=3"], "trainer.max_epoch: pytorch_lightning.Trainer takes no 'max_epoch'; did you mean"),
        (["model.width=wide"], "model.width='wide': int expected"),
        (["model.norm=btch", "model=mlp"], "model.norm='btch': one of batch, none expected"),
        (["model.width=true"], "model.width=True: int expected"),
        (["optimizer.lr=fast"], "optimizer.lr='fast'"),
        (["head=etf", "head.scale=[1]"], "head.scale=[1]: float expected"),
        (["~model.width"], "model.width: missing, ncdd.models.ResNet needs it"),
        (["model._target_=ncdd.models.ResNett"], "ncdd.models.ResNett: no 'ResNett' there; did you mean ResNet?"),
        (["model._target_=nowhere.Model"], "model._target_: nowhere.Model: no module 'nowhere'"),
        (["+sede=1"], "sede: no such setting; did you mean seed?"),
        (["dataset=distilled"], "dataset.path: must be given"),
        (["+dataset.augment.flop=true"], "dataset.augment.flop: ncdd.data.Augment takes no 'flop'; did you mean flip?"),
    ],
)
def test_check_names_the_mistake(overrides, message):
    with pytest.raises(config.ConfigError) as caught:
        config.check(plain(*overrides), run.WIRED)
    assert message in str(caught.value)


def test_check_reports_all_mistakes_at_once():
    with pytest.raises(config.ConfigError) as caught:
        config.check(plain("+model.widht=3", "optimizer.lr=fast", "+head.biass=1"), run.WIRED)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=resnet19"], "resnet18"),
        (["modell=resnet18"], "modell"),
        (["seed=one"], "seed"),
    ],
)
def test_hydra_refuses_what_the_root_does_not_know(overrides, message):
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        plain(*overrides)
    assert message in str(caught.value)
