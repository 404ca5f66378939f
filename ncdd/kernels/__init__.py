"""Kernels of infinitely wide networks, and regression with them. Importing it imports torch only."""

from .krr import kip_loss, label_solve, predict, ridge
from .network import Kernel, Variances, conv, convnet, fc, myrtle
from .zca import ZCA, fit_zca

__all__ = [
    "ZCA", "Kernel", "Variances", "conv", "convnet", "fc", "fit_zca", "kip_loss", "label_solve", "myrtle", "predict",
    "ridge",
]  # fmt: skip
