"""Kernels of infinitely wide networks, and regression with them. Importing it imports torch only."""

from .krr import kip_loss, label_solve, predict, ridge
from .network import Kernel, Variances, conv, convnet, fc, myrtle, named

__all__ = [
    "Kernel", "Variances", "conv", "convnet", "fc", "kip_loss", "label_solve", "myrtle", "named", "predict", "ridge",
]  # fmt: skip
