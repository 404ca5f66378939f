"""Where what a job says goes: all of it to its run.log, what matters to the terminal."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO


class Outliving:
    """A stream whose reader may go, as `| head` does: the rest is dropped, and the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # what is in its buffer goes there, too
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def outliving_readers() -> Iterator[None]:
    """Meanwhile go on without those who read what is printed."""
    with redirect_stdout(Outliving(sys.stdout)), redirect_stderr(Outliving(sys.stderr)):
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def start_logging(folder: Path) -> list[logging.Handler]:
    """Everything to run.log; to the terminal only what ncdd says, without tearing progress bars."""
    from tqdm import tqdm

    class Terminal(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(self.format(record))

    terminal, file = Terminal(), logging.FileHandler(folder / "run.log")
    terminal.addFilter(lambda r: r.name.startswith("ncdd") and r.levelno >= logging.INFO)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("ncdd").setLevel(logging.DEBUG)
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
