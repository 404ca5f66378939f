"""Neural Collapse: exact, fast measures of features, means and heads. Importing it imports torch only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .measure import Collapse, Conventions, measure
from .ood import auroc, fpr95, neco_basis, neco_scores
from .simplex import simplex_etf
from .statistics import Moments, ShiftedSums, merge_moments

if TYPE_CHECKING:
    from .metric import NeuralCollapse

__all__ = [
    "Collapse",
    "Conventions",
    "Moments",
    "NeuralCollapse",
    "ShiftedSums",
    "auroc",
    "fpr95",
    "measure",
    "merge_moments",
    "neco_basis",
    "neco_scores",
    "simplex_etf",
]


def __getattr__(name: str) -> Any:
    if name == "NeuralCollapse":  # needs torchmetrics, which the functions do not
        from .metric import NeuralCollapse

        return NeuralCollapse
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
