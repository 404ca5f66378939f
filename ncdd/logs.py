"""Where what a job says goes: all of it to its run.log, what matters to the terminal."""

import logging
from pathlib import Path


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
