"""The control of this folder: `python experiments/frepo_membership/control.py RUN`, of task=membership on MNIST.

Networks are trained on each chunk's distilled set as in the run, and attacked on images that have nothing to do with
it, those of the next chunk: what AUC is left is the difference between MNIST's train and test split.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml

from ncdd.allocator import keep_freed_memory
from ncdd.data.seeding import fold_in
from ncdd.data.sources import torchvision_set
from ncdd.distill import SyntheticSet
from ncdd.distill.evaluate import Protocol, evaluate
from ncdd.distill.start import read
from ncdd.models import Network
from ncdd.models.frepo_conv import FRePoConv, LeCunLinear
from ncdd.tasks.membership import attacked


def main(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    task, seed = config["task"], config["seed"]
    members, steps, settings = task["members"], task["steps"], dict(task["protocol"])
    del settings["_target_"]
    data = torchvision_set(name="mnist", root=config["dataset"]["root"], download=False)
    outside = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(seed))[:members].sort().values

    def new_network() -> Network:
        body = FRePoConv(
            in_channels=1, image_size=28, width=config["model"]["width"], depth=config["model"]["depth"], norm="none"
        )
        return Network(body, LeCunLinear(num_features=body.num_features, num_classes=10, bias=True))

    print("| steps | " + " | ".join(task["attacks"]) + " |\n" + "|---" * (len(task["attacks"]) + 1) + "|")
    for number in steps:
        rows = []
        for chunk in range(task["chunks"]):
            synthetic = SyntheticSet.load(run / f"distilled_{chunk}.safetensors")
            assert synthetic.normalisation is not None
            following = (chunk + 1) % task["chunks"] * members + torch.arange(members)
            parts = data.train.select(following), data.test.select(outside)
            images = torch.cat([read(part, synthetic.normalisation) for part in parts])
            classes = torch.cat([part.labels for part in parts])
            found = evaluate(
                synthetic,
                new_network,
                [(images, classes)],
                seed=fold_in(seed, chunk),
                protocol=replace(Protocol(**settings), steps=number),
                networks=1,
                further=partial(
                    attacked,
                    images=images,
                    classes=classes,
                    loss=settings["loss"],
                    attacks=task["attacks"],
                    seed=seed,
                ),
            ).further[0]
            rows.append([found[f"{name}_auc"] for name in task["attacks"]])
        mean, std = np.mean(rows, 0), np.std(rows, 0, ddof=1)
        print(f"| {number} | " + " | ".join(f"{m:.2f} +- {s:.2f}" for m, s in zip(mean, std, strict=True)) + " |")


if __name__ == "__main__":
    keep_freed_memory()
    main(Path(sys.argv[1]))
