"""The tables and figures of this folder, from finished sweeps in multirun/ and the runs `frozen` and `one_go` in runs/.

`python experiments/joint/figures.py [--root FOLDER]`, FOLDER being where multirun/ and runs/ are. What of them is not
there is left out.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ncdd.distill import SyntheticSet
from ncdd.report.folder import Summary, job_folders, job_overrides, read_metrics, read_summary
from ncdd.report.style import DPI, MEDIUM, MUTED, OKABE_ITO, new_figure, plain_axes
from ncdd.runfolder import SET

HERE = Path(__file__).parent
ARMS = {
    "vs_random": "random real images",
    "vs_herding": "herding",
    "vs_kmeans": "k-means centres",
    "vs_joint_literal": "joint, literal",
    "vs_kip": "KIP",
    "vs_kip_labels": "KIP, learned labels",
    "vs_unrolled": "unrolled, 5 steps",
    "vs_joint_unroll": "joint, unroll",
    "vs_frepo": "FRePo",
    "vs_frepo_labels": "FRePo, learned labels",
    "vs_joint_krr": "joint, krr_etf",
    "vs_dc": "DC",
    "vs_dsa": "DSA",
    "vs_dsa_decay": "DSA, decaying learning rate",
    "vs_dm": "DM",
    "vs_dm_decay": "DM, decaying learning rate",
    "vs_joint_means": "joint, means",
    "vs_joint": "joint, ncc",
    "vs_kmeans_parts": "k-means, four parts",
    "vs_dm_parts": "DM, four parts",
    "vs_joint_parts": "joint, ncc, four parts",
}
NETWORKS = {"test/accuracy": "plain", "test/accuracy_augmented": "augmented"}
OTHERS = {
    "test/accuracy_mlp": "MLP, plain",
    "test/accuracy_augmented_mlp": "augmented",
    "test/accuracy_lenet": "LeNet, plain",
    "test/accuracy_augmented_lenet": "augmented",
}
RIVALS = (
    ("vs_joint", "vs_dm"),
    ("vs_joint", "vs_dm_decay"),
    ("vs_joint_means", "vs_dm"),
    ("vs_joint_parts", "vs_dm_parts"),
    ("vs_frepo_labels", "vs_dm"),
)
AGE_ROWS = (
    ("NC1, train", "train/nc1_pinv", "{:.2f}"),
    ("accuracy of that network, test", "real_test/accuracy", "{:.1%}"),
    ("nearest mean of the ten images, test", "test/ncc_accuracy", "{:.1%}"),
)
HEADS = (("etf", "null"), ("linear", "null"), ("etf", "K"), ("linear", "K"))
OWN = ("test/krr_accuracy", "test/ncc_accuracy")


class Job(NamedTuple):
    """A finished run of a sweep."""

    overrides: dict[str, str]
    summary: Summary
    folder: Path

    @property
    def final(self) -> dict[str, float]:
        return self.summary["final"]

    @property
    def networks(self) -> int:
        """That each of its numbers on test is of."""
        return yaml.safe_load((self.folder / "config.yaml").read_text())["callbacks"]["distilled"]["final_networks"]


class Number(NamedTuple):
    """Mean and standard deviation (n - 1) over the networks of all distillation seeds."""

    mean: float
    std: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.std:.1f}"


def jobs(sweep: Path) -> list[Job]:
    """Every finished job; none where there is no such sweep."""
    found = [(folder, read_summary(folder)) for folder in job_folders(sweep) if (folder / "DONE").exists()]
    return [Job(job_overrides(folder, summary), summary, folder) for folder, summary in found]


def by_arm(sweep: Sequence[Job], images_per_class: str) -> dict[str, list[Job]]:
    """The jobs of each arm, one a seed, in the order of ARMS."""
    found = defaultdict(list)
    for job in sweep:
        if job.overrides["distill.images_per_class"] == images_per_class:
            found[job.overrides["recipe"]].append(job)
    return {arm: found[arm] for arm in ARMS if arm in found}


def decayed(sweep: Sequence[Job]) -> list[Job]:
    """The jobs as arms of their own, vs_ARM_decay."""
    return [job._replace(overrides=job.overrides | {"recipe": f"{job.overrides['recipe']}_decay"}) for job in sweep]


def over_networks(seeds: Sequence[Job], metric: str) -> Number | None:
    """All networks together, from the mean and the deviation that those of each seed have left; None of none."""
    if any(metric not in job.final for job in seeds):
        return None
    means, counts = [job.final[metric] for job in seeds], [job.networks for job in seeds]
    mean = fmean(means, counts)
    within = sum((count - 1) * job.final[f"{metric}_std"] ** 2 for job, count in zip(seeds, counts, strict=True))
    between = sum(count * (m - mean) ** 2 for m, count in zip(means, counts, strict=True))
    return Number(mean, ((within + between) / (sum(counts) - 1)) ** 0.5)


def table(arms: dict[str, list[Job]], dm: Sequence[Job]) -> str:
    """Markdown: a row an arm; `own` is what the method's own predictor makes of the set, `less DM` of augmented."""
    head = [
        "",
        "iterations",
        "CPU s",
        "n",
        *NETWORKS.values(),
        "std of seeds, augmented",
        "less DM of the same seeds",
        "own",
    ]
    rows = [head, ["---"] * len(head)]
    for arm, seeds in arms.items():
        numbers = {metric: over_networks(seeds, metric) for metric in NETWORKS}
        of_seeds = [job.final["test/accuracy_augmented"] for job in seeds]
        own = [job.final[name] for job in seeds for name in OWN if name in job.final]
        learns = seeds[0].summary["steps"] > 1
        rows.append(
            [
                ARMS[arm],
                str(seeds[0].summary["steps"]) if learns else "",
                f"{fmean(job.summary['training_cpu_seconds'] for job in seeds):.0f}" if learns else "",
                str(sum(job.networks for job in seeds)),
                *("" if number is None else str(number) for number in numbers.values()),
                f"{100 * stdev(of_seeds):.1f}" if len(seeds) > 1 else "",
                "" if seeds == dm else difference(seeds, dm),
                f"{100 * fmean(own):.1f}" if own else "",
            ]
        )
    return markdown(rows)


