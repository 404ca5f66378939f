"""What happens around training: measuring collapse, keeping records, guarding."""

from ncdd.callbacks.collapse import NeuralCollapseCallback

__all__ = ["NeuralCollapseCallback"]
