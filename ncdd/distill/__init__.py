"""Dataset distillation: the synthetic set, what learns it, and what judges it."""

from ncdd.distill.synthetic import SyntheticSet

__all__ = ["SyntheticSet"]
