"""The table of this folder's README from the runs of a sweep: `python experiments/imbalance/table.py SWEEP...`."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml

from ncdd.collapse.geometry import cosines, upper
from ncdd.collapse.seli import seli_errors


def row_of(run: Path) -> dict[str, float]:
    """Name of a row -> value at the end of a run. Minority classes have fewer images than the average class."""
    final = json.loads((run / "summary.json").read_text())["final"]
    arrays = {name: torch.from_numpy(a) for name, a in np.load(run / "collapse.npz").items() if a.dtype.kind in "fi"}
    count, mean, weight = arrays["train/count"], arrays["train/mean"].double(), arrays["weight"].double()
    centred = mean - mean.mean(0)
    minority = count < count.double().mean()

    labels = arrays["test/labels"]
    logits = arrays["test/features"] @ arrays["weight"].T + arrays.get("bias", 0)
    right = (logits.argmax(1) == labels).double()
    by_class = torch.stack([right[labels == k].mean() for k in range(len(count))])
    uniform = torch.full_like(centred[:, 0], 1 / len(count))
    seli = seli_errors(count, centred @ centred.T, weight @ weight.T, uniform)
    return {
        "test accuracy, %": 100 * final["test/accuracy"],
        "of the majority classes": 100 * float(by_class[~minority].mean()),
        "of the minority classes": 100 * float(by_class[minority].mean()),
        "of the three smallest": 100 * float(by_class[count.argsort()[:3]].mean()),
        "train accuracy, %": 100 * final["train/accuracy"],
        "minority-pair cosine, means": float(upper(cosines(centred[minority])).mean()),
        "minority-pair cosine, classifier": float(upper(cosines(weight[minority])).mean()),
        "NC1, train": final["train/nc1_pinv"],
        "ETF error of the means, train": final["train/nc2_etf_M"],
        "SELI error of the means, train": float(seli["nc2_seli_M"]),
        "ETF error of the classifier": final["train/nc2_etf_W"],
        "SELI error of the classifier": float(seli["nc2_seli_W"]),
        "NC3 self-duality error, train": final["train/nc3_dual_etf"],
        "ETF error of the means, test": final["test/nc2_etf_M"],
    }


def head_of(run: Path) -> str:
    config = yaml.safe_load((run / "config.yaml").read_text())
    sphere = config["method"].get("normalize_features", False)
    return f"{config['head']['_target_'].rsplit('.', 1)[-1]}{', sphere' if sphere else ''}"


def main(sweeps: list[str]) -> None:
    runs = [done.parent for sweep in sweeps for done in sorted(Path(sweep).glob("*/DONE"))]
    heads: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        heads.setdefault(head_of(run), []).append(row_of(run))
    heads = dict(sorted(heads.items(), key=lambda item: ("sphere" in item[0], item[0] != "Linear", item[0])))
    print("| | " + " | ".join(f"{head} (n = {len(rows)})" for head, rows in heads.items()) + " |")
    print("|---" * (len(heads) + 1) + "|")
    for name in next(iter(heads.values()))[0]:
        cells = []
        for rows in heads.values():
            values = np.array([row[name] for row in rows])
            form = ".1e" if name.startswith("NC1") else ".1f" if "%" in name or name.startswith("of ") else ".3f"
            cells.append(f"{values.mean():{form}} ± {values.std(ddof=1):{form}}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
