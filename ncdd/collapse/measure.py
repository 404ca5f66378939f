"""One call from features (and a head) to every Neural Collapse value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import decisions, duality, geometry, ood, seli, variability
from .central_path import central_path as mse_parts
from .inputs import checked_head, checked_samples, choose
from .statistics import Moments, Precision, class_counts, class_means, measuring
from .sweep import Frame, Sweep, linear_decisions, mean_frame, sweep

Weighting = Literal["balanced", "sample"]


@dataclass(frozen=True)
class Conventions:
    """What published codes decide silently, here by name. The defaults reproduce rhubarbwu/neural-collapse.

    weighting: the global mean behind every un-suffixed key is the mean of the class means ("balanced") or of the
    samples ("sample": Zhu et al. 2021, Papyan's notebooks). ddof: of the un-suffixed standard deviations and variances
    over classes and pairs. scale_by_K: divide ``tr(Sw Sb^+)`` by K. precision: "exact" (float64 products) or "fast"
    (float32 products, float64 totals: NC1 to 1e-6). vci: the variability collapse index, whose D x D scatter costs more
    than all the rest together. central_path: the parts of the MSE loss, ``mse_*``, which need that scatter too.
    """

    weighting: Weighting = "balanced"
    ddof: int = 0
    scale_by_K: bool = True
    precision: Precision = "exact"
    vci: bool = True
    central_path: bool = False

    def __post_init__(self) -> None:
        choose("weighting", self.weighting, ("balanced", "sample"))
        choose("ddof", self.ddof, (0, 1))
        choose("precision", self.precision, ("exact", "fast"))


@dataclass(frozen=True)
class Collapse:
    """values by key; per_class, (K,) each, NaN for a class without samples; the class means and counts behind them."""

    values: dict[str, float]
    per_class: dict[str, Tensor]
    mean_KD: Tensor
    count_K: Tensor


@dataclass(frozen=True)
class Head:
    """The linear classifier of all classes, float64; ``None`` where it is unknown."""

    weight_KD: Tensor | None
    bias_K: Tensor | None


def measure(
    features_ND: Tensor,
    labels_N: Tensor,
    *,
    weight_KD: Tensor | None = None,
    bias_K: Tensor | None = None,
    logits_NK: Tensor | None = None,
    num_classes: int | None = None,
    ignore_index: int | None = None,
    weighting: Weighting = "balanced",
    ddof: int = 0,
    scale_by_K: bool = True,
    precision: Precision = "exact",
    vci: bool = True,
    central_path: bool = False,
    reference_means_KD: Tensor | None = None,
    mu_ood_D: Tensor | None = None,
    features_ood: Tensor | None = None,
) -> Collapse:
    """Every metric of one set of features, in two passes over them (see :class:`Conventions` for the choices).

    Features (N, D) of any floating type are promoted to float64; labels (N,) are integers. With a head NC3 and NC4 are
    included; given logits decide as they are, without being computed again. ``reference_means_KD``, the train means
    where the features are test features, adds the ``__train_means`` keys (a NaN row is a class without train data).
    ``mu_ood_D`` adds NC5, ``features_ood`` (M, D) NECO where D > K (and NC5 from its mean). Classes without samples are
    left out.
    Classes of unequal size add the distances from SELI (up to 1024 classes) and, from a factor of 2 on, the cosines
    between minority classes; not beside ``reference_means_KD``, as both are of the sizes that were trained on.

    Memory beyond the features, whatever N: up to 30 float64 matrices of K x max(K, D), and 8 MiB (1 + K/D) for blocks
    of samples; no K x K x D array, and no D x D one unless vci, central_path or features_ood asks for it.
    """
    conventions = Conventions(weighting, ddof, scale_by_K, precision, vci, central_path)
    num_classes = _number_of_classes(num_classes, weight_KD, logits_NK, labels_N)
    features, labels, logits = checked_samples(features_ND, labels_N, logits_NK, num_classes, ignore_index)
    head = Head(*checked_head(weight_KD, bias_K, num_classes, features.shape[1]))
    with measuring(features.device):
        linear = linear_decisions(features, logits, head.weight_KD, head.bias_K)
        classes = observed(class_counts(labels, num_classes))
        position = compact_positions(classes, num_classes)
        count, mean = class_means(features, position[labels], len(classes))
        frame = mean_frame(mean, position)
        scatter = vci or central_path or features_ood is not None
        imbalanced = bool(count.min() != count.max())
        own = sweep(
            features, labels, frame, linear, precision=precision, scatter=scatter, gram=imbalanced and not scatter
        )
        moments = Moments(count, mean, own.square_K, own.scatter_DD)
        train = None
        if reference_means_KD is not None:
            reference = reference_frame(reference_means_KD, num_classes, labels)
            train = (reference, sweep(features, labels, reference, linear, precision=precision))
        result = summarise(moments, frame, own, head, conventions, train)
        if features_ood is not None:
            if ood.neco_defined(moments):
                basis = ood.neco_basis(moments)
                result.values.update(ood.detection(*(ood.neco_scores(f, basis) for f in (features, features_ood))))
            mu_ood_D = features_ood.double().mean(dim=0) if mu_ood_D is None else mu_ood_D
        if mu_ood_D is not None:
            result.values["nc5_ood_orth"] = float(ood.ood_orthogonality(mean, mu_ood_D.detach().double()))
    return result


def _number_of_classes(num_classes: int | None, weight: Tensor | None, logits: Tensor | None, labels: Tensor) -> int:
    if num_classes is not None:
        return num_classes
    if weight is not None:
        return len(weight)
    if logits is not None and logits.ndim == 2:
        return logits.shape[1]
    return int(labels.max()) + 1 if labels.numel() else 0


def observed(count_K: Tensor) -> Tensor:
    """Indices of the classes that have samples."""
    classes = count_K.nonzero().squeeze(1)
    if len(classes) < 2:
        raise ValueError(
            f"labels_N holds {len(classes)} of num_classes={len(count_K)} classes: "
            "collapse is measured between 2 or more"
        )
    return classes


def compact_positions(classes: Tensor, num_classes: int) -> Tensor:
    """Index of every class among ``classes``, -1 outside, (num_classes + 1,): the last entry keeps a -1 as -1."""
    position = classes.new_full((num_classes + 1,), -1)
    position[classes] = torch.arange(len(classes), device=classes.device)
    return position


def reference_frame(reference_means_KD: Tensor, num_classes: int, labels_N: Tensor) -> Frame:
    """The frame of means that were measured elsewhere, of the classes whose row is finite."""
    means = reference_means_KD.detach().to(device=labels_N.device, dtype=torch.float64)
    if means.ndim != 2 or len(means) != num_classes:
        raise ValueError(f"reference_means_KD has shape {tuple(means.shape)}: expected ({num_classes}, D)")
    position = compact_positions(observed(means.isfinite().all(dim=1).long()), num_classes)
    missing = labels_N[position[labels_N] < 0]
    if len(missing):
        raise ValueError(
            f"reference_means_KD has no finite row {int(missing[0])}, but labels_N has samples of that class"
        )
    return mean_frame(means[position[:-1] >= 0], position)


def summarise(
    moments: Moments,
    frame: Frame,
    own: Sweep | None,
    head: Head,
    conventions: Conventions,
    train: tuple[Frame, Sweep] | None,
) -> Collapse:
    """All values from statistics alone. Without ``own`` (one pass only) those that need a second pass are left out."""
    c = conventions
    present = frame.position[:-1] >= 0
    M = moments.mean_KD - variability.global_mean(moments, c.weighting)
    gram = frame.gram_KK if c.weighting == "balanced" else M @ M.T
    values = {"n": moments.count_K.sum(), "K": torch.tensor(len(M)), "D": torch.tensor(M.shape[1])}
    values |= _variability_values(moments, frame, own, c)
    values |= _shape_values("M", M, gram, c.ddof)
    values |= geometry.uniformity(geometry.upper(_unit_distances(M, gram)), M.shape[1] - 2, c.ddof)
    weight = None if head.weight_KD is None else head.weight_KD[present]
    bias = None if head.bias_K is None else head.bias_K[present]
    if weight is not None and bias is not None:
        values |= _shape_values("W", weight, weight @ weight.T, c.ddof)
        values |= _duality_values(weight, bias, moments, M, c)
        if c.central_path and moments.scatter_DD is not None:
            values |= mse_parts(moments, weight, bias)
    if own is not None:
        values |= _decision_values(own, head)
    per_class = _per_class(moments, own, M, gram, weight)
    if train is None:
        values |= _imbalance_values(moments, gram, weight, per_class, c)
    else:
        values |= _train_values(*train, head, c)
    full = {name: _spread(v, frame.position) for name, v in per_class.items()}
    return Collapse(
        {name: float(v) for name, v in values.items()},
        full,
        _spread(moments.mean_KD, frame.position),
        full["count"].nan_to_num().long(),
    )


def _variability_values(moments: Moments, frame: Frame, own: Sweep | None, c: Conventions) -> dict[str, Tensor]:
    whitened = None if own is None else own.gram_RR
    if moments.scatter_DD is not None and (own is None or moments.count_K.min() != moments.count_K.max()):
        whitened = frame.whiten_RD @ moments.scatter_DD @ frame.whiten_RD.T
    traces = variability.variability_traces(moments, frame, None if own is None else own.share_K, whitened)
    scale = len(moments.count_K) if c.scale_by_K else 1
    values = {f"nc1_pinv{suffix}": trace / scale for suffix, trace in traces.items()}
    for suffix, convention in variability.CONVENTIONS.items():
        values[f"nc1_quotient{suffix}"] = variability.variability_quotient(moments, *convention)
    if c.weighting == "sample":
        for key in ("nc1_pinv", "nc1_quotient"):
            values[key] = values[f"{key}__centre_sample"]
    values["rank_Sb"] = torch.tensor(frame.rank)
    if c.vci and moments.scatter_DD is not None:
        values["nc1_vci"] = variability.collapse_index(moments, frame, c.weighting)
    pairs = variability.cdnv(moments, frame.distance_KK)
    values["nc1_cdnv_mean"], values["nc1_cdnv_max"] = pairs.mean(), pairs.max()
    values["nc1_cdnv_mean_sq"] = variability.cdnv(moments, frame.distance_KK, exponent=2).mean()
    if own is not None:
        values["nc1_cdnv_directional_mean"] = variability.directional_cdnv(own.count_K, own.directional_K)
    return values


def _shape_values(name: str, A: Tensor, gram: Tensor, ddof: int) -> dict[str, Tensor]:
    spread, offset = geometry.equiangularity(geometry.cosines(A, gram), ddof)
    return {
        f"nc2_etf_{name}": geometry.etf_error(gram),
        f"nc2_equinorm_{name}": geometry.equinorm(A, ddof),
        f"nc2_equinorm_{name}__ddof1": geometry.equinorm(A, 1),
        f"nc2_equiangular_std_{name}": spread,
        f"nc2_maxangle_{name}": offset,
    }


def _unit_distances(A: Tensor, gram: Tensor) -> Tensor:
    return geometry.distance_matrix(geometry.unit_rows(A), geometry.cosines(A, gram))


def _duality_values(W: Tensor, b: Tensor, moments: Moments, M: Tensor, c: Conventions) -> dict[str, Tensor]:
    sample, centre = variability.global_mean(moments, "sample"), variability.global_mean(moments, c.weighting)
    cross = W @ M.T
    return {
        "nc3_dual_etf": geometry.etf_error(cross),
        "nc3_dual_etf__centre_sample": geometry.etf_error(cross - (W @ (sample - centre))[:, None]),
        "nc3_papyan": duality.self_duality_distance(W, M),
        **duality.alignment(W, M, c.ddof),
        "nc4_Whb": duality.centre_logits_norm(W, b, centre),
        "nc4_Whb__centre_sample": duality.centre_logits_norm(W, b, sample),
    }


def _imbalance_values(
    moments: Moments, gram: Tensor, weight: Tensor | None, per_class: dict[str, Tensor], c: Conventions
) -> dict[str, Tensor]:
    """Of train features only: the sizes that shape the geometry are those of the classes that were trained on."""
    count, values = moments.count_K, {}
    if count.min() != count.max() and len(count) <= seli.MOST_CLASSES:
        gram_W = None if weight is None else weight @ weight.T
        values = seli.seli_errors(count, gram, gram_W, variability.class_weights(moments, c.weighting))
    if count.max() >= 2 * count.min():  # else nobody would call a class a minority
        for name, key in (("M", "minority_cosine"), ("W", "minority_weight_cosine")):
            if key in per_class and per_class[key].isfinite().any():  # over pairs: every minority class has as many
                values[f"nc2_minority_cos_{name}"] = per_class[key].nanmean()
    return values


def _decision_values(own: Sweep, head: Head, suffix: str = "") -> dict[str, Tensor]:
    """Without the head's decisions only those of the nearest mean; without its bias nothing that leaves it out."""
    keep = {"ncc_accuracy": True, "linear_accuracy": own.decided, "nc4_agree_bias": own.decided}
    keep["nc4_agree_nobias"] = own.decided and head.bias_K is not None
    rates = decisions.decision_rates(own)
    return {key + suffix: rate for key, rate in rates.items() if keep[key.split("__")[0]]}


def _train_values(frame: Frame, train: Sweep, head: Head, c: Conventions) -> dict[str, Tensor]:
    n, scale = train.count_K.sum(), len(frame.mean_KD) if c.scale_by_K else 1
    values = _decision_values(train, head, "__train_means")
    values.pop("linear_accuracy__train_means", None)
    values["nc1_pinv__train_means"] = train.share_K.sum() / n / scale
    values["nc1_quotient__train_means"] = train.square_K.sum() / n / frame.singular_R.square().sum()
    return {key: value for key, value in values.items() if "__class_balanced" not in key}


def _per_class(
    moments: Moments, own: Sweep | None, M: Tensor, gram: Tensor, weight: Tensor | None
) -> dict[str, Tensor]:
    """Minority classes are those with fewer samples than the average class; their pairwise cosines tend to 1 in
    minority collapse (Fang et al. 2021), NaN for the others."""
    count = moments.count_K.double()
    minority = count < count.mean()
    values = {"count": count, "mean_norm": torch.linalg.vector_norm(M, dim=1)}
    values["mean_cosine"], values["minority_cosine"] = _class_cosines(geometry.cosines(M, gram), minority)
    values["variance"] = variability.class_variances(moments)
    if weight is not None:
        cosine = geometry.cosines(weight)
        values["weight_norm"] = torch.linalg.vector_norm(weight, dim=1)
        values["weight_cosine"], values["minority_weight_cosine"] = _class_cosines(cosine, minority)
    if own is not None:
        rates = own.hits_4K / count
        values["nc1_share"] = own.share_K / own.share_K.sum()
        values["ncc_accuracy"] = rates[0]
        if own.decided:
            values["accuracy"], values["agreement"] = rates[1], rates[2]
    return values


def _class_cosines(cosine_KK: Tensor, minority_K: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine of a class to all others, and of a minority class to the other minority classes."""
    off = cosine_KK - cosine_KK.diagonal().diag()
    few = minority_K.double()
    among = torch.where(minority_K, (off @ few) / (few.sum() - 1), torch.nan)
    return off.sum(dim=1) / (len(off) - 1), among


def _spread(compact: Tensor, position: Tensor) -> Tensor:
    """Rows of the present classes put back to all classes, NaN elsewhere."""
    present = position[:-1] >= 0
    full = compact.new_full((len(present), *compact.shape[1:]), torch.nan)
    full[present] = compact
    return full
