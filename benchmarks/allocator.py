"""CPU time of a training step with freed memory kept, as a run has it, against malloc as it comes.

python -m benchmarks.allocator [--repeats 3]

Each side has processes of its own, in turns; of each the least time counts.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

from ncdd.allocator import keep_freed_memory
from ncdd.models import ConvNet

BATCHES = (10, 100, 256, 1024)


def steps(batch: int, count: int) -> tuple[float, float]:
    """Milliseconds of CPU time and page faults of a forward and backward pass of a ConvNet of width 16 on MNIST."""
    network = ConvNet(in_channels=1, image_size=28, width=16, depth=3, norm="instance", feature_dim=None)
    x, y = torch.randn(batch, 1, 28, 28), torch.randint(10, (batch,))
    for step in range(count + 2):
        if step == 2:
            began, faults = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        F.cross_entropy(network(x), y).backward()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return 1000 * (time.process_time() - began) / count, faults / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=["kept", "as it comes"], help="for one process")
    args = parser.parse_args()
    if args.side:
        if args.side == "kept":
            keep_freed_memory()
        torch.set_num_threads(1)
        for batch in BATCHES:
            print(*steps(batch, max(3, 2000 // batch)))
        return
    found: dict[str, list[list[tuple[float, float]]]] = {"kept": [], "as it comes": []}
    for _ in range(args.repeats):
        for side, runs in found.items():
            command = [sys.executable, "-m", "benchmarks.allocator", "--side", side]
            lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
            runs.append([(float(ms), float(faults)) for ms, faults in map(str.split, lines)])
    print("batch   ms kept   ms as it comes   ratio   page faults a step, kept / as it comes")
    for row, batch in enumerate(BATCHES):
        (kept, none), (plain, many) = (min(run[row] for run in runs) for runs in found.values())
        print(f"{batch:5} {kept:9.1f} {plain:16.1f} {plain / kept:7.2f}   {none:.0f} / {many:.0f}")


if __name__ == "__main__":
    main()
