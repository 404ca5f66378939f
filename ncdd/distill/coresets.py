"""Baselines of the same size that learn nothing: random real images, herding, k-means, class mean, nearest to the mean.

Shapes: N real images (C, H, W), K classes, `per_class` images of each; results are ordered by class.
Herding and nearest-to-mean compare pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ncdd.data.corrupt import rank_in_class


def coreset(
    name: str,
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    per_class: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """(images (K per_class, C, H, W), labels int64 (K per_class,)) by the method `name`, one of CORESETS.

    ValueError for an unknown name and where a class has fewer than `per_class` images.
    """
    if name not in CORESETS:
        raise ValueError(f"objective={name!r}: choose from {', '.join(CORESETS)}")
    counts = labels.bincount(minlength=num_classes)
    if per_class < 1 or int(counts.min()) < per_class:
        fewest = int(counts.argmin())
        raise ValueError(
            f"images_per_class={per_class}: the smallest class, {fewest}, has {int(counts[fewest])} real images; "
            f"choose 1 to {int(counts[fewest])}"
        )
    if name == "class_mean" and per_class != 1:
        raise ValueError(f"images_per_class={per_class}: class_mean makes one image a class; use 1, or kmeans")
    chosen = [CORESETS[name](images[labels == c], per_class, generator) for c in range(num_classes)]
    return torch.cat(chosen), torch.arange(num_classes, device=labels.device).repeat_interleave(per_class)


def _random(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    everything = torch.zeros(len(images), dtype=torch.int64)
    return images[(rank_in_class(everything, 1, generator) < count).to(images.device)]


def _herding(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return images[herding(images.flatten(1), count)]


def _nearest(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return images[nearest_to_mean(images.flatten(1), count)]


def _class_mean(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return images.mean(0, keepdim=True)


def _kmeans(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The centres of k-means on pixels: images that are no real one."""
    from sklearn.cluster import KMeans  # imported here: it costs a second that the others need not pay

    seed = int(torch.randint(2**31, (), generator=generator))
    rows = images.flatten(1).double().cpu().numpy()
    centres = KMeans(n_clusters=count, n_init=1, random_state=seed).fit(rows).cluster_centers_
    return torch.from_numpy(centres).to(images).view(count, *images.shape[1:])


CORESETS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "random": _random,
    "herding": _herding,
    "kmeans": _kmeans,
    "class_mean": _class_mean,
    "nearest": _nearest,
}


def herding(features_ND: Tensor, count: int) -> Tensor:
    """Indices (count,), each the sample that brings the mean of those chosen nearest to the mean of all.

    Welling 2009, in the greedy form of iCaRL (Rebuffi et al. 2017, algorithm 4), without repetition.
    """
    features_ND = features_ND.double()
    mean_D, total_D = features_ND.mean(0), torch.zeros_like(features_ND[0])
    free_N = torch.ones(len(features_ND), dtype=torch.bool, device=features_ND.device)
    chosen: list[Tensor] = []
    for size in range(1, count + 1):
        distance_N = ((total_D + features_ND) / size - mean_D).square().sum(1)
        best = distance_N.masked_fill(~free_N, torch.inf).argmin()
        chosen.append(best)
        free_N[best] = False
        total_D = total_D + features_ND[best]
    return torch.stack(chosen)


def nearest_to_mean(features_ND: Tensor, count: int) -> Tensor:
    """Indices (count,) of the samples nearest to the mean of all, nearest first."""
    features_ND = features_ND.double()
    distance_N = (features_ND - features_ND.mean(0)).square().sum(1)
    return distance_N.argsort(stable=True)[:count]
