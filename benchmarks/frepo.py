"""What a step of FRePo costs: its time against its own FLOPs at the rate of this machine's convolutions.

python -m benchmarks.frepo [--threads 1] [--repeats 5] [--width 128]

A step is a meta gradient and the pooled network's own step on the set, with width 128, depth 3 and BatchNorm. Its floor
is the time of its convolutions' multiplications and additions in float32: one forward pass of the real batch; forward
and gradient of the images for the set; forward and both gradients for the network's step. The rate is that of a bare
convolution in channels-last order, the network's second. CPU times are of the process, so that other work on the
machine disturbs them little; each row's variants are timed in turn and the smallest time of each counts.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ncdd.allocator import keep_freed_memory
from ncdd.distill.frepo import first_labels
from ncdd.distill.lamb import Lamb
from ncdd.distill.pool import NetworkPool
from ncdd.methods.frepo import FRePo, Precision
from ncdd.models import Network
from ncdd.models.frepo_conv import FRePoConv, LeCunLinear

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# channels, image size, images a class, real batch, mirrored
CASES = (
    (1, 28, 1, 256, False),
    (1, 28, 10, 256, False),
    (1, 28, 1, 1024, False),
    (1, 28, 10, 1024, False),
    (3, 32, 10, 1024, True),
)
VARIANTS: dict[str, tuple[bool, Precision]] = {
    "float32": (False, "float32"),
    "compiled": (True, "float32"),
    "bfloat16": (True, "bfloat16"),
}
# milliseconds a step on two threads of another machine, whose convolutions did 470 GFLOP/s: the JAX reference, and an
# earlier PyTorch prototype in float32
QUOTED = ((385, 324), (1050, 746), (1756, 872), (2340, 1344), (2664, 1690))
QUOTED_RATE = 470e9


class Steps(FRePo):
    """The method without a Trainer, on random images."""

    def __init__(
        self,
        channels: int,
        size: int,
        per_class: int,
        batch: int,
        use_flip: bool,
        *,
        width: int,
        compile: bool,
        precision: Precision,
    ) -> None:
        body = partial(FRePoConv, in_channels=channels, image_size=size, width=width, depth=3)

        def new_network() -> Network:
            model = body()
            return Network(model, LeCunLinear(num_features=model.num_features, num_classes=10, bias=True))

        super().__init__(
            new_network=new_network,
            optimizer=partial(Lamb, lr=3e-4),
            scheduler=partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
            images_per_class=per_class,
            init="noise",
            learn_labels=True,
            pool=partial(NetworkPool, optimizer=partial(torch.optim.Adam, lr=3e-4), size=10, max_age=100),
            batch_size=batch,
            reg=1e-6,
            use_flip=use_flip,
            online_images=1000,
            krr_networks=1,
            chunk=16 if DEVICE.type == "cpu" else batch,
            precision=precision,
            compile=compile,
        )
        classes = torch.arange(10).repeat_interleave(per_class)
        self.images = nn.Parameter(torch.randn(len(classes), channels, size, size))
        self.labels = nn.Parameter(first_labels(classes, 10))
        self.to(DEVICE)
        self.batch = torch.randn(batch, channels, size, size, device=DEVICE), torch.randint(10, (batch,), device=DEVICE)
        self.lamb = Lamb([self.images, self.labels], lr=3e-4)

    @property
    def num_classes(self) -> int:
        return 10

    def step(self) -> None:
        self.lamb.zero_grad()
        self.outer_step(self.batch)
        self.lamb.step()
        self.after_update(self.batch)


def forward_flops(channels: int, size: int, width: int) -> float:
    """Of the convolutions, one image; a multiplication and an addition are two."""
    extent = 32 if (channels, size) == (1, 28) else size
    total = 0
    for block in range(3):
        out = width << block
        total += 2 * 9 * channels * out * (extent >> block) ** 2
        channels = out
    return total


def step_flops(channels: int, size: int, per_class: int, batch: int, use_flip: bool, width: int) -> float:
    images = 10 * per_class
    return forward_flops(channels, size, width) * (batch + 2 * images * (1 + use_flip) + 3 * images)


def seconds(work: Callable[[], object]) -> float:
    clock = time.process_time if DEVICE.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def bare_convolution(width: int) -> tuple[Callable[[], object], float]:
    """The second convolution of the network on 32 images, and its FLOPs."""
    x = torch.randn(32, width, 16, 16, device=DEVICE).to(memory_format=torch.channels_last)
    weight = torch.randn(2 * width, width, 3, 3, device=DEVICE).to(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, weight, padding=1), 2 * 9 * width * 2 * width * 256 * 32


def row(case: tuple[int, int, int, int, bool], quoted: tuple[int, int], width: int, repeats: int) -> str:
    """Each variant's milliseconds and ratio to the floor, and the quoted ratios."""
    convolution, flops = bare_convolution(width)
    variants: dict[str, Callable[[], object]] = {"convolution": convolution}
    for name, (compile, precision) in VARIANTS.items():
        variants[name] = Steps(*case, width=width, compile=compile, precision=precision).step
    best = dict.fromkeys(variants, float("inf"))
    for repeat in range(repeats + 1):  # the first is for warming up
        for name, work in variants.items():
            taken = min(seconds(work) for _ in range(10)) if name == "convolution" else seconds(work)
            best[name] = min(best[name], taken) if repeat else best[name]
    rate, needed = flops / best["convolution"], step_flops(*case, width)
    ratios = [f"{best[name] * rate / needed:.2f}" for name in VARIANTS]
    theirs = [f"{ms / 1000 * QUOTED_RATE / step_flops(*case, 128):.2f}" for ms in quoted]
    name = f"{'MNIST' if case[0] == 1 else 'CIFAR, mirrored'}, {case[2]} a class, batch {case[3]}"
    cells = [name, f"{rate / 1e9:.0f}", f"{1000 * needed / rate:.0f}", *ratios, *theirs]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--cases", type=int, default=len(CASES), help="so many, from the cheapest")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    hardware = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {arguments.threads} threads"
    print(f"width {arguments.width}, {hardware}; a step's time as a ratio to its floor, the time of its convolutions\n")
    print(
        "| | convolution, GFLOP/s | floor, ms | float32 | compiled | and bfloat16 | JAX, quoted | prototype, quoted |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for case, quoted in list(zip(CASES, QUOTED, strict=True))[: arguments.cases]:
        print(row(case, quoted, arguments.width, arguments.repeats), flush=True)


if __name__ == "__main__":
    keep_freed_memory()
    main()