def others_table(arms: dict[str, list[Job]]) -> str:
    """Markdown: what other architectures learn from the sets, a row an arm."""
    rows = [["", "n", *OTHERS.values()], ["---"] * (2 + len(OTHERS))]
    for arm, seeds in arms.items():
        numbers = [over_networks(seeds, metric) for metric in OTHERS]
        rows.append(
            [ARMS[arm], str(sum(job.networks for job in seeds)), *("" if n is None else str(n) for n in numbers)]
        )
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def differences_table(arms: dict[str, list[Job]]) -> str:
    """Markdown: what joint has before DM, on every network."""
    metrics = {**NETWORKS, **OTHERS}
    rows = [["", "seeds", *metrics.values()], ["---"] * (2 + len(metrics))]
    for arm, other in RIVALS:
        if arm in arms and other in arms:
            mine, theirs = arms[arm], arms[other]
            shared = {job.overrides["seed"] for job in mine} & {job.overrides["seed"] for job in theirs}
            cells = [difference(mine, theirs, metric) for metric in metrics]
            rows.append([f"{ARMS[arm]} less {ARMS[other]}", str(len(shared)), *cells])
    return markdown(rows)


def difference(seeds: Sequence[Job], others: Sequence[Job], metric: str = "test/accuracy_augmented") -> str:
    """Mean, and deviation over seeds, of what these have before the others of the same seed: of the same networks."""
    mine, theirs = (
        {job.overrides["seed"]: job.final[metric] for job in some if metric in job.final} for some in (seeds, others)
    )
    found = [100 * (mine[seed] - theirs[seed]) for seed in mine if seed in theirs]
    return f"{fmean(found):+.1f}" + (f" ± {stdev(found):.1f}" if len(found) > 1 else "") if found else ""


