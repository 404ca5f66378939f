"""The command: compose, check, seed, build, fit, summarise. `python run.py --help` tells how to use it."""

import inspect
import logging
import multiprocessing
import os
import re
import shlex
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

import ncdd.config as config
import ncdd.runfolder as runfolder
from ncdd.inherit import check_targets, inherit, named, run_config, set_config
from ncdd.logs import outliving_readers, start_logging, stop_logging
from ncdd.sweep import end_with_sweep, job_folder, note

log = logging.getLogger("ncdd")
CONF = str(Path(__file__).parent / "conf")

# What this file passes to a node by hand; check() knows that the YAML does not.
WIRED: dict[str, set[str]] = {
    "dataset": {"seed"},
    "model": {"in_channels", "image_size"},
    "head": {"num_features", "num_classes"},
    "method": {"model", "head", "loss", "optimizer", "scheduler", "new_network"},
    "loss": {"logits", "features", "weight", "targets"},
    "trainer": {"callbacks", "logger", "plugins", "default_root_dir", "enable_progress_bar"},
    "logger": {"folder", "name", "group", "job_type", "tags", "settings"},
    "ood": {"seed"},
    "task": {"subject", "bench", "synthetic"},
}

# Hydra's launchers that are plug-ins -> the extra that installs them
LAUNCHERS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm"}


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def one_job(cfg: DictConfig) -> None:
    """One job. A failure ends a single run with exit code 1; in a sweep it is noted, and the next job begins."""
    job = HydraConfig.get()
    folder, sweep = Path(job.runtime.output_dir), job.mode == RunMode.MULTIRUN
    if sweep:
        folder = job_folder(folder, job.job.override_dirname)
        note(folder.parent, folder, "begun")
        end_with_sweep()
    try:
        config.check_objective(cfg)
        if cfg.distilled and (Path(cfg.distilled) / runfolder.SET).is_file():
            cfg.distilled = str(Path(cfg.distilled) / runfolder.SET)
        plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)  # type: ignore[assignment]
        made = run_config(Path(cfg.checkpoint)) if cfg.checkpoint else set_config(Path(cfg.distilled or ""))
        if made:
            check_targets(made, job.overrides.task, Path(CONF), source=cfg.checkpoint or cfg.distilled)
            plain = inherit(plain, made, job.overrides.task)
        if not sweep and cfg.resume:
            among = [folder] if named_folder(job) else folder.parent.iterdir()
            if stopped := runfolder.unfinished(among, plain):
                if stopped != folder:
                    folder.rmdir()  # Hydra made it for a new run
                folder = stopped
            elif not (folder / "config.yaml").exists():
                where = folder if named_folder(job) else folder.parent
                print(f"nothing to resume: no unfinished run of this configuration in {where}; starting anew")
        run = runfolder.open_run(folder, plain, resume=cfg.resume or sweep)
    except (ValueError, OSError, RuntimeError) as error:
        fail(error, None, sweep)
        note(folder.parent, folder, str(error).splitlines()[0])
        return
    if run is None:
        print(f"done already: {folder}")
        if sweep:
            note(folder.parent, folder, "done")
        return
    hydras = start_logging(folder)
    exit_code = 1
    try:
        runfolder.write_json(run.path / "overrides.json", overridden(job))  # a run that fails leaves no summary
        work(plain, run, job)
        run.done()
        exit_code = 0
        if sweep:
            note(folder.parent, folder, "done")
    except Exception as error:
        fail(error, run, sweep)
    except SystemExit as stop:  # how Lightning ends at Ctrl-C, and StopSignals at a signal
        stop_processes()
        again = shlex.join(["python", "run.py", *job.overrides.task, *named_folder(job), "resume=true"])
        again = "the same command" if sweep else f"`{again}`"
        print(f"stopped; {again} goes on: {os.path.relpath(folder)}", file=sys.stderr)
        sys.exit(stop.code or 1)  # submitit's code asks for the queue
    finally:
        stop_logging(hydras)
        run.lock.close()
        if wandb := sys.modules.get("wandb"):
            wandb.finish(exit_code=exit_code)


