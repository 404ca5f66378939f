"""What a fixed ETF classifier and features of dimension d = K save: parameters, optimizer memory, peak memory.

python -m benchmarks.memory [--batch 128] [--size 32]

Parameters and optimizer state are counted exactly, the state after one step. Peak memory is measured in a process of
its own for each row and optimizer: on CUDA what the allocator held at most, on a CPU (of a Linux machine) how much the
resident set grew.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ncdd.models import Linear, ResNet, SimplexETF

MIB = 2**20
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params),
}


def network(*, depth: int, classes: int, head: str, feature_dim: int | None, size: int) -> nn.Sequential:
    """A ResNet with torchvision's stem and its classifier, learned ("linear") or fixed ("etf")."""
    body = ResNet(in_channels=3, image_size=size, depth=depth, width=64, stem="imagenet", feature_dim=feature_dim)
    classifier: nn.Linear
    if head == "linear":
        classifier = Linear(num_features=body.num_features, num_classes=classes, bias=True)
    else:
        classifier = SimplexETF(
            num_features=body.num_features, num_classes=classes, bias=True, rotation="identity", scale=1.0, seed=0
        )
    return nn.Sequential(body, classifier)


def trainable(model: nn.Module) -> int:
    """Number of parameters that have a gradient."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def train(model: nn.Module, optimizer: str, *, batch: int, size: int, classes: int, steps: int = 2) -> int:
    """Train for `steps` steps on random images; return the bytes of all tensors in the optimizer's state."""
    device = next(model.parameters()).device
    x, y = torch.randn(batch, 3, size, size, device=device), torch.randint(classes, (batch,), device=device)
    built = OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad])
    for _ in range(steps):
        built.zero_grad()
        F.cross_entropy(model(x), y).backward()
        built.step()
    return sum(
        value.numel() * value.element_size()
        for state in built.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


def resident_peak() -> int:
    """The most bytes this process has held; `ru_maxrss` would count its parent's too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def measure(*, optimizer: str, batch: int, size: int, classes: int, **shape: Any) -> dict[str, int]:
    """One row's numbers for one optimizer, in this process, which should have done nothing else before."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = 0 if device == "cuda" else resident_peak()
    model = network(classes=classes, size=size, **shape).to(device)
    state = train(model, optimizer, batch=batch, size=size, classes=classes)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident_peak() - before
    return {"parameters": trainable(model), "state": state, "peak": peak}


def in_its_own_process(**case: Any) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.memory", "--case", json.dumps(case)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def rows(batch: int, size: int) -> Iterator[str]:
    """Markdown, a row a network; percentages are of the learned classifier with the full feature dimension."""
    for depth, classes in product((18, 50), (10, 1000)):
        full: list[int] = []
        for feature_dim, head in product((None, classes), ("linear", "etf")):
            if head == "etf" and feature_dim is None and depth == 18 and classes == 1000:
                continue  # no simplex ETF of 1000 classes in 512 dimensions
            case = {"depth": depth, "classes": classes, "head": head, "feature_dim": feature_dim}
            results = [in_its_own_process(**case, optimizer=o, batch=batch, size=size) for o in OPTIMIZERS]
            values = [results[0]["parameters"], *(r[key] for key in ("state", "peak") for r in results)]
            full = full or values
            cells = [f"{values[0]:,}", *(f"{value / MIB:.1f}" for value in values[1:])]
            if values is not full:
                cells = [f"{c} ({100 * (v / f - 1):+.2f} %)" for c, v, f in zip(cells, values, full, strict=True)]
            name = f"resnet{depth}, K = {classes}, d = {feature_dim or 'full'}, {head}"
            yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="pixels of the images' sides")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(**arguments.case)))
        return
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"batches of {arguments.batch} images of {arguments.size} px, float32, {hardware}; memory in MiB\n")
    print("| network | trainable parameters |" + "".join(f" {o} state |" for o in OPTIMIZERS), end="")
    print("".join(f" peak, {o} |" for o in OPTIMIZERS), "|---|---|---|---|---|---|", sep="\n")
    for row in rows(arguments.batch, arguments.size):
        print(row, flush=True)


if __name__ == "__main__":
    main()
