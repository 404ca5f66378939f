"""What measuring costs: the callback on train and test against the bare eval-mode forward over the same images.

python -m benchmarks.callback [--images 4096] [--width 64] [--size 32] [--threads 1] [--repeats 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import pytorch_lightning as pl
import torch

from ncdd.callbacks import NeuralCollapseCallback
from ncdd.data import DeviceLoader, Images, Normalisation
from ncdd.methods.classify import Classify
from ncdd.methods.losses import cross_entropy
from ncdd.models import Linear, ResNet

GOAL = 1.1


def loader(images: int, size: int, seed: int, device: torch.device) -> DeviceLoader:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (images, 3, size, size), dtype=torch.uint8, generator=draw)
    labels = torch.arange(images) % 10
    return DeviceLoader(
        images=Images(pixels.to(device), labels.to(device)),
        normalisation=Normalisation((0.5,) * 3, (0.25,) * 3),
        batch_size=512,
        shuffle=False,
        seed=0,
    )


def network(width: int, size: int) -> Classify:
    body = ResNet(in_channels=3, image_size=size, depth=18, width=width, stem="cifar")
    return Classify(
        model=body,
        head=Linear(num_features=body.num_features, num_classes=10, bias=True),
        loss=lambda **batch: cross_entropy(**batch, label_smoothing=0.0),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        feature_decay=0.0,
        body_decay=None,
        norm_decay=None,
        head_decay=None,
    )


def seconds(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096, help="training images; a fifth as many test images")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = network(arguments.width, arguments.size).to(device)
    loaders = {
        "train": loader(arguments.images, arguments.size, 0, device),
        "test": loader(arguments.images // 5, arguments.size, 1, device),
    }
    callback = NeuralCollapseCallback(loaders=loaders)
    trainer = pl.Trainer(accelerator="auto", devices=1, logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)

    def forward() -> None:
        module.eval()
        with torch.inference_mode():
            for part in loaders.values():
                for x, _ in part:
                    module(x)

    forward()
    pairs = [(seconds(forward), seconds(lambda: callback.measure(trainer, module))) for _ in range(arguments.repeats)]
    bare, measured = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    images = f"{arguments.images} + {arguments.images // 5} images of {arguments.size} px"
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"resnet18 width {arguments.width}, {images}, {hardware}")
    print(f"bare eval-mode forward  {bare:8.3f} s")
    print(f"callback, every metric  {measured:8.3f} s")
    print(f"ratio                   {ratio:8.3f}   (goal {GOAL})")


if __name__ == "__main__":
    main()
