"""NC4: the linear head decides like the nearest class mean. Functions of per-class counts from a sweep."""

from __future__ import annotations

from torch import Tensor

from .sweep import Sweep


def decision_rates(sweep: Sweep) -> dict[str, Tensor]:
    """Shares of samples, as counts divided once (Papyan, Han & Donoho 2020, fig. 7; that is ``1 - NC4`` there).

    ``nc4_agree_*``: argmin_k ||x - mu_k|| equals argmax(Wx + b), or argmax(Wx) for ``nobias``, the only one
    rhubarbwu/neural-collapse has; ``__class_balanced`` averages the classes' rates.
    """
    rates = sweep.hits_4K.sum(dim=1) / sweep.count_K.sum().double()
    seen = sweep.count_K > 0
    balanced = (sweep.hits_4K[:, seen] / sweep.count_K[seen].double()).mean(dim=1)
    return {
        "nc4_agree_bias": rates[2],
        "nc4_agree_bias__class_balanced": balanced[2],
        "nc4_agree_nobias": rates[3],
        "nc4_agree_nobias__class_balanced": balanced[3],
        "ncc_accuracy": rates[0],
        "linear_accuracy": rates[1],
    }
