"""Every Neural Collapse value of a file of features, as JSON.

python -m ncdd.collapse features.npz

The file holds X (n, D) features and y (n,) labels, and optionally W (K, D) and b (K,) of the linear head, mu_ood (D,)
the mean of out-of-distribution features, X_ood (m, D) such features themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import Collapse, measure, neco_basis, neco_scores
from .ood import detection, neco_defined, ood_orthogonality

if TYPE_CHECKING:
    from . import NeuralCollapse

NDIM = {"X": 2, "y": 1, "W": 2, "b": 1, "mu_ood": 1, "X_ood": 2}


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        text = json.dumps(_evaluate(_load(args.file), args), indent=1)
        if args.output is None:
            print(text)
        else:
            _write(args.output, text + "\n")
    except (ValueError, OSError) as error:
        print(f"{args.file}: {error}", file=sys.stderr)
        return 2
    return 0


def _evaluate(arrays: dict[str, Tensor], args: argparse.Namespace) -> dict[str, float]:
    choices: dict[str, Any] = {
        "weighting": args.weighting,
        "ddof": args.ddof,
        "precision": args.precision,
        "vci": not args.no_vci,
    }
    choices["ignore_index"] = args.ignore_index
    if args.batch_size is not None:
        return _streamed(arrays, args.batch_size, choices)
    names = {"weight_KD": "W", "bias_K": "b", "mu_ood_D": "mu_ood", "features_ood": "X_ood"}
    optional: dict[str, Any] = {argument: arrays.get(name) for argument, name in names.items()}
    return measure(arrays["X"], arrays["y"], **optional, **choices).values


def _streamed(arrays: dict[str, Tensor], batch_size: int, choices: dict[str, Any]) -> dict[str, float]:
    """The same numbers with no more than a batch in memory, in two sweeps."""
    from . import NeuralCollapse  # torchmetrics takes seconds to import, which the plain way does without

    X, y, W, X_ood = arrays["X"], arrays["y"], arrays.get("W"), arrays.get("X_ood")
    classes = int(y.max()) + 1 if W is None else len(W)
    metric = NeuralCollapse(max(classes, 2), memory_budget=0, **choices)
    if W is not None:
        metric.set_head(W, arrays.get("b"))
    batches = list(zip(X.split(batch_size), y.split(batch_size), strict=True))
    for batch in batches:
        metric.update(*batch)
    if metric.needs_second_pass:
        for batch in batches:
            metric.update_decisions(*batch)
    result = metric.measure()
    return result.values | _ood_values(metric, result, batches, arrays.get("mu_ood"), X_ood, choices["ignore_index"])


def _ood_values(
    metric: NeuralCollapse,
    result: Collapse,
    batches: list[tuple[Tensor, Tensor]],
    mu_ood: Tensor | None,
    X_ood: Tensor | None,
    ignore_index: int | None,
) -> dict[str, float]:
    values = {}
    if X_ood is not None:
        moments = metric.moments()
        assert moments is not None
        if neco_defined(moments):
            basis = neco_basis(moments)
            inside = torch.cat(
                [neco_scores(x[y != ignore_index] if ignore_index is not None else x, basis) for x, y in batches]
            )
            values.update(detection(inside, neco_scores(X_ood, basis)))
        mu_ood = X_ood.double().mean(dim=0) if mu_ood is None else mu_ood
    if mu_ood is not None:
        means = result.mean_KD[result.count_K > 0]
        values["nc5_ood_orth"] = float(ood_orthogonality(means, mu_ood.double()))
    return values


def _load(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise ValueError("no such file")
    if not zipfile.is_zipfile(path):
        raise ValueError("not a readable .npz: np.savez writes one")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in NDIM if name in file}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = "pickled arrays are refused" if "pickle" in str(error) else "not a readable .npz"
        raise ValueError(f"{reason} ({error})") from None
    missing = [name for name in "Xy" if name not in arrays]
    if missing:
        raise ValueError(f"the file has no array {' and no '.join(missing)}: X (n, D) and y (n,) are required")
    for name, array in arrays.items():
        if array.ndim != NDIM[name] or array.dtype.kind not in ("iu" if name == "y" else "f"):
            kind = "integers" if name == "y" else "floating point"
            raise ValueError(
                f"{name} has shape {array.shape} and dtype {array.dtype}: expected {kind}, {NDIM[name]} dimension(s)"
            )
    features = arrays["X"].shape[1]
    for name in ("mu_ood", "X_ood"):
        if name in arrays and arrays[name].shape[-1] != features:
            raise ValueError(f"{name} has shape {arrays[name].shape}: expected {features} features as in X")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ncdd.collapse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the .npz of features (pickled arrays are refused)")
    parser.add_argument("--ignore-index", type=int, metavar="LABEL", help="leave samples of this label out")
    parser.add_argument(
        "--weighting",
        choices=("balanced", "sample"),
        default="balanced",
        help="global mean of the un-suffixed keys: of the class means (default) or of the samples (Zhu et al. 2021)",
    )
    parser.add_argument("--ddof", type=int, choices=(0, 1), default=0, help="of the standard deviations (default 0)")
    parser.add_argument(
        "--precision",
        choices=("exact", "fast"),
        default="exact",
        help="float64 products (default), or float32 products with float64 totals: NC1 to 1e-6",
    )
    parser.add_argument("--no-vci", action="store_true", help="leave out VCI, the one value with a D x D matrix")
    parser.add_argument(
        "--batch-size",
        type=_positive,
        metavar="N",
        help="stream in batches of N, in two sweeps, instead of measuring all at once: the same numbers",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON here, atomically, not to stdout")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected a number >= 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