def named_folder(job: Any) -> list[str]:
    """The override that names the run's folder, if there is one."""
    return [override for override in job.overrides.hydra if override.startswith("hydra.run.dir=")]


def work(plain: dict[str, Any], run: runfolder.RunFolder, job: Any) -> None:
    """Build what the configuration names, and train it or, where it names a task, look at what was trained."""
    # here, not above: `run.py --help` need not wait for them
    import pytorch_lightning as pl
    import torch

    from ncdd.allocator import keep_freed_memory
    from ncdd.models import Network

    keep_freed_memory()
    of_data = {"feature_dim"} if plain["model"].get("feature_dim") == "K" else set()
    cfg = OmegaConf.create(plain)
    check_chosen(cfg, job)
    config.check({**plain, "model": {**plain["model"], **dict.fromkeys(of_data)}}, WIRED)
    check_given(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    torch.backends.cudnn.allow_tf32 = False  # on a GPU 32-true means it: collapse is measured in the last digits
    if "fork" in str(cfg.trainer.get("strategy")):
        torch.set_num_threads(1)  # a pool of threads does not survive the fork: its first use there would hang

    data = build(cfg.dataset, seed=cfg.seed)
    data.setup()
    shape = {"in_channels": data.in_channels, "image_size": data.image_size}
    body = build(cfg.model, _partial_=True, **shape, **dict.fromkeys(of_data, data.num_classes))
    classifier = build(cfg.head, _partial_=True, num_classes=data.num_classes)

    def new_network() -> Network:
        model = body()
        return Network(model, classifier(num_features=model.num_features))

    network = new_network()
    method = wire(cfg, network, new_network)
    trainer, record = equip(cfg, plain, run, job, data)

    total = sum(p.numel() for p in network.parameters())
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    names = labels(cfg, job)
    size = f"{data.in_channels} x {data.image_size} x {data.image_size}"
    log.info("%s, %d classes, images %s", data.source_name, data.num_classes, size)
    log.info(
        "%s + %s: %s parameters, %s trainable; features of dimension %d",
        names["model"],
        names["head"],
        f"{total:,}",
        f"{trainable:,}",
        network.model.num_features,
    )
    if cfg.task:
        normalise(cfg, job, data)
        look(cfg, run, trainer, record, method, data, new_network)
    else:
        fit(cfg, run, trainer, record, method, data)


def check_chosen(cfg: DictConfig, job: Any) -> None:
    """Raise ValueError for what does not go with the method that is to be trained."""
    if cfg.task:
        return
    method, mine = job.runtime.choices.method, named(job.overrides.task)
    if cfg.objective is not None and "objective" not in cfg.method:
        raise ValueError(f"objective={cfg.objective}: method={method} has none; leave it at null")
    if "distill.learn_labels" in mine and "learn_labels" not in cfg.method:
        given = str(cfg.distill.learn_labels).lower()
        raise ValueError(f"distill.learn_labels={given}: method={method} leaves no choice of it; leave it out")
    if "distilled" in cfg.callbacks and cfg.dataset.get("_target_") == "ncdd.data.distilled_module":
        raise ValueError(f"dataset=distilled: a synthetic set is no data to distil by method={method}; name a real one")


def check_given(cfg: DictConfig) -> None:
    """Raise ValueError where a task lacks what it looks at, or training has nothing to do."""
    if not cfg.task:
        for name in ("checkpoint", "distilled"):
            if cfg[name]:
                raise ValueError(f"{name}={cfg[name]}: name a task, task=...")
        for name in ("iterations", "every", "images_per_class"):
            if cfg.distill[name] < 1:
                raise ValueError(f"distill.{name}={cfg.distill[name]}: a number >= 1 is needed")
        if (epochs := cfg.trainer.get("max_epochs")) is not None and epochs < 1 and not cfg.trainer.get("max_steps"):
            raise ValueError(f"trainer.max_epochs={epochs}: a number >= 1 is needed")
        return
    parameters = inspect.signature(config.locate(cfg.task._target_)).parameters
    for name, argument in (("checkpoint", "subject"), ("distilled", "synthetic")):
        if argument in parameters and not cfg[name]:
            raise ValueError(f"{name}=None: needed by this task")
        if argument not in parameters and cfg[name]:
            raise ValueError(f"{name}={cfg[name]}: this task does not look at it")


def wire(cfg: DictConfig, network: Any, new_network: Any) -> Any:
    """The method, with those of the parts that it asks for."""
    parts: dict[str, Any] = {name: build(cfg[name]) for name in ("loss", "optimizer", "scheduler")}
    parts |= {"model": network.model, "head": network.head, "new_network": new_network}
    asked = inspect.signature(config.locate(cfg.method._target_)).parameters
    return build(cfg.method, **{name: part for name, part in parts.items() if name in asked})


def build(node: Any, **arguments: Any) -> Any:
    """The object that a node names, given plain containers and no configuration objects."""
    from hydra.utils import instantiate

    return instantiate(node, _convert_="all", **arguments)


def labels(cfg: DictConfig, job: Any) -> dict[str, str]:
    """What each group is called: its choice or, of a task, whose groups may be another run's, its target."""
    groups = ("dataset", "model", "head", "method", "loss", "optimizer")
    return {g: cfg[g]._target_.rpartition(".")[2] if cfg.task else job.runtime.choices[g] for g in groups}


def overridden(job: Any) -> list[str]:
    """The overrides of this job, but for the launcher, which tells nothing of the run."""
    return [override for override in job.overrides.task if not override.startswith("launcher=")]


def equip(cfg: DictConfig, plain: Mapping[str, Any], run: runfolder.RunFolder, job: Any, data: Any) -> tuple[Any, Any]:
    """The Trainer with its callbacks and loggers, and the record that closes the run's folder."""
    from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator
    from pytorch_lightning.plugins.environments import LightningEnvironment

    from ncdd.callbacks.guards import AtomicCheckpointIO
    from ncdd.callbacks.record import Record
    from ncdd.callbacks.signals import StopSignals

    facts = {"name": cfg.name, "overrides": overridden(job), "seed": cfg.seed}
    record = Record(run.path, facts=facts, figures=cfg.figures)
    names = labels(cfg, job)
    about = {
        "folder": run.path,
        "name": run.path.name,
        "group": cfg.name if job.mode == RunMode.MULTIRUN else None,
        "job_type": job.runtime.choices.task if cfg.task else names["method"],
        "tags": [names[group] for group in ("dataset", "model", "head", "loss", "optimizer")],
        "settings": runfolder.flat(plain),  # flat: instantiate would build its nodes
    }
    loggers = [record.logger, *([build(cfg.logger, **about)] if cfg.logger else [])]
    callbacks = {name: build(node) for name, node in cfg.callbacks.items() if node}  # null: left out
    if not data.val_fraction:
        callbacks.pop("best", None)
    accelerator = cfg.trainer.get("accelerator")
    if accelerator in ("gpu", "cuda") and not (CUDAAccelerator.is_available() or MPSAccelerator.is_available()):
        raise ValueError(f"trainer.accelerator={accelerator}: torch finds no GPU here; choose trainer=cpu")
    trainer = build(
        cfg.trainer,
        callbacks=[*callbacks.values(), StopSignals(), record],
        logger=loggers,
        # whatever Slurm or torchrun have set: this one process does it all, and leaves requeueing to submitit
        plugins=[AtomicCheckpointIO(), LightningEnvironment()],
        default_root_dir=run.path,
        enable_progress_bar=sys.stderr.isatty(),
    )
    if trainer.num_devices > 1 and cfg.task:
        raise ValueError(f"trainer.devices={cfg.trainer.devices}: task={job.runtime.choices.task} runs on one, set 1")
    if trainer.num_devices > 1 and "fork" not in str(cfg.trainer.get("strategy")):
        raise ValueError(
            f"trainer.devices={cfg.trainer.devices} with trainer.strategy={cfg.trainer.get('strategy')}: set "
            "trainer.strategy=ddp_fork (trainer=ddp has it); others start this command again in each process"
        )
    return trainer, record


def fit(cfg: DictConfig, run: runfolder.RunFolder, trainer: Any, record: Any, method: Any, data: Any) -> None:
    """Train, from the last checkpoint where there is one, and show what came of it."""
    from ncdd.callbacks.signals import listen
    from ncdd.report.folder import read_summary
    from ncdd.report.table import run_table, wide_console

    if sampling := getattr(method, "sampling", None):  # of a distillation, which draws its real batches
        if trainer.num_devices > 1:
            raise ValueError(f"trainer.devices={cfg.trainer.devices}: a distillation runs on one, set 1")
        if (precision := cfg.trainer.get("precision", "32-true")) != "32-true":  # its solves would be rounded
            raise ValueError(f"trainer.precision={precision}: a distillation needs 32-true")
        data.draws = (sampling, cfg.distill.every)
    if trainer.num_devices > 1:
        listen()
    if run.checkpoint:
        log.info("going on from %s", run.checkpoint)
    trainer.fit(method, datamodule=data, ckpt_path=run.checkpoint, weights_only=True)
    if not (run.path / "summary.json").exists():  # stopped between the last checkpoint and the end
        method.to(trainer.strategy.root_device)  # which the Trainer has taken it from
        record.close(trainer, method)
    wide_console().print(run_table(read_summary(run.path)))
    folder = os.path.relpath(run.path)
    print(f"figures, metrics.csv, summary.json and checkpoints are in {folder}")
    print(f"one page of it all: python -m ncdd.report {shlex.quote(folder)}")


def normalise(cfg: DictConfig, job: Any, data: Any) -> None:
    """Another data set than the network's own, of the same shape, in the units that the network knows."""
    trained, mine = run_config(Path(cfg.checkpoint)) if cfg.checkpoint else None, named(job.overrides.task)
    if trained is None or "dataset" not in mine or {"dataset.mean", "dataset.std"} & mine:
        return
    own = build(OmegaConf.create(trained["dataset"]), seed=trained["seed"])
    own.setup()
    if own.in_channels == data.in_channels:  # else the network cannot read it, and says so
        data.normalise_as(own)
        log.info("%s is normalised as %s was in training", data.source_name, own.source_name)


def look(
    cfg: DictConfig, run: runfolder.RunFolder, trainer: Any, record: Any, method: Any, data: Any, new_network: Any
) -> None:
    """Do the task that `cfg` names with what it asks for."""
    from ncdd.distill import SyntheticSet
    from ncdd.tasks.bench import Bench
    from ncdd.tasks.subject import Subject

    task = build(cfg.task)
    if "subject" in inspect.signature(task).parameters and hasattr(method, "sampling"):
        checkpoint = Path(cfg.checkpoint)
        kept = [folder / runfolder.SET for folder in (checkpoint, *checkpoint.parents[:2])]
        file = next((path for path in kept if path.is_file()), kept[0])
        raise ValueError(f"checkpoint={checkpoint}: this run distilled a set: task=evaluate distilled={file}")
    data.trainer, trainer.datamodule = trainer, data

    def subject() -> Subject:
        """The checkpoint's weights, to be placed and cast as the Trainer would."""
        ood = build(cfg.ood, seed=cfg.seed) if cfg.ood else None
        if ood is not None:
            ood.setup()
        return Subject(
            method=trainer.precision_plugin.convert_module(method).to(trainer.strategy.root_device),
            checkpoint=Path(cfg.checkpoint),
            data=data,
            ood=ood,
            folder=run.path,
            trainer=trainer,
            record=record,
        )

    def bench() -> Bench:
        device = trainer.strategy.root_device
        return Bench(
            method=method,
            new_network=new_network,
            data=data,
            seed=cfg.seed,
            device=device,
            folder=run.path,
            trainer=trainer,
            record=record,
            resume=run.resume,
        )

    def synthetic() -> SyntheticSet:
        """The file's; pixels are read as those of the data."""
        units = {"normalisation": data.normalisation, "whitening": data.whitening}
        return SyntheticSet.load(cfg.distilled, **units, only_pixels=True, setting="distilled")

    offered = {"subject": subject, "bench": bench, "synthetic": synthetic}
    asked = inspect.signature(task).parameters
    task(**{name: offer() for name, offer in offered.items() if name in asked})
    print(f"what was found is in {os.path.relpath(run.path)}")


def fail(error: Exception, run: runfolder.RunFolder | None, sweep: bool) -> None:
    """Say in one line (one a mistake) what went wrong; end the program unless a sweep goes on."""
    while isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what the constructor said, without Hydra's frame around it
    if run:
        log.debug("failed", exc_info=error)
        with suppress(OSError):  # on a full disk there may be no room even to say so
            run.failed(error)
    expected = isinstance(error, ValueError | OSError | FloatingPointError | runfolder.AlreadyRunningError)
    if type(error).__name__ == "ProcessRaisedException":  # the traceback of another process; its last line says it
        message = str(error).strip().splitlines()[-1]
    else:
        message = config.one_line(error) if expected else f"{type(error).__name__}: {error}"
    missing = re.search(r"(?:access |key ')([\w.]+)", message)
    if missing and isinstance(error, InterpolationResolutionError):
        message = f"{error.full_key} is that of {missing[1]}, which is not there: set them both"
    if "more than 1 value per channel" in message:  # torch's batch norm
        message += (
            "\na batch of one sample has no variance: choose another dataset.batch_size, or dataset.drop_last=true"
        )
    print(*(f"error: {line}" for line in message.splitlines()), sep="\n", file=sys.stderr)
    if run:
        print(f"the traceback is in {os.path.relpath(run.path / 'run.log')}", file=sys.stderr)
    if not sweep:
        sys.exit(1)


def stop_processes() -> None:
    """End what ddp_fork has started, as Ctrl-C would: the end of this program would wait for it."""
    for process in multiprocessing.active_children():
        if process.pid and not process.daemon:
            os.kill(process.pid, signal.SIGINT)
            process.join(timeout=10)
            process.kill()


def quoted(argument: str) -> str:
    """`checkpoint=PATH` with the path in quotes where Hydra needs them, as in the folder of a sweep's job."""
    key, _, path = argument.partition("=")
    of_run = key in ("checkpoint", "distilled")
    return f"{key}='{path}'" if of_run and set(path) & set("=,") and Path(path).exists() else argument


def main() -> None:
    """Hydra, with one clear line for what it cannot compose or write."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, instead of being printed and ending the program there
    sys.argv[1:] = [quoted(argument) for argument in sys.argv[1:]]
    try:
        with outliving_readers():
            one_job()
    except KeyboardInterrupt:  # outside of training, whose Ctrl-C Lightning turns into SystemExit
        sys.exit("stopped; the same command goes on with a sweep, and with resume=true a run")
    except RuntimeError as error:  # of a launcher: a job's process was killed, or it cannot start any
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        sys.exit(f"error: the launcher gave up: {reason}\nthe same command again goes on with what is not done")
    except MissingConfigException as error:
        extra = LAUNCHERS.get(Path(error.missing_cfg_file or "").name)
        sys.exit(f"error: this launcher is not installed: uv sync --extra {extra}" if extra else explained(error))
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        sys.exit(explained(error))


def explained(error: Exception) -> str:
    """What Hydra could not compose: the settings that were misspelt or, where none was, what it says itself."""
    misspelt = config.misspelt([a for a in sys.argv[1:] if not a.startswith("-")], CONF)
    return "\n".join(f"error: {line}" for line in misspelt or [config.one_line(error)])


if __name__ == "__main__":
    main()
