"""Seconds from the command to the first line of work, each the median of several processes.

python -m benchmarks.startup [--repeats 5]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = ["model=mlp", "trainer.max_epochs=1", "dataset.samples_per_class=10", "logger=csv", "figures=false"]
COMMANDS = {
    "run.py --help": [str(ROOT / "run.py"), "--help"],
    "import torch, pytorch_lightning": ["-c", "import torch, pytorch_lightning"],
    "import ncdd.collapse": ["-c", "import ncdd.collapse"],
    "a run of one epoch on 100 digits": [str(ROOT / "run.py"), *TINY],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    for name, command in COMMANDS.items():
        seconds = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True)
                seconds.append(time.perf_counter() - start)
        print(f"{name:34} {statistics.median(seconds):6.2f} s")


if __name__ == "__main__":
    main()
