"""The figures of this folder, from finished sweeps in multirun/ and the runs `frozen` and `one_go` in runs/.

`python experiments/joint/figures.py [--root FOLDER]`, FOLDER being where multirun/ and runs/ are.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from ncdd.distill import SyntheticSet
from ncdd.report.folder import Summary, job_folders, job_overrides, read_summary
from ncdd.report.style import DPI, MEDIUM, MUTED, OKABE_ITO, new_figure, plain_axes

HERE = Path(__file__).parent
ARMS = {
    "vs_kip": "KIP",
    "vs_random": "random real images",
    "vs_kmeans": "class means",
    "vs_frepo": "FRePo",
    "vs_dsa": "DSA",
    "vs_dm": "DM",
    "vs_joint": "joint, ETF",
}
Job = tuple[dict[str, str], Summary, Path]


def jobs(sweep: Path) -> list[Job]:
    """Overrides, numbers and folder of every finished job."""
    found = [(folder, read_summary(folder)) for folder in job_folders(sweep) if (folder / "DONE").exists()]
    return [(job_overrides(folder, summary), summary, folder) for folder, summary in found]


def numbers(of_age: list[Job], of_arms: list[Job], inverted: list[Job], runs: Path) -> Figure:
    """Accuracy of fresh networks against the collapse of those that taught the images, and of every method."""
    figure = new_figure(9.5, 3.4)
    left, right = figure.subplots(1, 2)
    for colour, blocks, label in ((OKABE_ITO[0], "False", "the features"), (OKABE_ITO[1], "True", "every block too")):
        mine = [s["final"] for o, s, _ in of_age if o["method.match_blocks"].lower() == blocks.lower()]
        bars([f["train/nc1_pinv"] for f in mine], mine, left, colour, label)
    one = read_summary(runs / "one_go")["final"]
    bars([one["train/nc1_pinv"]], [one], left, OKABE_ITO[4], "one network, trained to the end")
    frozen = read_summary(runs / "frozen")["final"]["train/nc1_pinv"]
    bars([frozen] * len(inverted), [s["final"] for _, s, _ in inverted], left, OKABE_ITO[2], "inverted, frozen network")
    left.set_xlim(1.75, 0.2)
    left.set_xlabel("NC1 of the network on real images; collapse is to the right", fontsize=MEDIUM)
    left.set_ylabel("accuracy of fresh networks, %", fontsize=MEDIUM)
    left.legend(frameon=False, fontsize=MEDIUM)
    finals = {o["recipe"]: s["final"] for o, s, _ in of_arms if o["distill.images_per_class"] == "1"}
    known = [arm for arm in ARMS if arm in finals]
    for offset, name, colour, label in (
        (-0.2, "test/accuracy", MUTED, "plain"),
        (0.2, "test/accuracy_augmented", OKABE_ITO[0], "augmented"),
    ):
        right.barh(
            [i + offset for i in range(len(known))],
            [100 * finals[arm][name] for arm in known],
            0.38,
            xerr=[100 * finals[arm][f"{name}_std"] for arm in known],
            color=colour,
            label=label,
        )
    right.set_yticks(range(len(known)), [ARMS[arm] for arm in known])
    right.set_xlim(25, 95)
    right.set_xlabel("accuracy of fresh networks on ten images, %", fontsize=MEDIUM)
    right.legend(frameon=False, fontsize=MEDIUM, loc="lower right")
    for ax in (left, right):
        plain_axes(ax)
    return figure


def bars(x: list[float], finals: list[dict[str, float]], ax, colour: str, label: str) -> None:
    """Points with a standard deviation over networks."""
    y, std = ([100 * f[f"test/accuracy_augmented{end}"] for f in finals] for end in ("", "_std"))
    ax.errorbar(x, y, std, fmt="o", capsize=2, color=colour, label=label)


def images(rows: dict[str, Path]) -> Figure:
    """Ten images a row, one a class."""
    figure = new_figure(6.5, 0.52 * len(rows))
    axes = figure.subplots(len(rows), 10, squeeze=False, gridspec_kw={"hspace": 0.02, "wspace": 0.02})
    for line, (label, folder) in zip(axes, rows.items(), strict=True):
        pixels = SyntheticSet.load(folder / "distilled.safetensors").pixels()
        for ax, image in zip(line, pixels.numpy(), strict=True):
            ax.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255)
            ax.set_axis_off()
        line[0].text(-0.15, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=MEDIUM)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="folder of multirun/ and runs/")
    root = parser.parse_args().root
    age, arms, objectives, inverted = (
        jobs(root / "multirun" / name) for name in ("joint_age", "joint_vs_all", "joint_objectives", "joint_invert")
    )
    numbers(age, arms, inverted, root / "runs").savefig(HERE / "joint.png", dpi=DPI)
    folders = {o["recipe"]: folder for o, _, folder in arms if o["distill.images_per_class"] == "1"}
    shown = {ARMS[arm]: folders[arm] for arm in ARMS if arm in folders}
    shown |= {f"joint, {o['objective']}": folder for o, _, folder in objectives if o["objective"] == "literal"}
    shown |= {f"inverted, {o['distill.init']}": folder for o, _, folder in inverted}
    images(shown).savefig(HERE / "sets.png", dpi=DPI)
