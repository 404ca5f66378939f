"""The table and the figure of this folder: `python experiments/wang_linear/demo.py [--dataset digits] [--sigma 0.1]`.

A linear classifier of D pixels and a constant, by least squares on one-hot labels, from one step of gradient descent on
M synthetic images with soft labels, begun at weights that are drawn from N(0, sigma^2) for every test.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from ncdd.data.sources import digits, torchvision_set
from ncdd.distill.linear import exact_set, excess_loss, lower_bound, one_step, principal_set
from ncdd.report.style import MEDIUM, OKABE_ITO, new_figure, plain_axes

STEP_SIZE, STARTS = 0.1, 100
Set = tuple[Tensor, Tensor]  # inputs (M, D), targets (M, K)


def with_constant(pixels: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> float64 (N, D), pixels in [0, 1] and a last column of ones."""
    flat = pixels.flatten(1).double() / 255
    return torch.cat([flat, flat.new_ones(len(flat), 1)], 1)


def expected_excess(chosen: Set, star_DK: Tensor, covariance_DD: Tensor, sigma: float) -> Tensor:
    """Mean over starts, in closed form: `sigma^2/2 K tr(P C P)` and what the mean end is off; `P = I - eta/M d'd`."""
    inputs_MD, targets_MK = chosen
    scale = STEP_SIZE / len(inputs_MD)
    keep_DD = torch.eye(len(star_DK), dtype=star_DK.dtype) - scale * inputs_MD.T @ inputs_MD
    spread = 0.5 * sigma**2 * star_DK.shape[1] * ((covariance_DD @ keep_DD) * keep_DD).sum()
    return spread + excess_loss((scale * inputs_MD.T @ targets_MK).T, star_DK.T, covariance_DD).sum()


def distilled(start: Set, star_DK: Tensor, covariance_DD: Tensor, sigma: float) -> Set:
    """Inputs and targets by LBFGS on the expected excess, as dataset distillation learns them."""
    leaves = [t.clone().requires_grad_() for t in start]
    optimizer = torch.optim.LBFGS(leaves, max_iter=100, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = expected_excess((leaves[0], leaves[1]), star_DK, covariance_DD, sigma)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return leaves[0].detach(), leaves[1].detach()


def measured(chosen: Set, star_DK: Tensor, covariance_DD: Tensor, sigma: float, test: Set) -> tuple[float, float]:
    """(mean excess, mean test accuracy) after one step from each of `STARTS` random weights."""
    classes = star_DK.shape[1]
    noise = torch.randn(len(star_DK), STARTS * classes, dtype=star_DK.dtype, generator=torch.Generator().manual_seed(1))
    inputs_MD, targets_MK = chosen
    ends = one_step(sigma * noise, inputs_MD, targets_MK.repeat(1, STARTS), STEP_SIZE)  # starts side by side
    excess = excess_loss(ends.T, star_DK.repeat(1, STARTS).T, covariance_DD).sum() / STARTS
    found = (test[0] @ ends).view(-1, STARTS, classes).argmax(2)
    return float(excess), float((found == test[1][:, None]).double().mean())


def study(dataset: str, root: str, sigma: float) -> tuple[list[int], dict[str, list[float]], dict[str, list[float]]]:
    """Numbers of images, and by kind of set the mean excess loss and the test accuracy."""
    source = digits() if dataset == "digits" else torchvision_set(name=dataset, root=root, download=False)
    assert isinstance(source.train.pixels, Tensor) and isinstance(source.test.pixels, Tensor)
    x_ND, onehot_NK = with_constant(source.train.pixels), torch.eye(10, dtype=torch.float64)[source.train.labels]
    test = with_constant(source.test.pixels), source.test.labels
    covariance_DD = x_ND.T @ x_ND / len(x_ND)
    star_DK = torch.linalg.pinv(covariance_DD, hermitian=True, rtol=1e-10) @ (x_ND.T @ onehot_NK) / len(x_ND)
    size = len(star_DK)
    counts = sorted({1, 2, 5, 10, 20, 40, *(2**k for k in range(6, int(math.log2(size)) + 1)), size, 2 * size})
    excess: dict[str, list[float]] = {"lower bound": [], "principal": [], "principal, expected": [], "distilled": []}
    accuracy: dict[str, list[float]] = {"principal": [], "distilled": []}
    generator = torch.Generator().manual_seed(0)
    for count in counts:
        if count < size:
            principal = principal_set(star_DK, covariance_DD, count, STEP_SIZE)
        else:
            principal = exact_set(star_DK, count, STEP_SIZE, generator)
        rows = torch.randperm(len(x_ND), generator=generator)[:count]
        start = (count / STEP_SIZE) ** 0.5 * x_ND[rows] / x_ND[rows].norm(dim=1, keepdim=True), onehot_NK[rows]
        learned = distilled(start, star_DK, covariance_DD, sigma)
        excess["lower bound"].append(10 * float(lower_bound(covariance_DD, count, sigma)))
        excess["principal, expected"].append(float(expected_excess(principal, star_DK, covariance_DD, sigma)))
        for name, chosen in (("principal", principal), ("distilled", learned)):
            loss, right = measured(chosen, star_DK, covariance_DD, sigma, test)
            excess[name].append(loss)
            accuracy[name].append(right)
    best = float(((test[0] @ star_DK).argmax(1) == test[1]).double().mean())
    print(f"{dataset}: D = {size}, least squares on all real images: {100 * best:.1f} % on test\n")
    return counts, excess, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="digits, or a grey one that torchvision reads")
    parser.add_argument("--root", default="data")
    parser.add_argument("--sigma", type=float, default=0.1, help="standard deviation of the first weights")
    parser.add_argument("--figure", type=Path, default=Path("wang_linear.png"))
    arguments = parser.parse_args()
    counts, excess, accuracy = study(arguments.dataset, arguments.root, arguments.sigma)
    print("| M | " + " | ".join(excess) + " | test accuracy, principal | distilled |")
    print("|---" * (len(excess) + 3) + "|")
    for place, count in enumerate(counts):
        losses = " | ".join(f"{values[place]:.3g}" for values in excess.values())
        print(f"| {count} | {losses} | " + " | ".join(f"{100 * v[place]:.1f}" for v in accuracy.values()) + " |")
    draw(counts, excess, arguments.figure)


def draw(counts: list[int], excess: dict[str, list[float]], path: Path) -> None:
    figure = new_figure(6, 4)
    ax = figure.add_subplot()
    plain_axes(ax)
    shown = (("lower bound", "-"), ("principal", "o"), ("distilled", "x"))
    for (name, mark), colour in zip(shown, OKABE_ITO, strict=False):
        seen = [(m, v) for m, v in zip(counts, excess[name], strict=True) if v > 1e-12]
        ax.plot(*zip(*seen, strict=True), mark, color=colour, label=name)
    ax.set(xscale="log", yscale="log")
    ax.set_xlabel("synthetic images M", fontsize=MEDIUM)
    ax.set_ylabel("real loss above its minimum", fontsize=MEDIUM)
    ax.legend(frameon=False)
    figure.savefig(path)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
