"""The callback that the three kinds of training share: class means, covariances and every Neural Collapse metric.

It drops into any Lightning Trainer whose model ends in a linear layer:

    Trainer(callbacks=[NeuralCollapseCallback(loaders={"train": train_loader, "test": test_loader})])
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ncdd.collapse.metric import NeuralCollapse
from ncdd.runfolder import replacing

log = logging.getLogger(__name__)

# What the line of an epoch shows: label, key, format.
SHOWN = (
    ("acc", "linear_accuracy", ".2%"),
    ("NC1", "nc1_pinv", ".2e"),
    ("NC2", "nc2_etf_M", ".3f"),
    ("NC3", "nc3_dual_etf", ".3f"),
    ("NC4", "nc4_agree_bias", ".2%"),
)


class NeuralCollapseCallback(pl.Callback):
    """Measure Neural Collapse on whole data sets, in eval mode, every `every_n_epochs` and after the last epoch.

    The features are what the last linear layer receives; one forward pass a split yields them, the logits, the loss
    and the accuracy. Test features are measured against their own class means and against those of the first split.

    loaders: name -> iterable of (inputs, labels, ...), un-augmented, unshuffled, under DDP sharded without padding.
        None takes `measure_dataloaders()` of the module or of `trainer.datamodule`, where one of them has it, else the
        Trainer's own train and validation loaders.
    layer: name of the last linear layer, as in `named_modules()`. None takes `head` where the module has one, else
        the linear layer whose output is the module's.
    at_start: measure before training too.
    memory_budget: bytes of features to keep; beyond it statistics are streamed, and NC4 costs a second forward pass.
    Other arguments: `ncdd.collapse.NeuralCollapse`.

    Everything goes to every logger of the Trainer as `SPLIT/METRIC`, and to `trainer.callback_metrics`, where other
    callbacks can monitor it. `geometry[split]` holds the last measurement whole.
    """

    def __init__(
        self,
        *,
        loaders: Mapping[str, Iterable[Any]] | None = None,
        layer: str | None = None,
        num_classes: int | None = None,
        every_n_epochs: int = 1,
        at_start: bool = False,
        memory_budget: int = 2**31,
        precision: Literal["exact", "fast"] = "exact",
        weighting: Literal["balanced", "sample"] = "balanced",
        vci: bool = True,
        central_path: bool = False,
        ignore_index: int | None = None,
        samples_kept: int = 2000,
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs}: must be at least 1")
        self.loaders, self.layer, self.num_classes = loaders, layer, num_classes
        self.every_n_epochs, self.at_start, self.samples_kept = every_n_epochs, at_start, samples_kept
        self.ignore_index = ignore_index
        self.options: dict[str, Any] = {
            "memory_budget": memory_budget,
            "precision": precision,
            "weighting": weighting,
            "vci": vci,
            "central_path": central_path,
            "ignore_index": ignore_index,
        }
        self.geometry: dict[str, dict[str, np.ndarray]] = {}
        self._measured_epochs = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.at_start and trainer.global_step == 0:
            self._report(trainer, pl_module, epochs=0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if epochs % self.every_n_epochs == 0 or epochs == trainer.max_epochs:
            values = self._report(trainer, pl_module, epochs=epochs)
            # for whoever monitors; the loggers have the float64 values already
            pl_module.log_dict({k: torch.tensor(v) for k, v in values.items()}, logger=False, sync_dist=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._measured_epochs < trainer.current_epoch:  # stopped early, between two measurements
            self._report(trainer, pl_module, epochs=trainer.current_epoch)

    def save_geometry(self, path: Any) -> None:
        """Write class means, counts, sample features and the head of the last measurement as an npz, atomically."""
        arrays = {f"{split}/{k}" if split else k: v for split, g in self.geometry.items() for k, v in g.items()}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        """`SPLIT/METRIC` -> value on every split, now. Leaves the module's modes and weights as they were."""
        if trainer.world_size > 1:  # batch norm's running statistics are each rank's own until a synchronised forward
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, 0)
        values: dict[str, float] = {}
        reference: Tensor | None = None
        loaders = self._loaders(trainer)
        # a DataLoader draws from torch's generator: measuring must not change the training that follows
        with _eval_mode(pl_module), isolate_rng(), torch.inference_mode():
            head = self._head(trainer, pl_module, loaders)
            weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
            for split, loader in loaders.items():
                metric = NeuralCollapse(self.num_classes or head.out_features, **self.options).to(pl_module.device)
                metric.set_head(weight, bias)
                if reference is not None:
                    metric.set_reference(reference)
                loss, sample = self._sweep(trainer, pl_module, head, loader, metric, split)
                if metric.needs_second_pass:
                    for features, targets, logits in self._forward(trainer, pl_module, head, loader, f"{split}, NC4"):
                        metric.update_decisions(features, _labels(targets), logits)
                collapse = metric.measure()
                reference = collapse.mean_KD if reference is None else reference
                values |= {f"{split}/loss": loss} | {f"{split}/{k}": v for k, v in collapse.values.items()}
                values[f"{split}/accuracy"] = collapse.values["linear_accuracy"]
                self.geometry[split] = {
                    "mean": collapse.mean_KD.cpu().numpy(),
                    "count": collapse.count_K.cpu().numpy(),
                } | sample
        rows = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        self.geometry[""] = {name: _at_least_float32(t).cpu().numpy() for name, t in rows.items()}
        return values

    def _report(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, epochs: int) -> dict[str, float]:
        """Measure, log, and say it in a line."""
        values = self.measure(trainer, pl_module)
        self._measured_epochs = epochs
        of_max = "" if trainer.max_epochs is None or trainer.max_epochs < 0 else f"/{trainer.max_epochs}"
        self.publish(trainer, values, epochs=epochs, step=trainer.global_step, title=f"epoch {epochs}{of_max}")
        return values

    def publish(self, trainer: pl.Trainer, values: Mapping[str, float], *, epochs: int, step: int, title: str) -> None:
        """Give the values, measured after that many epochs and steps, to every logger, and say them in a line."""
        for logger in trainer.loggers:
            # Lightning counts epochs from 0 while they run; `epoch` of its own rows is one less than those completed
            logger.log_metrics({**values, "epoch": epochs - 1}, step=step)
            logger.save()
        if trainer.is_global_zero:
            log.info("%s  %s", title, " | ".join(_line(s, values) for s in self._loaders(trainer)))

    def _loaders(self, trainer: pl.Trainer) -> Mapping[str, Iterable[Any]]:
        if self.loaders is not None:
            return self.loaders
        sources: tuple[Any, ...] = (trainer.lightning_module, getattr(trainer, "datamodule", None))
        for source in sources:
            if hasattr(source, "measure_dataloaders"):
                self.loaders = source.measure_dataloaders()
                return self.loaders
        val = trainer.val_dataloaders
        several = val if isinstance(val, list) else [val]
        found = {"train": trainer.train_dataloader} | {f"val{i or ''}": one for i, one in enumerate(several)}
        self.loaders = {name: loader for name, loader in found.items() if loader is not None}
        return self.loaders

    def _sweep(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        head: nn.Linear,
        loader: Iterable[Any],
        metric: NeuralCollapse,
        split: str,
    ) -> tuple[float, dict[str, np.ndarray]]:
        """One pass that feeds the metric: the mean loss, and the first `samples_kept` features with their labels."""
        objective = getattr(pl_module, "objective", None)
        objective = objective if callable(objective) else _cross_entropy
        total = torch.zeros(2, dtype=torch.float64, device=pl_module.device)
        kept: list[tuple[Tensor, Tensor]] = []
        missing = self.samples_kept
        for features, targets, logits in self._forward(trainer, pl_module, head, loader, split):
            labels = _labels(targets)
            metric.update(features, labels, logits)
            if self.ignore_index is not None:
                counted = labels != self.ignore_index
                features, targets, labels, logits = (
                    features[counted],
                    targets[counted],
                    labels[counted],
                    logits[counted],
                )
            if n := len(labels):
                loss = objective(
                    logits=_at_least_float32(logits), features=_at_least_float32(features), targets=targets
                )
                total[0] += loss.double() * n
                total[1] += n
            if missing > 0:
                kept.append((features[:missing], labels[:missing]))
                missing -= len(kept[-1][0])
        total = trainer.strategy.reduce(total, reduce_op="sum")
        sample = {
            "features": torch.cat([f for f, _ in kept]).float().cpu().numpy(),
            "labels": torch.cat([y for _, y in kept]).cpu().numpy(),
        }
        return float(total[0] / total[1]), sample

    def _forward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, head: nn.Linear, loader: Iterable[Any], name: str
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(features (B, D), targets (B,) or (B, K), logits (B, K)) of each batch."""
        captured: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
        try:
            for batch in tqdm(loader, desc=f"measuring {name}", leave=False, disable=None):
                x, targets = self._inputs(trainer, batch)
                with trainer.precision_plugin.forward_context():
                    logits = pl_module(x)
                yield captured.pop().flatten(1), targets, logits
        finally:
            hook.remove()

    def _inputs(self, trainer: pl.Trainer, batch: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(batch, list | tuple) or len(batch) < 2:
            raise ValueError(f"a batch to measure is (inputs, labels, ...); a loader gave a {type(batch).__name__}")
        x, targets = trainer.strategy.batch_to_device(batch)[:2]
        return trainer.precision_plugin.convert_input(x), targets

    def _head(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loaders: Mapping[str, Iterable[Any]]
    ) -> nn.Linear:
        if self.layer is None:
            self.layer = "head" if isinstance(getattr(pl_module, "head", None), nn.Linear) else None
        if self.layer is None:
            x, _ = self._inputs(trainer, next(iter(next(iter(loaders.values())))))
            with trainer.precision_plugin.forward_context():
                self.layer = last_linear(pl_module, x)
        head = dict(pl_module.named_modules()).get(self.layer)
        if not isinstance(head, nn.Linear):
            linear = [name for name, m in pl_module.named_modules() if isinstance(m, nn.Linear)]
            raise ValueError(f"layer={self.layer!r} is not a linear layer: choose from {', '.join(linear) or 'none'}")
        return head


def last_linear(module: nn.Module, x: Tensor) -> str:
    """Name of the linear layer whose output is that of `module(x)`; ValueError where none is."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        m.register_forward_hook(lambda _, __, out, name=name: outputs.__setitem__(name, out))
        for name, m in module.named_modules()
        if isinstance(m, nn.Linear)
    ]
    result = module(x)
    for hook in hooks:
        hook.remove()
    for name, out in reversed(outputs.items()):
        if out is result:
            return name
    raise ValueError(
        f"no linear layer puts out the logits; name it by layer=..., one of {', '.join(outputs) or 'none'}"
    )


def _labels(targets: Tensor) -> Tensor:
    """Class indices (B,); of soft labels (B, K) the largest counts."""
    return targets.argmax(1) if targets.ndim == 2 else targets


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _cross_entropy(logits: Tensor, features: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets)


def _line(split: str, values: Mapping[str, float]) -> str:
    shown = [f"{label} {values[f'{split}/{key}']:{form}}" for label, key, form in SHOWN if f"{split}/{key}" in values]
    return f"{split}: loss {values[f'{split}/loss']:.4f} {' '.join(shown)}"


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Every part in eval mode, and afterwards each in the mode it had: parts may be frozen on purpose."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
