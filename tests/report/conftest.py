"""Synthetic run folders, collapsing as a real run does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SPLITS = ("train", "test")


def simplex(K: int, D: int, rng: np.random.Generator) -> np.ndarray:
    """A simplex ETF of K unit rows in D >= K dimensions (fewer: cut off)."""
    frame = np.linalg.qr(rng.normal(size=(max(K, D), max(K, D))))[0][:K]
    return ((frame - frame.mean(axis=0)) / np.sqrt(1 - 1 / K))[:, :D]


def geometry_arrays(K: int = 10, D: int = 32, N: int = 600, noise: float = 0.12, seed: int = 0) -> dict[str, Any]:
    """The arrays of collapse.npz after a run that has nearly collapsed."""
    rng = np.random.default_rng(seed)
    frame = simplex(K, D, rng)
    means = 5 * (frame + 0.04 * rng.normal(size=(K, D)) / np.sqrt(D) * 3) + rng.normal(size=D)
    weight = 0.7 * (frame + 0.03 * rng.normal(size=(K, D)))
    arrays: dict[str, Any] = {"weight": weight, "bias": 0.01 * rng.normal(size=K)}
    arrays["class_names"] = np.array([str(k) for k in range(K)])
    for split, spread in zip(SPLITS, (noise, 3 * noise), strict=True):
        labels = np.arange(N) % K
        centres = means + (0 if split == "train" else 0.1) * rng.normal(size=(K, D))
        features = centres[labels] + 5 * spread * rng.normal(size=(N, D)) * rng.gamma(2, 0.25, size=(N, 1))
        arrays[f"{split}/mean"] = np.stack([features[labels == k].mean(axis=0) for k in range(K)])
        arrays[f"{split}/count"] = np.bincount(labels, minlength=K)
        arrays[f"{split}/features"] = features.astype(np.float32)
        arrays[f"{split}/labels"] = labels
    return arrays


def metric_rows(epochs: int = 60, seed: int = 0) -> list[dict[str, float]]:
    """Rows of metrics.csv: epoch 0 is before training, test measures every fifth epoch."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, float]] = []
    for epoch in range(epochs + 1):
        t, jitter = epoch / max(epochs, 1), lambda: float(np.exp(0.06 * rng.normal()))
        row: dict[str, float] = {"epoch": epoch, "step": 100 * epoch, "lr": 0.1 * (1 - t)}
        for split, floor in (("train", 0.0), ("test", 0.06)):
            if split == "test" and epoch % 5:
                continue
            error = min(0.9, floor + 0.9 * np.exp(-9 * t) * jitter()) * (epoch < 0.45 * epochs or split == "test")
            row |= {
                f"{split}/loss": 2.3 * np.exp(-8 * t) * jitter() + 5 * floor * (1 + t) * 0.3 + 1e-3,
                f"{split}/accuracy": 1 - error,
                f"{split}/nc1_pinv": (20 * np.exp(-9 * t) + 6 * floor + 2e-3) * jitter(),
                f"{split}/nc1_quotient": (4 * np.exp(-8 * t) + 6 * floor + 3e-3) * jitter(),
                f"{split}/nc2_etf_M": (0.8 * np.exp(-3 * t) + floor + 0.05) * jitter(),
                f"{split}/nc2_etf_W": (0.7 * np.exp(-3.5 * t) + 0.04),
                f"{split}/nc2_equinorm_M": (0.4 * np.exp(-4 * t) + floor + 0.02) * jitter(),
                f"{split}/nc2_equiangular_std_M": (0.3 * np.exp(-3 * t) + floor + 0.01) * jitter(),
                f"{split}/nc3_dual_etf": (1.3 * np.exp(-3 * t) + floor + 0.04) * jitter(),
                f"{split}/nc4_agree_bias": 1 - error * 0.5,
                f"{split}/ncc_accuracy": 1 - min(0.9, 0.8 * error + floor * 0.2),
            }
        row |= {"val/loss": row["train/loss"] * 1.1 + 0.05 + 0.1 * t, "val/accuracy": 0.97 * row["train/accuracy"]}
        rows.append(row)
    return rows


def write_metrics(folder: Path, rows: list[dict[str, float]]) -> None:
    """metrics.csv with blanks where a row lacks a metric."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(str(row.get(name, "")) for name in names) for row in rows]
    (folder / "metrics.csv").write_text("\n".join([",".join(names), *lines]) + "\n")


def write_run(
    folder: Path,
    *,
    K: int = 10,
    epochs: int = 60,
    seed: int = 0,
    overrides: tuple[str, ...] = (),
    arrays: dict[str, Any] | None = None,
) -> Path:
    """A finished run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = metric_rows(epochs, seed)
    write_metrics(folder, rows)
    np.savez(folder / "collapse.npz", **(arrays or geometry_arrays(K=K, D=max(32, K + 10), seed=seed)))
    measured = [{name: value for name, value in row.items() if "/" in name} for row in rows]
    last = {name: value for row in measured for name, value in row.items()}
    summary = {
        "status": "done", "name": folder.name, "epochs": epochs, "seconds": 12.5 + seed,
        "parameters": {"total": 1000, "trainable": 900}, "initial": measured[0], "final": last,
        "best": {"epoch": epochs, "val/accuracy": last["val/accuracy"]}, "overrides": list(overrides),
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "DONE").touch()
    return folder


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw with few pixels: fast."""
    monkeypatch.setattr("ncdd.report.style.DPI", 40)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run("name", K=3, ...): a finished run's folder below tmp_path."""
    return lambda name="run", **options: write_run(tmp_path / name, **options)


@pytest.fixture(name="geometry_arrays")
def geometry_arrays_fixture() -> Callable[..., dict[str, Any]]:
    """geometry_arrays(K=4, ...): the arrays of a collapse.npz."""
    return geometry_arrays
