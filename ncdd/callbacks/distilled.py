"""The synthetic set of a distillation: evaluated as it is learned, the best kept in a file, and shown as images."""

from __future__ import annotations

import logging
import math
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from matplotlib.figure import Figure

from ncdd.callbacks.wandb import WandbLogger
from ncdd.data.seeding import fold_in
from ncdd.distill import SyntheticSet
from ncdd.distill.compute import Cost, hardware, measured
from ncdd.distill.evaluate import TEST, NewNetwork, Protocol, best_protocol, evaluate, fresh_networks
from ncdd.models import Linear
from ncdd.models.network import Body, Head, network_of
from ncdd.report.images import animate, grid_figure, save_grid
from ncdd.runfolder import SET

log = logging.getLogger(__name__)


class DistilledSet(pl.Callback):
    """Train fresh networks on the set, before the first step and after each epoch, and keep the set that does best.

    Judged on the validation split; where there is none the last set is kept. The best is tested at the end.

    monitor: what is best, a name of the validation numbers: "accuracy", or one of the method's own `measure`.
    networks, protocol: fresh networks at each evaluation, and how they are trained; 0 for none.
    final_networks, final: at the end, name of the metric -> protocol: `test/NAME` and `test/NAME_std`. None is
        left out.
    tune: field of a protocol -> values, of which each of `final` takes those that do best on the validation split.
    own_steps: networks take the steps of a step-wise set, as it is meant; False: they are trained by the protocols, as
        on any other set.
    architectures: name -> further networks for each of `final`, with `head` (None: a learned one):
        `test/NAME_ARCHITECTURE`.

    In the run's folder: distilled.safetensors and, unless `Record` is told to draw no figures,
    figures/distilled/step_*.png and figures/distilled.webp.
    """

    figures = True

    def __init__(
        self,
        *,
        seed: int,
        monitor: str,
        networks: int,
        protocol: Protocol,
        final_networks: int,
        final: Mapping[str, Protocol | None],
        tune: Mapping[str, Sequence[float]] | None,
        own_steps: bool = True,
        architectures: Mapping[str, Body] | None = None,
        head: Head | None = None,
    ) -> None:
        for name, number in (("networks", networks), ("final_networks", final_networks)):
            if number < 0:
                raise ValueError(f"callbacks.distilled.{name}={number}: a number >= 0 is needed, 0 for no test")
        self.seed, self.monitor = seed, monitor
        self.networks, self.protocol = networks, protocol
        self.final_networks, self.final, self.tune = final_networks, final, tune
        self.own_steps, self.architectures = own_steps, architectures or {}
        self.head = head or partial(Linear, bias=True)
        self.best: float | None = None
        self.kept = 0  # the iteration whose set is in the file
        self.seconds = 0.0  # of all evaluations, over all resumptions
        self.cost: Cost | None = None  # of all epochs, over all resumptions
        self._of_epoch: Cost | None = None  # None where an epoch is resumed in its middle
        self._epoch = ExitStack()  # closes when the last step of an epoch is done

    def state_dict(self) -> dict[str, Any]:
        cost = None if self.cost is None else asdict(self.cost)
        return {"best": self.best, "kept": self.kept, "seconds": self.seconds, "cost": cost}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.kept, self.seconds = state_dict["best"], state_dict["kept"], state_dict["seconds"]
        self.cost = None if state_dict["cost"] is None else Cost(**state_dict["cost"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the Trainer end by its epochs, and the last of them here.

        Lightning (2.6) resumes a training that ends by its steps in an epoch that is over: with one step more of it.
        """
        self.iterations, draws = trainer.max_steps, trainer.datamodule.draws  # type: ignore[attr-defined]
        if self.iterations > 0 and draws:
            trainer.fit_loop.epoch_loop.max_steps = -1
            trainer.fit_loop.max_epochs = math.ceil(self.iterations / draws[1])
        for new_network in self._others(trainer).values():
            fresh_networks(new_network, 1, seed=self.seed)  # what cannot read these images says so before hours passed

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.iterations:
            trainer.should_stop = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self._look(trainer, pl_module, epochs=0)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._of_epoch = self._epoch.enter_context(measured(pl_module.device))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch.close()
        if self._of_epoch:
            self.cost = self.cost + self._of_epoch if self.cost else self._of_epoch
        values = self._look(trainer, pl_module, epochs=trainer.current_epoch + 1)
        pl_module.log_dict(values, logger=False, prog_bar=True)

    def _look(self, trainer: pl.Trainer, method: Any, *, epochs: int) -> dict[str, float]:
        """Evaluate the set as it is, keep it where it is the best so far, and draw it."""
        folder, step = Path(trainer.default_root_dir), trainer.global_step
        synthetic = self._described(method, folder)
        began = time.monotonic()
        values = self._validate(trainer, method, synthetic)
        loss = method.mean_loss()
        self.seconds += time.monotonic() - began
        score = values.get(f"val/{self.monitor}")
        if values and score is None:
            known = ", ".join(name.removeprefix("val/") for name in values)
            raise ValueError(f"callbacks.distilled.monitor={self.monitor}: not measured; choose from {known}")
        if self.best is None or score is None or score > self.best:
            self.best, self.kept = score, step
            replace(synthetic, accuracy=score).save(folder / SET)
        picture = folder / "figures" / "distilled" / f"step_{step:07}.png"
        if self.figures:
            save_grid(picture, _grid(synthetic, _title(step, values, self.monitor)))
        for logger in trainer.loggers:
            if row := values if loss is None else {"train/outer_loss": loss, **values}:
                logger.log_metrics({**row, "epoch": epochs - 1}, step=step)
            if isinstance(logger, WandbLogger) and self.figures:
                logger.log_figures([picture], epoch=epochs, name="distilled")
        log.info("%s", _title(step, values, self.monitor))
        return values

    def _validate(self, trainer: pl.Trainer, method: Any, synthetic: SyntheticSet) -> dict[str, float]:
        loader = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        if not loader:
            return {}
        values = method.measure(synthetic, loader)
        if self.networks:
            found = evaluate(
                synthetic,
                self._judges(method),
                loader,
                networks=self.networks,
                seed=self.seed,
                protocol=self.protocol,
                own_steps=self.own_steps,
                device=method.device,
            )
            values = {**found.named("accuracy"), **values}
        return {f"val/{name}": value for name, value in values.items()}

    def finish(self, trainer: pl.Trainer, method: Any) -> dict[str, Any]:
        """Test the best set, and put the pictures together; what the run's summary says of the set.

        distilled: names of its numbers on test, without their split.  kept: the iteration that it is of.
        evaluation_seconds: wall time of all evaluations.  training_seconds, training_cpu_seconds, training_memory_mb:
        of the iterations alone, see `Cost`.
        """
        folder, began = Path(trainer.default_root_dir), time.monotonic()
        synthetic = SyntheticSet.load(folder / SET)
        loader = trainer.datamodule.test_dataloader()  # type: ignore[attr-defined]
        values = {f"test/{name}": value for name, value in method.measure(synthetic, loader).items()}
        if self.final_networks:
            count = f"{self.final_networks} network{'s' * (self.final_networks > 1)}"
            wanted = [name for name, protocol in self.final.items() if protocol is not None]
            also = f", also as {', '.join(self.architectures)}" if self.architectures else ""
            log.info("testing the set of iteration %d: %s each for %s%s", self.kept, count, ", ".join(wanted), also)
        for name, protocol, new_network in self._finals(trainer, method, synthetic) if self.final_networks else ():
            found = evaluate(
                synthetic,
                new_network,
                loader,
                networks=self.final_networks,
                seed=fold_in(self.seed, TEST),
                protocol=protocol,
                own_steps=self.own_steps,
                device=method.device,
            )
            log.info("%s on test: %s, %d steps; %s", name, found, found.steps, found.cost)
            values |= found.named(f"test/{name}")
        for logger in trainer.loggers if values else ():
            logger.log_metrics({**values, "epoch": trainer.current_epoch - 1}, step=trainer.global_step)
            logger.save()
        if self.figures:
            grids = sorted((folder / "figures" / "distilled").glob("step_*.png"))
            animate(grids, folder / "figures" / "distilled.webp")
        self.seconds += time.monotonic() - began
        cost = self.cost or Cost(hardware(method.device))
        return {
            "distilled": [name.removeprefix("test/") for name in values],
            "kept": self.kept,
            "evaluation_seconds": round(self.seconds, 3),
            "training_seconds": round(cost.seconds, 3),
            "training_cpu_seconds": round(cost.cpu_seconds, 3),
            "training_memory_mb": None if cost.memory is None else round(cost.memory / 1e6, 1),
        }

    def _finals(
        self, trainer: pl.Trainer, method: Any, synthetic: SyntheticSet
    ) -> Iterator[tuple[str, Protocol, NewNetwork]]:
        """Name of the metric, protocol and networks of each test at the end."""
        others = self._others(trainer)
        for name, protocol in self.final.items():
            if protocol is None:
                continue
            protocol = self._tuned(trainer, method, synthetic, protocol) if self.tune else protocol
            yield name, protocol, self._judges(method)
            yield from ((f"{name}_{other}", protocol, new_network) for other, new_network in others.items())

    def _judges(self, method: Any) -> NewNetwork:
        """What the set is judged by: the networks kept for its own steps or, without these, the method's judges."""
        return method.held_out() if self.own_steps else method.judges()

    def _others(self, trainer: pl.Trainer) -> dict[str, NewNetwork]:
        """Fresh networks of the further architectures, for the data."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        shape = {"in_channels": data.in_channels, "image_size": data.image_size, "num_classes": data.num_classes}
        return {name: partial(network_of, body, self.head, **shape) for name, body in self.architectures.items()}

    def _tuned(self, trainer: pl.Trainer, method: Any, synthetic: SyntheticSet, protocol: Protocol) -> Protocol:
        """The protocol with the best of the values that are tried."""
        loader = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        if not loader:
            raise ValueError("callbacks.distilled.tune: needs a validation split, dataset.val_fraction above 0, or {}")
        return best_protocol(
            synthetic,
            self._judges(method),
            loader,
            protocol,
            self.tune or {},
            networks=max(1, self.networks),
            own_steps=self.own_steps,
            seed=self.seed,
            device=method.device,
        )

    def _described(self, method: Any, folder: Path) -> SyntheticSet:
        """The method's set, with how it was made."""
        config = folder / "config.yaml"
        made_by = yaml.safe_load(config.read_text()) if config.is_file() else {}
        return replace(method.synthetic_set(), config=made_by, commit=_commit())


def _grid(synthetic: SyntheticSet, title: str) -> Figure:
    names = synthetic.class_names or [str(k) for k in range(synthetic.num_classes)]
    pixels, classes = synthetic.pixels().numpy(), synthetic.classes.cpu().numpy()
    labels = None if synthetic.labels.ndim == 1 else synthetic.labels.numpy()
    return grid_figure(pixels, classes, names, title=title, marks=_steps(synthetic), labels=labels)


def _steps(synthetic: SyntheticSet) -> list[str]:
    """Of a step-wise set, for the first, second, ... image of a class, its step and its sizes, one an epoch."""
    if synthetic.order is None or synthetic.step_sizes is None:
        return []
    of_first = (synthetic.classes == 0).nonzero().flatten()
    used = [(synthetic.order == index).any(1) for index in of_first]
    steps = [int(steps.nonzero()[0]) + 1 for steps in used]
    sizes = [[f"{size:.3f}" for size in synthetic.step_sizes[steps].tolist()] for steps in used]
    names = [f"step {step}" if place == 0 else str(step) for place, step in enumerate(steps)]
    return ["\n".join([name, *column]) for name, column in zip(names, sizes, strict=True)]


def _title(step: int, values: Mapping[str, float], monitor: str) -> str:
    score = values.get(f"val/{monitor}")
    return f"iteration {step}" + ("" if score is None else f", validation {monitor} {score:.2%}")


def _commit() -> str | None:
    """Of this checkout; None where the code is in none."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
