"""The callback in somebody else's Trainer, against the metrics of the same features computed by hand."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ncdd.callbacks import NeuralCollapseCallback
from ncdd.callbacks.collapse import last_linear
from ncdd.collapse import measure

torch.manual_seed(0)
X, Y = torch.randn(70, 5), torch.arange(70) % 3
X += F.one_hot(Y, 5).float()


class Theirs(pl.LightningModule):
    """A model that knows nothing of this project: no `head`, but dropout and a part frozen in eval mode."""

    def __init__(self, wrapped: bool = False):
        super().__init__()
        self.frozen = nn.BatchNorm1d(5).eval()
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.unused = nn.Linear(8, 3)
        self.out = nn.Linear(8, 3)
        self.wrapped = wrapped

    def features(self, x):
        return self.encoder(self.frozen(x))

    def forward(self, x):
        logits = self.out(self.features(x))
        return logits * 2 if self.wrapped else logits

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(batch_size=16):
    return DataLoader(TensorDataset(X, Y), batch_size=batch_size)


def fit(callback, model=None, **options):
    model = model or Theirs()
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, loader())
    return trainer, model


@pytest.mark.parametrize("options", [{}, {"memory_budget": 0}, {"layer": "out"}])
def test_values_are_those_of_the_features_in_eval_mode(options):
    callback = NeuralCollapseCallback(loaders={"train": loader(16), "test": loader(70)}, **options)
    trainer, model = fit(callback)
    model.eval()
    with torch.no_grad():
        features, logits = model.features(X), model(X)
    head = {"weight_KD": model.out.weight, "bias_K": model.out.bias, "logits_NK": logits}
    train = measure(features, Y, **head)
    test = measure(features, Y, **head, reference_means_KD=train.mean_KD)
    got = callback.measure(trainer, model)
    for split, expected in (("train", train), ("test", test)):
        for name, value in expected.values.items():
            assert got[f"{split}/{name}"] == pytest.approx(value, rel=1e-6, abs=1e-9), name
        assert got[f"{split}/loss"] == pytest.approx(float(F.cross_entropy(logits, Y)), rel=1e-6)
        assert got[f"{split}/accuracy"] == pytest.approx(float((logits.argmax(1) == Y).double().mean()))
    assert got["test/nc1_pinv__train_means"] == pytest.approx(got["train/nc1_pinv"], rel=1e-6)
    assert float(trainer.callback_metrics["train/nc1_pinv"]) == pytest.approx(got["train/nc1_pinv"], rel=1e-5)


def test_it_leaves_modes_and_weights_as_they_were():
    model = Theirs()
    callback = NeuralCollapseCallback(loaders={"train": loader()})
    trainer, _ = fit(callback, model)
    model.train()
    model.frozen.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = {name: part.training for name, part in model.named_modules()}
    callback.measure(trainer, model)
    assert modes == {name: part.training for name, part in model.named_modules()}
    assert not modes["frozen"] and modes["encoder.3"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_training_is_the_same_with_and_without_it():
    weights = []
    for callback in (NeuralCollapseCallback(loaders={"train": loader()}), pl.Callback()):
        torch.manual_seed(1)
        weights.append(fit(callback)[1].state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_it_finds_the_last_linear_layer_and_says_when_there_is_none():
    assert last_linear(Theirs().eval(), X[:2]) == "out"
    with pytest.raises(ValueError, match=r"name it by layer=\.\.\., one of encoder\.0, out"):
        last_linear(Theirs(wrapped=True).eval(), X[:2])
    with pytest.raises(ValueError, match=r"layer='encoder.1' is not a linear layer: choose from encoder\.0"):
        fit(NeuralCollapseCallback(loaders={"train": loader()}, layer="encoder.1"))


def test_every_n_epochs_still_measures_the_last():
    epochs = []

    class Spy(NeuralCollapseCallback):
        def _report(self, trainer, pl_module, *, epochs):
            seen.append(epochs)
            return super()._report(trainer, pl_module, epochs=epochs)

    seen = epochs
    callback = Spy(loaders={"train": loader()}, every_n_epochs=3, at_start=True)
    fit(callback)
    assert epochs == [0, 2]
    with pytest.raises(ValueError, match="every_n_epochs=0: must be at least 1"):
        NeuralCollapseCallback(every_n_epochs=0)
