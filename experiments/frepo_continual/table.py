"""Table and figure of this folder's README, of a sweep: `python experiments/frepo_continual/table.py SWEEP`."""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure

from ncdd.report.rows import read_rows
from ncdd.report.style import DPI, LARGE, MEDIUM, OKABE_ITO, SMALL, new_figure, plain_axes

HERE = Path(__file__).parent
Curves = dict[
    tuple[int, str], dict[int, list[float]]
]  # images a class, memory -> classes seen -> accuracies, one a run


def curves(sweep: Path) -> Curves:
    """Test accuracy in percent of all runs that are done."""
    found: Curves = defaultdict(lambda: defaultdict(list))
    for done in sorted(sweep.glob("*/DONE")):
        per_class = yaml.safe_load((done.parent / "config.yaml").read_text())["task"]["images_per_class"]
        for row in read_rows(done.parent / "continual.csv"):
            found[per_class, row["set"]][int(row["classes"])].append(100 * row["accuracy"])
    return dict(sorted(found.items()))


def table(found: Curves) -> str:
    """Markdown: mean and standard deviation over runs."""
    classes = list(next(iter(found.values())))
    lines = ["| images a class, memory | n | " + " | ".join(f"{k} classes" for k in classes) + " |"]
    lines.append("|---" * (len(classes) + 2) + "|")
    for (per_class, memory), values in found.items():
        cells = [f"{np.mean(v):.1f} +- {np.std(v, ddof=1):.1f}" for v in values.values()]
        lines.append(f"| {per_class}, {memory} | {len(values[classes[0]])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(found: Curves) -> Figure:
    """A panel for each number of images a class; bars are deviations over runs."""
    columns = list(dict.fromkeys(per_class for per_class, _ in found))
    drawn = new_figure(4.5 * len(columns), 3.8)
    axes = drawn.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for ax, per_class in zip(axes, columns, strict=True):
        for memory, colour in zip(("distilled", "random"), OKABE_ITO, strict=False):
            values = found[per_class, memory]
            mean, std = ([f(v) for v in values.values()] for f in (np.mean, lambda v: np.std(v, ddof=1)))
            ax.errorbar(list(values), mean, yerr=std, color=colour, marker="o", capsize=2, label=f"{memory} images")
        ax.set_xticks(list(values))
        ax.set_title(f"{per_class} image{'s' * (per_class > 1)} a class", fontsize=LARGE, loc="left")
        ax.set_xlabel("classes seen", fontsize=MEDIUM)
        plain_axes(ax)
    axes[0].set_ylabel("test accuracy on these, %", fontsize=MEDIUM)
    axes[0].legend(fontsize=SMALL, frameon=False)
    return drawn


def main(sweep: str) -> None:
    found = curves(Path(sweep))
    print(table(found))
    figure(found).savefig(HERE / "continual.png", dpi=DPI)


if __name__ == "__main__":
    main(sys.argv[1])
