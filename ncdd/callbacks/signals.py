"""What a scheduler's signals do to a run: end it as Ctrl-C does, or what those who started it have arranged."""

import signal
import sys
from types import FrameType
from typing import Any

import pytorch_lightning as pl

STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # Slurm, submitit and container runtimes send these


class StopSignals(pl.Callback):
    """SIGTERM, SIGUSR1 and SIGUSR2 end the program by SystemExit, with the last epoch's checkpoint to go on from.

    A signal that has a handler keeps it: submitit lets SIGTERM pass and puts the job into the queue again at SIGUSR2,
    while Lightning's own handler would end the run at SIGTERM. With several processes the one that started them
    decides, see `listen`; the others ignore the signals, and end at its SIGINT.
    """

    def __init__(self) -> None:
        self._found: dict[signal.Signals, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._found = {number: signal.getsignal(number) for number in STOPS}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning registered its handlers after setup, and puts back at the end of fit what it had found
        for number, found in self._found.items():
            if trainer.world_size > 1:
                signal.signal(number, signal.SIG_IGN)
                signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            else:
                signal.signal(number, _stop if found == signal.SIG_DFL else found)


def listen() -> None:
    """In a process that only waits for those that train: no callback runs there."""
    for number in STOPS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # as a shell counts it
