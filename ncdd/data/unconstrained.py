"""The dataset of the unconstrained-features model: an image is no more than the number of its sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ncdd.data.images import Images, Normalisation, Source


def sample_numbers(*, counts: Sequence[int]) -> Source:
    """Class k has counts[k] samples; sample i, in the order of the classes, is the 1 x 1 image of the number i.

    There is nothing to generalise to: the test split is the train split. Raises ValueError for fewer than two classes,
    an empty one, or more samples than float32 can number.
    """
    if len(counts) < 2 or min(counts) < 1 or sum(counts) > 2**24:
        raise ValueError(f"counts={list(counts)}: two classes or more, of 1 or more samples, {2**24} in all at most")
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    numbers = torch.arange(len(labels), dtype=torch.float32).view(-1, 1, 1, 1)
    images = Images(numbers, labels)
    names = [str(k) for k in range(len(counts))]
    return Source(images, images, names, name="ufm", normalisation=Normalisation((0.0,), (1.0,)))