def age_table(of_age: Sequence[Job]) -> str:
    """Markdown: a column a maximum age, values as mean over seeds, accuracy of fresh networks over all networks."""
    by_age: dict[str, list[Job]] = defaultdict(list)
    for job in of_age:
        by_age[job.overrides["method.pool.max_age"]].append(job)
    ages = sorted(by_age, key=lambda age: float("inf") if age == "null" else float(age))
    rows = [["maximum age", *("none" if age == "null" else age for age in ages)], ["---"] * (1 + len(ages))]
    rows.append(["n", *(str(sum(job.networks for job in by_age[age])) for age in ages)])
    for label, metric, shown in AGE_ROWS:
        rows.append([label, *(shown.format(fmean(job.final[metric] for job in by_age[age])) for age in ages)])
    rows.append(["**fresh networks**", *(str(over_networks(by_age[age], "test/accuracy_augmented")) for age in ages)])
    return markdown(rows)


def heads_table(of_heads: Sequence[Job]) -> str:
    """Markdown: a row a head and dimension of the features."""
    rows = [["head", "dimension", "n", "fresh networks, augmented"], ["---"] * 4]
    for head, dimension in HEADS:
        chosen = {"head": head, "model.feature_dim": dimension}
        if seeds := [job for job in of_heads if chosen.items() <= job.overrides.items()]:
            count = str(sum(job.networks for job in seeds))
            rows.append([head, dimension, count, str(over_networks(seeds, "test/accuracy_augmented"))])
    return markdown(rows)


def methods(arms: dict[str, list[Job]]) -> Figure:
    """Accuracy of fresh networks on ten images of every method."""
    figure = new_figure(6.5, 0.36 * len(arms) + 0.8)
    ax = figure.subplots()
    for offset, metric, colour in ((-0.2, "test/accuracy", MUTED), (0.2, "test/accuracy_augmented", OKABE_ITO[0])):
        numbers = [number for seeds in arms.values() if (number := over_networks(seeds, metric))]
        ax.barh(
            [place + offset for place in range(len(arms))],
            [100 * number.mean for number in numbers],
            0.38,
            xerr=[100 * number.std for number in numbers],
            color=colour,
            label=NETWORKS[metric],
        )
    ax.set_yticks(range(len(arms)), [ARMS[arm] for arm in arms])
    ax.set_xlim(15, 100)
    ax.set_xlabel("accuracy of fresh networks on ten images, %", fontsize=MEDIUM)
    ax.legend(frameon=False, fontsize=MEDIUM, loc="lower right")
    plain_axes(ax)
    return figure


def compute(arms: dict[str, list[Job]]) -> Figure:
    """What the set teaches, on validation images, against the CPU time of its iterations, mean over the seeds."""
    figure = new_figure(6.5, 3.6)
    ax = figure.subplots()
    for (arm, seeds), colour in zip(arms.items(), OKABE_ITO, strict=False):
        curves = [read_metrics(job.folder, axis="step")["val/accuracy"] for job in seeds]
        second = fmean(job.summary["training_cpu_seconds"] / job.summary["steps"] for job in seeds)
        worth = np.mean([values for _, values in curves], axis=0)
        ax.plot(second * curves[0][0], 100 * worth, "o-", color=colour, label=ARMS[arm])
    ax.set_xlabel("CPU time of the distillation, s", fontsize=MEDIUM)
    ax.set_ylabel("accuracy of fresh networks, %", fontsize=MEDIUM)
    ax.legend(frameon=False, fontsize=MEDIUM, loc="lower right")
    plain_axes(ax)
    return figure


def collapse(of_age: list[Job], inverted: list[Job], runs: Path) -> Figure:
    """Accuracy of fresh networks against the collapse of those that taught the images."""
    figure = new_figure(5, 3.4)
    ax = figure.subplots()
    for colour, blocks, label in ((OKABE_ITO[0], "false", "a pool"), (OKABE_ITO[1], "true", "a pool, every block")):
        mine = [job.final for job in of_age if job.overrides["method.match_blocks"].lower() == blocks]
        if mine:
            points([f["train/nc1_pinv"] for f in mine], mine, ax, colour, label)
    one = read_summary(runs / "one_go")["final"]
    points([one["train/nc1_pinv"]], [one], ax, OKABE_ITO[4], "one network, trained to the end")
    frozen = read_summary(runs / "frozen")["final"]["train/nc1_pinv"]
    points([frozen] * len(inverted), [job.final for job in inverted], ax, OKABE_ITO[2], "inverted: one frozen network")
    ax.set_xlim(1.75, 0.2)
    ax.set_xlabel("NC1 of the network on real images; collapse is to the right", fontsize=MEDIUM)
    ax.set_ylabel("accuracy of fresh networks, %", fontsize=MEDIUM)
    ax.legend(frameon=False, fontsize=MEDIUM)
    plain_axes(ax)
    return figure


