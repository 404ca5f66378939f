"""Checks of what a user passes in: each failure names the argument, the value and what is allowed."""

from __future__ import annotations

from torch import Tensor


def choose(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")


def checked_samples(
    features_ND: Tensor,
    labels_N: Tensor,
    logits_NK: Tensor | None,
    num_classes: int,
    ignore_index: int | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The samples to be measured, detached, without those labelled ``ignore_index``; nothing given is modified."""
    features, labels = features_ND.detach(), labels_N.detach()
    logits = None if logits_NK is None else logits_NK.detach()
    _check_shapes(features, labels, logits, num_classes)
    labels = labels.long()
    if ignore_index is not None:
        keep = labels != ignore_index
        if not keep.all():
            position = keep.nonzero().squeeze(1)
            features, labels = features[position], labels[position]
            logits = None if logits is None else logits[position]
            _check_values(features, labels, num_classes, position)
            return features, labels, logits
    _check_values(features, labels, num_classes, None)
    return features, labels, logits


def checked_head(
    weight_KD: Tensor | None, bias_K: Tensor | None, num_classes: int, num_features: int
) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias in float64; without a bias the head has b = 0."""
    if weight_KD is None:
        if bias_K is not None:
            raise ValueError("bias_K was given without weight_KD: pass both, or neither")
        return None, None
    weight = weight_KD.detach().double()
    if weight.shape != (num_classes, num_features):
        raise ValueError(f"weight_KD has shape {tuple(weight.shape)}: expected {(num_classes, num_features)}")
    bias = weight.new_zeros(num_classes) if bias_K is None else bias_K.detach().double()
    if bias.shape != (num_classes,):
        raise ValueError(f"bias_K has shape {tuple(bias.shape)}: expected {(num_classes,)}")
    return weight, bias


def _check_shapes(features: Tensor, labels: Tensor, logits: Tensor | None, num_classes: int) -> None:
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(
            f"features_ND has shape {tuple(features.shape)} and dtype {features.dtype}: expected floating point (N, D)"
        )
    if labels.shape != features.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels_N has shape {tuple(labels.shape)} and dtype {labels.dtype}: "
            f"expected one integer for each of the {len(features)} rows of features_ND"
        )
    if logits is not None and logits.shape != (len(features), num_classes):
        raise ValueError(f"logits_NK has shape {tuple(logits.shape)}: expected {(len(features), num_classes)}")


def _check_values(features: Tensor, labels: Tensor, num_classes: int, position: Tensor | None) -> None:
    """``position`` maps the rows back to the caller's numbering when ignored rows were dropped."""
    if not len(labels):
        return

    def row(bad_N: Tensor) -> int:
        index = bad_N.nonzero()[0]
        return int(index if position is None else position[index])

    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        label = int(labels[outside][0])
        raise ValueError(
            f"labels_N[{row(outside)}] = {label} is outside the range 0..{num_classes - 1} "
            f"of num_classes={num_classes} (set ignore_index={label} to leave such samples out)"
        )
    # a sum is not finite as soon as one entry is not (it may also overflow), and costs one read without a temporary
    if not features.sum().isfinite():
        bad = ~features.isfinite().all(dim=1)
        if bad.any():
            raise ValueError(f"features_ND[{row(bad)}] holds a NaN or infinite value")
