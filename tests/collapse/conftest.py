"""The sets with independent float64 values, and the two ways to measure one."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ncdd.collapse import NeuralCollapse, measure

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("NCDD_SHARED", HERE.parents[2] / "shared")) / "reference" / "nc"
SMALL = json.loads((HERE / "small_cases.json").read_text())  # made by the same independent numpy reference
FLOATS = ("X", "W", "b", "mu_ood", "X_ood")


def case(name: str):
    """(arrays, expected values) of a small case, or of a set of the shared reference (skipped where there is none)."""
    if name in SMALL:
        raw = SMALL[name]
        arrays = {k: torch.tensor(raw[k], dtype=torch.float32) for k in FLOATS} | {"y": torch.tensor(raw["y"])}
        return arrays, raw["values"]
    if not SHARED.exists():
        pytest.skip(f"no reference values in {SHARED} (NCDD_SHARED says where)")
    with np.load(SHARED / f"{name}.npz") as file:
        arrays = {k: torch.from_numpy(file[k]) for k in file}
    entries = json.loads((SHARED / "values.json").read_text())[name]
    return arrays, {k: v["ref"] for k, v in entries.items() if "ref" in v}


def cached(arrays, **options):
    """Every value, from all features at once."""
    return measure(arrays["X"], arrays["y"], weight_KD=arrays["W"], bias_K=arrays["b"], mu_ood_D=arrays["mu_ood"],
                   features_ood=arrays["X_ood"], **options).values  # fmt: skip


def streamed(arrays, batch=97, order=None, memory_budget=0, **options):
    """The same by batches, with no memory for features; OOD values are not part of it."""
    order = torch.arange(len(arrays["X"])) if order is None else order
    metric = NeuralCollapse(len(arrays["W"]), memory_budget=memory_budget, **options)
    metric.set_head(arrays["W"], arrays["b"])
    for rows in order.split(batch):
        metric.update(arrays["X"][rows], arrays["y"][rows])
    if metric.needs_second_pass:
        for rows in order.split(batch):
            metric.update_decisions(arrays["X"][rows], arrays["y"][rows])
    return metric.compute()
