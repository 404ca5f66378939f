"""`python -m ncdd.distill SET`: what a synthetic set is, and its images as npz or as a folder of PNGs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ncdd.data.images import Normalisation
from ncdd.distill.synthetic import SyntheticSet


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 for a mistake that the message names."""
    parser = argparse.ArgumentParser(prog="python -m ncdd.distill", description=__doc__)
    parser.add_argument("set", type=Path, help="a .safetensors file of a run, or a published .npz")
    parser.add_argument("--npz", type=Path, help="write images float32 (N, C, H, W), labels, mean, std to this file")
    parser.add_argument("--folder", type=Path, help="write CLASS/INDEX.png into this folder")
    for name in ("mean", "std"):
        parser.add_argument(f"--{name}", type=float, nargs="+", help="of each channel, where the file does not say")
    options = parser.parse_args(arguments)
    try:
        given = _normalisation(options.mean, options.std)
        synthetic = SyntheticSet.load(options.set, normalisation=given, setting="set")
        print(describe(synthetic))
        if options.folder and synthetic.normalisation is None:
            raise ValueError(f"{options.set} does not say what its images were normalised with: give --mean and --std")
        if options.npz:
            synthetic.export_npz(options.npz)
            print(options.npz)
        if options.folder:
            synthetic.export_folder(options.folder)
            print(options.folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def describe(synthetic: SyntheticSet) -> str:
    """One line: how many images of what, with which labels, made how."""
    counts = synthetic.classes.bincount(minlength=synthetic.num_classes)
    each = str(int(counts[0])) if bool((counts == counts[0]).all()) else f"{int(counts.min())} to {int(counts.max())}"
    facts = [
        f"{len(synthetic)} images of shape {tuple(synthetic.images.shape[1:])}, {each} a class",
        f"{'learned' if synthetic.labels.ndim == 2 else 'hard'} labels of {synthetic.num_classes} classes",
    ]
    if synthetic.step_sizes is not None:
        facts.append(f"{len(synthetic.step_sizes)} steps")
    facts += [f"of {synthetic.dataset}"] * bool(synthetic.dataset) + [f"by {synthetic.method}"] * bool(synthetic.method)
    if synthetic.accuracy is not None:
        facts.append(f"validation score {synthetic.accuracy:.2%}")
    return ", ".join(facts)


def _normalisation(mean: list[float] | None, std: list[float] | None) -> Normalisation | None:
    if (mean is None) != (std is None):
        raise ValueError("--mean and --std: give both or neither")
    return Normalisation(tuple(mean), tuple(std)) if mean is not None and std is not None else None


if __name__ == "__main__":
    sys.exit(main())