def points(x: list[float], finals: list[dict[str, float]], ax: Axes, colour: str, label: str) -> None:
    """With a standard deviation over networks."""
    y, std = ([100 * f[f"test/accuracy_augmented{end}"] for f in finals] for end in ("", "_std"))
    ax.errorbar(x, y, std, fmt="o", capsize=2, color=colour, label=label)


def images(rows: dict[str, Path]) -> Figure:
    """Ten images a row, one a class; of a set with four smaller ones in the place of each, these side by side."""
    figure = new_figure(6.5, 0.52 * len(rows))
    axes = figure.subplots(len(rows), 10, squeeze=False, gridspec_kw={"hspace": 0.02, "wspace": 0.02})
    for line, (label, folder) in zip(axes, rows.items(), strict=True):
        pixels = SyntheticSet.load(folder / SET).pixels().numpy()
        for ax, image in zip(line, tiled(pixels, isqrt(len(pixels) // 10)), strict=True):
            ax.imshow(image, cmap="gray", vmin=0, vmax=255)
            ax.set_axis_off()
        line[0].text(-0.15, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=MEDIUM)
    return figure


def tiled(pixels: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    """(10 side^2, 1, H, W), by class -> (10, H, W): those of a class in rows and columns.

    Each is as small as it was learned, but softer, as it was enlarged in between.
    """
    height, width = pixels.shape[2:]
    parts = pixels.reshape(10, side, side, height // side, side, width // side, side).mean((4, 6))
    return parts.transpose(0, 1, 3, 2, 4).reshape(10, height, width)


def main(root: Path) -> None:
    age, heads, arms, decay, way, inverted = (
        jobs(root / "multirun" / f"joint_{name}") for name in ("age", "heads", "vs_all", "decay", "compute", "invert")
    )
    arms += decayed(decay)
    for per_class in ("1", "10"):
        if found := by_arm(arms, per_class):
            parts = {arm: seeds for arm, seeds in found.items() if arm.endswith("_parts")}
            whole = {arm: seeds for arm, seeds in found.items() if arm not in parts}
            for title, some in (("images", whole), ("images of four parts", parts)):
                if not some:
                    continue
                print(f"\n{per_class} a class, {title}\n\n{table(some, found.get('vs_dm', []))}")
            print(f"\n{per_class} a class, other architectures\n\n{others_table(found)}")
            print(f"\n{per_class} a class, differences\n\n{differences_table(found)}")
    if ten := by_arm(arms, "1"):
        methods(ten).savefig(HERE / "methods.png", dpi=DPI)
        rows = {ARMS[arm]: seeds[0].folder for arm, seeds in ten.items() if not arm.endswith("_decay")}
        rows |= {f"inverted, {job.overrides['distill.init']}": job.folder for job in inverted}
        images(rows).savefig(HERE / "sets.png", dpi=DPI)
    if found := by_arm(way, "1"):
        compute(found).savefig(HERE / "compute.png", dpi=DPI)
    for blocks in ("false", "true"):
        if some := [job for job in age if job.overrides["method.match_blocks"].lower() == blocks]:
            print(f"\nAge of the pool, match_blocks={blocks}\n\n{age_table(some)}")
    if heads:
        print(f"\nHeads\n\n{heads_table(heads)}")
    if age and inverted and all((root / "runs" / run / "DONE").exists() for run in ("one_go", "frozen")):
        collapse(age, inverted, root / "runs").savefig(HERE / "collapse.png", dpi=DPI)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="folder of multirun/ and runs/")
    main(parser.parse_args().root)
