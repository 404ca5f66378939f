"""What unrolled distillation costs: an outer step against a plain unrolled loop and against its real batch alone.

python -m benchmarks.unrolled [--batch 1024] [--threads 1] [--repeats 5] [--no-memory]

LeNet on 28 x 28 images, 10 images a step, S steps and E epochs (T = S E). CPU times are of the process, so that other
work on the machine disturbs them little; each row's variants are timed in turn and the smallest time of each counts.
Peak memory, of a process of its own for each T, one batch of 100 images used T times: what the resident set grew by
(CUDA: what the allocator held at most).
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ncdd.allocator import keep_freed_memory
from ncdd.distill import unrolled
from ncdd.models import LeNet, Linear

CASES = ((1, 1, 3), (1, 10, 3), (4, 10, 3), (8, 10, 3))  # networks, steps, epochs
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def network() -> nn.Sequential:
    return nn.Sequential(LeNet(in_channels=1, image_size=28), Linear(num_features=84, num_classes=10, bias=True)).to(
        DEVICE
    )


class Problem:
    """Leaves to learn, networks to train and a real batch to do well on."""

    def __init__(self, networks: int, steps: int, epochs: int, batch: int, per_step: int = 10) -> None:
        torch.manual_seed(0)
        self.networks = [network() for _ in range(networks)]
        self.weights = [unrolled.weights_of(net) for net in self.networks]
        self.inner = unrolled.inner_loss(unrolled.functional(self.networks[0]))
        self.x = torch.randn(batch, 1, 28, 28, device=DEVICE)
        self.y = torch.randint(10, (batch,), device=DEVICE)
        self.images = torch.randn(per_step * steps, 1, 28, 28, device=DEVICE).requires_grad_()
        self.labels = torch.arange(per_step * steps, device=DEVICE) % 10
        self.raw = unrolled.raw_step_sizes(0.02, steps * epochs).to(DEVICE).requires_grad_()
        self.order = unrolled.repeated_order(per_step * steps, steps=steps, epochs=epochs)

    def objective(self, weights: unrolled.Weights) -> Tensor:
        return self.inner(weights, self.x, self.y)

    def real(self) -> None:
        """The floor: forward and backward of the real batch through every network, nothing else."""
        for net in self.networks:
            F.cross_entropy(net(self.x), self.y).backward()

    def plain(self) -> None:
        """What one writes down first: create_graph in every step, and one backward through it all."""
        sizes = F.softplus(self.raw)
        for net in self.networks:
            weights = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
            for rows, lr in zip(self.order, sizes, strict=True):
                loss = F.cross_entropy(functional_call(net, weights, (self.images[rows],)), self.labels[rows])
                grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
                weights = {name: w - lr * g for (name, w), g in zip(weights.items(), grads, strict=True)}
            outer = F.cross_entropy(functional_call(net, weights, (self.x,)), self.y) / len(self.networks)
            outer.backward(retain_graph=True)

    def step(self, **options: bool | str) -> None:
        """The engine."""
        steps = unrolled.Steps(self.images, self.labels, self.order, unrolled.step_sizes(self.raw))
        unrolled.outer_step(self.inner, self.objective, self.weights, steps, **options)  # type: ignore[arg-type]


def seconds(work: Callable[[], object]) -> float:
    clock = time.process_time
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        clock = time.perf_counter
    start = clock()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def row(networks: int, steps: int, epochs: int, batch: int, repeats: int) -> str:
    """Milliseconds of the floor and the plain loop, and each strategy as a ratio of speed to the plain loop."""
    problem = Problem(networks, steps, epochs, batch)
    variants: dict[str, Callable[[], object]] = {
        "real": problem.real,
        "plain": problem.plain,
        "full": problem.step,
        "recompute": lambda: problem.step(memory="recompute"),
        "vectorised": lambda: problem.step(vectorise=True),
    }
    best = dict.fromkeys(variants, float("inf"))
    for repeat in range(repeats + 1):  # the first is for warming up
        for name, work in variants.items():
            taken = seconds(work)
            best[name] = min(best[name], taken) if repeat else best[name]
    ratios = [f"{best['plain'] / best[name]:.2f}" for name in ("full", "recompute", "vectorised")]
    fastest = min(best["full"], best["vectorised"])
    cells = [networks, steps, epochs, f"{1000 * best['real']:.0f}", f"{1000 * best['plain']:.0f}", *ratios]
    return "| " + " | ".join(map(str, [*cells, f"{fastest / best['real']:.2f}"])) + " |"


def resident_peak() -> int:
    """The most bytes this process has held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def peak(epochs: int, memory: str) -> int:
    """Bytes that an outer step with a small real batch adds to what one inner step needs, in this process."""
    Problem(1, 1, 1, 16, per_step=100).step(memory=memory)
    problem = Problem(1, 1, epochs, 16, per_step=100)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        problem.step(memory=memory)
        return torch.cuda.max_memory_allocated() - before
    before = resident_peak()
    problem.step(memory=memory)
    return resident_peak() - before


def in_its_own_process(epochs: int, memory: str) -> int:
    command = [sys.executable, "-m", "benchmarks.unrolled", "--peak", json.dumps([epochs, memory])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024, help="images of the real batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--peak", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(peak(*arguments.peak))
        return
    hardware = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {arguments.threads} threads"
    print(f"LeNet, real batch {arguments.batch}, {hardware}; milliseconds, and speed as a ratio to the plain loop\n")
    print("| n | S | E | real batch alone | plain loop | full | recompute | vectorised | fastest : real batch |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        print(row(*case, arguments.batch, arguments.repeats), flush=True)
    if arguments.no_memory:
        return
    print("\n| T | peak, full | peak, recompute | full : recompute |", "|---|---|---|---|", sep="\n")
    for epochs in (10, 30, 100):
        full, less = (in_its_own_process(epochs, memory) for memory in ("full", "recompute"))
        print(f"| {epochs} | {full / 2**20:.0f} MiB | {less / 2**20:.0f} MiB | {full / less:.1f} |", flush=True)


if __name__ == "__main__":
    keep_freed_memory()
    main()
