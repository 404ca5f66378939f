"""Kernels and KIP steps, as ratios to a float64 product of 100 x 784 by 784 x 6000 on one thread in the same run.

python -m benchmarks.kernels [--repeats 15] [--support 10] [--targets 20]

neural-tangents is quoted, warm and on one core, as a ratio to the 19.5 ms of that product on its machine. Each figure
is the least CPU time of repeats that take turns, so that other work on the machine costs little. A step of KIP begins
with the batch in memory in the dtype of the step: drawing and converting it is counted neither here nor there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ncdd.allocator import keep_freed_memory
from ncdd.kernels import Kernel, convnet, fc, kip_loss
from ncdd.kernels.fused import product
from ncdd.kernels.support import CACHED

IN_A_ROW = 3  # times that a turn takes
GEMM_MS = 19.5  # of the product, where neural-tangents was measured


def images(n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Smooth 28 x 28 images: neighbouring pixels are correlated, as in photographs and digits."""
    noise = torch.randn(n, 1, 30, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.avg_pool2d(noise, 3, stride=1).to(dtype)


def evaluate(kernel: Kernel, x1: Tensor, x2: Tensor) -> None:
    with torch.no_grad():
        kernel(x1, x2)


def kip_step(kernel: Kernel, support: Tensor, labels: Tensor, x: Tensor, y: Tensor) -> Callable[[], None]:
    """What `method=kip` does with a batch: objective, gradient and Adam update."""
    support = support.clone().requires_grad_()
    optimizer = torch.optim.Adam([support], lr=0.04)

    def step() -> None:
        optimizer.zero_grad()
        kip_loss(kernel, support, labels, x, y)[0].backward()
        optimizer.step()

    return step


def products(support: Tensor, x: Tensor) -> None:
    """What no step can do without: the covariance with the targets, and from a gradient by it that by the support."""
    rows, total = support.flatten(1), torch.zeros_like(support).flatten(1)
    for part in x.flatten(1).split(CACHED // (784 * x.element_size())):
        total += product(product(rows, part.T), part)


def cases(support: int, targets: int) -> dict[str, tuple[Callable[[], object], float | None]]:
    """Each way by name with milliseconds of neural-tangents, None where it is not an alternative."""
    pairs = support * targets
    found: dict[str, tuple[Callable[[], object], float | None]] = {}
    for dtype, name, fc3_ms, kip_ms in (
        (torch.float64, "float64", 63.0, {(1, 10): 16.0, (1, 100): 50.0, (3, 10): 17.0, (3, 100): 110.0}),
        (torch.float32, "float32", 51.0, {(1, 10): 7.0, (1, 100): 21.0}),
    ):
        x, y = images(5000, dtype, 0), torch.eye(10, dtype=dtype).repeat(500, 1) - 0.1
        found[f"FC3 NTK, 100 x 6000, {name}"] = (
            partial(evaluate, fc(3), images(100, dtype, 1), images(6000, dtype, 2)),
            fc3_ms,
        )
        for (depth, n), ms in kip_ms.items():
            step = kip_step(fc(depth), images(n, dtype, 3), y[:n], x, y)
            found[f"KIP step, FC{depth}, {n} images, batch 5000, {name}"] = (step, ms)
            if depth == 1:
                found[f"  its two products alone, {n} images, {name}"] = (
                    partial(products, images(n, dtype, 3), x),
                    None,
                )
    a, b = images(support, torch.float64, 4), images(targets, torch.float64, 5)
    for name, kernel, s_per_1000 in (("ConvNet3", convnet(prepend=False), 30.0), ("ConvNet", convnet(), 70.0)):
        found[f"{name} NTK 28 x 28, {support} x {targets}, float64"] = (
            partial(evaluate, kernel, a, b),
            s_per_1000 * pairs,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--support", type=int, default=10, help="images on the one side of convolutional kernels")
    parser.add_argument("--targets", type=int, default=20, help="and on the other: neural-tangents had 100")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    a, b = (images(n, torch.float64, n).flatten(1) for n in (100, 6000))
    ways = cases(arguments.support, arguments.targets)
    gemms: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats + 1):  # the first round warms up
        for name, (way, _) in ways.items():
            gemms.append(cpu_seconds(lambda: a @ b.T))
            way()  # as neural-tangents was measured, warm
            seconds[name] += [cpu_seconds(way) for _ in range(IN_A_ROW)]
    gemm = min(gemms)
    print(f"torch {torch.__version__}, one thread; float64 product 100 x 784 x 6000: {1000 * gemm:.1f} ms\n")
    print(f"{'':52s}{'ms':>10s}{'ratio':>10s}{'n.-t.':>10s}{'ahead by':>10s}")
    for name, (_, quoted_ms) in ways.items():
        ratio = min(seconds[name][IN_A_ROW:]) / gemm
        print(f"{name:52s}{1000 * ratio * gemm:10.1f}{ratio:10.2f}", end="")
        print("" if quoted_ms is None else f"{quoted_ms / GEMM_MS:10.2f}{quoted_ms / GEMM_MS / ratio:9.2f}x")


def cpu_seconds(way: Callable[[], object]) -> float:
    start = time.process_time()
    way()
    return time.process_time() - start


if __name__ == "__main__":
    keep_freed_memory()
    main()
