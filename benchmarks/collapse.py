"""Seconds of every way to measure collapse, as ratios to a float32 ``X'X`` product on the same data in the same run.

python -m benchmarks.collapse [--threads 1] [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ncdd.collapse import NeuralCollapse, measure, simplex_etf

# classes, features, samples; the ratios to reach for (exact, fast) cached and streamed; the ratio of
# rhubarbwu/neural-collapse (c05a0b8), measured once on a like machine and quoted, not run again
CASES = [
    (10, 512, 50_000, (0.45, 0.32), (2.6, 1.4), 1.61),
    (100, 512, 50_000, (0.95, 0.60), (2.9, 1.9), 2.77),
    (1000, 2048, 20_000, (2.3, 1.6), (3.4, 2.8), 7.8),
]
BATCH = 512


def features_and_head(K: int, D: int, n: int, imbalanced: bool) -> dict[str, Tensor]:
    """Half-collapsed features around a noisy simplex, with the logits a forward pass would have left."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(K, (n,), generator=generator) if imbalanced else torch.randperm(n, generator=generator) % K
    means = simplex_etf(K, D, rotation="random", dtype=torch.float32)
    means += 0.1 * torch.randn(K, D, generator=generator) / D**0.5
    features = means[labels] + 1.0 + torch.randn(n, D, generator=generator) / D**0.5
    weight, bias = means - means.mean(dim=0), 0.1 * torch.randn(K, generator=generator)
    logits = features @ weight.T + bias
    return {"features": features, "labels": labels, "weight": weight, "bias": bias, "logits": logits}


def cached(data: dict[str, Tensor], **choices: object) -> None:
    head = {"weight_KD": data["weight"], "bias_K": data["bias"], "logits_NK": data["logits"]}
    measure(data["features"], data["labels"], **head, **choices)  # type: ignore[arg-type]


def streamed(data: dict[str, Tensor], second_pass: bool = False, **choices: object) -> None:
    """Batches of BATCH through the metric, which keeps 64 MiB of them at most."""
    metric = NeuralCollapse(len(data["weight"]), memory_budget=2**26, **choices)  # type: ignore[arg-type]
    metric.set_head(data["weight"], data["bias"])
    batches = list(zip(*(data[key].split(BATCH) for key in ("features", "labels", "logits")), strict=True))
    for batch in batches:
        metric.update(*batch)
    if second_pass and metric.needs_second_pass:
        for batch in batches:
            metric.update_decisions(*batch)
    metric.compute()


def interleaved(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each way, the ways taking turns so that a slow moment of the machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}


def report(case: tuple, repeats: int, imbalanced: bool) -> None:
    K, D, n, cached_targets, streamed_targets, peer = case
    data = features_and_head(K, D, n, imbalanced)
    product = "float32 X'X"
    ways: dict[str, Callable[[], object]] = {product: lambda: data["features"].T @ data["features"]}
    target = {product: ""}
    for precision, to_cached, to_streamed in zip(("exact", "fast"), cached_targets, streamed_targets, strict=True):
        for vci in (False, True):
            suffix = f"{precision}{', with VCI' if vci else ''}"
            choices: dict[str, Any] = {"precision": precision, "vci": vci}
            ways[f"cached, {suffix}"] = partial(cached, data, **choices)
            ways[f"one pass, {suffix}"] = partial(streamed, data, **choices)
            target[f"one pass, {suffix}"] = f"{to_streamed:.2f}"
        ways[f"one pass + decisions, {precision}, with VCI"] = partial(streamed, data, second_pass=True, **choices)
        target[f"cached, {precision}"] = f"{to_cached:.2f}"
    times = interleaved(ways, repeats)
    print(f"\nK={K} D={D} n={n} {'random' if imbalanced else 'equal'} class sizes")
    print(f"{'':42s}{'seconds':>9s}{'ratio':>8s}{'target':>8s}")
    for name, seconds in times.items():
        print(f"{name:42s}{seconds:9.3f}{seconds / times[product]:8.2f}{target.get(name, '-'):>8s}")
    print(f"{'rhubarbwu/neural-collapse, earlier, not here':42s}{'':9s}{peer:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default 1)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples, fewer repeats; ratios are rough")
    parser.add_argument("--imbalanced", action="store_true", help="random labels: class sizes differ, more conventions")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s); medians of interleaved runs")
    for K, D, n, *rest in CASES:
        report((K, D, n // 10 if args.quick else n, *rest), 3 if args.quick or K == 1000 else 7, args.imbalanced)


if __name__ == "__main__":
    main()
