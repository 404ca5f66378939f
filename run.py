"""The command: compose, check, seed, build, fit, summarise. `python run.py --help` tells how to use it."""

import logging
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import ncdd.config as config
import ncdd.runfolder as runfolder
from ncdd.sweep import job_folder, note

log = logging.getLogger("ncdd")
CONF = str(Path(__file__).parent / "conf")

# What this file passes to a node by hand; check() knows that the YAML does not.
WIRED: dict[str, set[str]] = {
    "dataset": {"seed"},
    "model": {"in_channels", "image_size"},
    "head": {"num_features", "num_classes"},
    "method": {"model", "head", "loss", "optimizer", "scheduler"},
    "loss": {"logits", "features", "weight", "targets"},
    "trainer": {"callbacks", "logger", "plugins", "default_root_dir", "enable_progress_bar"},
    "logger": {"folder", "name", "group", "job_type", "tags", "settings"},
}


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def one_job(cfg: DictConfig) -> None:
    """One job. A failure ends a single run with exit code 1; in a sweep it is noted, and the next job begins."""
    job = HydraConfig.get()
    folder, sweep = Path(job.runtime.output_dir), job.mode == RunMode.MULTIRUN
    if sweep:
        folder = job_folder(folder, job.job.override_dirname)
        note(folder.parent, folder, "begun")
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)  # type: ignore[assignment]
    if not sweep and cfg.resume:
        if stopped := runfolder.unfinished(folder.parent, plain):
            if stopped != folder:
                folder.rmdir()  # Hydra made it for a new run
            folder = stopped
        else:
            print(f"nothing to resume: no unfinished run of this configuration in {folder.parent}; starting anew")
    try:
        run = runfolder.open_run(folder, plain, resume=cfg.resume or sweep)
    except (ValueError, OSError, RuntimeError) as error:
        fail(error, None, sweep)
        return
    if run is None:
        print(f"done already: {folder}")
        if sweep:
            note(folder.parent, folder, "done")
        return
    hydras = start_logging(folder)
    exit_code = 1
    try:
        train(cfg, plain, run, job)
        run.done()
        exit_code = 0
        if sweep:
            note(folder.parent, folder, "done")
    except Exception as error:
        fail(error, run, sweep)
    except SystemExit:  # how Lightning ends at Ctrl-C
        again = shlex.join(["python", "run.py", *job.overrides.task, "resume=true"])
        again = "the same command" if sweep else f"`{again}`"
        sys.exit(f"stopped; {again} goes on: {os.path.relpath(folder)}")
    finally:
        stop_logging(hydras)
        run.lock.close()
        if wandb := sys.modules.get("wandb"):
            wandb.finish(exit_code=exit_code)


def train(cfg: DictConfig, plain: Mapping[str, Any], run: runfolder.RunFolder, job: Any) -> None:
    """Build what `cfg` names, train it, and show what came of it."""
    # here, not above: `run.py --help` need not wait for them
    import pytorch_lightning as pl
    import torch
    from hydra.utils import instantiate

    from ncdd.callbacks.guards import AtomicCheckpointIO
    from ncdd.callbacks.record import Record
    from ncdd.report.folder import read_summary
    from ncdd.report.table import run_table, wide_console

    of_data = {"feature_dim"} if plain["model"].get("feature_dim") == "K" else set()
    config.check({**plain, "model": {**plain["model"], **dict.fromkeys(of_data)}}, WIRED)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)

    build = partial(instantiate, _convert_="all")  # plain containers, no config objects
    forked = "fork" in str(cfg.trainer.get("strategy"))
    if forked:
        torch.set_num_threads(1)  # a pool of threads does not survive the fork: its first use there would hang

    data = build(cfg.dataset, seed=cfg.seed)
    data.setup()
    shape = {"in_channels": data.in_channels, "image_size": data.image_size}
    model = build(cfg.model, **shape, **dict.fromkeys(of_data, data.num_classes))
    head = build(cfg.head, num_features=model.num_features, num_classes=data.num_classes)
    parts = {name: build(cfg[name]) for name in ("loss", "optimizer", "scheduler")}
    method = build(cfg.method, model=model, head=head, **parts)

    choices = job.runtime.choices
    facts = {"name": cfg.name, "overrides": list(job.overrides.task), "seed": cfg.seed}
    record = Record(run.path, facts=facts, figures=cfg.figures)
    about = {
        "folder": run.path,
        "name": run.path.name,
        "group": cfg.name if job.mode == RunMode.MULTIRUN else None,
        "job_type": choices.method,
        "tags": [choices[group] for group in ("dataset", "model", "head", "loss", "optimizer")],
        "settings": runfolder.flat(plain),  # flat: instantiate would build its nodes
    }
    loggers = [record.logger, *([build(cfg.logger, **about)] if cfg.logger else [])]
    callbacks = {name: build(node) for name, node in cfg.callbacks.items()}
    if not data.val_fraction:
        callbacks.pop("best", None)
    trainer = build(
        cfg.trainer,
        callbacks=[*callbacks.values(), record],
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=run.path,
        enable_progress_bar=sys.stderr.isatty(),
    )
    if trainer.num_devices > 1 and not forked:
        raise ValueError(
            f"trainer.devices={cfg.trainer.devices} with trainer.strategy={cfg.trainer.get('strategy')}: set "
            "trainer.strategy=ddp_fork (trainer=ddp has it); others start this command again in each process"
        )
    total = sum(p.numel() for p in method.parameters())
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    log.info("%s, %d classes, images %s", choices.dataset, data.num_classes, tuple(shape.values()))
    log.info(
        "%s + %s: %s parameters, %s trainable; features of dimension %d",
        choices.model,
        choices.head,
        f"{total:,}",
        f"{trainable:,}",
        model.num_features,
    )
    if run.checkpoint:
        log.info("going on from %s", run.checkpoint)
    trainer.fit(method, datamodule=data, ckpt_path=run.checkpoint, weights_only=True)
    if not (run.path / "summary.json").exists():  # stopped between the last checkpoint and the end
        record.close(trainer, method)
    wide_console().print(run_table(read_summary(run.path)))
    print(f"figures, metrics.csv, summary.json and checkpoints are in {os.path.relpath(run.path)}")


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
        message = str(error) if expected else f"{type(error).__name__}: {error}"
    print(*(f"error: {line}" for line in message.splitlines()), sep="\n", file=sys.stderr)
    if run:
        print(f"the traceback is in {os.path.relpath(run.path / 'run.log')}", file=sys.stderr)
    if not sweep:
        sys.exit(1)


def start_logging(folder: Path) -> list[logging.Handler]:
    """Everything to run.log; to the terminal only what ncdd says, without tearing progress bars."""
    from tqdm import tqdm

    class Terminal(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(self.format(record))

    terminal, file = Terminal(), logging.FileHandler(folder / "run.log")
    terminal.addFilter(lambda r: r.name.startswith("ncdd") and r.levelno >= logging.INFO)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log.setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    hydras, root.handlers = root.handlers, [terminal, file]
    return hydras


def stop_logging(hydras: list[logging.Handler]) -> None:
    """The next job of a sweep has a log of its own."""
    root = logging.getLogger()
    for handler in root.handlers:
        handler.close()
    root.handlers = hydras


def main() -> None:
    """Hydra, with one clear line for what it cannot compose or write."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, instead of being printed and ending the program there
    try:
        one_job()
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        misspelt = config.misspelt([a for a in sys.argv[1:] if not a.startswith("-")], CONF)
        sys.exit("\n".join(f"error: {line}" for line in misspelt or [str(error)]))


if __name__ == "__main__":
    main()
